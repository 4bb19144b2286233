//! What can go wrong in storage: the disk, or what a peer sent.

use std::fmt::Display;
use std::path::Path;

use podkv_api::{Error, Reason};

use crate::space::VolumeSpace;

/// A storage failure. It stops the node; it is never an answer to a request.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StorageError {
    /// What was being done, on which file, and what a person should do about it.
    pub what: String,
    /// True if the bytes are damaged; false if the disk failed or is full.
    pub corrupt: bool,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StorageError {
    /// The disk failed, is full, or refused.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        let what = format!("{}: {source}", what.into());
        let source: Option<Box<dyn std::error::Error + Send + Sync>> = Some(Box::new(source));
        Self {
            what,
            corrupt: false,
            source,
        }
    }

    /// The bytes at `path` are not what was written. The text says what to do, which is the same
    /// for all of a node's data: nothing on the volume may be repaired by hand, since a node that
    /// forgot a vote or an entry can split a cluster.
    pub fn damaged(path: &Path, detail: impl Display) -> Self {
        Self {
            what: format!(
                "{} is damaged: {detail}. Nothing was changed or deleted. With the node stopped, \
                 `podkv resync` on its data folder puts its data aside; started again, the pod \
                 rejoins under a new id and copies everything from its peers, as it does with an \
                 empty volume",
                path.display()
            ),
            corrupt: true,
            source: None,
        }
    }

    /// A caller broke the rules of the store: a defect of ours, not of the disk.
    pub fn misuse(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            corrupt: false,
            source: None,
        }
    }
}

impl From<StorageError> for std::io::Error {
    fn from(error: StorageError) -> Self {
        std::io::Error::other(error)
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        let reason = if error.corrupt {
            Reason::Corrupt
        } else {
            Reason::Internal
        };
        Error::new(reason, error.what.clone()).with_source(error)
    }
}

/// What a file system was refused for says its text alone; what is left on the volume can be asked for. Less than this is
/// nothing: file systems keep some blocks for themselves.
const NOTHING_LEFT: u64 = 1 << 20;

/// What to add to a failure at `path` if the volume is full.
pub(super) fn space_left(path: &Path) -> String {
    // Of a file that was not made yet, the folder is asked.
    let space = path.ancestors().find_map(|at| VolumeSpace::of(at).ok());
    match space {
        Some(space) if space.free_bytes < NOTHING_LEFT => format!(
            ". The volume that holds {} is full: {} KiB of {} MiB are free. Nothing that was acknowledged is lost. Enlarge \
             the volume, or remove from it what is not podkv's; started again, the node goes on",
            path.display(),
            space.free_bytes >> 10,
            space.size_bytes >> 20
        ),
        _ => String::new(),
    }
}

/// Why a checkpoint could not be received or installed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// What the peer sent cannot be used: a bad name, a wrong offset, a wrong checksum. The state is
    /// as it was, and the node goes on.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<TransferError> for std::io::Error {
    fn from(error: TransferError) -> Self {
        std::io::Error::other(error)
    }
}
