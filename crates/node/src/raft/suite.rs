//! openraft's own suite for storage, over our adapters and both stores.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tokio::runtime::Handle;

use super::log::{Log, Writer};
use super::machine::Machine;
use super::machine::tests::Recorder;
use super::types::TypeConfig;
use crate::storage::{MemoryDisk, Storage, Worker};

/// A fresh volume, and what must outlive the stores on it.
trait Volumes: Send + Sync {
    type Guard: Send + Sync;

    fn open(&self) -> (Self::Guard, Storage);
}

struct Builder<V>(V);

/// Dropped after the log and the machine. Waits for their threads: one that still closed its store while the program
/// ends would find RocksDB's statics gone.
struct Guard<G> {
    threads: Option<(Writer, Worker)>,
    _volume: G,
}

impl<G> Drop for Guard<G> {
    fn drop(&mut self) {
        let Some((writer, apply)) = self.threads.take() else {
            return;
        };
        tokio::task::block_in_place(|| {
            Handle::current().block_on(async {
                writer.stop().await;
                assert!(apply.join().await, "the apply thread panicked");
            });
        });
    }
}

impl<V: Volumes> StoreBuilder<TypeConfig, Log, Machine, Guard<V::Guard>> for Builder<V> {
    async fn build(&self) -> Result<(Guard<V::Guard>, Log, Machine), StorageError<TypeConfig>> {
        let (volume, storage) = self.0.open();
        // No cache: entries are read from the store.
        let (log, writer) = Log::open(storage.log, 0).unwrap();
        // The suite applies entries that no log ever held, so nothing is waited for.
        let events = Arc::new(Recorder::default());
        let (machine, apply) = Machine::open(storage.state, events, Arc::default(), None).unwrap();
        let guard = Guard {
            threads: Some((writer, apply)),
            _volume: volume,
        };
        Ok((guard, log, machine))
    }
}

struct Memory;

impl Volumes for Memory {
    type Guard = ();

    fn open(&self) -> ((), Storage) {
        ((), MemoryDisk::new().attach().open_stores())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_passes_the_suite_of_openraft() {
    Suite::test_all(Builder(Memory)).await.unwrap();
}

#[cfg(feature = "rocksdb")]
struct Disk;

#[cfg(feature = "rocksdb")]
impl Volumes for Disk {
    type Guard = tempfile::TempDir;

    fn open(&self) -> (tempfile::TempDir, Storage) {
        let folder = tempfile::tempdir().unwrap();
        let volume = crate::storage::Volume::disk(folder.path()).unwrap();
        let identity = crate::identity::Identity::open(volume.markers(), "podkv-0").unwrap();
        let storage = volume.open_stores(&identity, 8 << 20).unwrap();
        (folder, storage)
    }
}

#[cfg(feature = "rocksdb")]
#[tokio::test(flavor = "multi_thread")]
async fn rocksdb_passes_the_suite_of_openraft() {
    Suite::test_all(Builder(Disk)).await.unwrap();
}
