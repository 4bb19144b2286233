//! Real nodes as processes on real disks: killed, restarted, left behind, starved of a majority.

mod bad_input;
mod doctor;
mod etcd_leader_change;
mod etcd_limits;
mod exactly_once;
mod files;
mod group_commit;
mod import_etcd;
mod kills;
mod large;
mod large_moves;
mod majority;
mod nginx;
mod overload;
mod paused;
mod proxy;
mod recover;
mod resync;
mod signals;
mod snapshots;

use std::process::{Command, Output};

use podkv_api::{Consistency, KeyRange, KeyValue, Range, Store};
use podkv_tests::process::{ProcessCluster, podkv_binary};

/// Everything that a node holds by itself, once it has applied `revision`.
async fn local_state(node: &impl Store, revision: u64) -> Vec<KeyValue> {
    let caught_up = async {
        while node
            .status()
            .await
            .map_or(0, |status| status.header.revision)
            < revision
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), caught_up)
        .await
        .expect("it catches up");
    let request = Range::new(KeyRange::all()).consistency(Consistency::Local);
    let mut chunks = node.range_stream(request).await.unwrap();
    let mut kvs = Vec::new();
    while let Some(chunk) = futures_util::StreamExt::next(&mut chunks).await {
        kvs.extend(chunk.unwrap().kvs);
    }
    kvs
}

/// A command on the volume of a node that is stopped.
fn on_volume(cluster: &ProcessCluster, index: usize, command: &[&str], args: &[&str]) -> Output {
    Command::new(podkv_binary())
        .args(command)
        .arg("--data-dir")
        .arg(&cluster.specs[index].data_dir)
        .args(args)
        .env_clear()
        .output()
        .expect("the podkv binary runs")
}

/// All that a command said.
fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}
