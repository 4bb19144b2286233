//! The state over RocksDB: no write-ahead log of its own, because the Raft log is it.
//!
//! ```text
//! CURRENT-STATE        frame: the name of the folder that holds the state
//! state-<n>/           the database; a new <n> for each checkpoint that is installed
//! checkpoint-<n>/      a copy by hard links, while somebody holds it
//! staged-<id>/         a checkpoint on its way in: see `staging`
//! ```
//!
//! **Durability.** A commit lands in memory. RocksDB writes whole memtables out, in order, each batch
//! in one of them: after a crash the state is as it was after *some* commit, complete. Which one,
//! [`StateStore::get_durable`] tells. The caller keeps the log from there on.
//!
//! **Installing.** Every step leaves the old state or the new one:
//!
//! ```text
//! verify, fsync files  →  rename to state-<n+1>, fsync  →  open it  →  CURRENT-STATE, durably  →  swap
//!         old                        old                     old           │     new
//! ```
//!
//! Views that were taken before keep the old database open. Its folder goes when the last of them does,
//! or, after a crash, when the state is opened again.

mod checkpoint;
mod generation;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use podkv_core::codec::{FrameKind, frame, unframe};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, ErrorKind, Options, ReadOptions, ReadTier,
    WriteBatch, WriteOptions,
};

use self::checkpoint::RocksCheckpoint;
use self::generation::{Generation, OwnedFolder, Reads, RocksView};
use super::durable_file::{TEMPORARY, folder_bytes, read_small, sync_folder, write_durably};
use super::reclaim::Reclaimer;
use super::rocks::{self, remove_folder};
use super::staging::StagedFolder;
use super::{
    Checkpoint, CheckpointFile, StagedCheckpoint, StateStore, StateView, StateWrites, StorageError,
    TransferError,
};
use crate::identity::{CHECKPOINT_PREFIX, DataFolder, STATE_POINTER, STATE_PREFIX};

const MAX_POINTER_BYTES: usize = 256;

fn options(cache: &Cache) -> Options {
    let mut options = rocks::base_options();
    // A flush is what makes the state durable, so what is in memory is what is replayed at start:
    // at most three of these, about a second of it.
    options.set_write_buffer_size(32 << 20);
    options.set_max_write_buffer_number(3);
    options.set_target_file_size_base(64 << 20);
    options.set_max_bytes_for_level_base(256 << 20);
    // Keeps the space that superseded values take near a tenth, whatever the size of the state.
    options.set_level_compaction_dynamic_level_bytes(true);
    // What was deleted gives its space back soon, however little is written afterwards: a file in which half of some
    // thousand neighbours are tombstones is compacted. Without it a full volume stays full until it is written to.
    options.add_compact_on_deletion_collector_factory(2000, 1000, 0.5);
    options.set_compression_type(DBCompressionType::Lz4);
    // Enough for 32 GiB of tables without closing any; pods often have 1024 for everything.
    options.set_max_open_files(512);

    let mut table = BlockBasedOptions::default();
    table.set_block_size(16 << 10);
    table.set_block_cache(cache);
    // Most reads are of one key; without a filter each would look into every level.
    table.set_bloom_filter(10.0, false);
    // Filters and indexes count against the cache, so that its size is the memory we take.
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    options.set_block_based_table_factory(&table);
    options
}

/// See the module.
pub(crate) struct RocksState {
    /// What small reads share until the next commit: to take a snapshot costs more than to find a key in it. A commit
    /// drops it, so that none is held on a state that nobody reads.
    in_memory: Mutex<Option<Arc<RocksView>>>,
    current: RwLock<Arc<Generation>>,
    /// Commits and installs, one at a time: a commit never lands in a state that is being replaced.
    writing: Mutex<()>,
    staging: Mutex<Option<Arc<StagedFolder>>>,
    options: Options,
    reclaimer: Reclaimer,
    next_checkpoint: AtomicU64,
    folder: Arc<DataFolder>,
}

impl RocksState {
    /// Opens the state in `folder`, with a block cache of `cache_bytes`. Makes a new one only if
    /// `may_create`. Removes what an earlier process left half-done.
    pub fn open(
        folder: Arc<DataFolder>,
        cache_bytes: usize,
        may_create: bool,
    ) -> Result<Self, StorageError> {
        let root = folder.path();
        let options = options(&Cache::new_lru_cache(cache_bytes));
        let name = match read_pointer(root)? {
            Some(name) => name,
            None => {
                let name = first_state(root, &options, may_create)?;
                write_pointer(root, &name)?;
                name
            }
        };
        let path = root.join(&name);
        if !path.is_dir() {
            let detail = format!("the state folder that {STATE_POINTER} names is missing");
            return Err(StorageError::damaged(&path, detail));
        }
        let reclaimer = Reclaimer::start("state")?;
        let owned = OwnedFolder::new(path, false, reclaimer.queue());
        let generation = Generation::open(owned, &options)?;
        remove_leftovers(root, &name)?;
        Ok(Self {
            in_memory: Mutex::default(),
            current: RwLock::new(Arc::new(generation)),
            writing: Mutex::default(),
            staging: Mutex::default(),
            options,
            reclaimer,
            next_checkpoint: AtomicU64::new(1),
            folder,
        })
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn current(&self) -> Arc<Generation> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Step 2 of an install: the verified files become a state folder.
    fn promote(&self, staged: &StagedFolder) -> Result<PathBuf, StorageError> {
        let name = format!("{STATE_PREFIX}{}", next_state_number(self.root())?);
        let path = self.root().join(name);
        rocks::rename(&staged.files_folder(), &path)?;
        sync_folder(staged.folder())?;
        sync_folder(self.root())?;
        Ok(path)
    }

    /// Step 3: open it. A peer's files that are no database are the peer's fault, not our disk's.
    fn open_promoted(&self, path: PathBuf) -> Result<Generation, TransferError> {
        // Doomed until the pointer names it.
        let folder = OwnedFolder::new(path, true, self.reclaimer.queue());
        match DB::open(&self.options, &folder.path) {
            Ok(database) => Ok(Generation {
                database,
                folder,
                table_checksums: Mutex::default(),
            }),
            Err(error) if error.kind() == ErrorKind::IOError => {
                Err(rocks::failure(&folder.path, "opening a received snapshot", error).into())
            }
            Err(error) => Err(TransferError::Refused(format!(
                "the snapshot is not a state database of this release: {error}"
            ))),
        }
    }

    /// Step 4: from here on a restart finds the new state.
    fn point_to(&self, generation: &Generation) -> Result<(), StorageError> {
        let name = generation.folder.path.file_name();
        let name = name.and_then(|name| name.to_str()).ok_or_else(|| {
            StorageError::misuse("a state folder of ours has a name that is not UTF-8")
        })?;
        // If this fails, the pointer may name either. Then neither folder may go.
        generation.folder.doomed.store(false, Ordering::Release);
        write_pointer(self.root(), name)
    }

    /// Step 5: new readers get the new state.
    fn swap(&self, generation: Generation) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, Arc::new(generation));
        old.folder.doomed.store(true, Ordering::Release);
        drop(current);
        let shared = lock(&self.in_memory).take();
        // Dropped outside the locks: closing a database takes time.
        drop((shared, old));
    }
}

impl StateStore for RocksState {
    fn view(&self) -> Arc<dyn StateView> {
        Arc::new(RocksView::new(self.current(), Reads::Cached))
    }

    fn view_in_memory(&self) -> Arc<dyn StateView> {
        let mut shared = lock(&self.in_memory);
        let view =
            shared.get_or_insert_with(|| Arc::new(RocksView::new(self.current(), Reads::InMemory)));
        view.clone()
    }

    fn commit(&self, writes: StateWrites) -> Result<(), StorageError> {
        let _writing = lock(&self.writing);
        let mut batch = WriteBatch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        let mut how = WriteOptions::default();
        how.disable_wal(true);
        let generation = self.current();
        let written = generation.database.write_opt(batch, &how);
        // After the write: a view that was taken before must not be found by who was told of it.
        let shared = lock(&self.in_memory).take();
        drop(shared);
        written.map_err(|error| generation.failure("writing the state", error))
    }

    fn flush(&self) -> Result<(), StorageError> {
        let generation = self.current();
        generation
            .database
            .flush()
            .map_err(|error| generation.failure("flushing the state", error))
    }

    fn get_durable(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let generation = self.current();
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        generation
            .database
            .get_opt(key, &options)
            .map(|value| value.map(Bytes::from))
            .map_err(|error| generation.failure("reading the durable state", error))
    }

    fn checkpoint(&self) -> Result<Arc<dyn Checkpoint>, StorageError> {
        let generation = self.current();
        let number = self.next_checkpoint.fetch_add(1, Ordering::Relaxed);
        let path = self.root().join(format!("{CHECKPOINT_PREFIX}{number}"));
        let folder = OwnedFolder::new(path, true, self.reclaimer.queue());
        // Flushes first, since there is no write-ahead log to copy; commits go on meanwhile.
        rocksdb::checkpoint::Checkpoint::new(&generation.database)
            .and_then(|checkpoint| checkpoint.create_checkpoint(&folder.path))
            .map_err(|error| generation.failure("making a checkpoint", error))?;
        Ok(Arc::new(RocksCheckpoint {
            lengths: list_files(&folder.path)?,
            folder,
            files: Mutex::default(),
            opened: Mutex::default(),
            origin: generation,
            options: self.options.clone(),
        }))
    }

    fn stage(
        &self,
        id: &str,
        files: Vec<CheckpointFile>,
    ) -> Result<Arc<dyn StagedCheckpoint>, TransferError> {
        let mut staging = lock(&self.staging);
        if let Some(staged) = &*staging {
            if staged.is(id, &files) {
                return Ok(staged.clone());
            }
            staged.close();
        }
        let staged = Arc::new(StagedFolder::begin(self.root(), id, files)?);
        *staging = Some(staged.clone());
        Ok(staged)
    }

    fn install(&self, staged: Arc<dyn StagedCheckpoint>) -> Result<(), TransferError> {
        let mut staging = lock(&self.staging);
        let ours = staging.clone().filter(|ours| {
            let staged = staged.as_any().downcast_ref::<StagedFolder>();
            staged.is_some_and(|staged| std::ptr::eq(staged, Arc::as_ptr(ours)))
        });
        let Some(staged) = ours else {
            return Err(TransferError::Refused(
                "the snapshot is no longer being received".into(),
            ));
        };
        staged.verify()?;
        staged.close();
        *staging = None;
        let _writing = lock(&self.writing);
        let generation = self.open_promoted(self.promote(&staged)?)?;
        self.point_to(&generation)?;
        self.swap(generation);
        remove_folder(staged.folder())?;
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        folder_bytes(&self.current().folder.path)
    }

    fn unwritten_bytes(&self) -> u64 {
        rocks::unwritten_bytes(&self.current().database)
    }
}

fn read_pointer(root: &Path) -> Result<Option<String>, StorageError> {
    let path = root.join(STATE_POINTER);
    let Some(bytes) = read_small(&path, MAX_POINTER_BYTES)? else {
        return Ok(None);
    };
    let name = unframe(FrameKind::Pointer, &bytes, MAX_POINTER_BYTES)
        .map_err(|error| StorageError::damaged(&path, error))?;
    match std::str::from_utf8(&name) {
        Ok(name) if state_number(name).is_some() => Ok(Some(name.to_owned())),
        _ => Err(StorageError::damaged(&path, "it names no state folder")),
    }
}

fn write_pointer(root: &Path, name: &str) -> Result<(), StorageError> {
    write_durably(
        root,
        STATE_POINTER,
        &frame(FrameKind::Pointer, name.as_bytes()),
    )
}

/// There is no pointer: make the first state, or go on where making it was interrupted.
fn first_state(root: &Path, options: &Options, may_create: bool) -> Result<String, StorageError> {
    let first = format!("{STATE_PREFIX}1");
    let existing = state_folders(root)?;
    let pointer = root.join(STATE_POINTER);
    if !may_create {
        return Err(StorageError::damaged(&pointer, "the file is missing"));
    }
    match existing.as_slice() {
        [] => {
            rocks::create(root, &first, options, |_| Ok(()))?;
            Ok(first)
        }
        // The folder appears complete, then the pointer: the process ended in between.
        [only] if *only == first => Ok(first),
        several => {
            let detail = format!(
                "the file is missing, but there is {}",
                several.join(" and ")
            );
            Err(StorageError::damaged(&pointer, detail))
        }
    }
}

fn state_number(name: &str) -> Option<u64> {
    name.strip_prefix(STATE_PREFIX)?.parse().ok()
}

fn names(root: &Path) -> Result<Vec<String>, StorageError> {
    let failed = |error| StorageError::io(format!("listing {}", root.display()), error);
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn state_folders(root: &Path) -> Result<Vec<String>, StorageError> {
    let mut names = names(root)?;
    names.retain(|name| state_number(name).is_some());
    Ok(names)
}

fn next_state_number(root: &Path) -> Result<u64, StorageError> {
    let folders = state_folders(root)?;
    let highest = folders.iter().filter_map(|name| state_number(name)).max();
    Ok(highest.map_or(1, |highest| highest + 1))
}

/// Removes states other than the current one, checkpoints, and folders that were being made. What was
/// being received stays, to go on with.
fn remove_leftovers(root: &Path, current: &str) -> Result<(), StorageError> {
    for name in names(root)? {
        let base = name.strip_suffix(TEMPORARY).unwrap_or(&name);
        let is_state = state_number(base).is_some();
        let is_checkpoint = base.starts_with(CHECKPOINT_PREFIX);
        if (is_state && name != current) || is_checkpoint {
            tracing::info!(folder = %root.join(&name).display(), "removing a left-over folder");
            remove_folder(&root.join(&name))?;
        }
    }
    Ok(())
}

fn list_files(folder: &Path) -> Result<Vec<(String, u64)>, StorageError> {
    names(folder)?
        .into_iter()
        .map(|name| {
            let path = folder.join(&name);
            let metadata = fs::metadata(&path).map_err(|error| {
                StorageError::io(format!("looking at {}", path.display()), error)
            })?;
            Ok((name, metadata.len()))
        })
        .collect()
}

/// Nothing that these locks guard is left half-changed by a panic: each is set in one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::suite::Disk;
    use super::*;
    use crate::storage::Storage;

    fn commit(state: &RocksState, at: &'static str) {
        let writes = vec![(Bytes::from("at"), Some(Bytes::from(at)))];
        state.commit(writes).unwrap();
        state.flush().unwrap();
    }

    fn at(state: &dyn StateStore) -> Bytes {
        state.view().get(b"at").unwrap().unwrap()
    }

    /// What a crash at this moment leaves.
    fn after_a_crash(disk: &mut Disk) -> Storage {
        disk.take_image();
        let storage = disk.try_open(false).unwrap();
        disk.forget_image();
        storage
    }

    #[test]
    fn a_crash_between_any_two_steps_of_an_install_leaves_the_old_or_the_new() {
        let (_from, source) = Disk::open_new();
        let writes = vec![(Bytes::from("at"), Some(Bytes::from("new")))];
        source.state.commit(writes).unwrap();
        let checkpoint = source.state.checkpoint().unwrap();
        let files = checkpoint.files().unwrap();

        let mut disk = Disk::empty();
        drop(disk.try_open(true).unwrap());
        let state = disk.open_state();
        commit(&state, "old");
        state.stage("s1", files.clone()).unwrap();
        let staged = lock(&state.staging).clone().unwrap();
        for (index, file) in files.iter().enumerate() {
            let data = checkpoint.read(&file.name, 0, usize::MAX).unwrap();
            staged.write(index, 0, &data).unwrap();
        }
        assert_eq!(at(&*after_a_crash(&mut disk).state), "old", "received");
        staged.verify().unwrap();
        assert_eq!(at(&*after_a_crash(&mut disk).state), "old", "verified");
        let path = state.promote(&staged).unwrap();
        assert_eq!(at(&*after_a_crash(&mut disk).state), "old", "promoted");
        let generation = state.open_promoted(path).unwrap();
        assert_eq!(at(&*after_a_crash(&mut disk).state), "old", "opened");
        state.point_to(&generation).unwrap();
        assert_eq!(at(&*after_a_crash(&mut disk).state), "new", "pointed to");
        assert_eq!(at(&state), "old", "not swapped yet");
        state.swap(generation);
        assert_eq!(at(&*after_a_crash(&mut disk).state), "new", "swapped");
        assert_eq!(at(&state), "new");
        commit(&state, "newer");
        let storage = after_a_crash(&mut disk);
        assert_eq!(at(&*storage.state), "newer");
        // What the interrupted install had received can be dropped by the next one.
        storage.state.stage("s2", files).unwrap();
    }
}
