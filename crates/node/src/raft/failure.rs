//! Why this replica cannot go on, with its reason.
//!
//! openraft hands on what it ended with as a text. So whoever meets a failure of this node's own storage first notes it here,
//! before openraft is told; what comes after it is only its echo.

use std::error::Error as StdError;
use std::sync::OnceLock;

use podkv_api::{Error, Reason};
use podkv_core::codec::CodecError;

use crate::storage::{StorageError, TransferError};

/// The first failure; it stays.
#[derive(Debug, Default)]
pub(super) struct Failure(OnceLock<Error>);

impl Failure {
    /// `doing` says what was being done.
    pub fn note(&self, doing: &str, error: &(dyn StdError + 'static)) {
        self.0
            .get_or_init(|| Error::new(reason(error), format!("{doing}: {error}")));
    }

    pub fn get(&self) -> Option<Error> {
        self.0.get().cloned()
    }
}

/// That of the storage, which may be wrapped: in what reads the state, and in what openraft wants.
fn reason(error: &(dyn StdError + 'static)) -> Reason {
    let mut next = Some(error);
    while let Some(error) = next {
        let storage = match error.downcast_ref::<TransferError>() {
            Some(TransferError::Storage(error)) => Some(error),
            _ => error.downcast_ref::<StorageError>(),
        };
        if let Some(storage) = storage {
            return match storage.corrupt {
                true => Reason::Corrupt,
                false => Reason::Internal,
            };
        }
        if error.is::<CodecError>() {
            return Reason::Corrupt;
        }
        // An I/O error shows the source of what it wraps, and not that itself.
        let wrapped = error.downcast_ref::<std::io::Error>();
        let wrapped = wrapped.and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    Reason::Internal
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use podkv_core::ViewError;

    use super::*;

    fn noted(error: &(dyn StdError + 'static)) -> Error {
        let failure = Failure::default();
        failure.note("reading", error);
        failure.note("anything else", &io::Error::other("an echo"));
        failure.get().unwrap()
    }

    #[test]
    fn the_first_failure_keeps_its_reason_through_every_wrapping() {
        assert!(Failure::default().get().is_none());
        let damaged = || StorageError::damaged(Path::new("/data/log"), "a bad block");
        let plain = noted(&damaged());
        assert_eq!(plain.reason(), Reason::Corrupt);
        assert!(plain.text().starts_with("reading: /data/log is damaged"));
        let view = || ViewError::storage("reading the state", damaged());
        let transfer = TransferError::from(damaged());
        for wrapped in [damaged().into(), io::Error::other(view()), transfer.into()] {
            assert_eq!(noted(&wrapped).reason(), Reason::Corrupt);
        }
        let twice = io::Error::other(io::Error::other(view()));
        assert_eq!(noted(&twice).reason(), Reason::Corrupt);
    }

    #[test]
    fn a_disk_that_fails_is_not_damage() {
        let full = StorageError::io("writing", io::ErrorKind::StorageFull.into());
        assert_eq!(noted(&io::Error::other(full)).reason(), Reason::Internal);
        assert_eq!(noted(&io::Error::other("?")).reason(), Reason::Internal);
    }
}
