//! Storage: two narrow traits, each over RocksDB and in memory.
//!
//! The traits are blocking and know nothing of Raft: positions and payloads are opaque records.
//! The raft folder calls the log from its one writer thread and the state from its apply thread.
//!
//! Two databases, because one fsync per batch is all we pay:
//! - **log**: every write is synced;
//! - **state**: never synced by itself. The log is its write-ahead log: after a crash the state is at
//!   some earlier applied position, *with exactly the data of that position*, and is replayed from there.

//!
//! A node opens its [`Volume`] first (which takes the lock), then its identity from the volume's
//! markers, and only then the two stores: [`Volume::open_stores`].

mod durable_file;
mod error;
mod log_bounds;
pub mod memory;
#[cfg(feature = "rocksdb")]
mod reclaim;
#[cfg(feature = "rocksdb")]
mod rocks;
#[cfg(feature = "rocksdb")]
mod rocks_log;
#[cfg(feature = "rocksdb")]
mod rocks_state;
#[cfg(all(test, feature = "rocksdb"))]
mod rocks_tests;
#[cfg(feature = "rocksdb")]
mod staging;
#[cfg(test)]
mod suite;
mod volume;
mod workers;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use podkv_core::View;

pub use error::{StorageError, TransferError};
pub use memory::{Crash, MemoryDisk, MemoryVolume};
pub use volume::{Storage, Volume};
pub(crate) use workers::Worker;
pub use workers::{DiskTime, Workers};

pub(crate) use durable_file::{read_small, sync_folder, write_durably};

/// One change of the log. A batch of them is written in order, atomically, and synced once.
#[derive(Clone, Debug)]
pub enum LogWrite {
    /// Replace the vote record.
    Vote(Bytes),
    /// Store an entry. Indexes are consecutive.
    Append { index: u64, record: Bytes },
    /// Remove every entry at `from` and beyond.
    TruncateFrom { from: u64 },
    /// Remove every entry up to and including `upto`. `record` says where the log now begins; `upto`
    /// may lie beyond the last entry.
    Purge { upto: u64, record: Bytes },
    /// Replace the committed-position record. A batch of only these need not be synced.
    Committed(Bytes),
}

/// What a log holds when it is opened.
#[derive(Clone, Debug, Default)]
pub struct LogRecovery {
    pub vote: Option<Bytes>,
    /// The record of the last purge.
    pub purged: Option<Bytes>,
    pub committed: Option<Bytes>,
    pub first_index: Option<u64>,
    pub last_index: Option<u64>,
}

/// The log of one group.
pub trait LogStore: Send + Sync + 'static {
    /// What is there. Called once, after opening.
    fn recover(&self) -> Result<LogRecovery, StorageError>;

    /// Applies the batch atomically. Durable when it returns, unless it holds nothing but
    /// [`LogWrite::Committed`].
    fn write(&self, batch: &[LogWrite]) -> Result<(), StorageError>;

    /// The entries from `start` to before `end`, in order and without gaps, at most `max_bytes` of
    /// them but at least one. Ends early where the log ends; empty if the log does not hold `start`.
    fn read(
        &self,
        start: u64,
        end: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError>;

    /// Bytes on disk, roughly.
    fn disk_bytes(&self) -> u64;

    /// Bytes in memory that are yet to be written to tables, roughly: what the volume has to have room for.
    fn unwritten_bytes(&self) -> u64 {
        0
    }

    /// False if the entries are gone with the process.
    fn is_durable(&self) -> bool;

    /// Where it is, for messages.
    fn place(&self) -> String {
        "the log".into()
    }

    /// Where work on it runs.
    fn workers(&self) -> Workers {
        Workers::default()
    }
}

/// A consistent, immutable view of the state.
pub trait StateView: View + Send + Sync + 'static {}

impl<T: View + Send + Sync + 'static> StateView for T {}

/// A batch of writes to the state: `None` deletes.
pub type StateWrites = Vec<(Bytes, Option<Bytes>)>;

/// The state of one group.
pub trait StateStore: Send + Sync + 'static {
    /// The state as it is now, unmoved by later commits.
    fn view(&self) -> Arc<dyn StateView>;

    /// The same, for small reads on an async thread: it never waits for the disk. A read of what is not in
    /// memory fails with [`ViewError::not_in_memory`](podkv_core::ViewError::not_in_memory).
    fn view_in_memory(&self) -> Arc<dyn StateView>;

    /// Applies the batch atomically. Not synced.
    fn commit(&self, writes: StateWrites) -> Result<(), StorageError>;

    /// Makes everything committed so far durable.
    fn flush(&self) -> Result<(), StorageError>;

    /// Reads a key as it would be found after a crash now.
    fn get_durable(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// A consistent copy of the state, as files. Cheap (hard links), never blocks commits for long.
    /// The copy lives until the returned handle is dropped.
    fn checkpoint(&self) -> Result<Arc<dyn Checkpoint>, StorageError>;

    /// Begins, or goes on with, receiving a checkpoint that another node made. `id` names it: files
    /// that were received under the same id before are kept, also over a restart; those of any other
    /// id are removed. Names come from a peer and are checked.
    fn stage(
        &self,
        id: &str,
        files: Vec<CheckpointFile>,
    ) -> Result<Arc<dyn StagedCheckpoint>, TransferError>;

    /// Replaces the whole state by a completely received checkpoint: verify, fsync, rename a pointer
    /// file, fsync the folder. Views taken before stay valid. After a crash the state is either the
    /// old one or the new one.
    ///
    /// Refused, with the old state untouched, if something is missing or damaged: what is damaged is
    /// emptied, so that [`StateStore::stage`] under the same id asks for it again.
    fn install(&self, staged: Arc<dyn StagedCheckpoint>) -> Result<(), TransferError>;

    /// Bytes on disk, roughly.
    fn disk_bytes(&self) -> u64;

    /// Bytes in memory that are yet to be written to tables, roughly: what the volume has to have room for.
    fn unwritten_bytes(&self) -> u64 {
        0
    }

    /// Where work on it runs.
    fn workers(&self) -> Workers {
        Workers::default()
    }
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFile {
    /// A plain name: letters, digits, `.`, `_`, `-`; no dot in front. Names from a peer are checked.
    pub name: String,
    pub length: u64,
    pub crc32c: u32,
}

/// A consistent copy of the state. Removed when dropped.
pub trait Checkpoint: Send + Sync + 'static {
    /// Computes checksums on the first call; may read everything.
    fn files(&self) -> Result<Vec<CheckpointFile>, StorageError>;

    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, StorageError>;

    /// The state in the copy: the applied position and the membership are read from here.
    fn view(&self) -> Result<Arc<dyn StateView>, StorageError>;

    /// The folder that holds the files, where there is one.
    fn path(&self) -> Option<&Path>;
}

/// A checkpoint that is being received.
pub trait StagedCheckpoint: Send + Sync + 'static {
    /// How much of each file is there, in the order of the manifest.
    fn offsets(&self) -> Vec<u64>;

    /// Writes part of a file. `offset` must be where the file ends now.
    fn write(&self, file: usize, offset: u64, data: &[u8]) -> Result<(), TransferError>;

    fn is_complete(&self) -> bool;

    fn as_any(&self) -> &dyn std::any::Any;
}
