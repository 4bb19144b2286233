//! A backup: the whole state at one revision, as one run of bytes.
//!
//! ```text
//!   frame (BackupHeader): of which cluster and revision; name, length and crc32c of each file
//!   the bytes of the first file | of the second | …        nothing between them
//! ```
//!
//! The files are a checkpoint of the state store: what it holds in memory or on disk, copied by hard links,
//! never blocking a write. Applied position and membership are inside. It is this node's state: what it
//! had not applied yet is not in it, and the header says how far it is.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use podkv_api::{ClusterId, Error, Header, Incarnation, Reason, Result, Revision};
use podkv_core::codec::{self, CodecError, Decode, Encode, FrameKind};
use podkv_core::read_meta;
use tokio::sync::OwnedSemaphorePermit;

use super::Node;
use super::start::storage_failed;
use crate::storage::{Checkpoint, CheckpointFile};

/// Read at once. Small enough for a gRPC message with default limits.
const CHUNK_BYTES: usize = 1 << 20;
/// Room for the names of as many files as a checkpoint may have.
const MAX_HEAD_BYTES: usize = 16 << 20;

/// What a backup begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupHead {
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    pub revision: Revision,
    /// In the order in which their bytes follow.
    pub files: Vec<CheckpointFile>,
}

#[derive(Encode, Decode)]
#[bincode(crate = "podkv_core::bincode")]
struct BackupHeadV1 {
    cluster: u64,
    incarnation: u64,
    revision: u64,
    files: Vec<(String, u64, u32)>,
}

impl BackupHead {
    fn encode(&self) -> Bytes {
        let files = self.files.iter().map(|file| (file.name.clone(), file.length, file.crc32c));
        let head = BackupHeadV1 {
            cluster: self.cluster.0,
            incarnation: self.incarnation.0,
            revision: self.revision,
            files: files.collect(),
        };
        codec::encode_frame(FrameKind::BackupHeader, &head)
    }

    /// How many bytes the head has, from the first [`codec::FRAME_HEADER_BYTES`] of a backup.
    pub fn length(begin: &[u8]) -> Result<usize, CodecError> {
        codec::frame_length(FrameKind::BackupHeader.name(), begin, MAX_HEAD_BYTES)
    }

    /// Decodes a head that fills `bytes`. Names are checked where files are made of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let head: BackupHeadV1 = codec::decode_frame(FrameKind::BackupHeader, bytes, MAX_HEAD_BYTES)?;
        let file = |(name, length, crc32c)| CheckpointFile { name, length, crc32c };
        Ok(Self {
            cluster: ClusterId(head.cluster),
            incarnation: Incarnation(head.incarnation),
            revision: head.revision,
            files: head.files.into_iter().map(file).collect(),
        })
    }
}

/// A backup that is being read. It pins the checkpoint's files on the disk until it is dropped.
pub struct SnapshotReader {
    header: Header,
    total_bytes: u64,
    /// What comes before the files.
    head: Option<Bytes>,
    rest: VecDeque<CheckpointFile>,
    /// In the first file of the rest.
    offset: u64,
    checkpoint: Arc<dyn Checkpoint>,
    _only_one: OwnedSemaphorePermit,
}

impl Node {
    /// Begins a backup of this node's state. One at a time, because each pins files on the disk.
    pub async fn snapshot(&self) -> Result<SnapshotReader> {
        let only_one = self.0.backups.clone().try_acquire_owned().map_err(|_| {
            let text = "another backup is being read from this node: wait for it, or ask another node";
            Error::new(Reason::Overloaded, text)
        })?;
        let state = self.0.storage.state.clone();
        let made = blocking(move || {
            let checkpoint = state.checkpoint().map_err(storage_failed)?;
            let view = checkpoint.view().map_err(storage_failed)?;
            let meta = read_meta(&*view).map_err(|error| {
                Error::new(Reason::Corrupt, "the state in the checkpoint cannot be read").with_source(error)
            })?;
            let files = checkpoint.files().map_err(storage_failed)?;
            Ok((checkpoint, meta.revision, files))
        });
        let (checkpoint, revision, files) = made.await?;
        let header = self.header_at(revision);
        let head = BackupHead {
            cluster: header.cluster,
            incarnation: header.incarnation,
            revision,
            files: files.clone(),
        };
        let head = head.encode();
        Ok(SnapshotReader {
            header,
            total_bytes: head.len() as u64 + files.iter().map(|file| file.length).sum::<u64>(),
            head: Some(head),
            rest: files.into(),
            offset: 0,
            checkpoint,
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

    /// The next bytes, at most 1 MiB of files at once; `None` after the last.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head));
        }
        while self.rest.front().is_some_and(|file| self.offset >= file.length) {
            self.rest.pop_front();
            self.offset = 0;
        }
        let Some(file) = self.rest.front() else { return Ok(None) };
        let (checkpoint, name, offset) = (self.checkpoint.clone(), file.name.clone(), self.offset);
        let left = usize::try_from(file.length - offset).unwrap_or(usize::MAX);
        let length = left.min(CHUNK_BYTES);
        let data = blocking(move || {
            let data = checkpoint.read(&name, offset, length).map_err(storage_failed)?;
            if data.is_empty() {
                let text = format!("{name} of the checkpoint ends after {offset} bytes, before its length");
                return Err(Error::new(Reason::Corrupt, text));
            }
            Ok(data)
        });
        let data = data.await?;
        self.offset += data.len() as u64;
        Ok(Some(data))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::internal("reading the checkpoint did not come to an end")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> BackupHead {
        let file = |name: &str, length| CheckpointFile { name: name.into(), length, crc32c: 7 };
        BackupHead {
            cluster: ClusterId(1),
            incarnation: Incarnation(2),
            revision: 3,
            files: vec![file("a.sst", 4), file("CURRENT", 5)],
        }
    }

    #[test]
    fn a_head_is_found_at_the_start_of_a_backup() {
        let bytes = head().encode();
        let length = BackupHead::length(&bytes[..codec::FRAME_HEADER_BYTES]).unwrap();
        assert_eq!(length, bytes.len());
        assert_eq!(BackupHead::decode(&bytes).unwrap(), head());
    }

    #[test]
    fn a_damaged_head_is_refused() {
        let bytes = head().encode();
        for place in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[place] ^= 1;
            assert!(BackupHead::decode(&damaged).is_err(), "byte {place}");
        }
    }

    /// Backups are kept for years.
    #[test]
    fn the_bytes_of_a_head_are_pinned() {
        let hex: String = head().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        let pinned = "010d0000000016000000a5ee82bb0102030205612e73737404070743555252454e540507";
        assert_eq!(hex, pinned);
    }
}
