//! A checkpoint on its way in: files that a peer sends, kept over a restart.
//!
//! ```text
//! staged-<id>/
//!   MANIFEST          frame: the id, and name, length and crc32c of each file
//!   files/<name>      as much of each file as has arrived
//! ```
//!
//! The manifest is durable before the first byte arrives; the files are synced once, at the end.
//! How far a file got is its length. After a crash a file may hold a hole that was never synced:
//! its checksum finds that out, and the file is asked for again.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use podkv_core::FrameKind;
use podkv_core::codec::{self, Decode, Encode};

use super::durable_file::{read_small, sync_folder, write_durably};
use super::{CheckpointFile, StagedCheckpoint, StorageError, TransferError, rocks};

/// Staging folders begin with this.
pub(super) const STAGED_PREFIX: &str = "staged-";
const MANIFEST: &str = "MANIFEST";
const FILES: &str = "files";

/// RocksDB's tables are 64 MiB: this is room for 4 TiB.
const MAX_FILES: usize = 65_536;
const MAX_NAME_BYTES: usize = 128;
const MAX_MANIFEST_BYTES: usize = 16 << 20;
/// Checksums are computed over pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

#[derive(Encode, Decode)]
#[bincode(crate = "podkv_core::bincode")]
struct ManifestV1 {
    id: String,
    files: Vec<(String, u64, u32)>,
}

impl ManifestV1 {
    fn new(id: &str, files: &[CheckpointFile]) -> Self {
        Self {
            id: id.to_owned(),
            files: files
                .iter()
                .map(|file| (file.name.clone(), file.length, file.crc32c))
                .collect(),
        }
    }

    fn encode(&self) -> bytes::Bytes {
        codec::encode_frame(FrameKind::SnapshotManifest, self)
    }
}

/// See the module.
pub(super) struct StagedFolder {
    folder: PathBuf,
    id: String,
    files: Vec<CheckpointFile>,
    /// How much of each file is there.
    lengths: Mutex<Vec<u64>>,
    /// Another checkpoint took its place, or it is installed.
    closed: AtomicBool,
}

impl StagedFolder {
    /// Begins to receive `files` in `root`, or goes on if they were begun under the same id.
    pub fn begin(root: &Path, id: &str, files: Vec<CheckpointFile>) -> Result<Self, TransferError> {
        check_name("snapshot id", id)?;
        check_files(&files)?;
        let folder = root.join(format!("{STAGED_PREFIX}{id}"));
        let manifest = ManifestV1::new(id, &files).encode();
        remove_others(root, &folder)?;
        // A manifest that differs, or does not decode, belongs to something else: begin anew.
        let begun = read_small(&folder.join(MANIFEST), MAX_MANIFEST_BYTES);
        if !matches!(begun, Ok(Some(begun)) if begun == manifest) {
            rocks::remove_folder(&folder)?;
            fs::create_dir_all(folder.join(FILES)).map_err(|error| {
                StorageError::io(format!("creating {}", folder.display()), error)
            })?;
            write_durably(&folder, MANIFEST, &manifest)?;
            sync_folder(root)?;
        }
        let staged = Self {
            folder,
            id: id.to_owned(),
            files,
            lengths: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        let lengths = staged.measure()?;
        *staged.lengths() = lengths;
        Ok(staged)
    }

    pub fn is(&self, id: &str, files: &[CheckpointFile]) -> bool {
        !self.closed.load(Ordering::Acquire) && self.id == id && self.files == files
    }

    /// No more writes are accepted.
    pub fn close(&self) {
        // Taken so that no write is under way when this returns.
        let _lengths = self.lengths();
        self.closed.store(true, Ordering::Release);
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn files_folder(&self) -> PathBuf {
        self.folder.join(FILES)
    }

    /// Checks every file against the manifest and makes them durable. Files that are damaged are
    /// emptied, to be sent again.
    pub fn verify(&self) -> Result<(), TransferError> {
        let mut lengths = self.lengths();
        let mut damaged = Vec::new();
        for ((index, file), length) in self.files.iter().enumerate().zip(lengths.iter_mut()) {
            let path = self.path(index)?;
            if *length != file.length {
                return Err(TransferError::Refused(format!(
                    "snapshot {} is not complete: {} of {} bytes of {}",
                    self.id, length, file.length, file.name
                )));
            }
            let opened = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(&path)
                .map_err(|error| io("opening", &path, error))?;
            if crc32c_of(&opened, &path)? != file.crc32c {
                opened
                    .set_len(0)
                    .map_err(|error| io("emptying", &path, error))?;
                *length = 0;
                damaged.push(file.name.as_str());
            }
            opened
                .sync_all()
                .map_err(|error| io("syncing", &path, error))?;
        }
        if !damaged.is_empty() {
            return Err(TransferError::Refused(format!(
                "snapshot {}: these files arrived damaged and must be sent again: {}",
                self.id,
                damaged.join(", ")
            )));
        }
        sync_folder(&self.files_folder())?;
        Ok(())
    }

    fn lengths(&self) -> MutexGuard<'_, Vec<u64>> {
        // Each length is set in one assignment, after its bytes are written.
        self.lengths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, file: usize) -> Result<PathBuf, TransferError> {
        match self.files.get(file) {
            Some(file) => Ok(self.files_folder().join(&file.name)),
            None => Err(TransferError::Refused(format!(
                "snapshot {} has {} files; number {file} was sent",
                self.id,
                self.files.len()
            ))),
        }
    }

    /// How long each file is. One that is too long is emptied.
    fn measure(&self) -> Result<Vec<u64>, StorageError> {
        let folder = self.files_folder();
        self.files
            .iter()
            .map(|file| {
                let path = folder.join(&file.name);
                match fs::metadata(&path) {
                    Ok(metadata) if metadata.len() <= file.length => Ok(metadata.len()),
                    Ok(_) => match File::create(&path) {
                        Ok(_) => Ok(0),
                        Err(error) => Err(io("emptying", &path, error)),
                    },
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
                    Err(error) => Err(io("looking at", &path, error)),
                }
            })
            .collect()
    }
}

impl StagedCheckpoint for StagedFolder {
    fn offsets(&self) -> Vec<u64> {
        self.lengths().clone()
    }

    fn write(&self, file: usize, offset: u64, data: &[u8]) -> Result<(), TransferError> {
        let path = self.path(file)?;
        let mut lengths = self.lengths();
        if self.closed.load(Ordering::Acquire) {
            return Err(TransferError::Refused(format!(
                "snapshot {} is no longer being received",
                self.id
            )));
        }
        let (Some(description), Some(length)) = (self.files.get(file), lengths.get_mut(file))
        else {
            return Err(TransferError::Refused(format!("no file number {file}")));
        };
        let end = offset.checked_add(data.len() as u64);
        if offset != *length || end.is_none_or(|end| end > description.length) {
            return Err(TransferError::Refused(format!(
                "{} of snapshot {}: {} bytes sent for offset {offset}; it has {length} of {}",
                description.name,
                self.id,
                data.len(),
                description.length
            )));
        }
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .and_then(|opened| opened.write_all_at(data, offset))
            .map_err(|error| io("writing", &path, error))?;
        *length += data.len() as u64;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.lengths()
            .iter()
            .zip(&self.files)
            .all(|(length, file)| *length == file.length)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// The checksum of a whole file, read piece by piece.
pub(super) fn crc32c_of(mut file: &File, path: &Path) -> Result<u32, StorageError> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut checksum = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(checksum),
            Ok(read) => {
                let (read, _) = piece.split_at(read);
                checksum = crc32c::crc32c_append(checksum, read);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io("reading", path, error)),
        }
    }
}

/// Names come from a peer and become paths here: letters, digits, `.`, `_`, `-`, and no dot in front.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), TransferError> {
    let plain = !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if plain {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
    Err(TransferError::Refused(format!(
        "the {what} {shown:?} is not a plain name; expected 1 to {MAX_NAME_BYTES} letters, digits, \
         '.', '_' or '-', and no '.' in front"
    )))
}

/// Checks a list of files from a peer.
pub(super) fn check_files(files: &[CheckpointFile]) -> Result<(), TransferError> {
    if files.len() > MAX_FILES {
        return Err(TransferError::Refused(format!(
            "the snapshot has {} files; at most {MAX_FILES} are accepted",
            files.len()
        )));
    }
    let mut names = std::collections::BTreeSet::new();
    for file in files {
        check_name("file name", &file.name)?;
        if !names.insert(&file.name) {
            return Err(TransferError::Refused(format!(
                "the snapshot has the file {:?} twice",
                file.name
            )));
        }
    }
    Ok(())
}

/// Only one checkpoint is received at a time: the folders of others only take space.
fn remove_others(root: &Path, keep: &Path) -> Result<(), StorageError> {
    let entries = fs::read_dir(root).map_err(|error| io("listing", root, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| io("listing", root, error))?;
        let is_staging = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(STAGED_PREFIX));
        if is_staging && entry.path() != keep {
            rocks::remove_folder(&entry.path())?;
        }
    }
    Ok(())
}

fn io(doing: &str, path: &Path, error: std::io::Error) -> StorageError {
    StorageError::io(format!("{doing} {}", path.display()), error)
}
