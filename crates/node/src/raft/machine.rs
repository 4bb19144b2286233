//! The state machine: openraft's trait over a [`StateStore`] and `podkv_core`.
//!
//! ```text
//!   committed entries ─► take a range ─► wait: range is fsynced in the own log
//!        ─► apply thread:  core.apply over the range
//!                          one commit { core's writes, applied position, membership }
//!                          applied is announced ─► proposers are answered ─► events go out
//! ```
//!
//! The state has no log of its own: after a crash it is at some earlier applied position, with
//! exactly the data of that position, and the entries behind it are applied again. Hence the wait. openraft
//! applies on a follower what is *accepted* by the log, not what is flushed: the state could persist an entry
//! that the log then lost, and openraft refuses to start on that.
//!
//! A rejection is data, and an answer. A failure to read or write the state ends the node: what comes
//! after it could differ from the other replicas.

mod apply;
mod recent;
mod snapshot;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use podkv_core::{View, ViewError, read_meta, schema};
use tokio::sync::{mpsc, oneshot, watch};

use self::apply::Job;
pub(super) use self::apply::apply_offline;
use self::recent::Recent;
pub(crate) use self::snapshot::SnapshotStats;
pub(super) use self::snapshot::{Built, SnapshotCounters, SnapshotData};
use super::failure::Failure;
use super::histogram::Histogram;
use super::log::Log;
use super::record;
use super::transfer::Transfers;
use super::types::{
    LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id, position, weight,
};
use super::{Applied, EventSink};
use crate::membership::{LogPosition, Members};
#[cfg(feature = "planted")]
use crate::planted;
use crate::storage::{StateStore, Worker};

/// One batch of apply: enough to share its costs, little enough to answer the first soon.
const BATCH_ENTRIES: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;

/// Where the applied position is in the state.
pub(super) fn applied_key() -> Bytes {
    schema::node_key("raft/applied")
}

/// Where the last applied membership is in the state.
fn membership_key() -> Bytes {
    schema::node_key("raft/membership")
}

/// What a state says of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Reached {
    pub position: Option<LogPosition>,
    pub members: Members,
}

impl Reached {
    pub fn read(view: &dyn View) -> Result<Self, ViewError> {
        let position = view
            .get(&applied_key())?
            .map(|record| record::decode_applied(&record));
        let members = view
            .get(&membership_key())?
            .map(|record| record::decode_members(&record));
        Ok(Self {
            position: position.transpose()?,
            members: members.transpose()?.unwrap_or_default(),
        })
    }

    fn membership(&self) -> io::Result<StoredMembership> {
        record::stored_membership(&self.members).map_err(io::Error::other)
    }

    fn snapshot_meta(&self) -> io::Result<SnapshotMeta> {
        let last_log_id = self.position.map(log_id);
        Ok(SnapshotMeta {
            last_log_id,
            last_membership: self.membership()?,
        })
    }

    fn applied(&self, view: &dyn View) -> Result<Applied, ViewError> {
        let meta = read_meta(view)?;
        Ok(Applied {
            position: self.position.unwrap_or_default(),
            revision: meta.revision,
            compacted_revision: meta.compacted_revision,
            clock_ms: meta.clock_ms,
        })
    }
}

/// What the state machine, its apply thread and its snapshot builders share.
pub(super) struct Shared {
    state: Arc<dyn StateStore>,
    events: Arc<dyn EventSink>,
    applied: watch::Sender<Applied>,
    reached: Mutex<Reached>,
    /// Held by whoever changes the state.
    recent: Mutex<Recent>,
    snapshots: snapshot::Slot,
    counters: Arc<SnapshotCounters>,
    /// One batch of entries, from its first to its commit.
    apply_latency: Arc<Histogram>,
    transfers: Arc<Transfers>,
    failure: Arc<Failure>,
    /// The log that apply must not overtake.
    log: Option<Log>,
}

impl Shared {
    fn reached(&self) -> MutexGuard<'_, Reached> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state machine that openraft drives.
pub(super) struct Machine {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
}

impl Machine {
    /// Opens the state, and starts the apply thread, which ends when the machine is dropped. Blocking.
    /// Without a `log` nothing is waited for.
    pub fn open(
        state: Arc<dyn StateStore>,
        events: Arc<dyn EventSink>,
        transfers: Arc<Transfers>,
        log: Option<Log>,
    ) -> io::Result<(Self, Worker)> {
        let view = state.view();
        let reached = Reached::read(&*view).map_err(io::Error::other)?;
        let applied = reached.applied(&*view).map_err(io::Error::other)?;
        drop(view);
        let shared = Arc::new(Shared {
            state,
            events,
            applied: watch::Sender::new(applied),
            reached: Mutex::new(reached),
            recent: Mutex::new(Recent::new(schema::is_found_by_key)),
            snapshots: snapshot::Slot::default(),
            counters: Arc::default(),
            apply_latency: Arc::default(),
            transfers,
            failure: log.as_ref().map(Log::failure).unwrap_or_default(),
            log,
        });
        // openraft hands over one batch at a time.
        let (jobs, queue) = mpsc::channel(1);
        let worker = {
            let shared = shared.clone();
            let workers = shared.state.workers();
            workers.start(
                "podkv-apply",
                queue,
                || {},
                move |job, _| apply::run(&shared, job),
            )?
        };
        Ok((Self { shared, jobs }, worker))
    }

    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.shared.applied.subscribe()
    }

    pub fn apply_latency(&self) -> Arc<Histogram> {
        self.shared.apply_latency.clone()
    }

    pub fn snapshots(&self) -> Arc<SnapshotCounters> {
        self.shared.counters.clone()
    }

    async fn apply_batch(&self, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let Some((last, _)) = batch.last() else {
            return Ok(());
        };
        let log = self.shared.log.as_ref();
        #[cfg(feature = "planted")]
        let log = log.filter(|_| !planted::is(planted::Bug::ApplyAheadOfFsync));
        if let Some(log) = log {
            log.wait_durable(last.log_id.index).await?;
        }
        let (done, applied) = oneshot::channel();
        let ended = || io::Error::other("the apply thread has ended");
        self.jobs
            .send(Job { batch, done })
            .await
            .map_err(|_| ended())?;
        applied.await.map_err(|_| ended())?
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let reached = self.shared.reached().clone();
        Ok((reached.position.map(log_id), reached.membership()?))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut next = entries.next().await;
        while let Some(first) = next.take() {
            let mut bytes = 0;
            let mut batch = Vec::new();
            let mut item = first?;
            loop {
                bytes += weight(&item.0);
                batch.push(item);
                if batch.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
                    break;
                }
                // Only what is there already: what must come from disk is the next batch.
                match entries.next().now_or_never() {
                    Some(Some(ready)) => item = ready?,
                    Some(None) | None => break,
                }
            }
            self.apply_batch(batch).await?;
            next = entries.next().await;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        // A checkpoint that is on its way to a peer is the current one until it has arrived: a newer one
        // would make the peer begin again.
        let held = !force && self.shared.transfers.held();
        (!held).then(|| SnapshotBuilder(self.shared.clone()))
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder(self.shared.clone())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let expected = meta.last_log_id.as_ref().map(position);
        let install = move |shared: &Shared| shared.install(expected, snapshot);
        let doing = "a snapshot cannot be installed";
        blocking(&self.shared, doing, install).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<SnapshotData>>, io::Error> {
        let purged = self.shared.log.as_ref().and_then(Log::purged);
        if let Some(built) = self.shared.snapshots.current(purged) {
            return Ok(Some(built.into_snapshot()));
        }
        if self.shared.snapshots.floor(purged).is_none() {
            // The log holds everything from the first entry on: nobody needs a snapshot yet.
            return Ok(None);
        }
        let built = build(&self.shared).await?;
        Ok(Some(built.into_snapshot()))
    }
}

/// Builds a snapshot, next to apply.
pub(super) struct SnapshotBuilder(Arc<Shared>);

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot<SnapshotData>, io::Error> {
        let built = build(&self.0).await?;
        Ok(built.into_snapshot())
    }
}

async fn build(shared: &Arc<Shared>) -> io::Result<Arc<Built>> {
    blocking(shared, "a snapshot cannot be built", Shared::build).await
}

/// A failure ends the replica; `doing` says of what.
async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    doing: &'static str,
    work: impl FnOnce(&Shared) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let workers = shared.state.workers();
    let shared = shared.clone();
    let work = move || {
        let result = work(&shared);
        result.inspect_err(|error| shared.failure.note(doing, error))
    };
    workers.spawn(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
pub(super) mod tests;
