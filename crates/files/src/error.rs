//! Why work with files failed.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store's answer.
    #[error(transparent)]
    Store(#[from] podkv_api::Error),
    /// A file or folder: full disk, read-only, no rights. May pass; the last good state stays.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        path: PathBuf,
        doing: &'static str,
        source: std::io::Error,
    },
    /// The directory holds what podkv did not put there, or belongs to another projection.
    #[error("{} is not ours: {why}; --adopt takes it over, and moves aside what is in the way", path.display())]
    NotOurs { path: PathBuf, why: String },
    /// It cannot be a target, and `--adopt` changes nothing about that.
    #[error("{}: {why}", path.display())]
    Unusable { path: PathBuf, why: String },
    /// Another process keeps this directory.
    #[error("{} is in use by another projection", path.display())]
    Busy { path: PathBuf },
    /// What was given to read cannot be taken as keys; nothing was written.
    #[error("{0}")]
    Input(String),
    /// A key that is needed cannot be written as it is; nothing was written.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    pub(crate) fn io(
        path: impl Into<PathBuf>,
        doing: &'static str,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io {
            path: path.into(),
            doing,
            source: source.into(),
        }
    }

    /// True if it may succeed later without anybody changing the call.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Store(error) => {
                error.is_retryable() || error.reason() == podkv_api::Reason::Compacted
            }
            Error::Io { .. } => true,
            _ => false,
        }
    }
}
