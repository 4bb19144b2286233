//! Where the identity is kept: two small files, each replaced whole.

use std::path::PathBuf;

use bytes::Bytes;
use podkv_api::{Incarnation, MemberId};

use crate::storage::{StorageError, Workers};

/// The files of a node's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IdentityFile {
    /// Who this volume belongs to.
    Marker,
    /// The starts of other nodes that this one has seen.
    Peers,
    /// A recovery from a lost majority that has begun and not ended. There is none in a node's normal life.
    Recovery,
    /// For how long this node may have promised neither to vote nor to campaign. Only where leader leases are, or were.
    Promise,
}

impl IdentityFile {
    pub fn name(self) -> &'static str {
        match self {
            Self::Marker => "MARKER",
            Self::Peers => "peers",
            Self::Recovery => "RECOVERY",
            Self::Promise => "PROMISE",
        }
    }

    /// No honest file is longer.
    pub(crate) fn max_bytes(self) -> usize {
        match self {
            Self::Marker => 1 << 20,
            Self::Peers => 1 << 20,
            Self::Recovery | Self::Promise => 1 << 10,
        }
    }
}

/// What a node that was retired left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    pub path: PathBuf,
    /// The incarnation that it was a member of; `None` if it cannot be read any more.
    pub incarnation: Option<Incarnation>,
}

/// Keeps the identity files. All calls block.
pub trait MarkerStore: Send + Sync + 'static {
    /// The file's bytes; `None` if it was never saved.
    fn load(&self, file: IdentityFile) -> Result<Option<Bytes>, StorageError>;

    /// Replaces the file, atomically and durably. After an error it may be either.
    fn save(&self, file: IdentityFile, bytes: &[u8]) -> Result<(), StorageError>;

    /// Removes the file, durably; one that is not there is fine.
    fn remove(&self, file: IdentityFile) -> Result<(), StorageError>;

    /// True if a log or a state lies beside the files. Then a missing marker is damage: the node that
    /// wrote them may have promised its vote to somebody.
    fn holds_data(&self) -> Result<bool, StorageError>;

    /// Puts everything that a retired node left out of the way, this file and the data, so that its
    /// pod can begin anew. Interrupted, it is called again: the marker goes last.
    fn set_aside(&self, retired: MemberId) -> Result<(), StorageError>;

    /// What was put aside and is still there.
    fn aside(&self) -> Result<Vec<Aside>, StorageError>;

    /// Removes what was put aside by nodes of this incarnation and later ones. What is of an earlier one stays: a
    /// recovery from a lost majority lies in between, and there may be acknowledged writes in it that nobody else
    /// holds. [`Incarnation`] 0 removes everything.
    fn remove_aside(&self, since: Incarnation) -> Result<(), StorageError>;

    /// The file's place, for messages.
    fn describe(&self, file: IdentityFile) -> String;

    /// Where work on it runs.
    fn workers(&self) -> Workers {
        Workers::default()
    }
}
