//! Promise: files in every pod follow the keys, whatever happens to the cluster, and no volume is shared.
//!
//! The pods of `k8s/examples/projection`: nginx, which knows nothing of podkv, with its configuration and thousands of files
//! from keys, and beside it `podkv project`, as the manifest has them. Somebody writes one file after the other, and each time
//! waits until every nginx serves it. Meanwhile others write elsewhere, the configuration is changed, broken and rolled
//! back, a file comes that is far larger than any request, the leader is killed, and every node is replaced. At the end all
//! keys are deleted by mistake, and nginx serves on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use podkv_api::large::own_names;
use podkv_api::{Delete, KeyRange, Put, Range, Revision, Store as _};
use podkv_client::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::Run;
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::stage::{Application, Stage, until};
use crate::{PATIENCE, Result, ensure, namespaces, say};

/// Of the manifest.
const DEPLOYMENT: &str = "web";
const VOLUME: &str = "projected";
const NGINX: &str = "nginx";
const SIDECAR: &str = "project";
const HTTP: u16 = 8080;
const SIDECAR_PAGE: u16 = 2382;
const CONFIGURATION: &str = "web/nginx.conf";
/// Between two looks at what is served: fine enough for what is measured, and little work.
const LOOK: Duration = Duration::from_millis(5);

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.cluster(3).await?;
    let files = run.by_length(1_000, 10_000);
    let changes = run.by_length(20, 100);
    import(&stage, files).await?;
    say(format_args!("{files} files are imported"));
    let started = Instant::now();
    let mut web = Web::start(&stage).await?;
    web.wait_for("d3/0003", "3").await?;
    let first = started.elapsed();
    say(format_args!(
        "they are served in every pod after {first:.1?}"
    ));

    let client = stage.client()?;
    let load = Load::start(&stage, "projection", Writers::SESSIONS)?;
    load.wait_for(10).await?;
    let mut changer = Changer::default();
    let quiet = changer.change(&client, &web, changes).await?;
    say(format_args!("under load: {quiet}"));
    configure(&stage, &client, &web, &mut changer).await?;
    say("a changed configuration was loaded, a broken one refused and rolled back");
    let large_bytes = run.by_length(32 << 20, 200 << 20);
    let large = put_large(&stage, &web, large_bytes).await?;
    say(format_args!(
        "{large_bytes} bytes are served after {large:.1?}"
    ));

    let leader = stage.wait_leader().await?;
    stage.pod(leader)?.kill().await;
    let killed = changer.change(&client, &web, changes).await?;
    say(format_args!("the leader killed: {killed}"));
    stage.wait_all_ready().await?;
    let rolled = changer.change_while(&client, &web, stage.roll()).await?;
    say(format_args!("every node replaced: {rolled}"));
    web.check(files).await?;
    let memory_kib = web.memory_kib();

    // What the scenario wrote for itself is not what the writers are asked about.
    client.delete(Delete::new(KeyRange::prefix("web/"))).await?;
    web.all_gone(changer.last()).await?;
    say("all keys are gone, and nginx serves on");
    until_collected(&client).await?;
    client.close().await;
    let ledger = load.stop().await;
    ensure(ledger.failed.is_empty(), || ledger.failures())?;
    stage.check(&ledger).await?;
    let notes = format!(
        "{files} files in {} pods after {first:.1?}; acknowledged to served by all: under load {quiet}; the leader killed {killed}; \
         every node replaced {rolled}; {} MiB written and served after {large:.1?}; a sidecar's memory up to {} MiB",
        web.pods.len(),
        large_bytes >> 20,
        memory_kib >> 10,
    );
    Ok(Report::of(&ledger, notes))
}

/// Why this cannot be played on this machine.
pub fn missing() -> Option<String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_there = std::env::split_paths(&paths).any(|folder| folder.join(NGINX).exists());
    (!is_there).then(|| "nginx is missing (Debian: apt-get install nginx)".into())
}

/// The files of the example, and many more, in as many transactions as they take.
async fn import(stage: &Stage, files: usize) -> Result<()> {
    let folder = stage.folder().join("settings");
    let html = folder.join("html");
    for number in 0..files {
        let within = html.join(format!("d{}", number % 10));
        fs::create_dir_all(&within)?;
        fs::write(within.join(format!("{number:04}")), number.to_string())?;
    }
    let example = namespaces::root().join("k8s/examples/projection/web");
    for file in ["nginx.conf", "html/index.html"] {
        fs::copy(example.join(file), folder.join(file))?;
    }
    let folder = folder.display().to_string();
    podkv(stage, &["import", "dir", &folder, "web"]).await
}

/// Changes the configuration, breaks it, and takes that back.
async fn configure(stage: &Stage, client: &Client, web: &Web, changer: &mut Changer) -> Result<()> {
    let kv = client.get(CONFIGURATION).await?.ok_or("no configuration")?;
    let first = String::from_utf8_lossy(&kv.value).into_owned();
    let with = |line: &str| first.replace("root /web/html;", &format!("root /web/html; {line}"));
    let put = async |text: &str| -> Result<Revision> {
        let put = Put::new(CONFIGURATION, text.to_owned());
        Ok(client.put(put).await?.header.revision)
    };
    let good = put(&with("add_header X-Configuration two;")).await?;
    web.wait_for_head("index.html", "X-Configuration: two")
        .await?;

    let broken = with("no_such_directive;");
    put(&broken).await?;
    for pod in &web.pods {
        until("nginx refuses the configuration", PATIENCE, async || {
            let log = pod.log(NGINX);
            let is_refused = log.contains("unknown directive \"no_such_directive\"");
            is_refused.then_some(()).ok_or(log)
        })
        .await?;
        let shown = pod.volume(VOLUME).join("nginx.conf");
        ensure(fs::read_to_string(&shown)? == broken, || {
            format!("{} is not what was put", shown.display())
        })?;
        let tested = Command::new(NGINX).arg("-t").arg("-c").arg(&shown).output();
        let tested = tested.await?;
        ensure(!tested.status.success(), || {
            "nginx -t finds nothing wrong with it".into()
        })?;
    }
    // The workers that there were serve on, and files go on changing.
    changer.change(client, web, 1).await?;
    web.wait_for_head("index.html", "X-Configuration: two")
        .await?;

    podkv(stage, &["rollback", "web", &format!("--to={good}")]).await?;
    web.wait_for_file("nginx.conf", &with("add_header X-Configuration two;"))
        .await?;
    put(&with("add_header X-Configuration three;")).await?;
    web.wait_for_head("index.html", "X-Configuration: three")
        .await
}

/// A value that no request could carry, from a file to every nginx. Says how long that took.
async fn put_large(stage: &Stage, web: &Web, bytes: usize) -> Result<Duration> {
    let file = stage.folder().join("large");
    let contents: Vec<u8> = (0..bytes).map(|at| (at ^ (at >> 11)) as u8).collect();
    fs::write(&file, &contents)?;
    let started = Instant::now();
    let file = file.display().to_string();
    podkv(stage, &["put", "web/html/large", "--file", &file]).await?;
    say(format_args!(
        "they are written after {:.1?}",
        started.elapsed()
    ));
    for pod in &web.pods {
        let what = format!("the large file is served in {}", pod.name);
        let answer = until(&what, PATIENCE, async || {
            let answer = get(pod, "large").await.map_err(|error| error.to_string())?;
            // It is there at once, or not at all.
            let is_there = answer.head.contains(" 200 ");
            is_there.then_some(answer.body).ok_or(answer.head)
        });
        ensure(answer.await? == contents, || {
            format!("what {} serves is not what was written", pod.name)
        })?;
    }
    Ok(started.elapsed())
}

async fn until_collected(client: &Client) -> Result<()> {
    let what = "what the large value left is collected";
    until(what, PATIENCE, async || {
        let left = client.range(Range::new(own_names()).count_only()).await;
        match left.map(|left| left.count) {
            Ok(0) => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await
}

/// Runs `podkv` to its end, as somebody beside the cluster would.
async fn podkv(stage: &Stage, arguments: &[&str]) -> Result<()> {
    let headless = stage.service_name("podkv-headless");
    let nodes: Vec<String> = (0..3)
        .map(|pod| format!("podkv-{pod}.{headless}:2379"))
        .collect();
    let output = Command::new(&stage.binary)
        .arg(format!("--endpoints={}", nodes.join(",")))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    ensure(output.status.success(), || {
        let complaint = String::from_utf8_lossy(&output.stderr);
        format!("podkv {}: {complaint}", arguments.join(" "))
    })
}

/// Writes one file again and again.
#[derive(Default)]
struct Changer {
    number: usize,
}

impl Changer {
    /// Measures each from its answer to when every pod serves it.
    async fn change(&mut self, client: &Client, web: &Web, times: usize) -> Result<Times> {
        let mut all = Times::default();
        for _ in 0..times {
            self.number += 1;
            let text = self.last();
            client
                .put(Put::new("web/html/changed", text.clone()))
                .await?;
            let acknowledged = Instant::now();
            web.wait_for("changed", &text).await?;
            all.0.push(acknowledged.elapsed());
        }
        Ok(all)
    }

    /// The same, for as long as this takes.
    async fn change_while(
        &mut self,
        client: &Client,
        web: &Web,
        doing: impl Future<Output = Result<()>>,
    ) -> Result<Times> {
        tokio::pin!(doing);
        let mut all = Times::default();
        loop {
            tokio::select! {
                done = &mut doing => break done?,
                one = self.change(client, web, 1) => all.0.extend(one?.0),
            }
        }
        // The one that was cut off may have been written.
        all.0.extend(self.change(client, web, 1).await?.0);
        Ok(all)
    }

    fn last(&self) -> String {
        self.number.to_string()
    }
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort();
        let at = |percent: usize| {
            let place = sorted.len().saturating_sub(1) * percent / 100;
            sorted.get(place).copied().unwrap_or_default()
        };
        let (count, p50, p99, most) = (sorted.len(), at(50), at(99), at(100));
        write!(
            f,
            "p50 {p50:.0?}, p99 {p99:.0?}, most {most:.0?} of {count}"
        )
    }
}

/// The pods of the Deployment.
struct Web {
    pods: Vec<Application>,
}

impl Web {
    async fn start(stage: &Stage) -> Result<Self> {
        let deployment = stage.world.manifests.deployment(DEPLOYMENT)?;
        let numbers = 0..deployment.spec.replicas;
        let pods = numbers.map(|number| Application::start(&stage.kubelet, &deployment, number));
        Ok(Self {
            pods: futures_util::future::try_join_all(pods).await?,
        })
    }

    /// Until every pod serves this text.
    async fn wait_for(&self, path: &str, text: &str) -> Result<()> {
        self.wait(path, text, |answer| answer.body == text.as_bytes())
            .await
    }

    async fn wait_for_head(&self, path: &str, line: &str) -> Result<()> {
        self.wait(path, line, |answer| answer.head.contains(line))
            .await
    }

    async fn wait(&self, path: &str, what: &str, is_right: impl Fn(&Answer) -> bool) -> Result<()> {
        for pod in &self.pods {
            let end = Instant::now() + PATIENCE;
            loop {
                let answer = get(pod, path).await;
                if answer.as_ref().is_ok_and(&is_right) {
                    break;
                }
                ensure(Instant::now() < end, || {
                    format!("{} answers {answer:?} for {path}, not {what}", pod.name)
                })?;
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Until every pod's directory shows this text.
    async fn wait_for_file(&self, path: &str, text: &str) -> Result<()> {
        for pod in &self.pods {
            let file = pod.volume(VOLUME).join(path);
            until("a file is shown", PATIENCE, async || {
                let found = fs::read_to_string(&file).map_err(|error| error.to_string())?;
                (found == text).then_some(()).ok_or(found)
            })
            .await?;
        }
        Ok(())
    }

    /// All files are there, whole, and nothing in a pod had to be started again.
    async fn check(&mut self, files: usize) -> Result<()> {
        for pod in &mut self.pods {
            pod.check()?;
            let html = pod.volume(VOLUME).join("html");
            until("all files are as imported", PATIENCE, async || {
                wrong(&html, files).map_or(Ok(()), Err)
            })
            .await?;
            let page = page(pod, SIDECAR_PAGE, "/readyz").await?;
            ensure(page.head.contains(" 200 "), || {
                format!("the sidecar of {}: {page:?}", pod.name)
            })?;
        }
        Ok(())
    }

    /// The most that a sidecar has in memory.
    fn memory_kib(&self) -> u64 {
        let memory = self.pods.iter().filter_map(|pod| pod.memory_kib(SIDECAR));
        memory.max().unwrap_or_default()
    }

    /// The sidecars have seen that there is no key left, and the files are as they were.
    async fn all_gone(&self, last: String) -> Result<()> {
        for pod in &self.pods {
            until("the sidecar tells of a problem", PATIENCE, async || {
                let page = page(pod, SIDECAR_PAGE, "/metrics").await;
                let page = page.map_err(|error| error.to_string())?;
                let text = String::from_utf8_lossy(&page.body).into_owned();
                let is_told = text.contains("podkv_project_problem 1\n");
                is_told.then_some(()).ok_or(text)
            })
            .await?;
            let log = pod.log(SIDECAR);
            ensure(log.contains("holds no key"), || log)?;
        }
        self.wait_for("changed", &last).await
    }
}

fn wrong(folder: &Path, files: usize) -> Option<String> {
    let file = |number: usize| -> PathBuf { folder.join(format!("d{}/{number:04}", number % 10)) };
    (0..files).find_map(|number| {
        let text = fs::read_to_string(file(number));
        (text.as_deref().ok() != Some(number.to_string().as_str()))
            .then(|| format!("{}: {text:?}", file(number).display()))
    })
}

/// Of an HTTP server.
#[derive(Clone)]
struct Answer {
    head: String,
    body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let begin = &self.body[..self.body.len().min(100)];
        write!(f, "{:?} {:?}", self.head, String::from_utf8_lossy(begin))
    }
}

/// A file from nginx.
async fn get(pod: &Application, path: &str) -> Result<Answer> {
    page(pod, HTTP, &format!("/{path}")).await
}

async fn page(pod: &Application, port: u16, path: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect((pod.ip, port)).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        pod.name
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let end = end.ok_or("no answer")?;
    let body = answer.split_off(end + 4);
    Ok(Answer {
        head: String::from_utf8_lossy(&answer).into_owned(),
        body,
    })
}
