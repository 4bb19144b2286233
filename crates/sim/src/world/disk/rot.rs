//! Bits that turn: in a record of the state, and in a snapshot that is being received.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use podkv_core::{Scan, View, ViewError};
use podkv_node::storage::{StagedCheckpoint, StateView, StorageError, TransferError};
use rand::RngExt as _;

use super::{Disk, ROTTEN_SNAPSHOT};

/// A snapshot that is being received.
pub(super) struct Staged {
    pub disk: Disk,
    pub inner: Arc<dyn StagedCheckpoint>,
}

impl StagedCheckpoint for Staged {
    fn offsets(&self) -> Vec<u64> {
        self.inner.offsets()
    }

    fn write(&self, file: usize, offset: u64, data: &[u8]) -> Result<(), TransferError> {
        let mut turned = data.to_vec();
        let mut state = self.disk.state();
        if std::mem::take(&mut state.rots_snapshot) && !turned.is_empty() {
            *state.steps.entry(ROTTEN_SNAPSHOT).or_default() += 1;
            let at = state.rng.random_range(0..turned.len());
            turned[at] ^= 1 << state.rng.random_range(0..8);
        }
        drop(state);
        self.inner.write(file, offset, &turned)
    }

    fn is_complete(&self) -> bool {
        self.inner.is_complete()
    }

    /// The store knows its own.
    fn as_any(&self) -> &dyn std::any::Any {
        self.inner.as_any()
    }
}

/// A view of a state in which a bit has turned.
pub(super) struct RottenView {
    pub view: Arc<dyn StateView>,
    pub rotten: Bytes,
}

pub(super) fn damaged() -> StorageError {
    StorageError::damaged(Path::new("state"), "a checksum is wrong")
}

fn unreadable() -> ViewError {
    ViewError::storage("reading the state", damaged())
}

impl View for RottenView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        match self.rotten == key {
            true => Err(unreadable()),
            false => self.view.get(key),
        }
    }

    fn scan<'a>(&'a self, start: &[u8], end: &[u8], reverse: bool) -> Scan<'a> {
        let records = self.view.scan(start, end, reverse);
        Box::new(records.map(move |record| match record {
            Ok((key, _)) if key == self.rotten => Err(unreadable()),
            record => record,
        }))
    }
}
