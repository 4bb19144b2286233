//! Promise: files in every pod follow the keys, whatever happens to the cluster, and no volume is shared.
//!
//! A directory of thousands of files is imported. Two applications have `podkv project` beside them and serve their own
//! directory with Python's web server, which knows nothing of podkv. A third writes one file after the other, and each time
//! waits until both serve it. Meanwhile others write elsewhere, the leader is killed, and every pod is replaced. One of the
//! files is far larger than any request.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use podkv_api::large::own_names;
use podkv_api::{Delete, KeyRange, Put, Range, Store as _};
use podkv_client::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::Run;
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::stage::{Stage, until};
use crate::{PATIENCE, Result, ensure};

const FIRST_PORT: u16 = 18_080;
/// Between two looks at what is served: fine enough for what is measured, and little work.
const LOOK: Duration = Duration::from_millis(5);

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.cluster(3).await?;
    let files = run.by_length(1_000, 10_000);
    let changes = run.by_length(20, 100);
    import(&stage, files).await?;
    let started = Instant::now();
    let applications = [
        Application::start(&stage, 0).await?,
        Application::start(&stage, 1).await?,
    ];
    for application in &applications {
        application.wait_for("d3/0003", "3").await?;
    }
    let first = started.elapsed();
    let client = stage.client()?;
    let load = Load::start(&stage, "projection", Writers::SESSIONS)?;
    load.wait_for(10).await?;
    let mut quiet = Times::default();
    for number in 0..changes {
        quiet.0.push(change(&client, &applications, number).await?);
    }

    let large_bytes = run.by_length(32 << 20, 200 << 20);
    let large = put_large(&stage, &applications, large_bytes).await?;

    let leader = stage.wait_leader().await?;
    stage.pod(leader)?.kill().await;
    for number in changes..2 * changes {
        change(&client, &applications, number).await?;
    }
    stage.wait_all_ready().await?;
    let rolled = stage.roll();
    tokio::pin!(rolled);
    let mut number = 2 * changes;
    loop {
        tokio::select! {
            rolled = &mut rolled => break rolled?,
            changed = change(&client, &applications, number) => {
                changed?;
                number += 1;
            }
        }
    }
    // One more than the one that was cut off.
    change(&client, &applications, number + 1).await?;
    for application in &applications {
        application.check(files).await?;
    }
    // What the scenario wrote for itself is not what the writers are asked about.
    client.delete(Delete::new(KeyRange::prefix("web/"))).await?;
    until(
        "what the large value left is collected",
        PATIENCE,
        async || {
            let left = client.range(Range::new(own_names()).count_only()).await;
            match left.map(|left| left.count) {
                Ok(0) => Ok(()),
                left => Err(format!("{left:?}")),
            }
        },
    )
    .await?;
    client.close().await;
    let ledger = load.stop().await;
    ensure(ledger.failed.is_empty(), || ledger.failures())?;
    stage.check(&ledger).await?;
    let (p50, p99) = quiet.percentiles();
    Ok(Report::of(
        &ledger,
        format!(
            "{files} files there after {first:.1?}; acknowledged to served, under load: p50 {p50:.0?}, p99 {p99:.0?}; {} MiB \
             written and served after {large:.1?}; {number} changes in all",
            large_bytes >> 20
        ),
    ))
}

/// Writes a file, and says how long after the answer both applications serve it.
async fn change(client: &Client, applications: &[Application], number: usize) -> Result<Duration> {
    let text = number.to_string();
    client.put(Put::new("web/changed", text.clone())).await?;
    let acknowledged = Instant::now();
    for application in applications {
        application.wait_for("changed", &text).await?;
    }
    Ok(acknowledged.elapsed())
}

/// A value that no request could carry, from a file to both applications. Says how long that took.
async fn put_large(stage: &Stage, applications: &[Application], bytes: usize) -> Result<Duration> {
    let file = stage.folder().join("large");
    let contents: Vec<u8> = (0..bytes).map(|at| (at ^ (at >> 11)) as u8).collect();
    std::fs::write(&file, &contents)?;
    let started = Instant::now();
    let output = podkv(stage)
        .args(["put", "web/large", "--file"])
        .arg(&file)
        .output()
        .await?;
    ensure(output.status.success(), || {
        String::from_utf8_lossy(&output.stderr).into_owned()
    })?;
    for application in applications {
        let shown = application.folder.join("large");
        // It is there at once, or not at all.
        until("the large file is shown", PATIENCE, async || {
            std::fs::metadata(&shown).map_err(|error| error.to_string())
        })
        .await?;
        ensure(std::fs::read(&shown)? == contents, || {
            format!("{} is not what was written", shown.display())
        })?;
    }
    Ok(started.elapsed())
}

fn podkv(stage: &Stage) -> Command {
    let headless = stage.service_name("podkv-headless");
    let nodes: Vec<String> = (0..3)
        .map(|pod| format!("podkv-{pod}.{headless}:2379"))
        .collect();
    let mut command = Command::new(&stage.binary);
    command
        .arg(format!("--endpoints={}", nodes.join(",")))
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// `podkv import dir`, in many transactions.
async fn import(stage: &Stage, files: usize) -> Result<()> {
    let folder = stage.folder().join("settings");
    for number in 0..files {
        let within = folder.join(format!("d{}", number % 10));
        std::fs::create_dir_all(&within)?;
        std::fs::write(within.join(format!("{number:04}")), number.to_string())?;
    }
    let output = podkv(stage)
        .args(["import", "dir"])
        .arg(&folder)
        .arg("web")
        .output()
        .await?;
    ensure(output.status.success(), || {
        String::from_utf8_lossy(&output.stderr).into_owned()
    })
}

/// An unmodified program, and what keeps its files.
struct Application {
    folder: PathBuf,
    port: u16,
    _project: Child,
    _server: Child,
}

impl Application {
    async fn start(stage: &Stage, number: u16) -> Result<Self> {
        let folder = stage.folder().join(format!("projected-{number}"));
        let shown = podkv(stage)
            .args(["project", "web"])
            .arg(&folder)
            .arg("--once")
            .output()
            .await?;
        ensure(shown.status.success(), || {
            String::from_utf8_lossy(&shown.stderr).into_owned()
        })?;
        let log = std::fs::File::create(stage.folder().join(format!("projected-{number}.log")))?;
        let project = podkv(stage)
            .args(["project", "web"])
            .arg(&folder)
            .stderr(log)
            .spawn()?;
        let port = FIRST_PORT + number;
        let server = Command::new("python3")
            .args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"])
            .arg(&folder)
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self {
            folder,
            port,
            _project: project,
            _server: server,
        })
    }

    async fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = format!("GET /{path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        ensure(head.contains(" 200 "), || {
            head.lines().next().unwrap_or_default().into()
        })?;
        Ok(body.to_owned())
    }

    async fn wait_for(&self, path: &str, text: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let served = self.get(path).await;
            match served {
                Ok(body) if body == text => return Ok(()),
                served if Instant::now() > end => {
                    return Err(format!(
                        "{path} is {served:?} at port {}, and not {text}",
                        self.port
                    )
                    .into());
                }
                _ => sleep(LOOK).await,
            }
        }
    }

    /// All files are there, whole.
    async fn check(&self, files: usize) -> Result<()> {
        let folder = self.folder.clone();
        let right = until("all files are as imported", PATIENCE, async || {
            wrong(&folder, files).map_or(Ok(()), Err)
        });
        right.await
    }
}

fn wrong(folder: &Path, files: usize) -> Option<String> {
    (0..files).find_map(|number| {
        let file = folder.join(format!("d{}/{number:04}", number % 10));
        let text = std::fs::read_to_string(&file);
        (text.as_deref().ok() != Some(number.to_string().as_str()))
            .then(|| format!("{}: {text:?}", file.display()))
    })
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn percentiles(mut self) -> (Duration, Duration) {
        self.0.sort();
        let at = |percent: usize| {
            self.0
                .get((self.0.len() - 1) * percent / 100)
                .copied()
                .unwrap_or_default()
        };
        (at(50), at(99))
    }
}
