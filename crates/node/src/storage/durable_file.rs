//! Small files that must survive a crash whole.
//!
//! What we rely on: `rename` within a folder is atomic, and is on the disk once the folder is
//! fsynced; the bytes of a file are on the disk once the file is. So a file is written beside its
//! name, synced, renamed over it, and the folder is synced. After a crash at any point the name
//! shows the old bytes or the new ones. A left-over `*.tmp` means nothing and is overwritten.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use bytes::Bytes;

use super::StorageError;
use super::error::space_left;

/// The ending of a file or folder that is not in place yet.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Replaces `folder/name` by `bytes`, durably.
pub(crate) fn write_durably(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
    let temporary = folder.join(format!("{name}{TEMPORARY}"));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, folder.join(name))?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| {
        let mut failure =
            StorageError::io(format!("writing {}", folder.join(name).display()), error);
        failure.what += &space_left(folder);
        failure
    })
}

/// The bytes of `path`; `None` if there is no such file. One longer than `limit` is damaged.
pub(crate) fn read_small(path: &Path, limit: usize) -> Result<Option<Bytes>, StorageError> {
    let failed = |error| StorageError::io(format!("reading {}", path.display()), error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() > limit {
        return Err(StorageError::damaged(
            path,
            format!("it is longer than {limit} bytes"),
        ));
    }
    Ok(Some(bytes.into()))
}

/// Makes the names in `folder` durable: creations, renames and removals.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(|error| StorageError::io(format!("syncing {}", folder.display()), error))
}

/// The bytes of all files directly in `folder`. What vanishes while we look counts as nothing.
#[cfg(feature = "rocksdb")]
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        write_durably(folder.path(), "A", b"one").unwrap();
        write_durably(folder.path(), "A", b"two").unwrap();
        assert_eq!(
            read_small(&folder.path().join("A"), 3).unwrap().unwrap(),
            "two"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(
            read_small(&folder.path().join("A"), 2).unwrap_err().corrupt,
            "longer than the limit"
        );
        assert!(read_small(&folder.path().join("B"), 3).unwrap().is_none());
    }
}
