//! The writing side: an upload, and its commit.

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use futures_util::{StreamExt as _, stream};
use rand::random;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use super::{LargeOptions, PutStreamResponse, may_pass, retry};
use crate::cluster::Header;
use crate::error::{Error, Reason, Result};
use crate::key::KeyRange;
use crate::kv::{Put, PutResponse, Range};
use crate::large::{MAX_LARGE_BYTES, Manifest, UploadId, chunk_key, record_key};
use crate::recipes::backoff::watch_backoff;
use crate::recipes::kept_lease::KeptLease;
use crate::store::Store;
use crate::txn::{Compare, CompareOp, CompareTarget, Op, OpResponse, Txn};

/// A value on its way. Nobody sees anything of it before its commit. Dropping it gives it up.
pub struct Upload<S> {
    store: S,
    key: Bytes,
    id: UploadId,
    lease: KeptLease,
    /// Chunks under way.
    sending: JoinSet<Result<()>>,
    in_flight: usize,
    /// The chunk that is being filled.
    chunk: BytesMut,
    chunk_bytes: usize,
    /// The number of that chunk.
    number: u32,
    bytes: u64,
    hash: Sha256,
}

impl<S: Store> Upload<S> {
    /// Begins an upload for a key.
    ///
    /// # Errors
    ///
    /// The store's. [`Reason::Frozen`] and [`Reason::PermissionDenied`] are told here, not after a gigabyte.
    pub async fn begin(store: &S, key: Bytes, options: &LargeOptions) -> Result<Self> {
        let chunk_bytes = options.chunk_bytes_of(&key)?;
        let id = UploadId(random());
        let lease = KeptLease::grant(store, options.lease_ttl).await?;
        let upload = Self {
            store: store.clone(),
            id,
            lease,
            sending: JoinSet::new(),
            in_flight: options.in_flight.max(1),
            chunk: BytesMut::new(),
            chunk_bytes,
            number: 0,
            bytes: 0,
            hash: Sha256::new(),
            key,
        };
        match upload.write_record(options).await {
            Ok(()) => Ok(upload),
            Err(error) => {
                upload.give_up().await;
                Err(error)
            }
        }
    }

    async fn write_record(&self, options: &LargeOptions) -> Result<()> {
        let record = record_key(self.id, &self.key);
        // A late copy of this must not undo a commit, so it writes only where there is nothing.
        let write = || {
            Txn::new()
                .when([Compare::absent(record.clone())])
                .then([Put::new(record.clone(), "").lease(self.lease.id()).into()])
        };
        // If the compare fails, an attempt before was applied.
        retry(options.patience, || self.store.txn(write())).await?;
        self.lease.check()
    }

    /// Takes the next bytes. Waits while as many chunks are under way as may be.
    ///
    /// # Errors
    ///
    /// Of these bytes, or of those before: the upload is over then. [`Reason::RequestTooLarge`] beyond 1 GiB.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        self.bytes += bytes.len() as u64;
        if self.bytes > MAX_LARGE_BYTES {
            let text = format!("the value has more than {MAX_LARGE_BYTES} bytes");
            return Err(Error::new(Reason::RequestTooLarge, text));
        }
        self.hash.update(&bytes);
        while !bytes.is_empty() {
            let room = self.chunk_bytes - self.chunk.len();
            let part = bytes.split_to(room.min(bytes.len()));
            self.chunk.extend_from_slice(&part);
            if self.chunk.len() == self.chunk_bytes {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Sends the chunk that is being filled.
    async fn send(&mut self) -> Result<()> {
        while self.sending.len() >= self.in_flight {
            self.one_sent().await?;
        }
        let put = Put::new(
            chunk_key(self.id, self.number, &self.key),
            self.chunk.split().freeze(),
        );
        self.number += 1;
        let (store, under_way) = (self.store.clone(), self.under_way());
        let lost = self.lease.lost();
        self.sending.spawn(async move {
            tokio::select! {
                sent = put_chunk(&store, under_way, put) => sent,
                lost = lost => Err(lost),
            }
        });
        Ok(())
    }

    async fn one_sent(&mut self) -> Result<()> {
        match self.sending.join_next().await {
            None => Ok(()),
            Some(Ok(sent)) => sent,
            Some(Err(error)) => {
                Err(Error::internal("a chunk was not sent to its end").with_source(error))
            }
        }
    }

    /// Holds as long as the upload may go on, and never again after.
    fn under_way(&self) -> Compare {
        under_way(self.id, &self.key, &self.lease)
    }

    /// Waits until every chunk is durable. What is left to do is the commit.
    ///
    /// # Errors
    ///
    /// As [`Upload::write`].
    pub async fn finish(mut self) -> Result<Staged<S>> {
        match self.send_rest().await {
            Ok(()) => {
                let manifest = Manifest {
                    upload: self.id,
                    bytes: self.bytes,
                    chunk_bytes: u32::try_from(self.chunk_bytes).unwrap_or(u32::MAX),
                    sha256: self.hash.finalize().into(),
                };
                Ok(Staged {
                    store: self.store,
                    key: self.key,
                    lease: self.lease,
                    manifest,
                })
            }
            Err(error) => {
                self.give_up().await;
                Err(error)
            }
        }
    }

    async fn send_rest(&mut self) -> Result<()> {
        if !self.chunk.is_empty() {
            self.send().await?;
        }
        while !self.sending.is_empty() {
            self.one_sent().await?;
        }
        Ok(())
    }

    /// Ends it at once; dropping it does the same in the background. The chunks go when the collector comes round.
    pub async fn give_up(mut self) {
        self.sending.shutdown().await;
        // If it fails, the lease expires.
        let _ = self.lease.release().await;
    }
}

/// An upload all of whose chunks are durable. Dropping it without a commit gives it up.
pub struct Staged<S> {
    store: S,
    key: Bytes,
    lease: KeptLease,
    manifest: Manifest,
}

impl<S: Store> Staged<S> {
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// For a transaction of one's own, together with [`Staged::ops`]: it holds as long as the upload was not given up.
    pub fn condition(&self) -> Compare {
        under_way(self.manifest.upload, &self.key, &self.lease)
    }

    /// What commits it, in a transaction with [`Staged::condition`]. Keep the upload until the answer is there.
    pub fn ops(&self) -> [Op; 2] {
        self.ops_as(Put::new(self.key.clone(), ""))
    }

    fn ops_as(&self, put: Put) -> [Op; 2] {
        let manifest = self.manifest.encode();
        let record = Put::new(self.record(), manifest.clone());
        let put = Put {
            key: self.key.clone(),
            value: manifest,
            ..put
        };
        [put.into(), record.into()]
    }

    fn record(&self) -> Bytes {
        record_key(self.manifest.upload, &self.key)
    }

    /// Makes it the value of its key, with the lease or TTL of `put`.
    ///
    /// # Errors
    ///
    /// The store's. It is repeated as long as that can help, so an unknown outcome is rare, and is told.
    pub async fn commit(self, put: Put) -> Result<PutResponse> {
        let committed = self.try_commit(put).await;
        self.settle().await;
        committed
    }

    /// After a transaction of one's own: ends the lease now, not in the background. Whether it was applied is the same.
    pub async fn settle(self) {
        // If it fails, the lease expires.
        let _ = self.lease.release().await;
    }

    async fn try_commit(&self, put: Put) -> Result<PutResponse> {
        let txn = Txn::new()
            .when([self.condition()])
            .then(self.ops_as(put))
            .or_else([Range::new(KeyRange::key(self.record())).into()]);
        let mut backoff = watch_backoff();
        let mut unknown = false;
        loop {
            let error = match self.store.txn(txn.clone()).await {
                Ok(answer) if answer.succeeded => {
                    return Ok(PutResponse {
                        header: answer.header,
                        prev_kv: None,
                    });
                }
                // Either an attempt before was applied, or none ever will be.
                Ok(answer) => return self.applied_before(answer.header, answer.responses),
                Err(error) => error,
            };
            unknown |= error.outcome_unknown();
            let told = |error: Error| match unknown {
                true => error.with_unknown_outcome(),
                false => error,
            };
            if !may_pass(&error) {
                return Err(told(error));
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.delay()) => {}
                _ = self.lease.lost() => return Err(told(error)),
            }
        }
    }

    /// What the record says when it is not this upload's to commit any more.
    fn applied_before(&self, header: Header, found: Vec<OpResponse>) -> Result<PutResponse> {
        let manifest = self.manifest.encode();
        let record = found.into_iter().find_map(|found| match found {
            OpResponse::Range(mut range) => range.kvs.pop(),
            _ => None,
        });
        match record.filter(|record| record.value == manifest) {
            Some(record) => Ok(PutResponse {
                header: Header {
                    revision: record.mod_revision,
                    ..header
                },
                prev_kv: None,
            }),
            None => Err(given_up()),
        }
    }
}

fn under_way(id: UploadId, key: &[u8], lease: &KeptLease) -> Compare {
    let lease = CompareTarget::Lease(Some(lease.id()));
    Compare::new(record_key(id, key), CompareOp::Equal, lease)
}

fn given_up() -> Error {
    let text = "the upload was given up: its lease expired; nothing was written, try again";
    Error::new(Reason::LockLost, text)
}

/// Writes a chunk, again and again until it is there. Twice is once.
async fn put_chunk<S: Store>(store: &S, under_way: Compare, put: Put) -> Result<()> {
    let txn = Txn::new().when([under_way]).then([put.into()]);
    let mut backoff = watch_backoff();
    loop {
        match store.txn(txn.clone()).await {
            Ok(answer) if answer.succeeded => return Ok(()),
            Ok(_) => return Err(given_up()),
            Err(error) if may_pass(&error) => tokio::time::sleep(backoff.delay()).await,
            Err(error) => return Err(error),
        }
    }
}

pub(super) async fn put_stream<S: Store>(
    store: &S,
    put: Put,
    source: impl Stream<Item = Result<Bytes>> + Send,
    options: &LargeOptions,
) -> Result<PutStreamResponse> {
    if put.prev_kv || put.ignore_value || put.ignore_lease {
        let text = "a stream is put without prev_kv, ignore_value and ignore_lease";
        return Err(Error::new(Reason::InvalidArgument, text));
    }
    let mut source = std::pin::pin!(source);
    let most = options.plain_bytes(&put.key);
    let mut head = BytesMut::new();
    while head.len() <= most {
        match source.next().await {
            Some(bytes) => head.extend_from_slice(&bytes?),
            None => {
                let bytes = head.len() as u64;
                let value = head.freeze();
                let response = store.put(Put { value, ..put }).await?;
                return Ok(PutStreamResponse {
                    header: response.header,
                    bytes,
                    chunks: 0,
                });
            }
        }
    }
    let head = stream::iter([Ok(head.freeze())]);
    let staged = stage(store, put.key.clone(), head.chain(source), options).await?;
    let manifest = *staged.manifest();
    let response = staged.commit(put).await?;
    Ok(PutStreamResponse {
        header: response.header,
        bytes: manifest.bytes,
        chunks: manifest.chunks(),
    })
}

/// Uploads a source to its end. What is left to do is the commit.
///
/// # Errors
///
/// As [`Upload::begin`] and [`Upload::write`], and the source's as it is. The upload is given up then.
pub async fn stage<S: Store>(
    store: &S,
    key: Bytes,
    source: impl Stream<Item = Result<Bytes>> + Send,
    options: &LargeOptions,
) -> Result<Staged<S>> {
    let mut source = std::pin::pin!(source);
    let mut upload = Upload::begin(store, key, options).await?;
    while let Some(bytes) = source.next().await {
        let taken = match bytes {
            Ok(bytes) => upload.write(bytes).await,
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            upload.give_up().await;
            return Err(error);
        }
    }
    upload.finish().await
}
