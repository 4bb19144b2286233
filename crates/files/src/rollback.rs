//! A prefix as it was at an earlier revision, in one transaction.
//!
//! The state of then is read from history, what differs now is written. Keys that are the same are left alone, with their
//! leases and revisions. Leases and TTLs of then do not come back: they may have ended since.
//!
//! The transaction holds only if none of the keys that it writes has changed since it was compared; else it is compared
//! again. What others write meanwhile to other keys could as well have come after, so it does no harm.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::StreamExt as _;
use podkv_api::{
    Compare, Delete, KeyRange, KeyValue, Limits, Op, Put, Range, Reason, Revision, Store, Txn,
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

    fn txn(&self) -> Txn {
        let unchanged = self
            .changes
            .iter()
            .map(|(key, _, now)| Compare::unchanged_since(key.clone(), *now));
        let write = self.changes.iter().map(|(key, then, _)| match then {
            Some(value) => Op::from(Put::new(key.clone(), value.clone())),
            None => Op::from(Delete::new(KeyRange::key(key.clone()))),
        });
        Txn::new().when(unchanged).then(write)
    }

    /// # Errors
    ///
    /// [`Error::Refused`] with what would fit.
    fn check_fits(&self, limits: &Limits) -> Result<()> {
        /// Of each key, as a compare and as an operation: what the store counts beside keys and values.
        const AROUND_BYTES: usize = 128;
        let bytes: usize = self
            .changes
            .iter()
            .map(|(key, then, _)| {
                2 * key.len() + then.as_ref().map_or(0, Bytes::len) + AROUND_BYTES
            })
            .sum();
        if self.changes.len() <= limits.max_txn_ops && bytes <= limits.max_request_bytes {
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
    let range = KeyRange::prefix(folder_prefix(prefix));
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
    for _ in 0..TRIES {
        let difference = compare(store, prefix, to).await?;
        if difference.changes.is_empty() {
            return Ok((difference, None));
        }
        difference.check_fits(limits)?;
        let response = store.txn(difference.txn()).await?;
        if response.succeeded {
            return Ok((difference, Some(response.header.revision)));
        }
    }
    let text = format!(
        "others wrote the same keys, {TRIES} times; try again, or freeze their writers first"
    );
    Err(podkv_api::Error::new(Reason::Contention, text).into())
}
