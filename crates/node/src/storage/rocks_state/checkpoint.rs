//! A copy of the state by hard links: what is sent to a peer.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rocksdb::{DB, Options};

use super::super::staging::crc32c_of;
use super::super::{Checkpoint, CheckpointFile, StateView, StorageError, rocks};
use super::generation::{Generation, OwnedFolder, Reads, RocksView};
use super::lock;

/// One call of [`Checkpoint::read`] returns at most this.
const MAX_READ_BYTES: usize = 8 << 20;

pub(super) struct RocksCheckpoint {
    pub folder: Arc<OwnedFolder>,
    pub lengths: Vec<(String, u64)>,
    /// Held while checksums are computed, so that it is done once.
    pub files: Mutex<Option<Vec<CheckpointFile>>>,
    /// Held while the copy is opened, for the same reason.
    pub opened: Mutex<Option<Arc<Generation>>>,
    /// Remembers the checksums of the tables that the next checkpoint will share with this one.
    pub origin: Arc<Generation>,
    pub options: Options,
}

impl RocksCheckpoint {
    fn checksums(&self) -> Result<Vec<CheckpointFile>, StorageError> {
        let known = lock(&self.origin.table_checksums).clone();
        let mut tables = BTreeMap::new();
        let mut files = Vec::with_capacity(self.lengths.len());
        for (name, length) in &self.lengths {
            let is_table = name.ends_with(".sst");
            let crc32c = match known.get(name) {
                Some((known_length, crc32c)) if is_table && known_length == length => *crc32c,
                _ => {
                    let path = self.folder.path.join(name);
                    let file = File::open(&path).map_err(|error| {
                        StorageError::io(format!("opening {}", path.display()), error)
                    })?;
                    crc32c_of(&file, &path)?
                }
            };
            if is_table {
                tables.insert(name.clone(), (*length, crc32c));
            }
            files.push(CheckpointFile {
                name: name.clone(),
                length: *length,
                crc32c,
            });
        }
        // Tables that are gone are forgotten with this.
        *lock(&self.origin.table_checksums) = tables;
        Ok(files)
    }
}

impl Checkpoint for RocksCheckpoint {
    fn files(&self) -> Result<Vec<CheckpointFile>, StorageError> {
        let mut known = lock(&self.files);
        match &*known {
            Some(files) => Ok(files.clone()),
            None => {
                let files = self.checksums()?;
                *known = Some(files.clone());
                Ok(files)
            }
        }
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let Some((name, available)) = self.lengths.iter().find(|(known, _)| known == name) else {
            return Err(StorageError::misuse(format!(
                "the checkpoint has no file {name:?}"
            )));
        };
        let available = available.saturating_sub(offset);
        let length = (length.min(MAX_READ_BYTES) as u64).min(available) as usize;
        let path = self.folder.path.join(name);
        let mut bytes = vec![0; length];
        File::open(&path)
            .and_then(|file| file.read_exact_at(&mut bytes, offset))
            .map_err(|error| StorageError::io(format!("reading {}", path.display()), error))?;
        Ok(bytes.into())
    }

    fn view(&self) -> Result<Arc<dyn StateView>, StorageError> {
        let mut opened = lock(&self.opened);
        let generation = match &*opened {
            Some(generation) => generation.clone(),
            None => {
                let path = &self.folder.path;
                // Read-only: the files are being sent, and must stay as they are.
                let database = DB::open_for_read_only(&self.options, path, false)
                    .map_err(|error| rocks::failure(path, "opening a checkpoint", error))?;
                let generation = Arc::new(Generation {
                    database,
                    folder: self.folder.clone(),
                    table_checksums: Mutex::default(),
                });
                *opened = Some(generation.clone());
                generation
            }
        };
        // Who reads a checkpoint reads all of it.
        Ok(Arc::new(RocksView::new(generation, Reads::Once)))
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.folder.path)
    }
}
