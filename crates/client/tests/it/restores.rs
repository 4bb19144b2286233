//! The promise: a restore that loses its node goes on with another one, from the start of the same
//! data; one that is refused says why at once.

use bytes::Bytes;
use podkv_api::{Error, Reason, Result};
use podkv_client::BackupData;
use tokio_stream::iter;

use crate::fake::Cluster;

fn data() -> Vec<u8> {
    (0..2_000_000u32).map(|number| (number * 7) as u8).collect()
}

fn pieces() -> BackupData {
    let data = Bytes::from(data());
    let cuts = [0, 1, 1_000, 900_000, 900_000, 2_000_000];
    let pieces: Vec<Result<Bytes>> = cuts
        .windows(2)
        .map(|cut| Ok(data.slice(cut[0]..cut[1])))
        .collect();
    Box::pin(iter(pieces))
}

#[tokio::test(start_paused = true)]
async fn a_restore_goes_on_elsewhere() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    for breaks in [0, 1, 5] {
        cluster.each(|faults| faults.restore_breaks = [breaks].into());
        let mut heard = Vec::new();
        let restored = client
            .snapshot_restore(9, pieces, |bytes| heard.push(bytes))
            .await
            .unwrap();
        assert_eq!(restored.records, 7);
        assert_eq!(heard.last(), Some(&2_000_000));
        let restores = std::mem::take(&mut cluster.world.state().seen.restores);
        assert_eq!(restores, [data()]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_restore_is_not_tried_again() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    for reason in [Reason::NotEmpty, Reason::Restoring, Reason::Corrupt] {
        cluster.each(|faults| faults.refuse_restore = Some(Error::new(reason, "no")));
        let error = client
            .snapshot_restore(9, pieces, |_| ())
            .await
            .unwrap_err();
        assert_eq!((error.reason(), error.text()), (reason, "no"));
    }
    client.discard_restore().await.unwrap();
}

/// A file that cannot be read ends the restore with its own error.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_told() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let open = || -> BackupData {
        let torn = Error::new(Reason::InvalidArgument, "the file is torn");
        Box::pin(iter([Ok(Bytes::from_static(b"begin")), Err(torn)]))
    };
    let error = client.snapshot_restore(9, open, |_| ()).await.unwrap_err();
    assert_eq!(error.text(), "the file is torn");
}
