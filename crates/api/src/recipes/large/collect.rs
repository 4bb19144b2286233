//! The collector: what no key names any more goes, in small steps.
//!
//! ```text
//!   record with a lease          an upload is under way                      stays
//!   record, its key holds it     a large value                               stays
//!   record, its key does not     overwritten, deleted, expired               the record goes
//!   chunks with a record         of one of these                             stay
//!   chunks without a record      of one whose record went, or an upload
//!                                whose lease expired                         go, a few in one transaction
//! ```
//!
//! A record is never written a second time, so chunks whose record is gone are garbage for ever: an upload writes its record
//! before its first chunk. That a record is garbage is compared in the transaction that deletes it, so a key that gets its
//! value back meanwhile keeps it. Deletes are small because each deleted chunk is written to history once more.

use bytes::Bytes;

use crate::error::{Reason, Result};
use crate::key::KeyRange;
use crate::kv::{Delete, KeyValue, Range};
use crate::large::{self, UploadId, read_chunk_key, read_record_key, record_key};
use crate::store::Store;
use crate::txn::{Compare, Op, Txn};

/// Records in one answer.
const RECORDS_PER_PAGE: u64 = 256;
/// Chunks in one transaction: a few MiB that move to history.
const CHUNKS_PER_STEP: u64 = 4;

/// What a round of [`collect`] deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Large values that no key holds any more.
    pub values: u64,
    pub chunks: u64,
}

/// Deletes what large values have left. Every cluster's leader does this by itself; rounds side by side do no harm.
///
/// What was kept for a key below a frozen prefix stays until that thaws.
///
/// # Errors
///
/// The store's. What was deleted stays so; the next round goes on.
pub async fn collect<S: Store>(store: &S) -> Result<Collected> {
    let mut collected = Collected::default();
    collect_records(store, &mut collected).await?;
    collect_chunks(store, &mut collected).await?;
    Ok(collected)
}

async fn collect_records<S: Store>(store: &S, collected: &mut Collected) -> Result<()> {
    let mut left = large::records();
    loop {
        let page = Range::new(left.clone()).keys_only().limit(RECORDS_PER_PAGE);
        let page = store.range(page).await?;
        for record in &page.kvs {
            let Some((_, key)) = read_record_key(&record.key) else {
                continue;
            };
            let is_under_way = record.lease.is_some();
            if is_under_way {
                continue;
            }
            if let Some(garbage) = is_garbage(store, record, key).await? {
                let delete = Delete::new(KeyRange::key(record.key.clone()));
                let same = Compare::unchanged_since(record.key.clone(), record.mod_revision);
                let txn = Txn::new().when([same, garbage]).then([delete.into()]);
                collected.values += u64::from(unless_frozen(store.txn(txn).await)?);
            }
        }
        match page.kvs.last() {
            Some(last) if page.more => left.start = after(&last.key),
            _ => return Ok(()),
        }
    }
}

/// What has to hold for the record to be garbage; `None` if it is not.
async fn is_garbage<S: Store>(store: &S, record: &KeyValue, key: Bytes) -> Result<Option<Compare>> {
    // Most keys were last written by the commit itself, and then no value need be read.
    let look = Range::new(KeyRange::key(key.clone())).keys_only();
    match store.range(look).await?.kvs.pop() {
        None => return Ok(Some(Compare::absent(key))),
        Some(kv) if kv.mod_revision == record.mod_revision => return Ok(None),
        Some(_) => {}
    }
    // Written since: maybe with the same value, by a put that gave it another lease.
    let manifest = store.get(record.key.clone()).await?;
    Ok(match (store.get(key.clone()).await?, manifest) {
        (_, None) => None,
        (None, _) => Some(Compare::absent(key)),
        (Some(kv), Some(manifest)) if kv.value == manifest.value => None,
        (Some(kv), _) => Some(Compare::unchanged_since(key, kv.mod_revision)),
    })
}

async fn collect_chunks<S: Store>(store: &S, collected: &mut Collected) -> Result<()> {
    let mut left = large::chunks_from(UploadId(0));
    loop {
        let first = Range::new(left.clone()).keys_only().limit(1);
        let Some(chunk) = store.range(first).await?.kvs.pop() else {
            return Ok(());
        };
        let Some((upload, key)) = read_chunk_key(&chunk.key) else {
            left.start = after(&chunk.key);
            continue;
        };
        let record = record_key(upload, &key);
        let look = Range::new(KeyRange::key(record.clone())).keys_only();
        if store.range(look).await?.kvs.is_empty() {
            collect_upload(store, upload, &key, record, collected).await?;
        }
        // The chunks of one upload can be a thousand: they are not looked at one by one.
        match upload.0.checked_add(1) {
            Some(next) => left = large::chunks_from(UploadId(next)),
            None => return Ok(()),
        }
    }
}

/// Deletes the chunks of an upload that has no record any more.
async fn collect_upload<S: Store>(
    store: &S,
    upload: UploadId,
    key: &Bytes,
    record: Bytes,
    collected: &mut Collected,
) -> Result<()> {
    loop {
        let some = Range::new(large::chunks_from(upload))
            .keys_only()
            .limit(CHUNKS_PER_STEP);
        let found = store.range(some).await?.kvs;
        let ours = |kv: &&KeyValue| read_chunk_key(&kv.key) == Some((upload, key.clone()));
        let delete = |kv: &KeyValue| Op::from(Delete::new(KeyRange::key(kv.key.clone())));
        let deletes: Vec<Op> = found.iter().take_while(ours).map(delete).collect();
        let count = deletes.len() as u64;
        if count == 0 {
            return Ok(());
        }
        let txn = Txn::new()
            .when([Compare::absent(record.clone())])
            .then(deletes);
        if !unless_frozen(store.txn(txn).await)? {
            return Ok(());
        }
        collected.chunks += count;
    }
}

/// Whether it was done. What is frozen is left for later.
fn unless_frozen(done: Result<crate::txn::TxnResponse>) -> Result<bool> {
    match done {
        Ok(answer) => Ok(answer.succeeded),
        Err(error) if error.reason() == Reason::Frozen => Ok(false),
        Err(error) => Err(error),
    }
}

fn after(key: &Bytes) -> Bytes {
    [key, &b"\0"[..]].concat().into()
}
