//! Both stores in memory, with the same semantics: for tests, and to try podkv without a C++ build.
//!
//! A [`MemoryDisk`] plays the volume. It outlives the stores that are opened on it, as a disk outlives a
//! process, so a test can end a node at any moment and start another one on what is left:
//!
//! ```text
//!                        the process dies          the power fails
//!   log, synced writes   stay                      stay
//!   log, unsynced        stay (the kernel's)       gone
//!   state                falls to the last flush   falls to the last flush
//!   receiving            stays                     gone
//! ```
//!
//! A checkpoint is one file, `records`:
//!
//! ```text
//! 0         8
//! +---------+  +------------+-----+--------------+-------+
//! | magic   |  | key length | key | value length | value |   ... in key order
//! | 8 bytes |  | u32 LE     |     | u32 LE       |       |
//! +---------+  +------------+-----+--------------+-------+
//! ```

mod checkpoint;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use podkv_api::{Incarnation, MemberId};
use podkv_core::{Scan, View, ViewError};
use rpds::RedBlackTreeMapSync;

use self::checkpoint::{MemoryCheckpoint, MemoryStaged};
use super::log_bounds::LogBounds;
use super::{
    Checkpoint, CheckpointFile, LogRecovery, LogStore, LogWrite, StagedCheckpoint, StateStore,
    StateView, StateWrites, Storage, StorageError, TransferError,
};
use crate::identity::{Aside, IdentityFile, MarkerStore};

/// A persistent map: a copy costs nothing, and shares what does not change. Views are copies.
type Records = RedBlackTreeMapSync<Bytes, Bytes>;

const CHECKPOINT_FILE: &str = "records";
const CHECKPOINT_MAGIC: &[u8; 8] = b"podkvmem";
/// A checkpoint is copied whole a few times: more than this is no case for memory storage.
const MAX_CHECKPOINT_BYTES: u64 = 4 << 30;

/// What a crash takes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// `kill -9`: what the process held in memory.
    Process,
    /// Also what the kernel had not written to the disk.
    Power,
}

/// A volume in memory. Clones are the same volume.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    contents: Arc<Mutex<Contents>>,
    /// Wakes who waits for a stalled disk.
    awake: Arc<Condvar>,
}

#[derive(Clone, Default)]
struct Contents {
    /// Counts crashes and attachments. Who attached earlier is cut off: that process is dead.
    boot: u64,
    /// Writes to the log hang.
    stalled: bool,
    log: Log,
    synced_log: Log,
    state: Records,
    flushed_state: Records,
    identity: BTreeMap<IdentityFile, Bytes>,
    staged: Option<Arc<MemoryStaged>>,
}

#[derive(Clone, Default)]
struct Log {
    bounds: LogBounds,
    vote: Option<Bytes>,
    purged: Option<Bytes>,
    committed: Option<Bytes>,
    entries: RedBlackTreeMapSync<u64, Bytes>,
}

impl MemoryDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the process that uses this disk, if there is one: its stores fail from now on.
    pub fn crash(&self, crash: Crash) {
        let mut contents = lock(&self.contents);
        contents.boot += 1;
        self.awake.notify_all();
        contents.state = contents.flushed_state.clone();
        if crash == Crash::Power {
            contents.log = contents.synced_log.clone();
            contents.staged = None;
        }
    }

    /// Another disk with what this one holds now, as a snapshot of a volume is.
    pub fn copy(&self) -> Self {
        let mut contents = lock(&self.contents).clone();
        contents.stalled = false;
        Self {
            contents: Arc::new(Mutex::new(contents)),
            awake: Arc::default(),
        }
    }

    /// Turns a bit in every record of the state whose value contains these bytes: rot that no checksum sees. Returns in how
    /// many.
    pub fn rot(&self, bytes: &[u8]) -> usize {
        let mut contents = lock(&self.contents);
        let holds = |value: &Bytes| value.windows(bytes.len()).any(|part| part == bytes);
        let found: Vec<(Bytes, Bytes)> = contents
            .state
            .iter()
            .filter(|(_, value)| holds(value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        for (key, value) in &found {
            let mut rotten = value.to_vec();
            if let Some(last) = rotten.last_mut() {
                *last ^= 1;
            }
            contents.state.insert_mut(key.clone(), rotten.into());
        }
        found.len()
    }

    /// Turns a bit in every entry of the log that contains these bytes. Returns in how many.
    pub fn rot_log(&self, bytes: &[u8]) -> usize {
        let mut contents = lock(&self.contents);
        let holds = |record: &Bytes| record.windows(bytes.len()).any(|part| part == bytes);
        let entries = contents.log.entries.iter();
        let found: Vec<(u64, Bytes)> = entries
            .filter(|(_, record)| holds(record))
            .map(|(index, record)| (*index, record.clone()))
            .collect();
        for (index, record) in &found {
            let mut rotten = record.to_vec();
            if let Some(last) = rotten.last_mut() {
                *last ^= 1;
            }
            contents.log.entries.insert_mut(*index, rotten.into());
        }
        contents.synced_log = contents.log.clone();
        found.len()
    }

    /// From now on writes to the log do not come to an end, as on a volume whose network is gone. A crash ends who waits.
    pub fn stall(&self) {
        lock(&self.contents).stalled = true;
    }

    /// Writes go on, those that hung first.
    pub fn resume(&self) {
        lock(&self.contents).stalled = false;
        self.awake.notify_all();
    }

    /// Starts a process on this disk. One that used it before is ended as by [`Crash::Process`].
    pub fn attach(&self) -> MemoryVolume {
        self.crash(Crash::Process);
        MemoryVolume {
            contents: self.contents.clone(),
            awake: self.awake.clone(),
            boot: lock(&self.contents).boot,
        }
    }
}

/// One process's way to a [`MemoryDisk`].
#[derive(Clone)]
pub struct MemoryVolume {
    contents: Arc<Mutex<Contents>>,
    awake: Arc<Condvar>,
    boot: u64,
}

impl MemoryVolume {
    /// The stores, and the identity files.
    pub fn open_stores(&self) -> Storage {
        Storage {
            log: Arc::new(MemoryLog(self.clone())),
            state: Arc::new(MemoryState(self.clone())),
            markers: self.markers(),
        }
    }

    pub(super) fn markers(&self) -> Arc<dyn MarkerStore> {
        Arc::new(MemoryMarkers(self.clone()))
    }

    /// The same once the disk does not stall.
    fn writable(&self) -> Result<MutexGuard<'_, Contents>, StorageError> {
        let waits = |contents: &mut Contents| contents.stalled && contents.boot == self.boot;
        let waiting = self.awake.wait_while(lock(&self.contents), waits);
        drop(waiting.unwrap_or_else(PoisonError::into_inner));
        self.live()
    }

    fn live(&self) -> Result<MutexGuard<'_, Contents>, StorageError> {
        let contents = lock(&self.contents);
        if contents.boot == self.boot {
            Ok(contents)
        } else {
            Err(ended())
        }
    }
}

fn ended() -> StorageError {
    StorageError::misuse("the process that used this memory disk has ended")
}

struct MemoryLog(MemoryVolume);

impl LogStore for MemoryLog {
    fn recover(&self) -> Result<LogRecovery, StorageError> {
        let contents = self.0.live()?;
        let log = &contents.log;
        Ok(LogRecovery {
            vote: log.vote.clone(),
            purged: log.purged.clone(),
            committed: log.committed.clone(),
            first_index: log.bounds.first(),
            last_index: log.bounds.last(),
        })
    }

    fn write(&self, batch: &[LogWrite]) -> Result<(), StorageError> {
        let mut contents = self.0.writable()?;
        let mut log = contents.log.clone();
        for write in batch {
            log.apply(write)?;
        }
        contents.log = log;
        if batch
            .iter()
            .any(|write| !matches!(write, LogWrite::Committed(_)))
        {
            contents.synced_log = contents.log.clone();
        }
        Ok(())
    }

    fn read(
        &self,
        start: u64,
        end: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let log = self.0.live()?.log.clone();
        let Some((start, end)) = log.bounds.clip(start, end) else {
            return Ok(Vec::new());
        };
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (index, record) in log.entries.range(start..end) {
            if !entries.is_empty() && bytes + record.len() > max_bytes {
                break;
            }
            bytes += record.len();
            entries.push((*index, record.clone()));
        }
        Ok(entries)
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn is_durable(&self) -> bool {
        false
    }

    fn place(&self) -> String {
        "the log of the memory disk".into()
    }
}

impl Log {
    fn apply(&mut self, write: &LogWrite) -> Result<(), StorageError> {
        let before = self.bounds;
        self.bounds.apply(write)?;
        match write {
            LogWrite::Vote(record) => self.vote = Some(record.clone()),
            LogWrite::Committed(record) => self.committed = Some(record.clone()),
            LogWrite::Append { index, record } => {
                self.entries.insert_mut(*index, record.clone());
            }
            LogWrite::Purge { upto, record } => {
                if before.purged.is_none_or(|purged| purged <= *upto) {
                    self.purged = Some(record.clone());
                }
            }
            LogWrite::TruncateFrom { .. } => {}
        }
        if let Some((first, last)) = before.entries {
            // An append keeps all, and costs nothing here.
            let (kept_first, kept_end) = match before.intersection(&self.bounds) {
                Some((kept_first, kept_last)) => (kept_first, kept_last + 1),
                None => (last + 1, last + 1),
            };
            for index in (first..kept_first).chain(kept_end..last + 1) {
                self.entries.remove_mut(&index);
            }
        }
        Ok(())
    }
}

/// Of an ended process: what the disk holds is the next one's.
struct EndedView;

impl EndedView {
    fn failure() -> ViewError {
        ViewError::storage("reading the state", ended())
    }
}

impl View for EndedView {
    fn get(&self, _: &[u8]) -> Result<Option<Bytes>, ViewError> {
        Err(Self::failure())
    }

    fn scan<'a>(&'a self, _: &[u8], _: &[u8], _: bool) -> Scan<'a> {
        Box::new(std::iter::once(Err(Self::failure())))
    }
}

struct MemoryView(Records);

impl View for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan<'a>(&'a self, start: &[u8], end: &[u8], reverse: bool) -> Scan<'a> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        let bounds = (
            Bound::Included(Bytes::copy_from_slice(start)),
            Bound::Excluded(Bytes::copy_from_slice(end)),
        );
        let range = self
            .0
            .range::<Bytes, _>(bounds)
            .map(|(key, value)| Ok((key.clone(), value.clone())));
        if reverse {
            Box::new(range.rev())
        } else {
            Box::new(range)
        }
    }
}

struct MemoryState(MemoryVolume);

impl StateStore for MemoryState {
    fn view(&self) -> Arc<dyn StateView> {
        match self.0.live() {
            Ok(contents) => Arc::new(MemoryView(contents.state.clone())),
            Err(_) => Arc::new(EndedView),
        }
    }

    fn view_in_memory(&self) -> Arc<dyn StateView> {
        self.view()
    }

    fn commit(&self, writes: StateWrites) -> Result<(), StorageError> {
        let mut contents = self.0.live()?;
        for (key, value) in writes {
            match value {
                Some(value) => contents.state.insert_mut(key, value),
                None => {
                    contents.state.remove_mut(&key);
                }
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StorageError> {
        let mut contents = self.0.live()?;
        contents.flushed_state = contents.state.clone();
        Ok(())
    }

    fn get_durable(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.0.live()?.flushed_state.get(key).cloned())
    }

    fn checkpoint(&self) -> Result<Arc<dyn Checkpoint>, StorageError> {
        let mut contents = self.0.live()?;
        // As on a disk: a copy flushes.
        contents.flushed_state = contents.state.clone();
        Ok(Arc::new(MemoryCheckpoint {
            records: contents.state.clone(),
            file: OnceLock::new(),
        }))
    }

    fn stage(
        &self,
        id: &str,
        files: Vec<CheckpointFile>,
    ) -> Result<Arc<dyn StagedCheckpoint>, TransferError> {
        let file = match files.as_slice() {
            [file] if file.name == CHECKPOINT_FILE && file.length <= MAX_CHECKPOINT_BYTES => file,
            _ => {
                return Err(TransferError::Refused(format!(
                    "memory storage takes snapshots of memory storage only: one file \
                     {CHECKPOINT_FILE:?} of at most {MAX_CHECKPOINT_BYTES} bytes"
                )));
            }
        };
        let mut contents = self.0.live()?;
        if let Some(staged) = &contents.staged
            && staged.id == id
            && staged.file == *file
        {
            return Ok(staged.clone());
        }
        let staged = Arc::new(MemoryStaged {
            id: id.to_owned(),
            file: file.clone(),
            bytes: Mutex::default(),
        });
        contents.staged = Some(staged.clone());
        Ok(staged)
    }

    fn install(&self, staged: Arc<dyn StagedCheckpoint>) -> Result<(), TransferError> {
        let mut contents = self.0.live()?;
        let ours = contents.staged.clone().filter(|ours| {
            let staged = staged.as_any().downcast_ref::<MemoryStaged>();
            staged.is_some_and(|staged| std::ptr::eq(staged, Arc::as_ptr(ours)))
        });
        let Some(staged) = ours else {
            return Err(TransferError::Refused(
                "the snapshot is no longer being received".into(),
            ));
        };
        let records = staged.records()?;
        contents.staged = None;
        contents.state = records.clone();
        contents.flushed_state = records;
        Ok(())
    }

    /// What the records would take on a disk. Counted each time: in memory there are few.
    fn disk_bytes(&self) -> u64 {
        let records = self.0.live().map(|contents| contents.state.clone());
        let bytes = |(key, value): (&Bytes, &Bytes)| (key.len() + value.len()) as u64;
        records.map_or(0, |records| records.iter().map(bytes).sum())
    }
}

struct MemoryMarkers(MemoryVolume);

impl MarkerStore for MemoryMarkers {
    fn load(&self, file: IdentityFile) -> Result<Option<Bytes>, StorageError> {
        Ok(self.0.live()?.identity.get(&file).cloned())
    }

    fn save(&self, file: IdentityFile, bytes: &[u8]) -> Result<(), StorageError> {
        let bytes = Bytes::copy_from_slice(bytes);
        self.0.live()?.identity.insert(file, bytes);
        Ok(())
    }

    fn remove(&self, file: IdentityFile) -> Result<(), StorageError> {
        self.0.live()?.identity.remove(&file);
        Ok(())
    }

    fn holds_data(&self) -> Result<bool, StorageError> {
        let contents = self.0.live()?;
        let log = &contents.log;
        let log_is_empty = log.vote.is_none() && log.bounds == LogBounds::default();
        Ok(!log_is_empty || !contents.state.is_empty())
    }

    fn set_aside(&self, _: MemberId) -> Result<(), StorageError> {
        // Nobody would ever look at it.
        let mut contents = self.0.live()?;
        let rejoin = contents.identity.remove(&IdentityFile::Rejoin);
        *contents = Contents {
            boot: contents.boot,
            ..Contents::default()
        };
        if let Some(rejoin) = rejoin {
            contents.identity.insert(IdentityFile::Rejoin, rejoin);
        }
        Ok(())
    }

    fn aside(&self) -> Result<Vec<Aside>, StorageError> {
        Ok(Vec::new())
    }

    fn remove_aside(&self, _: Incarnation) -> Result<(), StorageError> {
        Ok(())
    }

    fn describe(&self, file: IdentityFile) -> String {
        format!("{} of the memory disk", file.name())
    }
}

/// Nothing that these locks guard is left half-changed by a panic: each is set in one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
