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

/// Asks one replica, through a client that stays on it, for all of its history up to `revision`, and for its keys then.
/// Waits until the replica has come so far. Its digests are for the caller to ask for.
///
/// # Errors
/// Those of the store.
pub async fn replica(client: &Client, node: String, revision: Revision) -> Result<Replica> {
    while client
        .status()
        .await
        .map_or(0, |status| status.header.revision)
        < revision
    {
        sleep(AGAIN).await;
    }
    Ok(Replica {
        node,
        revision,
        changes: changes(client, revision).await?,
        keys: keys(client, revision).await?,
        digests: Vec::new(),
    })
}

async fn changes(client: &Client, revision: Revision) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    if revision < 2 {
        return Ok(changes);
    }
    let watch = Watch::new(KeyRange::all()).from_revision(1);
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
