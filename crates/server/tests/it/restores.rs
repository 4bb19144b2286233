//! Backups over the wire: saved from one cluster, restored into another.

use bytes::Bytes;
use futures_util::StreamExt as _;
use podkv_api::{KeyRange, Put, Range, Reason, Store as _};
use podkv_client::{BackupData, Client};
use podkv_core::BackupReader;
use podkv_proto::v1;
use podkv_proto::v1::snapshot_client::SnapshotClient;

use crate::harness::{Harness, refused, soon};

async fn client(harness: &Harness) -> Client {
    Client::connect([harness.server.local_address().to_string()])
        .await
        .unwrap()
}

/// Saves a backup, and says what it is called.
async fn save(client: &Client) -> (u128, Bytes) {
    let snapshot = client.snapshot().await.unwrap();
    let pieces: Vec<_> = snapshot.data.collect().await;
    let data: Vec<u8> = pieces
        .into_iter()
        .flat_map(|piece| piece.unwrap())
        .collect();
    assert_eq!(data.len() as u64, snapshot.total_bytes);
    let mut reader = BackupReader::new();
    reader.push(&data);
    while reader.next_part().unwrap().is_some() {}
    (reader.finish().unwrap().id.0, data.into())
}

fn data(bytes: &Bytes) -> BackupData {
    Box::pin(futures_util::stream::iter([Ok(bytes.clone())]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_from_one_cluster_to_another() {
    let (old, new) = (Harness::start().await, Harness::start().await);
    let (from, to) = (client(&old).await, client(&new).await);
    for number in 0..40 {
        let value = vec![number; 50_000];
        from.put(Put::new(format!("key/{number:02}"), value))
            .await
            .unwrap();
    }
    // A record that is larger than a chunk of a backup, and than a message of a restore.
    from.put(Put::new("large", vec![7; 1_400_000]))
        .await
        .unwrap();
    let (id, bytes) = save(&from).await;

    let mut heard = Vec::new();
    let restoring = to.snapshot_restore(id, || data(&bytes), |restored| heard.push(restored));
    let restored = soon(restoring).await.unwrap();
    assert_eq!(restored.records, 41);
    assert!(heard.len() > 5 && heard.is_sorted());
    assert_eq!(heard.last(), Some(&(bytes.len() as u64)));
    let all = || Range::new(KeyRange::all());
    let (was, is) = (
        from.range(all()).await.unwrap(),
        to.range(all()).await.unwrap(),
    );
    assert_eq!(was.kvs, is.kvs);
    assert_eq!(is.header.revision, restored.header.revision);
    assert!(is.header.revision > was.header.revision + (1 << 32) - 1);

    to.put(Put::new("a", "1")).await.unwrap();
    let error = to
        .snapshot_restore(id, || data(&bytes), |_| ())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::NotEmpty);
    from.close().await;
    to.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_whole_backup_never_becomes_the_state() {
    let (old, new) = (Harness::start().await, Harness::start().await);
    let (from, to) = (client(&old).await, client(&new).await);
    from.put(Put::new("a", "1")).await.unwrap();
    let (id, bytes) = save(&from).await;

    let cut = bytes.slice(..bytes.len() - 1);
    let error = to
        .snapshot_restore(id, || data(&cut), |_| ())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::Corrupt);
    let error = to.get("a").await.unwrap_err();
    assert!(error.text().contains("restored"), "{error}");
    to.discard_restore().await.unwrap();
    assert_eq!(to.get("a").await.unwrap(), None);

    let mut rpc = SnapshotClient::new(new.channel.clone());
    for backup_id in [
        Bytes::new(),
        Bytes::from_static(&[1; 15]),
        Bytes::from_static(&[1; 17]),
    ] {
        let first = v1::RestoreRequest {
            backup_id,
            data: bytes.clone(),
        };
        let mut responses = rpc
            .restore(tokio_stream::iter([first]))
            .await
            .unwrap()
            .into_inner();
        refused(soon(responses.message()).await, Reason::InvalidArgument);
    }
    // Nobody sent anything: nothing happens.
    let nothing = rpc.restore(tokio_stream::iter([])).await.unwrap();
    assert_eq!(soon(nothing.into_inner().message()).await.unwrap(), None);
    to.put(Put::new("a", "2")).await.unwrap();
    from.close().await;
    to.close().await;
}
