//! The simulated disk of a pod: the memory storage that ships, with what real disks do to it.
//!
//! ```text
//!   node ─► Log, State, Markers (here) ─► the gate: crash? error? lie? ─► MemoryDisk
//!                └── when: DiskTime, a wait in simulated time before each piece of work
//! ```
//!
//! - **A crash can hit between any two steps**, and just before or after each: [`Disk::crash_at`]. The network of the
//!   host is gone in the same moment, so nothing that the step led to is ever heard of.
//! - **What was not synced is gone** after a crash. The state, which nobody syncs, falls back to an earlier batch; to which
//!   one is chance, because now and then the disk flushes it by itself, as RocksDB does with a full memtable.
//! - **An error** comes before the step was done or after it, so that nobody may conclude anything from it.

mod rot;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use podkv_api::{Incarnation, MemberId};
use podkv_node::identity::{Aside, IdentityFile, MarkerStore};
use podkv_node::storage::{
    Checkpoint, CheckpointFile, Crash, DiskTime, LogRecovery, LogStore, LogWrite, MemoryDisk,
    StagedCheckpoint, StateStore, StateView, StateWrites, Storage, StorageError, TransferError,
    Workers,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use self::rot::{RottenView, Staged, damaged};
use super::clock::Clock;
use super::network::Network;
use super::plan::Planted;
use super::trace::Trace;
use crate::history::Nanos;

/// Faults that have come true, among the steps that are counted.
const SPRUNG_CRASH: &str = "crashed at a step";
const SPRUNG_ERROR: &str = "failed at a step";

/// A bit turned in what was received of a snapshot.
pub const ROTTEN_SNAPSHOT: &str = "rotten snapshot";

/// How often a stalled disk is looked at again.
const STALLED: Duration = Duration::from_millis(5);

/// What a pod's disk does, beyond what it is told to do.
#[derive(Clone, Copy, Debug)]
pub struct Temper {
    /// A sync takes up to this.
    pub sync: Duration,
    /// Everything else takes up to this.
    pub access: Duration,
    /// How likely a commit of the state is followed by a flush of its own.
    pub flush: f64,
}

/// A fault that waits for a step of the disk.
#[derive(Clone, Copy, Debug)]
pub enum Trap {
    /// The host ends.
    Crash(Crash),
    /// The step fails.
    Error,
}

/// The disk of one pod, over all its lives. Clones are the same disk.
#[derive(Clone)]
pub struct Disk(Arc<Shared>);

struct Shared {
    host: String,
    clock: Clock,
    trace: Trace,
    network: Network,
    state: Mutex<State>,
}

/// What a pod's disk holds. Volumes change pods, and come back.
#[derive(Clone, Default)]
pub struct Volume {
    disk: MemoryDisk,
    /// The index up to which a snapshot was installed: up to there the state may be ahead of the log.
    installed: u64,
    /// The key of a record of the state in which a bit has turned. Whoever reads it is told, as by RocksDB's checksums.
    rotten: Option<Bytes>,
}

struct State {
    rng: StdRng,
    volume: Volume,
    temper: Temper,
    planted: Option<Planted>,
    stalled_until: Nanos,
    /// A bit turns in the next part of a snapshot that is received.
    rots_snapshot: bool,
    /// Steps to go until the trap springs.
    trap: Option<(u32, Trap)>,
    /// The host ended here, and the world has yet to notice.
    crashed: bool,
    /// How often each step was made.
    steps: BTreeMap<&'static str, u64>,
    complaints: Vec<String>,
}

/// What becomes of a step.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Done,
    CrashBefore(Crash),
    CrashAfter(Crash),
    ErrorBefore,
    ErrorAfter,
}

impl Disk {
    pub fn new(
        host: &str,
        seed: u64,
        (temper, planted): (Temper, Option<Planted>),
        (clock, trace, network): (Clock, Trace, Network),
    ) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            volume: Volume::default(),
            temper,
            planted,
            stalled_until: 0,
            rots_snapshot: false,
            trap: None,
            crashed: false,
            steps: BTreeMap::new(),
            complaints: Vec::new(),
        };
        Self(Arc::new(Shared {
            host: host.into(),
            clock,
            trace,
            network,
            state: Mutex::new(state),
        }))
    }

    /// Starts a process on it.
    pub fn attach(&self) -> Storage {
        let mut state = self.state();
        state.trap = None;
        state.crashed = false;
        let inner = state.volume.disk.attach().open_stores();
        if let Some(complaint) = state.volume.ahead(&inner) {
            let complaint = format!("{}: {complaint}", self.0.host);
            state.complaints.push(complaint);
        }
        drop(state);
        Storage {
            log: Arc::new(Log {
                disk: self.clone(),
                inner: inner.log,
                held: Mutex::default(),
            }),
            state: Arc::new(StateDisk(self.clone(), inner.state)),
            markers: Arc::new(Markers(self.clone(), inner.markers)),
        }
    }

    /// The host ends now.
    pub fn crash(&self, crash: Crash) {
        self.0.network.down(&self.0.host, crash == Crash::Power);
        let mut state = self.state();
        state.volume.disk.crash(crash);
        state.trap = None;
        state.crashed = true;
    }

    /// Lays a trap for the step that comes after `steps` others.
    pub fn trap(&self, steps: u32, trap: Trap) {
        self.state().trap = Some((steps, trap));
    }

    /// Nothing is done before `until`.
    pub fn stall(&self, until: Nanos) {
        self.state().stalled_until = until;
    }

    /// Faults end.
    pub fn heal(&self) {
        let mut state = self.state();
        state.stalled_until = 0;
        state.trap = None;
        state.rots_snapshot = false;
    }

    /// True if the host ended by a trap.
    pub fn has_crashed(&self) -> bool {
        self.state().crashed
    }

    /// What the volume holds now.
    pub fn copy(&self) -> Volume {
        let state = self.state();
        Volume {
            disk: state.volume.disk.copy(),
            installed: state.volume.installed,
            rotten: state.volume.rotten.clone(),
        }
    }

    /// Puts another volume in its place. Nobody may be attached.
    pub fn replace(&self, volume: Volume) {
        self.state().volume = volume;
    }

    /// Puts an empty volume in its place that bears the node's id as it was.
    pub fn empty_but_named(&self) -> Result<(), StorageError> {
        let old = self.state().volume.disk.attach().open_stores().markers;
        let volume = Volume::default();
        let new = volume.disk.attach().open_stores().markers;
        for file in [IdentityFile::Marker, IdentityFile::Peers] {
            if let Some(bytes) = old.load(file)? {
                new.save(file, &bytes)?;
            }
        }
        self.replace(volume);
        Ok(())
    }

    /// Turns a bit of a record in the log, drawn by lot. Nobody may be attached. False if there is none.
    pub fn rot_log(&self) -> Result<bool, StorageError> {
        let mut state = self.state();
        let log = state.volume.disk.attach().open_stores().log;
        let found = log.recover()?;
        let (Some(first), Some(last)) = (found.first_index, found.last_index) else {
            return Ok(false);
        };
        let rotten = state.rng.random_range(first..=last);
        let mut writes = vec![LogWrite::TruncateFrom { from: rotten }];
        for (index, record) in log.read(rotten, last + 1, usize::MAX)? {
            let mut bytes = record.to_vec();
            if index == rotten {
                let at = state.rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << state.rng.random_range(0..8);
            }
            let record = bytes.into();
            writes.push(LogWrite::Append { index, record });
        }
        log.write(&writes)?;
        Ok(true)
    }

    /// A bit turns in a record of the state, drawn by lot. Nobody may be attached. False if there is none.
    pub fn rot_state(&self) -> bool {
        let mut state = self.state();
        let view = state.volume.disk.attach().open_stores().state.view();
        let keys: Vec<Bytes> = view
            .scan(&[], &[0xff; 8], false)
            .filter_map(|record| Some(record.ok()?.0))
            .collect();
        if keys.is_empty() {
            return false;
        }
        let nth = state.rng.random_range(0..keys.len());
        state.volume.rotten = keys.get(nth).cloned();
        true
    }

    /// A bit turns in the next part of a snapshot that is received.
    pub fn rot_snapshot(&self) {
        self.state().rots_snapshot = true;
    }

    fn is_rotten(&self, key: &[u8]) -> bool {
        let state = self.state();
        state
            .volume
            .rotten
            .as_ref()
            .is_some_and(|rotten| rotten == key)
    }

    fn has_rotten(&self) -> bool {
        self.state().volume.rotten.is_some()
    }

    /// What reads of the state see.
    fn seen(&self, view: Arc<dyn StateView>) -> Arc<dyn StateView> {
        match self.state().volume.rotten.clone() {
            None => view,
            Some(rotten) => Arc::new(RottenView { view, rotten }),
        }
    }

    fn is_planted(&self, bug: Planted) -> bool {
        self.state().planted == Some(bug)
    }

    /// What nobody outside could see, and must not be.
    pub fn complaints(&self) -> Vec<String> {
        self.state().complaints.clone()
    }

    pub fn steps(&self) -> BTreeMap<&'static str, u64> {
        self.state().steps.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self, what: &'static str) -> Fate {
        let mut state = self.state();
        *state.steps.entry(what).or_default() += 1;
        self.0
            .trace
            .note(format_args!("disk {} {what}", self.0.host), &[]);
        match &mut state.trap {
            None => return Fate::Done,
            Some((0, _)) => {}
            Some((steps, _)) => {
                *steps -= 1;
                return Fate::Done;
            }
        }
        let after = state.rng.random_bool(0.5);
        match (state.trap.take(), after) {
            (Some((_, Trap::Crash(crash))), false) => Fate::CrashBefore(crash),
            (Some((_, Trap::Crash(crash))), true) => Fate::CrashAfter(crash),
            (Some((_, Trap::Error)), false) => Fate::ErrorBefore,
            (Some((_, Trap::Error)), true) => Fate::ErrorAfter,
            (None, _) => Fate::Done,
        }
    }

    /// Does a step that changes something.
    fn step<T, E: From<StorageError>>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let fate = self.fate(what);
        if matches!(fate, Fate::Done | Fate::CrashAfter(_) | Fate::ErrorAfter) {
            let result = work();
            if fate == Fate::Done {
                return result;
            }
        }
        let sprung = match fate {
            Fate::CrashBefore(_) | Fate::CrashAfter(_) => SPRUNG_CRASH,
            _ => SPRUNG_ERROR,
        };
        *self.state().steps.entry(sprung).or_default() += 1;
        if let Fate::CrashBefore(crash) | Fate::CrashAfter(crash) = fate {
            self.crash(crash);
        }
        let error = std::io::Error::other("the simulated disk failed");
        Err(StorageError::io(what, error).into())
    }

    fn workers(&self, sync: bool) -> Workers {
        Workers::simulated(Arc::new(Turn {
            disk: self.clone(),
            sync,
        }))
    }

    fn is_stalled(&self) -> bool {
        self.state().stalled_until > self.0.clock.now()
    }
}

impl Volume {
    /// A state of which a crash left more than of the log that it came from. It is never ahead of the log's sync, but
    /// for a snapshot.
    fn ahead(&self, stores: &Storage) -> Option<String> {
        let look = || -> Result<(u64, u64), StorageError> {
            let log = stores.log.recover()?;
            let purged = log.purged.as_ref().map_or(0, index_of);
            let last = log.last_index.unwrap_or(0).max(purged);
            Ok((applied(&*stores.state)?, last))
        };
        match look() {
            Ok((applied, last)) => (applied > last.max(self.installed))
                .then(|| format!("the state is at index {applied}, and the log ends at {last}")),
            Err(error) => Some(format!("a volume that cannot be read: {error}")),
        }
    }
}

/// The index that the state on the disk has reached.
fn applied(state: &dyn StateStore) -> Result<u64, StorageError> {
    let record = state.get_durable(APPLIED)?;
    Ok(record.as_ref().map_or(0, index_of))
}

/// Of a framed position: its last eight bytes.
fn index_of(record: &Bytes) -> u64 {
    let index = record.last_chunk::<8>();
    index.map_or(0, |index| u64::from_le_bytes(*index))
}

/// When the disk gets to the next piece of work.
struct Turn {
    disk: Disk,
    sync: bool,
}

impl DiskTime for Turn {
    fn turn(&self) -> BoxFuture<'static, ()> {
        let disk = self.disk.clone();
        let wait = {
            let mut state = disk.state();
            let most = match self.sync {
                true => state.temper.sync,
                false => state.temper.access,
            };
            state.rng.random_range(Duration::ZERO..=most)
        };
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            while disk.is_stalled() {
                tokio::time::sleep(STALLED).await;
            }
        })
    }
}

struct Log {
    disk: Disk,
    inner: Arc<dyn LogStore>,
    /// Of [`Planted::LostFsync`]: said to be on the disk.
    held: Mutex<Option<Vec<LogWrite>>>,
}

impl Log {
    fn held(&self) -> MutexGuard<'_, Option<Vec<LogWrite>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_go(&self, next: Option<Vec<LogWrite>>) -> Result<(), StorageError> {
        match std::mem::replace(&mut *self.held(), next) {
            Some(batch) => self.inner.write(&batch),
            None => Ok(()),
        }
    }
}

impl LogStore for Log {
    fn recover(&self) -> Result<LogRecovery, StorageError> {
        self.inner.recover()
    }

    fn write(&self, batch: &[LogWrite]) -> Result<(), StorageError> {
        self.disk
            .step("log", || match self.disk.is_planted(Planted::LostFsync) {
                true => self.let_go(Some(batch.to_vec())),
                false => self.inner.write(batch),
            })
    }

    fn read(
        &self,
        start: u64,
        end: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        self.let_go(None)?;
        self.inner.read(start, end, max_bytes)
    }

    fn disk_bytes(&self) -> u64 {
        self.inner.disk_bytes()
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn workers(&self) -> Workers {
        self.disk.workers(true)
    }
}

struct StateDisk(Disk, Arc<dyn StateStore>);

/// Where a state says what it has reached: see `podkv_core::schema`.
const APPLIED: &[u8] = b"\0\0\0\0\x80raft/applied";
/// Tables of the state that planted bugs meddle with.
const LEASES: &[u8] = &[0, 0, 0, 0, 2];
const DEADLINES: &[u8] = &[0, 0, 0, 0, 4];
const SESSIONS: &[u8] = &[0, 0, 0, 0, 5];

impl StateDisk {
    /// Of [`Planted::LostRenewal`]: a lease that is there already keeps the deadline that it has.
    fn forget_renewals(&self, writes: &mut StateWrites) {
        let view = self.1.view();
        let mut renewed = Vec::new();
        for (key, value) in writes.iter() {
            let there = key.starts_with(LEASES) && value.is_some();
            if there && view.get(key).is_ok_and(|old| old.is_some()) {
                renewed.push(key.slice(LEASES.len()..));
            }
        }
        let is_of = |key: &Bytes| renewed.iter().any(|lease| key.ends_with(lease));
        writes.retain(|(key, _)| {
            !((key.starts_with(LEASES) || key.starts_with(DEADLINES)) && is_of(key))
        });
    }
}

impl StateStore for StateDisk {
    fn view(&self) -> Arc<dyn StateView> {
        self.0.seen(self.1.view())
    }

    fn view_in_memory(&self) -> Arc<dyn StateView> {
        self.0.seen(self.1.view_in_memory())
    }

    fn commit(&self, mut writes: StateWrites) -> Result<(), StorageError> {
        if self.0.is_planted(Planted::ExpiredSession) {
            let ends_session =
                |key: &[u8], value: &Option<Bytes>| value.is_none() && key.starts_with(SESSIONS);
            writes.retain(|(key, value)| !ends_session(key, value));
        }
        if self.0.is_planted(Planted::LostRenewal) {
            self.forget_renewals(&mut writes);
        }
        if self.0.has_rotten() && writes.iter().any(|(key, _)| self.0.is_rotten(key)) {
            // It is written anew.
            self.0.state().volume.rotten = None;
        }
        self.0.step("commit", || self.1.commit(writes))?;
        let by_itself = {
            let mut state = self.0.state();
            let chance = state.temper.flush;
            state.rng.random_bool(chance)
        };
        match by_itself {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.0.step("flush", || self.1.flush())
    }

    fn get_durable(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        match self.0.is_rotten(key) {
            true => Err(damaged()),
            false => self.1.get_durable(key),
        }
    }

    fn checkpoint(&self) -> Result<Arc<dyn Checkpoint>, StorageError> {
        // A copy reads everything.
        if self.0.has_rotten() {
            return Err(damaged());
        }
        self.0.step("checkpoint", || self.1.checkpoint())
    }

    fn stage(
        &self,
        id: &str,
        files: Vec<CheckpointFile>,
    ) -> Result<Arc<dyn StagedCheckpoint>, TransferError> {
        let inner = self.0.step("stage", || self.1.stage(id, files))?;
        let disk = self.0.clone();
        Ok(Arc::new(Staged { disk, inner }))
    }

    fn install(&self, staged: Arc<dyn StagedCheckpoint>) -> Result<(), TransferError> {
        self.0.step("install", || {
            self.1.install(staged)?;
            // What is installed is on the disk.
            let installed = applied(&*self.1).map_err(TransferError::from)?;
            let mut state = self.0.state();
            state.volume.installed = installed;
            state.volume.rotten = None;
            Ok(())
        })
    }

    fn disk_bytes(&self) -> u64 {
        self.1.disk_bytes()
    }

    fn workers(&self) -> Workers {
        self.0.workers(false)
    }
}

struct Markers(Disk, Arc<dyn MarkerStore>);

impl MarkerStore for Markers {
    fn load(&self, file: IdentityFile) -> Result<Option<Bytes>, StorageError> {
        self.1.load(file)
    }

    fn save(&self, file: IdentityFile, bytes: &[u8]) -> Result<(), StorageError> {
        self.0.step("save", || self.1.save(file, bytes))
    }

    fn remove(&self, file: IdentityFile) -> Result<(), StorageError> {
        self.0.step("remove", || self.1.remove(file))
    }

    fn holds_data(&self) -> Result<bool, StorageError> {
        self.1.holds_data()
    }

    fn set_aside(&self, retired: MemberId) -> Result<(), StorageError> {
        self.0.step("set aside", || self.1.set_aside(retired))
    }

    fn aside(&self) -> Result<Vec<Aside>, StorageError> {
        self.1.aside()
    }

    fn remove_aside(&self, since: Incarnation) -> Result<(), StorageError> {
        self.1.remove_aside(since)
    }

    fn describe(&self, file: IdentityFile) -> String {
        self.1.describe(file)
    }

    fn workers(&self) -> Workers {
        self.0.workers(true)
    }
}
