//! Values that no request could carry: written and read as streams, whole or not at all.
//!
//! ```text
//!   put_stream   record, with a lease ─► chunks, several at a time ─► one transaction: manifest and record, without a lease
//!                └ each chunk is written only while the record is there, with that lease ┘
//!   get_stream   manifest ─► its record ─► chunks, several at a time ─► length and SHA-256, before the end is told
//!   collect      records whose key holds another value, then chunks without a record: a few in one transaction
//! ```
//!
//! How they lie in the keyspace: [`podkv_api::large`](crate::large). What follows from it:
//!
//! - **Readers see the old value or the new one.** Chunks are written once, under a name that is never used again, and nobody
//!   looks for them before the one transaction that names them.
//! - **A reader of an older value reads on** when it is overwritten: from history, as long as that is not compacted.
//! - **An upload that ends half-way is garbage** once its lease has expired: then its record is gone, and no chunk and no
//!   manifest can follow, because either compares the record.
//! - **A value that was overwritten or deleted is garbage**, whoever did it and with whatever client: its key does not hold
//!   the bytes of the record any more. The collector looks for that, in the leader of each cluster.
//! - **The collector cannot take what is needed.** It deletes a record only in a transaction that compares the record and the
//!   key; chunks only when their record is gone, and it never comes back.
//! - **A commit is applied once.** Its compare holds once, and whoever did not hear the answer reads it from the record.
//!
//! A killed upload begins again: its source may be another one by then. A call that failed for a passing reason is repeated as
//! long as the lease lives.

mod collect;
mod read;
mod upload;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

use super::backoff::{is_transient, watch_backoff};
use crate::cluster::Header;
use crate::error::{Error, Reason, Result};
use crate::kv::{KeyValue, Put};
use crate::large::NAME_BYTES;
use crate::limits::Limits;
use crate::store::Store;

pub use collect::{Collected, collect};
pub use read::{ValueStream, open};
pub use upload::{Staged, Upload, stage};

/// How large values are written and read.
#[derive(Clone, Debug)]
pub struct LargeOptions {
    /// The limits of the nodes. A value that fits into a request is written as an ordinary one.
    pub limits: Limits,
    /// The length of a chunk, in bytes; less if the limits ask for it. Default 1 MiB: few enough to count, and small beside
    /// what a node has in flight.
    pub chunk_bytes: usize,
    /// Chunks under way at once, each of which is held in memory. Default 4: enough to hide the way there and back.
    pub in_flight: usize,
    /// An upload whose program has died is over after this. Default 30 s: longer than an election and a pause of the
    /// network, and what a dead upload takes is only space.
    pub lease_ttl: Duration,
    /// How long a read of one chunk is repeated while the store cannot be reached. Default 30 s, as for writing.
    pub patience: Duration,
}

impl Default for LargeOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            chunk_bytes: 1 << 20,
            in_flight: 4,
            lease_ttl: Duration::from_secs(30),
            patience: Duration::from_secs(30),
        }
    }
}

/// Beyond it no chunk makes sense, whatever the limits are: a few of them are held in memory.
const MAX_CHUNK_BYTES: usize = 1 << 26;
/// What a transaction counts beside keys and values: of one compare and one put.
const AROUND_BYTES: usize = 1024;

impl LargeOptions {
    /// The longest value that is written as an ordinary one.
    pub fn plain_bytes(&self, key: &[u8]) -> usize {
        let around = key.len() + AROUND_BYTES;
        self.limits.max_request_bytes.saturating_sub(around)
    }

    /// # Errors
    ///
    /// [`Reason::KeyTooLarge`] if the names of its chunks would be longer than a key may be.
    fn chunk_bytes_of(&self, key: &[u8]) -> Result<usize> {
        let name = key.len() + NAME_BYTES;
        if name > self.limits.max_key_bytes {
            let most = self.limits.max_key_bytes.saturating_sub(NAME_BYTES);
            let text = format!(
                "the key has {} bytes; of a large value it has {most} at most, because the names of its chunks hold it",
                key.len()
            );
            return Err(Error::new(Reason::KeyTooLarge, text));
        }
        // The record is compared, the chunk is put.
        let around = 2 * name + AROUND_BYTES;
        let room = self.limits.max_request_bytes.saturating_sub(around);
        Ok(self.chunk_bytes.min(room).clamp(1, MAX_CHUNK_BYTES))
    }
}

/// What [`LargeValues::put_stream`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutStreamResponse {
    pub header: Header,
    /// The length of the value.
    pub bytes: u64,
    /// How many chunks it took; 0 if it is an ordinary value.
    pub chunks: u32,
}

/// Values as streams, on every store: an embedded node, and a client.
///
/// ```no_run
/// use futures_util::{StreamExt, stream};
/// use podkv_api::recipes::LargeValues;
/// use podkv_api::{Bytes, Put, Result, Store};
///
/// async fn copy<S: Store>(store: S) -> Result<()> {
///     // 100 MiB, of which a few are in memory at a time.
///     let piece = Bytes::from(vec![0; 1 << 20]);
///     let source = stream::iter((0..100).map(|_| Ok(piece.clone())));
///     store.put_stream(Put::new("app/model", ""), source).await?;
///
///     if let Some(mut value) = store.get_stream("app/model").await? {
///         while let Some(piece) = value.next().await {
///             println!("{} bytes", piece?.len());
///         }
///         // It ended without an error: every byte was there, and the hash is right.
///     }
///     Ok(())
/// }
/// ```
pub trait LargeValues: Store {
    /// Writes a value of up to 1 GiB, with the defaults of [`LargeOptions`]. A short one is an ordinary value. `put` names
    /// the key, and its lease or TTL; its value is not used.
    ///
    /// # Errors
    ///
    /// The store's, and the source's as it is: nothing was written then. [`Reason::RequestTooLarge`] beyond 1 GiB,
    /// [`Reason::InvalidArgument`] for `prev_kv`, `ignore_value` and `ignore_lease`, [`Reason::LockLost`] if the store could
    /// not be reached for so long that the upload was given up.
    fn put_stream(
        &self,
        put: Put,
        source: impl Stream<Item = Result<Bytes>> + Send,
    ) -> impl Future<Output = Result<PutStreamResponse>> + Send {
        async move { upload::put_stream(self, put, source, &LargeOptions::default()).await }
    }

    /// Reads a value, large or not; `None` if there is no such key. Linearizable: it is the value of one moment after the
    /// call, also if it is overwritten while it is read.
    ///
    /// # Errors
    ///
    /// The store's. The stream ends with [`Reason::Corrupt`] if the value is not what was written, and with
    /// [`Reason::Compacted`] if it was overwritten and its history is gone: read again.
    fn get_stream(
        &self,
        key: impl Into<Bytes>,
    ) -> impl Future<Output = Result<Option<ValueStream>>> + Send {
        let range = crate::kv::Range::new(crate::key::KeyRange::key(key));
        async move {
            let mut response = self.range(range).await?;
            let Some(kv) = response.kvs.pop() else {
                return Ok(None);
            };
            let at = response.header.revision;
            let opened = open(self, kv, at, &LargeOptions::default()).await?;
            Ok(Some(opened))
        }
    }
}

impl<S: Store> LargeValues for S {}

/// Writes with options: see [`LargeValues::put_stream`].
///
/// # Errors
///
/// As there.
pub async fn put_stream<S: Store>(
    store: &S,
    put: Put,
    source: impl Stream<Item = Result<Bytes>> + Send,
    options: &LargeOptions,
) -> Result<PutStreamResponse> {
    upload::put_stream(store, put, source, options).await
}

/// The length and the hash of what a key holds, as far as its value says.
///
/// # Errors
///
/// As [`Manifest::decode`](crate::large::Manifest::decode).
pub fn manifest_of(kv: &KeyValue) -> Result<Option<crate::large::Manifest>> {
    crate::large::Manifest::decode(&kv.value)
}

/// Repeats what has no effect, or the same effect, a second time.
async fn retry<T, F>(patience: Duration, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let end = tokio::time::Instant::now() + patience;
    let mut backoff = watch_backoff();
    loop {
        let error = match attempt().await {
            Err(error) if may_pass(&error) => error,
            result => return result,
        };
        let again = tokio::time::Instant::now() + backoff.delay();
        if again >= end {
            return Err(error);
        }
        tokio::time::sleep_until(again).await;
    }
}

/// A compaction does not pass: what was there does not come back.
fn may_pass(error: &Error) -> bool {
    (is_transient(error) && error.reason() != Reason::Compacted) || error.outcome_unknown()
}
