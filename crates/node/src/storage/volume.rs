//! A node's volume, and the stores on it.

use std::path::Path;
use std::sync::Arc;

use podkv_api::Error;

use super::{LogStore, MemoryDisk, MemoryVolume, StateStore, StorageError, Workers};
use crate::config::StorageConfig;
use crate::identity::{DataFolder, Identity, MarkerStore, Phase};

/// Everything that a node keeps.
#[derive(Clone)]
pub struct Storage {
    pub log: Arc<dyn LogStore>,
    pub state: Arc<dyn StateStore>,
    pub markers: Arc<dyn MarkerStore>,
}

/// Where a node keeps things. Holding one keeps other processes out; so do the stores opened on it.
#[derive(Clone)]
pub enum Volume {
    Disk(Arc<DataFolder>),
    Memory(MemoryVolume),
    /// Stores of the caller's own, open already: a simulated disk.
    Stores(Storage),
}

impl Volume {
    /// Takes the volume that the settings name. Blocking.
    pub fn open(config: &StorageConfig) -> Result<Self, Error> {
        match config {
            StorageConfig::Disk { data_dir } => Self::disk(data_dir),
            StorageConfig::Memory => Ok(Self::memory(&MemoryDisk::new())),
        }
    }

    /// Takes a disk in memory; whoever used it before is ended, as by `kill -9`.
    pub fn memory(disk: &MemoryDisk) -> Self {
        Self::Memory(disk.attach())
    }

    /// Takes the folder `data_dir` and locks it. Blocking.
    #[cfg(feature = "rocksdb")]
    pub fn disk(data_dir: &Path) -> Result<Self, Error> {
        Ok(Self::Disk(Arc::new(DataFolder::open(data_dir)?)))
    }

    /// Takes the folder `data_dir` of a node that is stopped. Makes nothing. Blocking.
    ///
    /// # Errors
    /// [`DataFolder`](podkv_api::Reason::DataFolder) if no node's data is there, or a node runs on it.
    #[cfg(feature = "rocksdb")]
    pub fn existing_disk(data_dir: &Path) -> Result<Self, Error> {
        Ok(Self::Disk(Arc::new(DataFolder::open_existing(data_dir)?)))
    }

    /// This build has no disk storage.
    #[cfg(not(feature = "rocksdb"))]
    pub fn existing_disk(data_dir: &Path) -> Result<Self, Error> {
        Self::disk(data_dir)
    }

    /// This build has no disk storage.
    #[cfg(not(feature = "rocksdb"))]
    pub fn disk(data_dir: &Path) -> Result<Self, Error> {
        Err(Error::new(
            podkv_api::Reason::Configuration,
            format!(
                "storage on disk in {} needs the feature `rocksdb`, which this build lacks; \
                 rebuild with it, or use memory storage",
                data_dir.display()
            ),
        ))
    }

    /// The identity files. Open the [`Identity`] with them before the stores.
    pub fn markers(&self) -> Arc<dyn MarkerStore> {
        match self {
            Self::Disk(folder) => folder.markers(),
            Self::Memory(volume) => volume.markers(),
            Self::Stores(storage) => storage.markers.clone(),
        }
    }

    /// Where work on it runs.
    pub(crate) fn workers(&self) -> Workers {
        match self {
            Self::Disk(_) | Self::Memory(_) => Workers::default(),
            Self::Stores(storage) => storage.markers.workers(),
        }
    }

    /// Opens the log and the state; `cache_bytes` is the size of the state's block cache. Blocking,
    /// and after a crash as long as it takes to read the tail of the log.
    ///
    /// Databases are created only for a node that is still virgin: one that has promised anything to
    /// its peers, and has lost its log, must not go on.
    pub fn open_stores(
        &self,
        identity: &Identity,
        cache_bytes: usize,
    ) -> Result<Storage, StorageError> {
        self.open_as(cache_bytes, matches!(identity.phase(), Phase::Virgin))
    }

    /// The same for a volume whose node is stopped; they must be there.
    pub(crate) fn open_existing_stores(&self, cache_bytes: usize) -> Result<Storage, StorageError> {
        self.open_as(cache_bytes, false)
    }

    /// The log alone, of a node that is stopped.
    pub(crate) fn open_existing_log(&self) -> Result<Arc<dyn LogStore>, StorageError> {
        match self {
            #[cfg(feature = "rocksdb")]
            Self::Disk(folder) => Ok(Arc::new(super::rocks_log::RocksLog::open(
                folder.clone(),
                false,
            )?)),
            _ => Ok(self.open_existing_stores(0)?.log),
        }
    }

    /// The state alone, of a node that is stopped.
    pub(crate) fn open_existing_state(
        &self,
        cache_bytes: usize,
    ) -> Result<Arc<dyn StateStore>, StorageError> {
        match self {
            #[cfg(feature = "rocksdb")]
            Self::Disk(folder) => Ok(Arc::new(super::rocks_state::RocksState::open(
                folder.clone(),
                cache_bytes,
                false,
            )?)),
            _ => Ok(self.open_existing_stores(cache_bytes)?.state),
        }
    }

    fn open_as(&self, cache_bytes: usize, may_create: bool) -> Result<Storage, StorageError> {
        match self {
            Self::Disk(folder) => open_disk(folder, cache_bytes, may_create),
            Self::Memory(volume) => Ok(volume.open_stores()),
            Self::Stores(storage) => Ok(storage.clone()),
        }
    }
}

#[cfg(feature = "rocksdb")]
fn open_disk(
    folder: &Arc<DataFolder>,
    cache_bytes: usize,
    may_create: bool,
) -> Result<Storage, StorageError> {
    use super::{rocks_log::RocksLog, rocks_state::RocksState};
    Ok(Storage {
        log: Arc::new(RocksLog::open(folder.clone(), may_create)?),
        state: Arc::new(RocksState::open(folder.clone(), cache_bytes, may_create)?),
        markers: folder.markers(),
    })
}

#[cfg(not(feature = "rocksdb"))]
fn open_disk(
    folder: &Arc<DataFolder>,
    _cache_bytes: usize,
    _may_create: bool,
) -> Result<Storage, StorageError> {
    // `Volume::disk` refuses before this, so only a hand-made folder gets here.
    Err(StorageError::misuse(format!(
        "storage on disk in {} needs the feature `rocksdb`",
        folder.path().display()
    )))
}
