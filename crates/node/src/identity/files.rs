//! Where the identity is kept: two small files, each replaced whole.

use bytes::Bytes;
use podkv_api::MemberId;

use crate::storage::StorageError;

/// The files of a node's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IdentityFile {
    /// Who this volume belongs to.
    Marker,
    /// The starts of other nodes that this one has seen.
    Peers,
}

impl IdentityFile {
    pub fn name(self) -> &'static str {
        match self {
            Self::Marker => "MARKER",
            Self::Peers => "peers",
        }
    }

    /// No honest file is longer.
    pub(crate) fn max_bytes(self) -> usize {
        match self {
            Self::Marker => 1 << 20,
            Self::Peers => 1 << 20,
        }
    }
}

/// Keeps the identity files. All calls block.
pub trait MarkerStore: Send + Sync + 'static {
    /// The file's bytes; `None` if it was never saved.
    fn load(&self, file: IdentityFile) -> Result<Option<Bytes>, StorageError>;

    /// Replaces the file, atomically and durably. After an error it may be either.
    fn save(&self, file: IdentityFile, bytes: &[u8]) -> Result<(), StorageError>;

    /// True if a log or a state lies beside the files. Then a missing marker is damage: the node that
    /// wrote them may have promised its vote to somebody.
    fn holds_data(&self) -> Result<bool, StorageError>;

    /// Puts everything that a retired node left out of the way, this file and the data, so that its
    /// pod can begin anew. Interrupted, it is called again: the marker goes last.
    fn set_aside(&self, retired: MemberId) -> Result<(), StorageError>;

    /// Removes what was put aside.
    fn remove_aside(&self) -> Result<(), StorageError>;

    /// The file's place, for messages.
    fn describe(&self, file: IdentityFile) -> String;
}
