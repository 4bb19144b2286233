//! Values that are written in many chunks, here short ones: what can go wrong does not depend on how long they are.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use podkv_api::recipes::large::{LargeOptions, open, put_stream};
use podkv_api::{Bytes, Delete, Error, KeyRange, Limits, Put, Range, Reason, Result, Store as _};
use rand::RngExt as _;
use rand::rngs::StdRng;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::Caller;
use crate::history::{Content, LargeAction, LargeOutcome};
use crate::recorder::hex;

/// Few, so that they are overwritten while they are read.
const KEYS: u32 = 4;
const CHUNK_BYTES: usize = 4 << 10;
const MOST_BYTES: usize = 10 * CHUNK_BYTES;
/// Of the source.
const PIECE_BYTES: usize = 3000;
const MOST_REST: Duration = Duration::from_millis(150);

/// As with the defaults, but for the sizes; and what was given up is over soon.
pub fn options() -> LargeOptions {
    LargeOptions {
        limits: Limits {
            max_request_bytes: 2 * CHUNK_BYTES,
            ..Limits::default()
        },
        chunk_bytes: CHUNK_BYTES,
        lease_ttl: Duration::from_secs(5),
        patience: Duration::from_secs(5),
        ..LargeOptions::default()
    }
}

pub async fn run(caller: Caller, mut rng: StdRng) {
    loop {
        let key = format!("large/{}", rng.random_range(0..KEYS));
        match rng.random_range(0..20) {
            0..9 => put(&caller, &mut rng, key).await,
            9 => delete(&caller, key).await,
            _ => get(&caller, key).await,
        }
        tokio::time::sleep(rng.random_range(Duration::ZERO..=MOST_REST)).await;
    }
}

async fn put(caller: &Caller, rng: &mut StdRng, key: String) {
    let id = caller.recorder.id();
    let bytes = contents(id, rng.random_range(0..=MOST_BYTES));
    let mut pieces: Vec<Result<Bytes>> = bytes
        .chunks(PIECE_BYTES)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let how = rng.random_range(0..8);
    if how == 0 {
        // Its source breaks off.
        pieces.truncate(rng.random_range(0..=pieces.len()));
        pieces.push(Err(Error::new(
            Reason::InvalidArgument,
            "the source broke off",
        )));
    }
    let content = content_of(&bytes);
    let options = options();
    let putting = caller.recorder.large(
        (caller.number, id),
        (key.clone(), LargeAction::Put(content)),
        put_stream(
            &caller.client,
            Put::new(key, ""),
            stream::iter(pieces),
            &options,
        ),
        |answer| LargeOutcome::Wrote {
            revision: answer.header.revision,
        },
    );
    if how == 1 {
        // Its writer is gone.
        let patience = Duration::from_millis(rng.random_range(0..100));
        let _ = timeout(patience, putting).await;
    } else {
        putting.await;
    }
}

async fn delete(caller: &Caller, key: String) {
    let id = caller.recorder.id();
    let deleting = caller
        .client
        .delete(Delete::new(KeyRange::key(key.clone())));
    let call = (key, LargeAction::Delete);
    let wrote = |answer: podkv_api::DeleteResponse| LargeOutcome::Wrote {
        revision: answer.header.revision,
    };
    caller
        .recorder
        .large((caller.number, id), call, deleting, wrote)
        .await;
}

async fn get(caller: &Caller, key: String) {
    let id = caller.recorder.id();
    let call = (key.clone(), LargeAction::Get);
    let found = |found| found;
    caller
        .recorder
        .large((caller.number, id), call, read(caller, key), found)
        .await;
}

async fn read(caller: &Caller, key: String) -> Result<LargeOutcome> {
    let mut answer = caller.client.range(Range::new(KeyRange::key(key))).await?;
    let Some(kv) = answer.kvs.pop() else {
        return Ok(LargeOutcome::NotFound);
    };
    let (modified, at) = (kv.mod_revision, answer.header.revision);
    let mut value = open(&caller.client, kv, at, &options()).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = value.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(LargeOutcome::Found {
        content: content_of(&bytes),
        modified,
    })
}

/// Text that no other call writes, and in which each place is another.
fn contents(id: u64, length: usize) -> Vec<u8> {
    let mut text = String::new();
    while text.len() < length {
        text += &format!("{id}:{};", text.len());
    }
    // One that is short is whose it is, too.
    text.truncate(length);
    format!("{id} {text}").into_bytes()
}

fn content_of(bytes: &[u8]) -> Content {
    Content {
        bytes: bytes.len() as u64,
        sha256: hex(&Sha256::digest(bytes)),
    }
}
