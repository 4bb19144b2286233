//! Promise 7, of a volume that is nearly full, on a real one: of three processes one is on a file system of 384 MiB. Clients
//! write until that is refused. The node lives on, what frees space passes, and writes go on by themselves afterwards.
//!
//! The file system is an image that is mounted in a namespace of the node's own: it goes with the process, whatever becomes
//! of the test. That needs root.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use podkv_api::{Delete, ErrorKind, KeyRange, Put, Reason, Store as _};
use podkv_client::Client;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use podkv_tests::etcd::{Etcd, put};
use podkv_tests::process::{NodeProcess, NodeSpec, ProcessCluster};
use rand::Rng as _;
use tonic::Code;

use crate::local_state;

/// Far more than anything takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

const VOLUME_BYTES: u64 = 384 << 20;
/// The headroom has to take all of the data once more: a compaction writes it anew before the old tables go, and what is
/// deleted moves to history first. The log and the memtables take their 100 MiB on any volume.
const SETTINGS: &[&str] = &[
    "--headroom-bytes=144MiB",
    "--snapshot-log-bytes=8MiB",
    "--log-keep-bytes=1MiB",
];
const VALUE_BYTES: usize = 64 << 10;
/// Few: until every door is closed, what still comes in goes into the headroom.
const WRITERS: usize = 3;

/// The index of the node whose volume is small.
const SMALL: usize = 2;

/// What was acknowledged: the value, and its revision.
type Acknowledged = BTreeMap<String, (Bytes, u64)>;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_closes_the_doors_and_opens_them_again_by_itself() {
    if !rustix::process::geteuid().is_root() {
        // Past what captures the output of tests: nobody should take this for the whole.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "\nNO FULL DISK: it needs root, to mount one\n").unwrap();
        return;
    }
    let mut cluster = start().await;
    let client = cluster.client();
    let mut acknowledged = Acknowledged::new();
    for round in 0.. {
        acknowledged.append(&mut fill(&client, round).await);
        // What was purged just then may have made room again, for a little while.
        if etcd_is_told(&cluster).await {
            break;
        }
    }
    check(&mut cluster, &acknowledged).await;

    // What frees space passes, and needs no room but the headroom. The first writer's keys stay.
    for writer in 1..WRITERS {
        let prefix = format!("fill/{writer}/");
        let delete = Delete::new(KeyRange::prefix(prefix.clone()));
        let deleted = client.delete(delete).await.unwrap();
        acknowledged.retain(|key, _| !key.starts_with(&prefix));
        client.compact(deleted.header.revision).await.unwrap();
    }
    let after = tokio::time::timeout(PATIENCE, put_when_there_is_room(&client)).await;
    let (key, value) = after.expect("there is room again");
    acknowledged.insert(key, value);
    check(&mut cluster, &acknowledged).await;
    client.close().await;
}

/// Three nodes, the last one on the small volume.
async fn start() -> ProcessCluster {
    let mut cluster = ProcessCluster::prepare(3, SETTINGS);
    let (image, disk) = (
        cluster.folder.path().join("disk.img"),
        cluster.folder.path().join("disk"),
    );
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(VOLUME_BYTES))
        .unwrap();
    std::fs::create_dir(&disk).unwrap();
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0"])
        .arg(&image)
        .output()
        .expect("mkfs.ext4 is there (Debian: apt-get install e2fsprogs)");
    assert!(made.status.success(), "{made:?}");
    cluster.specs[SMALL].data_dir = disk.join("data");
    for index in 0..SMALL {
        cluster.restart(index);
    }
    let small = mounted(&cluster.specs[SMALL], &image, &disk);
    cluster.nodes[SMALL] = Some(NodeProcess::start(small));
    for index in 0..3 {
        cluster.wait_ready(index).await;
    }
    cluster
}

/// The node on the image. Every program becomes the next one, so that the process is the node.
fn mounted(spec: &NodeSpec, image: &Path, disk: &Path) -> Command {
    let node = spec.command();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--", "sh", "-c"])
        .arg("mount -o loop \"$1\" \"$2\" && shift 2 && exec \"$@\"")
        .arg("sh")
        .args([image, disk])
        .arg(node.get_program())
        .args(node.get_args())
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// All writers write new keys until that is refused.
async fn fill(client: &Client, round: u32) -> Acknowledged {
    // No two values are the same, and none can be compressed.
    let mut noise = vec![0; VALUE_BYTES];
    rand::rng().fill_bytes(&mut noise);
    let noise = Bytes::from(noise);
    let writers = (0..WRITERS).map(|writer| write(client, writer, round, noise.clone()));
    let written = futures_util::future::join_all(writers).await;
    written.into_iter().flatten().collect()
}

async fn write(client: &Client, writer: usize, round: u32, noise: Bytes) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    for number in 0..10_000 {
        let key = format!("fill/{writer}/{round}-{number:05}");
        let mut value = noise.to_vec();
        value[..key.len()].copy_from_slice(key.as_bytes());
        let value = Bytes::from(value);
        match client.put(Put::new(key.clone(), value.clone())).await {
            Ok(response) => {
                acknowledged.insert(key, (value, response.header.revision));
            }
            Err(error) if error.reason() == Reason::NoSpace => {
                assert!(!error.outcome_unknown(), "{error}");
                return acknowledged;
            }
            // A busy machine. It may have been applied, and nobody was told so.
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    }
    panic!("nothing was refused");
}

/// What etcd's clients see: a put is refused, and the alarm is that of the small node. False if there is room again.
async fn etcd_is_told(cluster: &ProcessCluster) -> bool {
    let etcd = Etcd::connect(&cluster.specs[0].client).await;
    let Err(refused) = etcd.kv().put(put("etcd", "1")).await else {
        return false;
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(
        refused.message(),
        "etcdserver: mvcc: database space exceeded"
    );
    let asked = MaintenanceClient::new(etcd.0)
        .alarm(pb::AlarmRequest::default())
        .await;
    let alarms = asked.unwrap().into_inner().alarms;
    let small = cluster.status(SMALL).await.unwrap().header.member;
    let expected = pb::AlarmMember {
        member_id: small.0,
        alarm: pb::AlarmType::Nospace.into(),
    };
    alarms == [expected]
}

async fn put_when_there_is_room(client: &Client) -> (String, (Bytes, u64)) {
    loop {
        match client.put(Put::new("after", "1")).await {
            Ok(response) => {
                let value = (Bytes::from("1"), response.header.revision);
                return ("after".into(), value);
            }
            Err(error) => assert_eq!(error.reason(), Reason::NoSpace, "{error}"),
        }
        // The members look at it from time to time: there is no event.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All nodes live, and each of them holds what was acknowledged.
async fn check(cluster: &mut ProcessCluster, acknowledged: &Acknowledged) {
    let revisions = acknowledged.values().map(|(_, revision)| *revision);
    let last = revisions.max().unwrap();
    for index in 0..3 {
        let node = cluster.nodes[index].as_mut().unwrap();
        assert!(node.is_running(), "podkv-{index} ended:\n{}", node.log());
        let node = cluster.client_of(index);
        let state = local_state(&node, last).await;
        let state: BTreeMap<_, _> = state.iter().map(|kv| (&kv.key[..], kv)).collect();
        for (key, (value, revision)) in acknowledged {
            let kv = state.get(key.as_bytes());
            let kv = kv.unwrap_or_else(|| panic!("{key} is lost on podkv-{index}"));
            assert!(kv.value == value && kv.mod_revision == *revision, "{key}");
        }
        node.close().await;
    }
}
