//! A prefix as it was at an earlier revision, in one transaction.
//!
//! The state of then is read from history, what differs now is written. Keys that are the same are left alone, with their
//! leases and revisions. Leases and TTLs of then do not come back: they may have ended since.
//!
//! The transaction holds only if none of the keys that it writes has changed since it was compared; else it is compared
//! again. What others write meanwhile to other keys could as well have come after, so it does no harm.
//!
//! A large value of then may have been collected: it is read from history and uploaded anew, before the transaction that
//! commits it.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::StreamExt as _;
use podkv_api::large::{Manifest, NAME_BYTES, keys_below};
use podkv_api::recipes::large::{LargeOptions, Staged, open, stage};
use podkv_api::{
    Compare, Delete, KeyRange, KeyValue, Limits, Put, Range, Reason, Revision, Store, Txn,
};

use crate::error::{Error, Result};
use crate::plan::folder_prefix;

/// How often a rollback is compared anew, because others wrote meanwhile.
const TRIES: usize = 5;

/// What a rollback writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Key, its value then or `None` if it was not there, and the revision of what is there now; 0 is nothing.
    changes: Vec<(Bytes, Option<Bytes>, Revision)>,
    pub unchanged: usize,
}

impl Difference {
    /// Keys that get the value of then.
    pub fn puts(&self) -> impl Iterator<Item = &Bytes> {
        self.changes
            .iter()
            .filter(|(_, then, _)| then.is_some())
            .map(|(key, ..)| key)
    }

    /// Keys that were not there.
    pub fn deletes(&self) -> impl Iterator<Item = &Bytes> {
        self.changes
            .iter()
            .filter(|(_, then, _)| then.is_none())
            .map(|(key, ..)| key)
    }

    fn txn<S: Store>(&self, uploads: &Uploads<S>) -> Txn {
        let mut txn = Txn::new();
        for (key, then, now) in &self.changes {
            txn = txn.when([Compare::unchanged_since(key.clone(), *now)]);
            txn = match (uploads.get(key), then) {
                (Some(upload), Some(_)) => txn.when([upload.condition()]).then(upload.ops()),
                (_, Some(value)) => txn.then([Put::new(key.clone(), value.clone()).into()]),
                (_, None) => txn.then([Delete::new(KeyRange::key(key.clone())).into()]),
            };
        }
        txn
    }

    /// # Errors
    ///
    /// [`Error::Refused`] with what would fit.
    fn check_fits(&self, limits: &Limits) -> Result<()> {
        /// Of each key, as a compare and as an operation: what the store counts beside keys and values.
        const AROUND_BYTES: usize = 128;
        let (mut bytes, mut ops) = (0, 0);
        for (key, then, _) in &self.changes {
            let value = then.as_ref().map_or(0, Bytes::len);
            bytes += 2 * key.len() + value + AROUND_BYTES;
            ops += 1;
            if is_large(then) {
                // The record, and its compare.
                bytes += 2 * (key.len() + NAME_BYTES) + value + AROUND_BYTES;
                ops += 1;
            }
        }
        if ops <= limits.max_txn_ops && bytes <= limits.max_request_bytes {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "{} keys with {bytes} bytes differ, and one transaction takes {} keys and {} bytes; roll back folder by folder",
            self.changes.len(),
            limits.max_txn_ops,
            limits.max_request_bytes
        )))
    }
}

/// What differs below the prefix between then and now.
///
/// # Errors
///
/// The store's: [`Reason::Compacted`] if the revision is no longer there.
pub async fn compare<S: Store>(store: &S, prefix: &str, to: Revision) -> Result<Difference> {
    let range = keys_below(folder_prefix(prefix));
    // 0 would be the present.
    if to == 0 {
        return Err(
            podkv_api::Error::new(Reason::InvalidArgument, "the first revision is 1").into(),
        );
    }
    let then = read(store, Range::new(range.clone()).at(to)).await?;
    let mut now = read(store, Range::new(range)).await?;
    let mut difference = Difference::default();
    for (key, kv) in then {
        match now.remove(&key) {
            Some(current) if current.value == kv.value => difference.unchanged += 1,
            current => {
                let revision = current.map_or(0, |current| current.mod_revision);
                difference.changes.push((key, Some(kv.value), revision));
            }
        }
    }
    let gone = now
        .into_iter()
        .map(|(key, kv)| (key, None, kv.mod_revision));
    difference.changes.extend(gone);
    difference.changes.sort();
    Ok(difference)
}

async fn read<S: Store>(store: &S, range: Range) -> Result<BTreeMap<Bytes, KeyValue>> {
    let mut kvs = BTreeMap::new();
    let mut chunks = store.range_stream(range).await?;
    while let Some(chunk) = chunks.next().await {
        kvs.extend(chunk?.kvs.into_iter().map(|kv| (kv.key.clone(), kv)));
    }
    Ok(kvs)
}

/// Uploads that wait for their transaction, by key.
type Uploads<S> = BTreeMap<Bytes, Staged<S>>;

fn is_large(then: &Option<Bytes>) -> bool {
    then.as_ref()
        .is_some_and(|value| !matches!(Manifest::decode(value), Ok(None)))
}

/// Uploads what was large then, unless an attempt before has.
async fn upload_large<S: Store>(
    store: &S,
    difference: &Difference,
    to: Revision,
    limits: &Limits,
    uploads: &mut Uploads<S>,
) -> Result<()> {
    let options = LargeOptions {
        limits: limits.clone(),
        ..LargeOptions::default()
    };
    for (key, then, _) in &difference.changes {
        if is_large(then) && !uploads.contains_key(key) {
            let staged = upload(store, key, to, &options).await?;
            uploads.insert(key.clone(), staged);
        }
    }
    Ok(())
}

async fn upload<S: Store>(
    store: &S,
    key: &Bytes,
    to: Revision,
    options: &LargeOptions,
) -> Result<Staged<S>> {
    let mut found = store
        .range(Range::new(KeyRange::key(key.clone())).at(to))
        .await?;
    let gone = || podkv_api::Error::internal("a key of an earlier revision is not there any more");
    let kv = found.kvs.pop().ok_or_else(gone)?;
    let then = open(store, kv, to, options).await?;
    Ok(stage(store, key.clone(), then, options).await?)
}

/// Brings the prefix back to what it was at `to`. Returns what that took, and its revision; `None` if nothing differed.
///
/// # Errors
///
/// The store's: [`Reason::Compacted`], [`Reason::Frozen`], or [`Reason::Contention`] if others wrote the same keys each
/// time. [`Error::Refused`] if it does not fit into one transaction.
pub async fn rollback<S: Store>(
    store: &S,
    prefix: &str,
    to: Revision,
    limits: &Limits,
) -> Result<(Difference, Option<Revision>)> {
    let mut uploads = Uploads::new();
    for _ in 0..TRIES {
        let difference = compare(store, prefix, to).await?;
        if difference.changes.is_empty() {
            return Ok((difference, None));
        }
        difference.check_fits(limits)?;
        upload_large(store, &difference, to, limits, &mut uploads).await?;
        let response = store.txn(difference.txn(&uploads)).await?;
        if response.succeeded {
            for (_, upload) in uploads {
                upload.settle().await;
            }
            return Ok((difference, Some(response.header.revision)));
        }
    }
    let text = format!(
        "others wrote the same keys, {TRIES} times; try again, or freeze their writers first"
    );
    Err(podkv_api::Error::new(Reason::Contention, text).into())
}
