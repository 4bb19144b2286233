//! Large values that go to another cluster, by a backup or by a copy, while others are being uploaded.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use podkv_api::large::own_names;
use podkv_api::recipes::LargeValues as _;
use podkv_api::recipes::large::{LargeOptions, Upload};
use podkv_api::{Bytes, Put, Range, Store};
use podkv_client::Client;
use podkv_tests::process::{ProcessCluster, podkv_binary};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

const MIB: usize = 1 << 20;
const CHUNKS: usize = 6;
const PATIENCE: Duration = Duration::from_secs(120);

/// Each byte tells where it stands, and of which value.
fn value(seed: usize) -> Bytes {
    let byte = |at: usize| (at ^ (at >> 9) ^ seed) as u8;
    (0..CHUNKS * MIB).map(byte).collect::<Vec<u8>>().into()
}

/// Short enough to wait for its end, long enough for a machine that is busy.
fn options() -> LargeOptions {
    LargeOptions {
        lease_ttl: Duration::from_secs(10),
        ..LargeOptions::default()
    }
}

fn podkv(cluster: &ProcessCluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(podkv_binary());
    command
        .arg(format!("--endpoints={}", cluster.endpoints().join(",")))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn put_large(client: &Client, key: &'static str, value: &Bytes) {
    let source = futures_util::stream::iter([Ok(value.clone())]);
    client.put_stream(Put::new(key, ""), source).await.unwrap();
}

/// An upload, and half of its chunks.
async fn begin(client: &Client, key: &'static str, value: &Bytes) -> Upload<Client> {
    let before = own(client).await;
    let mut upload = Upload::begin(client, key.into(), &options()).await.unwrap();
    let half = value.slice(..value.len() / 2);
    upload.write(half).await.unwrap();
    let wanted = before + 1 + CHUNKS as u64 / 2;
    until("half of it is there", async || own(client).await == wanted).await;
    upload
}

async fn end(mut upload: Upload<Client>, key: &'static str, value: &Bytes) {
    upload.write(value.slice(value.len() / 2..)).await.unwrap();
    let staged = upload.finish().await.unwrap();
    staged.commit(Put::new(key, "")).await.unwrap();
}

/// Records and chunks.
async fn own(client: &Client) -> u64 {
    let range = Range::new(own_names()).count_only();
    client
        .range(range)
        .await
        .map_or(u64::MAX, |answer| answer.count)
}

async fn check(cluster: &ProcessCluster, key: &str, expected: &Bytes, file: &Path) {
    let file_name = file.to_str().unwrap();
    let got = podkv(cluster, &["get", key, "--out", file_name]).output();
    let got = got.await.unwrap();
    let said = String::from_utf8_lossy(&got.stderr);
    assert!(got.status.success(), "{key}: {said}");
    assert!(
        std::fs::read(file).unwrap() == expected[..],
        "{key} is another"
    );
}

/// There is no event for what another process does.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn signal(child: &Child, signal: Signal) {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    kill_process(id.and_then(Pid::from_raw).unwrap(), signal).unwrap();
}

async fn done(mut command: Command) {
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

struct Files(tempfile::TempDir);

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

/// What was whole is whole after a restore, and stays. What was half goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_large_value_is_whole_and_is_not_collected() {
    let files = Files(tempfile::tempdir().unwrap());
    let (whole, half) = (value(1), value(2));
    let old = ProcessCluster::start(1).await;
    let client = old.client();
    put_large(&client, "app/whole", &whole).await;
    let upload = begin(&client, "app/half", &half).await;
    done(podkv(&old, &["snapshot", "save", &files.text("backup")])).await;
    end(upload, "app/half", &half).await;
    client.close().await;

    let new = ProcessCluster::start(1).await;
    let client = new.client();
    done(podkv(&new, &["snapshot", "restore", &files.text("backup")])).await;
    check(&new, "app/whole", &whole, &files.path("whole")).await;
    assert_eq!(client.get("app/half").await.unwrap(), None);
    // The upload has nobody here who keeps it alive, and the collector comes round.
    let whole_alone = 1 + CHUNKS as u64;
    until("what the upload left is collected", async || {
        own(&client).await == whole_alone
    })
    .await;
    check(&new, "app/whole", &whole, &files.path("whole")).await;
    client.put(Put::new("app/whole", "short")).await.unwrap();
    until("all of it is collected", async || own(&client).await == 0).await;
    client.close().await;
}

/// An upload that is under way while it is copied comes whole, also when the copy lost what was there of it: the importer
/// stands still for longer than the upload's lease, and the collector takes its chunks.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_comes_whole_from_another_podkv_though_the_importer_stood_still() {
    let files = Files(tempfile::tempdir().unwrap());
    let (before, meanwhile, after) = (value(1), value(2), value(3));
    let old = ProcessCluster::start(1).await;
    let client = old.client();
    put_large(&client, "app/before", &before).await;
    let upload = begin(&client, "app/meanwhile", &meanwhile).await;

    let new = ProcessCluster::start(3).await;
    let there = new.client();
    let copy = files.text("copy");
    let address = &old.specs[0].client;
    let mut import = podkv(
        &new,
        &["import", "etcd", address, "--follow", "--file", &copy],
    );
    let import = import.stderr(Stdio::piped()).spawn().unwrap();
    until("it is copied", async || {
        matches!(there.get("app/before").await, Ok(Some(_)))
    })
    .await;
    check(&new, "app/before", &before, &files.path("before")).await;

    signal(&import, Signal::STOP);
    until("the upload is over there", async || {
        own(&there).await == 1 + CHUNKS as u64
    })
    .await;
    signal(&import, Signal::CONT);
    end(upload, "app/meanwhile", &meanwhile).await;
    put_large(&client, "app/after", &after).await;
    until("they have come", async || {
        matches!(there.get("app/after").await, Ok(Some(_)))
    })
    .await;
    for (key, value) in [
        ("app/before", &before),
        ("app/meanwhile", &meanwhile),
        ("app/after", &after),
    ] {
        check(&new, key, value, &files.path("value")).await;
    }
    signal(&import, Signal::INT);
    let ended = import.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    // The collector has been round, and takes nothing of them.
    assert_eq!(own(&there).await, 3 * (1 + CHUNKS as u64));
    there.close().await;
    client.close().await;
}
