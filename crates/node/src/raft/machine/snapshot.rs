//! Snapshots: checkpoints of the state, built, kept and installed.
//!
//! The state persists by itself, so a snapshot serves two ends: it tells openraft what may be purged,
//! and it brings a peer up to date that needs what was purged. One built checkpoint is kept, because
//! it pins files on the disk. Whoever transfers one holds it itself.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podkv_core::ViewError;

use super::super::types::{Snapshot, SnapshotMeta, position};
use super::{Reached, Shared};
use crate::fail_point::{self, Point};
use crate::membership::LogPosition;
use crate::storage::{Checkpoint, StagedCheckpoint, Workers};

/// How much is copied at once when a checkpoint of this node is installed on it.
const COPY_BYTES: usize = 1 << 20;

/// The contents of a snapshot.
pub(in crate::raft) enum SnapshotData {
    /// Of this node's state.
    Built(Arc<Built>),
    /// Received from a peer, in full.
    Received(Arc<dyn StagedCheckpoint>),
}

/// A checkpoint of the own state.
pub(in crate::raft) struct Built {
    /// Names it among all: where in the log, and a random part.
    pub id: String,
    /// Read from inside the checkpoint.
    pub meta: SnapshotMeta,
    pub checkpoint: Arc<dyn Checkpoint>,
    /// Where it is read.
    pub workers: Workers,
}

impl Built {
    fn position(&self) -> Option<LogPosition> {
        self.meta.last_log_id.as_ref().map(position)
    }

    pub fn into_snapshot(self: Arc<Self>) -> Snapshot<SnapshotData> {
        Snapshot {
            meta: self.meta.clone(),
            snapshot: SnapshotData::Built(self),
        }
    }
}

/// What was done with snapshots since the start.
#[derive(Debug, Default)]
pub(in crate::raft) struct SnapshotCounters {
    built: AtomicU64,
    installed: AtomicU64,
}

/// [`SnapshotCounters`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotStats {
    /// Checkpoints of the own state.
    pub built: u64,
    /// How often the own state was replaced by a peer's.
    pub installed: u64,
}

impl SnapshotCounters {
    pub fn stats(&self) -> SnapshotStats {
        SnapshotStats {
            built: self.built.load(Relaxed),
            installed: self.installed.load(Relaxed),
        }
    }
}

/// The checkpoint that is kept.
#[derive(Default)]
pub(super) struct Slot(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    built: Option<Arc<Built>>,
    /// The last snapshot that was installed: what it covers may be missing in the log.
    installed: Option<LogPosition>,
}

impl Slot {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a snapshot must cover, because the log no longer holds it.
    pub fn floor(&self, purged: Option<LogPosition>) -> Option<LogPosition> {
        self.kept().installed.max(purged)
    }

    /// The kept one, if it covers everything that the log no longer holds.
    pub fn current(&self, purged: Option<LogPosition>) -> Option<Arc<Built>> {
        let floor = self.floor(purged);
        self.kept()
            .built
            .clone()
            .filter(|built| built.position() >= floor)
    }
}

impl Shared {
    /// Makes a checkpoint, and keeps it in place of the last one. Blocking.
    pub(super) fn build(&self) -> io::Result<Arc<Built>> {
        fail_point::pass(Point::SnapshotToBuild);
        let checkpoint = self.state.checkpoint()?;
        fail_point::pass(Point::SnapshotBuilt);
        let reached = {
            let view = checkpoint.view()?;
            Reached::read(&*view).map_err(io::Error::other)?
        };
        let meta = reached.snapshot_meta()?;
        let at = reached.position.unwrap_or_default();
        let id = format!(
            "{:016x}-{:016x}-{:016x}",
            at.term,
            at.index,
            rand::random::<u64>()
        );
        let built = Arc::new(Built {
            id,
            meta,
            checkpoint,
            workers: self.state.workers(),
        });
        self.counters.built.fetch_add(1, Relaxed);
        let replaced = {
            let mut kept = self.snapshots.kept();
            // A slower builder must not bring back an older one.
            let newer = kept
                .built
                .as_ref()
                .is_none_or(|other| other.position() <= built.position());
            newer.then(|| kept.built.replace(built.clone())).flatten()
        };
        // Closes its database, with nobody waiting for the lock.
        drop(replaced);
        Ok(built)
    }

    /// Replaces the state by a snapshot. Blocking.
    pub(super) fn install(
        &self,
        expected: Option<LogPosition>,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let staged = match snapshot {
            SnapshotData::Received(staged) => staged,
            SnapshotData::Built(built) => self.copy(&built)?,
        };
        {
            let mut recent = self.recent();
            // Also if it fails: which of the two states is there then is not known.
            recent.clear();
            self.state.install(staged)?;
        }
        fail_point::pass(Point::Installed);
        let view = self.state.view();
        let reached = Reached::read(&*view).map_err(io::Error::other)?;
        if reached.position != expected {
            return Err(io::Error::other(ViewError::corrupt(format!(
                "a snapshot of {expected:?} was announced, and its state is at {:?}",
                reached.position
            ))));
        }
        let applied = reached.applied(&*view).map_err(io::Error::other)?;
        let replaced = {
            let mut kept = self.snapshots.kept();
            kept.installed = reached.position;
            kept.built.take()
        };
        drop(replaced);
        *self.reached() = reached;
        self.counters.installed.fetch_add(1, Relaxed);
        self.applied.send_replace(applied.clone());
        self.events.auth_changed();
        self.events.reset(applied);
        Ok(())
    }

    fn copy(&self, built: &Built) -> io::Result<Arc<dyn StagedCheckpoint>> {
        let files = built.checkpoint.files()?;
        let staged = self.state.stage(&built.id, files.clone())?;
        for (number, (file, mut offset)) in files.iter().zip(staged.offsets()).enumerate() {
            while offset < file.length {
                let data = built.checkpoint.read(&file.name, offset, COPY_BYTES)?;
                if data.is_empty() {
                    return Err(io::Error::other(format!(
                        "{} of a checkpoint is too short",
                        file.name
                    )));
                }
                staged.write(number, offset, &data)?;
                offset += data.len() as u64;
            }
        }
        Ok(staged)
    }
}
