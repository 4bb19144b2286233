//! The queue behind locks and elections: keys under a prefix, one for each lease that waits, first come, first served.
//!
//! ```text
//!   <name>/<lease in hex>    created at revision r; whose r is the smallest holds
//! ```
//!
//! Keys are those of etcd's own client libraries, so that all of them meet in one queue.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use podkv_api::{
    Compare, Delete, EventKind, Header, KeyRange, KeyValue, LeaseId, Op, OpResponse, Put, Range,
    Reason, Revision, Store, Txn, Watch, WatchMessage,
};
use podkv_node::Access;
use tonic::Status;

use super::convert;
use super::error::status;

/// For callers that bring no lease: what etcd's sessions have.
const LEASE_TTL: Duration = Duration::from_secs(60);

/// A place in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub key: Bytes,
    /// The revision that made it.
    pub revision: Revision,
    pub lease: LeaseId,
    pub header: Header,
    /// What stood there already, if it was taken before.
    pub before: Option<KeyValue>,
}

/// All places of a queue.
pub(super) fn queue(name: &[u8]) -> KeyRange {
    KeyRange::prefix([name, b"/"].concat())
}

/// Takes a place under a lease; the same again for the same lease.
pub(super) async fn enter(
    node: &Access,
    name: &[u8],
    lease: i64,
    value: Bytes,
) -> Result<Place, Status> {
    let lease = match convert::lease(lease) {
        Some(lease) => lease,
        None => {
            let granted = node.lease_grant(LEASE_TTL, None).await;
            granted.map_err(|error| status(&error))?.lease
        }
    };
    let key = Bytes::from([name, b"/", format!("{:x}", lease.0).as_bytes()].concat());
    let txn = Txn::new()
        .when([Compare::absent(key.clone())])
        .then([Op::from(Put::new(key.clone(), value).lease(lease))])
        .or_else([Op::from(Range::new(KeyRange::key(key.clone())))]);
    let answer = node.txn(txn).await.map_err(|error| status(&error))?;
    let before = match answer.responses.into_iter().next() {
        Some(OpResponse::Range(mut found)) => found.kvs.pop(),
        _ => None,
    };
    let revision = before
        .as_ref()
        .map_or(answer.header.revision, |kv| kv.create_revision);
    Ok(Place {
        key,
        revision,
        lease,
        header: answer.header,
        before,
    })
}

/// Waits until everybody who came before has left.
pub(super) async fn wait(node: &Access, name: &[u8], place: &Place) -> Result<(), Status> {
    loop {
        let all = Range::new(queue(name)).keys_only();
        let found = node.range(all).await.map_err(|error| status(&error))?;
        // The last of them: whoever leaves earlier changes nothing for this place.
        let ahead = found
            .kvs
            .into_iter()
            .filter(|kv| kv.create_revision < place.revision)
            .max_by_key(|kv| kv.create_revision);
        let Some(ahead) = ahead else { return Ok(()) };
        gone(node, ahead.key, found.header.revision + 1).await?;
    }
}

/// Returns when the key is deleted, at `from` or later.
pub(super) async fn gone(node: &Access, key: Bytes, from: Revision) -> Result<(), Status> {
    let watch = Watch::new(KeyRange::key(key)).from_revision(from);
    let mut changes = node.watch(watch).await.map_err(|error| status(&error))?;
    while let Some(message) = changes.next().await {
        match message {
            Ok(WatchMessage::Events { events, .. }) => {
                if events.iter().any(|event| event.kind == EventKind::Delete) {
                    return Ok(());
                }
            }
            Ok(_) => {}
            // The caller looks again.
            Err(error) if error.reason() == Reason::Compacted => return Ok(()),
            Err(error) => return Err(status(&error)),
        }
    }
    Ok(())
}

/// Leaves the queue, if the place is still this one.
pub(super) async fn leave(node: &Access, key: Bytes, revision: Revision) -> Result<Header, Status> {
    let delete = Delete::new(KeyRange::key(key.clone()));
    let txn = Txn::new()
        .when([created_at(key, revision)])
        .then([Op::from(delete)]);
    let answer = node.txn(txn).await.map_err(|error| status(&error))?;
    Ok(answer.header)
}

pub(super) fn created_at(key: Bytes, revision: Revision) -> Compare {
    use podkv_api::{CompareOp, CompareTarget};
    Compare::new(
        key,
        CompareOp::Equal,
        CompareTarget::CreateRevision(revision),
    )
}

/// Leaves the queue if whoever waits in it goes away: a place of nobody would hold up all who come later, until its
/// lease ends.
pub(super) struct Waiting {
    node: Access,
    place: Option<(Bytes, Revision)>,
}

impl Waiting {
    pub fn new(node: &Access, place: &Place) -> Self {
        // A place that was there before is not this caller's to give up.
        let place = place
            .before
            .is_none()
            .then(|| (place.key.clone(), place.revision));
        Self {
            node: node.clone(),
            place,
        }
    }

    /// It was worth it.
    pub fn done(mut self) {
        self.place = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((key, revision)) = self.place.take() {
            let node = self.node.clone();
            self.node.spawn(async move {
                // If it fails, the lease ends it.
                let _ = leave(&node, key, revision).await;
            });
        }
    }
}
