//! Promise: a damaged log stops the node, which says what and where; it heals from its peers by `podkv resync`, under a new
//! id, and nothing that was acknowledged is lost.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use podkv_api::{MemberId, MemberRole, Put, Store as _};
use podkv_tests::process::ProcessCluster;

use crate::{local_state, on_volume, text};

fn resync(cluster: &ProcessCluster, index: usize, args: &[&str]) -> Output {
    on_volume(cluster, index, &["-o", "json", "resync"], args)
}

fn done(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", text(output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Turns a byte in the middle of the longest of the log's files that were written last.
fn damage_log(data_dir: &Path) -> PathBuf {
    let folder = data_dir.join("podkv/log");
    let files = std::fs::read_dir(&folder).expect("the log's folder");
    let written = files
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "log"));
    let file = written
        .max_by_key(|path| path.metadata().expect("a file").len())
        .expect("a write-ahead log");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&file, bytes).unwrap();
    file
}

/// A node that cannot start says why, and ends.
async fn refused(cluster: &mut ProcessCluster, index: usize) -> String {
    cluster.restart(index);
    let mut node = cluster.nodes[index].take().expect("it was started");
    let (code, log) = tokio::task::spawn_blocking(move || (node.wait(), node.log()))
        .await
        .unwrap();
    assert_ne!(code, Some(0), "{log}");
    log
}

/// Waits until there are so many voters and nobody else, `without` least of all.
async fn wait_voters(cluster: &ProcessCluster, count: usize, without: MemberId) {
    let client = cluster.client();
    let healed = async {
        loop {
            if let Ok(members) = client.members().await
                && members.len() == count
                && members
                    .iter()
                    .all(|member| member.role == MemberRole::Voter && member.id != without)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), healed)
        .await
        .expect("the old id is replaced");
    client.close().await;
}

async fn id_of(cluster: &ProcessCluster, index: usize) -> MemberId {
    cluster.status(index).await.unwrap().header.member
}

fn value(number: usize) -> String {
    format!("{number}{}", "v".repeat(512))
}

fn put(number: usize) -> Put {
    Put::new(format!("k{number:03}"), value(number))
}

/// Three nodes with keys, of which number 2 was killed, and keys that were written since.
async fn one_is_behind() -> (ProcessCluster, MemberId, u64) {
    // A snapshot writes the state out, and with it the members: what a damaged log does not say any more.
    let mut cluster =
        ProcessCluster::start_with(3, &["--snapshot-log-bytes=16KiB", "--log-keep-bytes=16KiB"])
            .await;
    let client = cluster.client();
    let mut revision = 0;
    for number in 0..200 {
        revision = client.put(put(number)).await.unwrap().header.revision;
    }
    local_state(&cluster.client_of(2), revision).await;
    let written_out = async {
        while cluster
            .status(2)
            .await
            .is_ok_and(|status| status.snapshot_index == 0)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written_out)
        .await
        .expect("a snapshot");
    let id = id_of(&cluster, 2).await;
    cluster.kill(2);
    for number in 200..250 {
        revision = client.put(put(number)).await.unwrap().header.revision;
    }
    client.close().await;
    (cluster, id, revision)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_stops_the_node_which_heals_by_resync() {
    let (mut cluster, old, revision) = one_is_behind().await;
    let running = resync(&cluster, 0, &[]);
    assert!(
        text(&running).contains("in use by another process"),
        "{}",
        text(&running)
    );
    let file = damage_log(&cluster.specs[2].data_dir);
    let log = refused(&mut cluster, 2).await;
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    for said in ["podkv/log is damaged", &name, "podkv resync"] {
        assert!(log.contains(said), "{said:?} is not in {log}");
    }

    let put_aside = done(&resync(&cluster, 2, &[]));
    assert_eq!(put_aside["already"], false);
    assert_eq!(put_aside["node"], old.to_string());
    let aside = PathBuf::from(put_aside["folders"][0].as_str().unwrap());
    assert!(
        aside.join("log").join(&name).exists(),
        "renamed, not deleted"
    );
    let again = done(&resync(&cluster, 2, &[]));
    assert_eq!(again["already"], true);
    assert_eq!(again["folders"], put_aside["folders"]);

    cluster.restart(2);
    cluster.wait_ready(2).await;
    assert_ne!(id_of(&cluster, 2).await, old);
    wait_voters(&cluster, 3, old).await;
    let state = local_state(&cluster.client_of(2), revision).await;
    assert_eq!(state.len(), 250);
    for (number, kv) in state.iter().enumerate() {
        assert_eq!(kv.key, format!("k{number:03}"));
        assert_eq!(kv.value, value(number));
    }
    // It is whole: what was aside is of no use any more, and it counts: another one may go.
    let gone = async {
        while aside.exists() || cluster.specs[2].data_dir.join("podkv/REJOIN").exists() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .expect("what was aside goes");
    cluster.kill(0);
    let client = cluster.client();
    client.put(Put::new("after", "1")).await.unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_keeps_its_data_and_founds_no_empty_cluster() {
    let mut cluster = ProcessCluster::start(1).await;
    let client = cluster.client();
    client.put(Put::new("only", "copy")).await.unwrap();
    client.close().await;
    cluster.kill(0);
    let before = resync(&cluster, 0, &[]);
    assert_eq!(before.status.code(), Some(4), "{}", text(&before));
    assert!(
        text(&before).contains("the only voter"),
        "{}",
        text(&before)
    );
    // Nothing was changed.
    cluster.restart(0);
    cluster.wait_ready(0).await;
    cluster.kill(0);

    done(&resync(&cluster, 0, &["--lose-this-data"]));
    cluster.restart(0);
    let waiting = async {
        loop {
            let log = cluster.nodes[0].as_ref().expect("it runs").log();
            if log.contains("joins no other cluster and founds none") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .expect("it says what it waits for");
}
