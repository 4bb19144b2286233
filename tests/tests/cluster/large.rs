//! 200 MiB as one value, through real processes: whole, in little memory, and collected when it is overwritten.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podkv_api::large::{Manifest, own_names};
use podkv_api::{Put, Range, Store};
use podkv_tests::process::{ProcessCluster, podkv_binary};

const MIB: usize = 1 << 20;
/// Far more than what is under way at once, far less than the value.
const MOST_MEMORY_KIB: u64 = 100 << 10;
const PATIENCE: Duration = Duration::from_secs(120);

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

fn done(mut command: Command) -> (String, String) {
    let output = command.output().expect("the podkv binary starts");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let error = text(&output.stderr);
    assert!(output.status.success(), "{:?}: {error}", output.status);
    (text(&output.stdout), error)
}

/// Each MiB is another one.
fn write_file(path: &Path, mebibytes: usize) {
    let mut file = File::create(path).unwrap();
    for number in 0..mebibytes {
        let block: Vec<u8> = (0..MIB).map(|at| (at * 7 + number * 13) as u8).collect();
        file.write_all(&block).unwrap();
    }
}

fn check_equal(a: &Path, b: &Path) {
    let (mut a, mut b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (mut left, mut right) = (vec![0; MIB], vec![0; MIB]);
    assert_eq!(a.metadata().unwrap().len(), b.metadata().unwrap().len());
    for at in 0..a.metadata().unwrap().len() as usize / MIB {
        a.read_exact(&mut left).unwrap();
        b.read_exact(&mut right).unwrap();
        assert!(left == right, "MiB {at} differs");
    }
}

async fn chunks(store: &impl Store) -> u64 {
    let range = Range::new(own_names()).count_only();
    // Between two leaders there is no answer.
    store.range(range).await.map_or(0, |answer| answer.count)
}

/// There is no event for what another process does.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The most memory that it ever had, looked at until it ends well.
async fn most_memory_kib(mut child: Child) -> u64 {
    let mut most = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let peak = status.unwrap_or_default().lines().find_map(|line| {
            let rest = line.strip_prefix("VmHWM:")?;
            rest.trim().strip_suffix(" kB")?.parse().ok()
        });
        most = most.max(peak.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return most;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_mebibytes_are_one_value() {
    let mut cluster = ProcessCluster::start(3).await;
    let client = cluster.client();
    let dir = tempfile::tempdir().unwrap();
    let (from, to, shown) = (
        dir.path().join("from"),
        dir.path().join("to"),
        dir.path().join("shown"),
    );
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    write_file(&from, 200);

    // The leader is killed while it comes in.
    let put = podkv(&cluster, &["put", "app/model", "--file", &text(&from)])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("some of it is there", async || chunks(&client).await > 20).await;
    assert_eq!(client.get("app/model").await.unwrap(), None);
    let leader = cluster.wait_leader().await;
    cluster.kill(leader);
    let memory = most_memory_kib(put).await;
    assert!(
        memory > 0 && memory < MOST_MEMORY_KIB,
        "put took {memory} KiB"
    );
    cluster.restart(leader);
    cluster.wait_ready(leader).await;
    let kv = client.get("app/model").await.unwrap().unwrap();
    let manifest = Manifest::decode(&kv.value).unwrap().unwrap();
    assert_eq!((manifest.bytes, kv.version), (200 * MIB as u64, 1));

    let get = podkv(
        &cluster,
        &["get", "app/model", "--out", &text(&to), "--mode=0600"],
    )
    .spawn()
    .unwrap();
    let memory = most_memory_kib(get).await;
    assert!(
        memory > 0 && memory < MOST_MEMORY_KIB,
        "get took {memory} KiB"
    );
    check_equal(&from, &to);
    let project = podkv(&cluster, &["project", "app", &text(&shown), "--once"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let memory = most_memory_kib(project).await;
    assert!(
        memory > 0 && memory < MOST_MEMORY_KIB,
        "project took {memory} KiB"
    );
    check_equal(&from, &shown.join("model"));

    // What it is to commands that cannot hold it.
    let (dumped, said) = done(podkv(&cluster, &["dump"]));
    assert!(
        dumped.is_empty() && said.contains("left out: 1"),
        "{dumped:.100} {said}"
    );
    let (listed, _) = done(podkv(&cluster, &["range"]));
    assert!(
        listed.starts_with("app/model\t(large: 209715200 bytes, sha256:"),
        "{listed:.100}"
    );
    assert_eq!(listed.lines().count(), 1);
    let exec = ["exec", "app", "--allow-empty", "--", "/bin/true"];
    let (_, said) = done(podkv(&cluster, &exec));
    assert!(said.contains("app/model: a large value"), "{said}");

    client.put(Put::new("app/model", "short")).await.unwrap();
    until("it is collected", async || chunks(&client).await == 0).await;
    let (short, _) = done(podkv(&cluster, &["get", "app/model"]));
    assert_eq!(short, "short\n");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_pipes_of_any_length_are_values() {
    let cluster = ProcessCluster::start(1).await;
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for mebibytes in [0, 1, 3] {
        write_file(&from, mebibytes);
        let mut put = podkv(&cluster, &["-o", "json", "put", "k", "-"]);
        put.stdin(File::open(&from).unwrap());
        let (said, _) = done(put);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        // One that fits into a request is an ordinary one.
        assert_eq!(said["chunks"], if mebibytes < 2 { 0 } else { mebibytes });
        assert_eq!(said["bytes"], mebibytes * MIB);
        done(podkv(&cluster, &["get", "k", "--out", &text(&to)]));
        check_equal(&from, &to);
        let (said, _) = done(podkv(&cluster, &["-o", "json", "get", "k"]));
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["large"].is_object(), mebibytes == 3);
    }
    // What cannot be written leaves what is there.
    std::fs::write(&to, "mine").unwrap();
    let out = dir.path().join("none/to");
    let output = podkv(&cluster, &["get", "k", "--out", &text(&out)]).output();
    assert_eq!(output.unwrap().status.code(), Some(1));
    let output = podkv(&cluster, &["get", "nothing", "--out", &text(&to)]).output();
    assert_eq!(output.unwrap().status.code(), Some(3));
    assert_eq!(std::fs::read(&to).unwrap(), b"mine");
}
