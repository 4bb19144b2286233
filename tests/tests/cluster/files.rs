//! Directories, programs and imports of real processes: `podkv project`, `exec` and `import`, killed and told to end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use podkv_api::{Delete, KeyRange, Op, Put, Store as _, Txn};
use podkv_client::Client;
use podkv_tests::process::{ProcessCluster, podkv_binary};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

fn podkv(cluster: &ProcessCluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(podkv_binary());
    command
        .arg(format!("--endpoints={}", cluster.endpoints().join(",")))
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null());
    command
}

/// Runs it to its end, which has to be good.
fn done(mut command: Command) -> String {
    let output = command.output().expect("the podkv binary starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {error}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process id"), signal).unwrap();
}

/// Waits until it is as it should be; there is no event for what another process does to a file.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// SIGKILL when it is dropped, also by a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The files of the torture: some at the top, some below two folders.
fn torture_files() -> Vec<String> {
    let top = (0..8).map(|n| format!("f{n}"));
    let below = (0..8).map(|n| format!("conf.d/{}/g{n}", n % 2));
    top.chain(below).collect()
}

/// The number of the change, and padding whose length tells whether it is whole.
fn contents(number: u64) -> String {
    let padding = "x".repeat(usize::try_from(number * 37 % 9_000).unwrap());
    format!("{number} {} {padding}", padding.len())
}

fn number_of(text: &str, what: &Path) -> u64 {
    let mut words = text.split(' ');
    let mut word = || {
        words
            .next()
            .unwrap_or_else(|| panic!("{what:?} is cut: {text:.40?}"))
    };
    let (number, length) = (word().parse().unwrap(), word().parse::<usize>().unwrap());
    assert_eq!(word().len(), length, "{what:?} is cut");
    number
}

/// Reads one folder of the directory through one handle, as a program does that needs one state. It takes `pace` for each
/// file: one that is slow is still there when the folder has been replaced.
fn read_one_state(dir: &Path, files: &[String], pace: Duration) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let data = rustix::fs::open(dir.join("..data"), flags, Mode::empty()).unwrap();
    let read = |data: &OwnedFd, file: &String| {
        let opened = rustix::fs::openat(
            data.as_fd(),
            file.as_str(),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let opened = opened.unwrap_or_else(|error| panic!("{file} is missing: {error}"));
        let mut text = String::new();
        std::fs::File::from(opened)
            .read_to_string(&mut text)
            .unwrap();
        number_of(&text, Path::new(file))
    };
    let paced = |file| {
        std::thread::sleep(pace);
        read(&data, file)
    };
    let numbers: BTreeSet<u64> = files.iter().map(paced).collect();
    assert_eq!(numbers.len(), 1, "a mixed state: {numbers:?}");
    numbers.into_iter().next().unwrap()
}

struct Seen {
    states: BTreeSet<u64>,
    passes: u64,
}

/// Reads until it is told to stop. States never go back.
fn read_for_ever(dir: &Path, pace: Duration, stop: &AtomicBool) -> Seen {
    let files = torture_files();
    let mut seen = Seen {
        states: BTreeSet::new(),
        passes: 0,
    };
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        let state = read_one_state(dir, &files, pace);
        assert!(state >= last, "from {last} back to {state}");
        last = state;
        seen.states.insert(state);
        // By path, each file is whole and there, and not older than what was seen before.
        for file in &files {
            let path = dir.join(file);
            let text =
                std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            assert!(number_of(&text, &path) >= last);
        }
        seen.passes += 1;
    }
    seen
}

async fn write_all(client: &Client, files: &[String], number: u64) {
    let text = contents(number);
    let puts = files
        .iter()
        .map(|file| Op::from(Put::new(format!("app/{file}"), text.clone())));
    client.txn(Txn::new().then(puts)).await.unwrap();
}

/// The promise of `podkv project`: whoever reads sees one revision, whole, whatever happens to the projector.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_never_sees_half_a_change_while_the_projector_is_killed() {
    const CHANGES: u64 = 2_000;
    let cluster = ProcessCluster::start(1).await;
    let client = cluster.client();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("conf");
    let path = target.to_str().unwrap();
    let files = torture_files();
    write_all(&client, &files, 1).await;
    done(podkv(&cluster, &["project", "app", path, "--once"]));

    let stop = Arc::new(AtomicBool::new(false));
    let read = |pace| {
        let (target, stop) = (target.clone(), stop.clone());
        tokio::task::spawn_blocking(move || read_for_ever(&target, pace, &stop))
    };
    let (fast, slow) = (read(Duration::ZERO), read(Duration::from_millis(3)));
    // A reader that is not scheduled for seconds still finds what it opened.
    let arguments = ["project", "app", path, "--debounce=1ms", "--linger=30s"];
    let start = || {
        let mut command = podkv(&cluster, &arguments);
        Killed(command.stderr(Stdio::null()).spawn().unwrap())
    };
    let mut projector = start();
    let mut kills = 0;
    let mut last_state = 1;
    for number in 2..=CHANGES {
        write_all(&client, &files, number).await;
        // Each life is long enough to have shown something new.
        if number % 50 == 0 && read_one_state(&target, &files, Duration::ZERO) > last_state {
            last_state = read_one_state(&target, &files, Duration::ZERO);
            drop(projector);
            kills += 1;
            projector = start();
        }
    }
    until("the last change is shown", || {
        read_one_state(&target, &files, Duration::ZERO) == CHANGES
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let seen = fast.await.unwrap();
    assert!(slow.await.unwrap().passes > 0);
    signal(&projector.0, Signal::TERM);
    assert_eq!(projector.0.wait().unwrap().code(), Some(0));
    eprintln!(
        "{} passes saw {} states; {kills} kills",
        seen.passes,
        seen.states.len()
    );
    assert!(
        kills > 0 && seen.states.len() > 10,
        "{kills} kills, {} states",
        seen.states.len()
    );
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_imported_shown_and_made_equal() {
    let cluster = ProcessCluster::start(1).await;
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir_all(from.join("sub")).unwrap();
    for n in 0..300 {
        std::fs::write(from.join(format!("sub/{n:03}")), format!("{n}")).unwrap();
    }
    let (from_text, to_text) = (from.to_str().unwrap(), to.to_str().unwrap());
    let import = ["import", "dir", from_text, "app"];
    let planned = done(podkv(
        &cluster,
        &["import", "dir", from_text, "app", "--dry-run"],
    ));
    assert!(
        planned.ends_with("unchanged 0, transactions 4\n"),
        "{planned}"
    );
    let client = cluster.client();
    assert_eq!(
        client.get("app/sub/000").await.unwrap(),
        None,
        "a dry run writes nothing"
    );

    let written = done(podkv(&cluster, &import));
    assert!(
        written.starts_with("written 300, deleted 0, unchanged 0, in 4 transactions"),
        "{written}"
    );
    assert!(done(podkv(&cluster, &import)).starts_with("written 0, deleted 0, unchanged 300"));
    assert_eq!(client.get("app/..import").await.unwrap(), None);

    let status = dir.path().join("status.json");
    let shown = format!("--status={}", status.display());
    done(podkv(
        &cluster,
        &["project", "app", to_text, "--once", "--mode=0440", &shown],
    ));
    for n in 0..300 {
        assert_eq!(
            std::fs::read_to_string(to.join(format!("sub/{n:03}"))).unwrap(),
            format!("{n}")
        );
    }
    let status: serde_json::Value =
        serde_json::from_slice(&std::fs::read(status).unwrap()).unwrap();
    assert_eq!(
        (&status["files"], &status["problem"]),
        (&300.into(), &serde_json::Value::Null)
    );

    // Exactly equal: what is gone here goes there.
    std::fs::remove_file(from.join("sub/007")).unwrap();
    std::fs::write(from.join("sub/000"), "new").unwrap();
    let written = done(podkv(
        &cluster,
        &["import", "dir", from_text, "app", "--delete"],
    ));
    assert!(
        written.starts_with("written 1, deleted 1, unchanged 298, revision"),
        "{written}"
    );

    // What a projection shows can be imported as it is: links and all.
    let written = done(podkv(&cluster, &["import", "dir", to_text, "copy"]));
    assert!(written.starts_with("written 300"), "{written}");
    client.close().await;
}

/// What a killed import leaves is not shown; the next one ends it.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_broke_off_is_ended_by_the_next() {
    let cluster = ProcessCluster::start(1).await;
    let client = cluster.client();
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    std::fs::write(from.join("a"), "new").unwrap();
    client.put(Put::new("app/..import", "")).await.unwrap();
    client.put(Put::new("app/a", "half")).await.unwrap();
    let mut projector = podkv(&cluster, &["project", "app", to.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(projector.stderr.take().unwrap()).lines();
    let said = tokio::task::spawn_blocking(move || said.next().unwrap().unwrap());
    assert!(said.await.unwrap().contains("an import is not finished"));
    assert!(!to.join("a").exists());
    let manifest = dir.path().join("manifest.yaml");
    std::fs::write(
        &manifest,
        "kind: ConfigMap\nmetadata: {name: x}\ndata: {a: new, b: two}\n",
    )
    .unwrap();
    done(podkv(
        &cluster,
        &["import", "manifest", manifest.to_str().unwrap(), "app"],
    ));
    until("all of it is shown", || to.join("b").exists()).await;
    assert_eq!(std::fs::read_to_string(to.join("a")).unwrap(), "new");
    signal(&projector, Signal::TERM);
    projector.wait().unwrap();
    client.close().await;
}

/// Frozen keys can be neither written nor rolled back, by anybody; and a rollback brings back what was.
#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_frozen_thawed_and_rolled_back() {
    let cluster = ProcessCluster::start(1).await;
    let client = cluster.client();
    let then = client
        .put(Put::new("app/a", "old"))
        .await
        .unwrap()
        .header
        .revision;
    client.put(Put::new("app/a", "new")).await.unwrap();
    assert_eq!(done(podkv(&cluster, &["freeze", "app"])), "app/\n");
    let to = format!("--to={then}");
    for refused in [
        &["put", "app/a", "x"][..],
        &["del", "app/a"],
        &["rollback", "app", &to],
    ] {
        let output = podkv(&cluster, refused).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{refused:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("[Frozen]"),
            "{refused:?}"
        );
    }
    assert_eq!(done(podkv(&cluster, &["freeze"])), "app/\n");
    assert_eq!(done(podkv(&cluster, &["thaw", "app"])), "");
    let planned = done(podkv(&cluster, &["rollback", "app", &to, "--dry-run"]));
    assert_eq!(planned, "put app/a\nunchanged 0\n");
    assert!(done(podkv(&cluster, &["rollback", "app", &to])).starts_with("written 1, deleted 0"));
    assert_eq!(client.get("app/a").await.unwrap().unwrap().value, "old");
    client.close().await;
}

/// A program that says its variables, and writes down how it was ended.
const PROGRAM: &str = r#"
    trap 'echo hup' HUP
    trap 'echo term; exit 7' TERM
    echo "A=$A db_host=$db_host"
    while :; do sleep 0.05; done
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_program_gets_keys_as_variables_and_signals_as_if_alone() {
    let cluster = ProcessCluster::start(1).await;
    let client = cluster.client();
    client.put(Put::new("app/A", "1")).await.unwrap();
    client.put(Put::new("app/db/host", "x")).await.unwrap();
    let mut exec = podkv(&cluster, &["exec", "app", "--", "sh", "-c", PROGRAM])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (sender, mut lines) = tokio::sync::mpsc::channel(64);
    let out = BufReader::new(exec.stdout.take().unwrap());
    let reader = tokio::task::spawn_blocking(move || {
        for line in out.lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    let mut next = async || {
        tokio::time::timeout(PATIENCE, lines.recv())
            .await
            .expect("a line within a minute")
    };
    assert_eq!(next().await.as_deref(), Some("A=1 db_host=x"));
    signal(&exec, Signal::HUP);
    assert_eq!(next().await.as_deref(), Some("hup"));
    // A change that changes nothing restarts nothing.
    client.put(Put::new("app/A", "1")).await.unwrap();
    client.put(Put::new("app/A", "2")).await.unwrap();
    assert_eq!(next().await.as_deref(), Some("term"));
    assert_eq!(next().await.as_deref(), Some("A=2 db_host=x"));
    signal(&exec, Signal::TERM);
    assert_eq!(next().await.as_deref(), Some("term"));
    assert_eq!(exec.wait().unwrap().code(), Some(7), "the program's own");
    reader.await.unwrap();
    client.close().await;
}

/// What a program leaves behind ends with it.
#[tokio::test(flavor = "multi_thread")]
async fn the_children_of_a_program_end_with_it() {
    let cluster = ProcessCluster::start(1).await;
    let client = cluster.client();
    client.put(Put::new("app/A", "1")).await.unwrap();
    // Standard output closes when the last of them has ended.
    let output = podkv(
        &cluster,
        &[
            "exec",
            "app",
            "--",
            "sh",
            "-c",
            "sleep 3600 & echo $A; exit 3",
        ],
    )
    .output()
    .unwrap();
    assert_eq!(output.stdout, b"1\n");
    assert_eq!(output.status.code(), Some(3));
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_runs_after_a_change_and_metrics_say_so() {
    let cluster = ProcessCluster::start(1).await;
    let client = cluster.client();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("conf");
    client.put(Put::new("app/a", "1")).await.unwrap();
    let port = podkv_tests::process::free_ports(1)[0];
    let hook = format!("cp {0}/a {1}/copy", target.display(), dir.path().display());
    let mut projector = podkv(&cluster, &["project", "app", target.to_str().unwrap()])
        .arg(format!("--exec={hook}"))
        .arg(format!("--metrics=127.0.0.1:{port}"))
        .spawn()
        .unwrap();
    let copy = dir.path().join("copy");
    let holds = |text: &str| std::fs::read_to_string(&copy).is_ok_and(|found| found == text);
    until("the first state is copied", || holds("1")).await;
    client.put(Put::new("app/a", "2")).await.unwrap();
    until("the second state is copied", || holds("2")).await;
    let page = get(port, "/metrics").await;
    let values: BTreeMap<&str, &str> = page
        .lines()
        .filter(|line| line.starts_with("podkv_"))
        .filter_map(|line| line.split_once(' '))
        .collect();
    assert_eq!(values["podkv_project_swaps_total"], "2");
    assert_eq!(values["podkv_project_files"], "1");
    assert_eq!(values["podkv_project_problem"], "0");
    assert!(get(port, "/readyz").await.starts_with("HTTP/1.1 200"));
    client
        .delete(Delete::new(KeyRange::prefix("app/")))
        .await
        .unwrap();
    let mut gone = String::new();
    let deadline = Instant::now() + PATIENCE;
    while !gone.contains("podkv_project_problem 1") {
        assert!(Instant::now() < deadline, "{gone}");
        gone = get(port, "/metrics").await;
    }
    assert!(target.join("a").exists(), "the last state stays");
    signal(&projector, Signal::TERM);
    assert_eq!(projector.wait().unwrap().code(), Some(0));
    client.close().await;
}

async fn get(port: u16, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: podkv\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}
