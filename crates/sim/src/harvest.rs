//! What a replica holds at the end, asked of it alone.

use std::time::Duration;

use futures_util::StreamExt as _;
use podkv_api::{
    Consistency, Error, KeyRange, Range, Reason, Result, Store as _, Watch, WatchMessage,
};
use podkv_client::Client;
use tokio::time::sleep;

use crate::history::{Change, KeyValue, Replica, Revision};
use crate::recorder::{event, key_value};

/// How often a replica that is behind is asked again.
const AGAIN: Duration = Duration::from_millis(50);

/// The beginning of history, if the replica has forgotten it.
#[derive(Clone, Copy, Default)]
pub struct Forgotten<'a> {
    /// Up to here it may be gone.
    pub upto: Revision,
    /// Every change until then, and perhaps more.
    pub changes: &'a [Change],
}

/// Asks one replica, through a client that stays on it, for all of its history up to `revision`, and for its keys then.
/// Waits until the replica has come so far. Its digests are for the caller to ask for.
///
/// # Errors
/// Those of the store.
pub async fn replica(client: &Client, node: String, revision: Revision) -> Result<Replica> {
    replica_after(client, node, revision, Forgotten::default()).await
}

/// The same, of a replica whose history begins behind what it has forgotten.
///
/// # Errors
/// Those of the store.
pub async fn replica_after(
    client: &Client,
    node: String,
    revision: Revision,
    forgotten: Forgotten<'_>,
) -> Result<Replica> {
    while client
        .status()
        .await
        .map_or(0, |status| status.header.revision)
        < revision
    {
        sleep(AGAIN).await;
    }
    let known = forgotten.changes;
    let known = &known[..known.partition_point(|change| change.revision <= forgotten.upto)];
    let mut all = known.to_vec();
    all.extend(changes(client, forgotten.upto + 1, revision).await?);
    Ok(Replica {
        node,
        revision,
        changes: all,
        keys: keys(client, revision).await?,
        digests: Vec::new(),
    })
}

/// All that changed from one revision up to another, both included.
///
/// # Errors
/// Those of the store.
pub async fn changes(client: &Client, from: Revision, revision: Revision) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    if revision < from.max(2) {
        return Ok(changes);
    }
    let watch = Watch::new(KeyRange::all()).from_revision(from);
    let mut messages = client.watch(watch).await?;
    while let Some(message) = messages.next().await {
        if let WatchMessage::Events {
            revision: told,
            events,
            ..
        } = message?
        {
            if told <= revision {
                let events = events.iter().map(event).collect();
                changes.push(Change {
                    revision: told,
                    events,
                });
            }
            if told >= revision {
                return Ok(changes);
            }
        }
    }
    Err(Error::new(
        Reason::Internal,
        "the watch of all history ended",
    ))
}

async fn keys(client: &Client, revision: Revision) -> Result<Vec<KeyValue>> {
    let range = Range::new(KeyRange::all())
        .at(revision)
        .consistency(Consistency::Local);
    let mut chunks = client.range_stream(range).await?;
    let mut keys = Vec::new();
    while let Some(chunk) = chunks.next().await {
        keys.extend(chunk?.kvs.iter().map(key_value));
    }
    Ok(keys)
}
