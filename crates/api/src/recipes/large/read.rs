//! The reading side: a value as a stream, checked before its end is told.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use futures_util::{StreamExt as _, stream};
use sha2::{Digest as _, Sha256};

use super::{LargeOptions, retry};
use crate::error::{Error, Reason, Result};
use crate::key::KeyRange;
use crate::kv::{KeyValue, Range, Revision};
use crate::large::{Manifest, chunk_key, record_key};
use crate::store::Store;

/// A value in pieces, in order. It ends after the last byte if all of them are what was written, and with an error if not.
pub struct ValueStream {
    kv: KeyValue,
    manifest: Option<Manifest>,
    pieces: Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>,
}

impl ValueStream {
    /// The key as it is stored: the value of a large one is its manifest.
    pub fn kv(&self) -> &KeyValue {
        &self.kv
    }

    /// `None` for an ordinary value.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The length of the value.
    pub fn bytes(&self) -> u64 {
        match &self.manifest {
            Some(manifest) => manifest.bytes,
            None => self.kv.value.len() as u64,
        }
    }
}

impl std::fmt::Debug for ValueStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ValueStream")
            .field("key", &self.kv.key)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

impl Stream for ValueStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.as_mut().poll_next(cx)
    }
}

/// The value of a key that was read at a revision, large or not. Chunks that were collected since are read from history.
///
/// # Errors
///
/// The store's. [`Reason::Corrupt`] if the value is a manifest and no record says so: a copy under another key, or one that was
/// brought back from history by something that knows nothing of large values. Such bytes come from nowhere else, so they
/// are never handed out in place of the value; [`Store::range`] shows them.
pub async fn open<S: Store>(
    store: &S,
    kv: KeyValue,
    at: Revision,
    options: &LargeOptions,
) -> Result<ValueStream> {
    let Some(manifest) = Manifest::decode(&kv.value)? else {
        let piece = (!kv.value.is_empty()).then(|| Ok(kv.value.clone()));
        return Ok(ValueStream {
            kv,
            manifest: None,
            pieces: Box::pin(stream::iter(piece)),
        });
    };
    let record = record_key(manifest.upload, &kv.key);
    let record = read_pinned(store, &record, at, options).await?;
    if record.is_none_or(|record| record.value != kv.value) {
        let text = format!(
            "{} holds the manifest of a large value that is not there: a copy of it, or one from history",
            kv.key.escape_ascii()
        );
        return Err(Error::new(Reason::Corrupt, text));
    }
    let pieces = Box::pin(pieces(store.clone(), kv.key.clone(), manifest, at, options));
    Ok(ValueStream {
        kv,
        manifest: Some(manifest),
        pieces,
    })
}

/// Records and chunks are written once and deleted once: what is there now is what was there then.
async fn read_pinned<S: Store>(
    store: &S,
    key: &Bytes,
    at: Revision,
    options: &LargeOptions,
) -> Result<Option<KeyValue>> {
    let read = |revision| {
        let range = Range::new(KeyRange::key(key.clone())).at(revision);
        retry(options.patience, move || store.range(range.clone()))
    };
    if let Some(found) = read(0).await?.kvs.pop() {
        return Ok(Some(found));
    }
    Ok(read(at).await?.kvs.pop())
}

/// What has been checked so far.
struct Check {
    key: Bytes,
    manifest: Manifest,
    number: u32,
    hash: Sha256,
}

impl Check {
    fn chunk(&mut self, chunk: &Bytes) -> Result<()> {
        let (found, expected) = (chunk.len(), self.manifest.length_of(self.number));
        if found != expected {
            return Err(self.corrupt(format!("has {found} bytes and not {expected}")));
        }
        self.number += 1;
        self.hash.update(chunk);
        Ok(())
    }

    fn end(self) -> Result<()> {
        let found: [u8; 32] = self.hash.finalize().into();
        if found == self.manifest.sha256 {
            return Ok(());
        }
        let key = self.key.escape_ascii();
        let text = format!("the SHA-256 of {key} is not the one that it was written with");
        Err(Error::new(Reason::Corrupt, text))
    }

    fn corrupt(&self, how: String) -> Error {
        let key = self.key.escape_ascii();
        Error::new(
            Reason::Corrupt,
            format!("chunk {} of {key} {how}", self.number),
        )
    }
}

fn pieces<S: Store>(
    store: S,
    key: Bytes,
    manifest: Manifest,
    at: Revision,
    options: &LargeOptions,
) -> impl Stream<Item = Result<Bytes>> + Send + use<S> {
    let check = Check {
        key: key.clone(),
        manifest,
        number: 0,
        hash: Sha256::new(),
    };
    let options = options.clone();
    let in_flight = options.in_flight.max(1);
    let chunks = stream::iter(0..manifest.chunks()).map(move |number| {
        let (store, options) = (store.clone(), options.clone());
        let name = chunk_key(manifest.upload, number, &key);
        async move { read_pinned(&store, &name, at, &options).await }
    });
    let chunks = Box::pin(chunks.buffered(in_flight));
    stream::unfold(Some((chunks, check)), |state| async move {
        let (mut chunks, mut check) = state?;
        match chunks.next().await {
            None => check.end().err().map(|error| (Err(error), None)),
            Some(Err(error)) => Some((Err(explain(error)), None)),
            Some(Ok(None)) => Some((Err(check.corrupt("is missing".into())), None)),
            Some(Ok(Some(chunk))) => match check.chunk(&chunk.value) {
                Ok(()) => Some((Ok(chunk.value), Some((chunks, check)))),
                Err(error) => Some((Err(error), None)),
            },
        }
    })
}

fn explain(error: Error) -> Error {
    if error.reason() != Reason::Compacted {
        return error;
    }
    let text =
        "the value was overwritten while it was read, and its history is compacted: read it again";
    Error::new(Reason::Compacted, text).with_revision(error.revision())
}
