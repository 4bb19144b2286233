//! One database of the state, the folder that it owns, and views of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use podkv_core::{Scan, View, ViewError, schema};
use rocksdb::{DB, ErrorKind, IteratorMode, Options, ReadOptions, ReadTier};
use self_cell::self_cell;

use super::super::{StorageError, reclaim, rocks};

/// One database, and its folder.
pub(super) struct Generation {
    // Fields drop in this order: the database is closed before its folder may go.
    pub database: DB,
    pub folder: Arc<OwnedFolder>,
    /// Checksums of tables that are known. Tables never change, and their names are used once.
    pub table_checksums: Mutex<BTreeMap<String, (u64, u32)>>,
}

impl Generation {
    pub fn open(folder: Arc<OwnedFolder>, options: &Options) -> Result<Self, StorageError> {
        Ok(Self {
            database: rocks::open(&folder.path, options)?,
            folder,
            table_checksums: Mutex::default(),
        })
    }

    pub fn failure(&self, doing: &str, error: rocksdb::Error) -> StorageError {
        rocks::failure(&self.folder.path, doing, error)
    }

    pub fn view_failure(&self, error: rocksdb::Error) -> ViewError {
        // What RocksDB says of a read that was kept to memory.
        if error.kind() == ErrorKind::Incomplete {
            return ViewError::not_in_memory();
        }
        let failure = self.failure("reading the state", error);
        ViewError::storage(failure.what.clone(), failure)
    }
}

/// A folder that is removed with its last user, if it has been doomed.
pub(super) struct OwnedFolder {
    pub path: PathBuf,
    pub doomed: AtomicBool,
    remover: reclaim::Queue,
}

impl OwnedFolder {
    pub fn new(path: PathBuf, doomed: bool, remover: &reclaim::Queue) -> Arc<Self> {
        Arc::new(Self {
            path,
            doomed: AtomicBool::new(doomed),
            remover: remover.clone(),
        })
    }
}

impl Drop for OwnedFolder {
    fn drop(&mut self) {
        if *self.doomed.get_mut()
            && let Err(error) = self.remover.remove_folder(&self.path)
        {
            // It only takes space, and the next start tries again.
            tracing::warn!(%error, "an old state folder stays for now");
        }
    }
}

type DatabaseSnapshot<'a> = rocksdb::Snapshot<'a>;

self_cell!(
    /// A snapshot together with the database that it points into.
    struct OwnedSnapshot {
        owner: Arc<Generation>,
        #[covariant]
        dependent: DatabaseSnapshot,
    }
);

/// A view of the state. Dropping the last one of a replaced state closes its database, which blocks.
pub(super) struct RocksView {
    snapshot: OwnedSnapshot,
    reads: Reads,
    /// What was found by those that [`schema::first_look`] names: many readers share a view, and each asks for them.
    looked: [OnceLock<Option<Bytes>>; schema::FIRST_LOOKS],
}

/// What a view reads from, and what it leaves behind.
#[derive(Clone, Copy)]
pub(super) enum Reads {
    /// The block cache keeps what was read.
    Cached,
    /// It does not: whoever reads everything once would drive out what others need.
    Once,
    /// Memory alone.
    InMemory,
}

impl RocksView {
    pub fn new(generation: Arc<Generation>, reads: Reads) -> Self {
        let snapshot = OwnedSnapshot::new(generation, |generation| generation.database.snapshot());
        Self {
            snapshot,
            reads,
            looked: Default::default(),
        }
    }

    fn read_options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        match self.reads {
            Reads::Cached => {}
            Reads::Once => options.fill_cache(false),
            Reads::InMemory => options.set_read_tier(ReadTier::BlockCache),
        }
        options
    }

    fn read(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        self.snapshot.with_dependent(|generation, snapshot| {
            snapshot
                .get_pinned_opt(key, self.read_options())
                .map(|value| value.map(|value| Bytes::copy_from_slice(&value)))
                .map_err(|error| generation.view_failure(error))
        })
    }
}

impl View for RocksView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        let Some(looked) = schema::first_look(key).and_then(|which| self.looked.get(which)) else {
            return self.read(key);
        };
        if let Some(found) = looked.get() {
            return Ok(found.clone());
        }
        let found = self.read(key)?;
        Ok(looked.get_or_init(|| found).clone())
    }

    fn scan<'a>(&'a self, start: &[u8], end: &[u8], reverse: bool) -> Scan<'a> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        let mut options = self.read_options();
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
        let mode = if reverse {
            IteratorMode::End
        } else {
            IteratorMode::Start
        };
        let generation = self.snapshot.borrow_owner();
        let items = self.snapshot.borrow_dependent().iterator_opt(mode, options);
        Box::new(items.map(|item| {
            item.map(|(key, value)| (Bytes::from(key), Bytes::from(value)))
                .map_err(|error| generation.view_failure(error))
        }))
    }
}
