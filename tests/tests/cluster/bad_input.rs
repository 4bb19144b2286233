//! What a node says to a bad volume or a bad setting: a clear error, and nothing changed.

use std::path::{Path, PathBuf};

use podkv_api::{Put, Store as _};
use podkv_tests::process::{NodeProcess, ProcessCluster};

/// Starts a node that must refuse, and returns its exit code and what it said.
async fn refused(cluster: &ProcessCluster, index: usize) -> (Option<i32>, String) {
    let command = cluster.specs[index].command();
    let waiting = tokio::task::spawn_blocking(move || {
        let mut node = NodeProcess::start(command);
        (node.wait(), node.log())
    });
    tokio::time::timeout(std::time::Duration::from_secs(20), waiting)
        .await
        .expect("it ends by itself")
        .unwrap()
}

/// A single node that has written something and is stopped now.
async fn stopped_node() -> ProcessCluster {
    let mut cluster = ProcessCluster::start(1).await;
    let client = cluster.client();
    for number in 0..100 {
        client
            .put(Put::new(format!("k{number}"), "value"))
            .await
            .unwrap();
    }
    client.close().await;
    cluster.kill(0);
    cluster
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found)
        } else {
            found.push(path)
        }
    }
}

fn find(folder: &Path, accept: impl Fn(&Path) -> bool) -> PathBuf {
    let mut files = Vec::new();
    files_below(folder, &mut files);
    files
        .into_iter()
        .find(|path| accept(path))
        .expect("the file is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_another_pod() {
    let mut cluster = stopped_node().await;
    cluster.specs[0].name = "podkv-1".into();
    let (code, said) = refused(&cluster, 0).await;
    assert_eq!(code, Some(4), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_another_process_uses() {
    let cluster = ProcessCluster::start(1).await;
    let mut second = ProcessCluster::prepare(1, &[]);
    second.specs[0].data_dir = cluster.specs[0].data_dir.clone();
    let (code, _) = refused(&second, 0).await;
    assert_eq!(code, Some(4));
    cluster
        .client()
        .put(Put::new("still", "serving"))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken() {
    let cluster = ProcessCluster::start(1).await;
    let mut second = ProcessCluster::prepare(1, &[]);
    second.specs[0].client = cluster.specs[0].client.clone();
    std::fs::create_dir_all(&second.specs[0].data_dir).unwrap();
    let (code, said) = refused(&second, 0).await;
    assert!(code.is_some_and(|code| code != 0), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_none() {
    let mut cluster = ProcessCluster::prepare(1, &[]);
    let file = cluster.folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    cluster.specs[0].data_dir = file.join("below");
    let (code, said) = refused(&cluster, 0).await;
    assert!(code.is_some_and(|code| code != 0), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_or_cut_marker() {
    for damage in [flip as fn(&mut Vec<u8>), cut] {
        let cluster = stopped_node().await;
        let marker = find(&cluster.specs[0].data_dir, |path| path.ends_with("MARKER"));
        let mut bytes = std::fs::read(&marker).unwrap();
        damage(&mut bytes);
        std::fs::write(&marker, &bytes).unwrap();
        let (code, said) = refused(&cluster, 0).await;
        assert!(code.is_some_and(|code| code != 0), "{said}");
        assert_eq!(
            std::fs::read(&marker).unwrap(),
            bytes,
            "nothing is mended or deleted"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_log() {
    let cluster = stopped_node().await;
    // RocksDB's own write-ahead log, which holds the Raft log's newest entries.
    let log = find(&cluster.specs[0].data_dir, |path| {
        let is_wal = path.extension().is_some_and(|extension| extension == "log");
        is_wal && path.parent().is_some_and(|folder| folder.ends_with("log"))
    });
    let mut bytes = std::fs::read(&log).unwrap();
    flip(&mut bytes);
    std::fs::write(&log, &bytes).unwrap();
    let (code, said) = refused(&cluster, 0).await;
    assert!(code.is_some_and(|code| code != 0), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_cannot_be() {
    let mut cluster = ProcessCluster::prepare(1, &[]);
    cluster.specs[0].extra = vec!["--max-voters=4".into()];
    let (code, _) = refused(&cluster, 0).await;
    assert_eq!(code, Some(2));
    cluster.specs[0].extra.clear();
    cluster.specs[0].name = "no-ordinal-here".into();
    let (code, _) = refused(&cluster, 0).await;
    assert_eq!(code, Some(2));
}

#[expect(clippy::ptr_arg, reason = "one signature with `cut`")]
fn flip(bytes: &mut Vec<u8>) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
}

fn cut(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() / 2);
}
