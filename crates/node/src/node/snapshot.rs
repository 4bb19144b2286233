//! Backups of this node's state: [`Node::snapshot`].
//!
//! The format is the core's ([`podkv_core::backup`]): records of the data, not files of a storage
//! engine. They are read from a checkpoint, so a backup is one moment of the state, however long
//! it takes to send, and holds no write back.

use std::sync::Arc;

use bytes::Bytes;
use podkv_api::{Consistency, Error, Header, Reason, Result};
use podkv_core::{BackupHeader, BackupWriter, ViewError, read_meta};
use tokio::sync::OwnedSemaphorePermit;

use super::Node;
use super::start::storage_failed;
use crate::query::restoring;
use crate::storage::{Checkpoint, StateView, Workers};

/// A chunk is at most this long: it fits into a message of gRPC with default limits.
const CHUNK_BYTES: usize = 1 << 20;
/// Frames that are read in one step of work: about 2 MiB, some milliseconds.
const FRAMES_PER_STEP: usize = 8;

/// A backup that is being read. It pins a checkpoint on the disk until it is dropped.
pub struct SnapshotReader {
    header: Header,
    total_bytes: u64,
    writer: BackupWriter,
    /// Of a frame that is longer than a chunk.
    rest: Bytes,
    view: Arc<dyn StateView>,
    workers: Workers,
    /// The view's files live as long as this.
    _checkpoint: Arc<dyn Checkpoint>,
    _only_one: OwnedSemaphorePermit,
}

impl Node {
    /// Begins a backup that holds everything acknowledged before the call. Any node can make one;
    /// one at a time, because each pins a checkpoint on the disk.
    ///
    /// Returns after a first pass over the data, which finds out how long the backup is.
    pub async fn snapshot(&self) -> Result<SnapshotReader> {
        let only_one = self.0.backups.clone().try_acquire_owned().map_err(|_| {
            let text =
                "another backup is being read from this node: wait for it, or ask another node";
            Error::new(Reason::Overloaded, text)
        })?;
        self.fresh(Consistency::Linearizable, None).await?;
        let state = self.0.storage.state.clone();
        let workers = state.workers();
        let opened = blocking(&workers, move || {
            let checkpoint = state.checkpoint().map_err(storage_failed)?;
            let view = checkpoint.view().map_err(storage_failed)?;
            let meta = read_meta(&*view).map_err(unreadable)?;
            if podkv_core::restoring(&*view).map_err(unreadable)? {
                return Err(restoring());
            }
            Ok((checkpoint, view, meta))
        });
        let (checkpoint, view, meta) = opened.await?;
        let header = self.header_at(meta.revision);
        let writer = BackupWriter::new(BackupHeader {
            cluster: header.cluster,
            incarnation: header.incarnation,
            revision: meta.revision,
            clock_ms: meta.clock_ms,
            retention: meta.retention,
            release: env!("CARGO_PKG_VERSION").into(),
        });
        let total_bytes = length(&workers, writer.clone(), &view).await?;
        Ok(SnapshotReader {
            header,
            total_bytes,
            writer,
            rest: Bytes::new(),
            view,
            workers,
            _checkpoint: checkpoint,
            _only_one: only_one,
        })
    }
}

impl SnapshotReader {
    /// Whose state it is, and at which revision.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Of all chunks together.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The next bytes, at most 1 MiB; `None` after the last.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        if self.rest.is_empty() {
            match self.next_frame().await? {
                Some(frame) => self.rest = frame,
                None => return Ok(None),
            }
        }
        let length = self.rest.len().min(CHUNK_BYTES);
        Ok(Some(self.rest.split_to(length)))
    }

    async fn next_frame(&mut self) -> Result<Option<Bytes>> {
        let (mut writer, view) = (self.writer.clone(), self.view.clone());
        let (writer, frame) = blocking(&self.workers, move || {
            let frame = writer.next_frame(&*view).map_err(unreadable)?;
            Ok((writer, frame))
        })
        .await?;
        self.writer = writer;
        Ok(frame)
    }
}

/// How many bytes a backup will have.
async fn length(
    workers: &Workers,
    mut writer: BackupWriter,
    view: &Arc<dyn StateView>,
) -> Result<u64> {
    let mut total = 0;
    loop {
        let view = view.clone();
        // In steps, so that a caller who goes away ends it.
        let (after, bytes) = blocking(workers, move || {
            let mut bytes = 0;
            for _ in 0..FRAMES_PER_STEP {
                match writer.next_frame(&*view).map_err(unreadable)? {
                    Some(frame) => bytes += frame.len() as u64,
                    None => return Ok((None, bytes)),
                }
            }
            Ok((Some(writer), bytes))
        })
        .await?;
        total += bytes;
        match after {
            Some(after) => writer = after,
            None => return Ok(total),
        }
    }
}

fn unreadable(error: ViewError) -> Error {
    Error::new(
        Reason::Corrupt,
        "the state in the checkpoint cannot be read",
    )
    .with_source(error)
}

async fn blocking<T: Send + 'static>(
    workers: &Workers,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = workers.spawn(work).await;
    done.unwrap_or_else(|_| {
        Err(Error::new(
            Reason::NodeNotReady,
            "the node is stopping: ask another one",
        ))
    })
}
