//! One Raft group, as the rest of the node sees it. No openraft type is in its interface.

mod change;
mod lease;
mod settings;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ClientWriteError, Fatal, ForwardReason, ForwardToLeader, InitializeError,
    LinearizableReadError, RaftError,
};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{LinearizerOption, RaftMetrics};
use podkv_api::{Error, LeaderHint, MemberId, Reason, Result};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

pub(crate) use self::state::{GroupState, Role};
use super::calls::Receiver;
use super::freshness::Freshness;
use super::histogram::{Histogram, HistogramSnapshot};
use super::leader_lease::{LeaderLease, LeaseTerms};
use super::log::{Log, LogStats, Writer};
use super::machine::{Machine, SnapshotCounters, SnapshotStats, applied_key};
use super::network::Network;
use super::transfer::Transfers;
use super::types::{Answer, LogId, Payload, TypeConfig, log_id, position};
use super::{Applied, Committed, EventSink};
use super::{membership, record};
use crate::config::RaftTiming;
use crate::membership::{LogPosition, PeerAddress};
use crate::peer::pool::PeerPool;
use crate::storage::{LogStore, StateStore, Worker};

pub(super) type Raft = openraft::Raft<TypeConfig, Machine>;
pub(super) type Metrics = RaftMetrics<TypeConfig>;
pub(super) type MetricsReceiver = WatchReceiverOf<TypeConfig, Metrics>;

/// A snapshot that is not built by then is given up, and built again later: the disk is very slow.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(120);

/// What a group is made of.
pub(crate) struct GroupParts {
    pub node: MemberId,
    pub timing: RaftTiming,
    pub lease: LeaseTerms,
    pub log: Arc<dyn LogStore>,
    pub state: Arc<dyn StateStore>,
    pub peers: PeerPool,
    pub events: Arc<dyn EventSink>,
    /// Recent entries that are kept in memory, in bytes: for replication to those a little behind.
    pub log_cache_bytes: usize,
}

/// A running Raft replica. Clones share it.
#[derive(Clone)]
pub(crate) struct Group(Arc<Inner>);

struct Inner {
    node: MemberId,
    timing: RaftTiming,
    raft: Raft,
    log: Log,
    store: Arc<dyn StateStore>,
    applied: watch::Receiver<Applied>,
    snapshots: Arc<SnapshotCounters>,
    apply_latency: Arc<Histogram>,
    state: watch::Receiver<GroupState>,
    freshness: Arc<Freshness>,
    transfers: Arc<Transfers>,
    lease: Arc<LeaderLease>,
    receiver: Receiver,
    /// The end of the log when it was opened.
    recovered_end: Option<u64>,
    /// One membership change at a time on this node; others are refused.
    changing: Arc<tokio::sync::Mutex<()>>,
    keeping: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    writer: Writer,
    apply: Worker,
}

impl Group {
    /// Opens log and state, applies what is known to be committed, and starts Raft.
    pub async fn start(parts: GroupParts) -> Result<Self> {
        let GroupParts {
            node,
            timing,
            lease,
            log,
            state,
            peers,
            events,
            log_cache_bytes,
        } = parts;
        let config = settings::raft_config(&timing)?;
        let transfers = Arc::<Transfers>::default();
        let store = state.clone();
        let open = {
            let (state, transfers) = (state, transfers.clone());
            move || open(log, log_cache_bytes, state, events, transfers)
        };
        let (log, writer, machine, apply) = joined(store.workers().spawn(open).await)??;
        let applied = machine.applied();
        let snapshots = machine.snapshots();
        let apply_latency = machine.apply_latency();
        let recovered_end = log.last().map(|last| last.index);
        let freshness = Arc::<Freshness>::default();
        // From here on what was promised before the start is kept.
        let lease = Arc::new(LeaderLease::new(node, lease));
        let network = Network {
            me: node,
            peers: peers.clone(),
            freshness: freshness.clone(),
            transfers: transfers.clone(),
            lease: lease.clone(),
            append_timeout: timing.election_max,
        };
        let started = Raft::new(node.0, config, network, log.clone(), machine).await;
        let raft = match started {
            Ok(raft) => raft,
            Err(fatal) => {
                writer.stop().await;
                return Err(stopped(&fatal));
            }
        };
        lease.follow(raft.metrics());
        let tasks = TaskTracker::new();
        let (changed, state) = watch::channel(GroupState::default());
        tasks.spawn(state::watch(
            raft.metrics(),
            changed,
            freshness.clone(),
            peers,
        ));
        Ok(Self(Arc::new(Inner {
            node,
            timing,
            raft,
            log,
            receiver: Receiver::new(store.clone()),
            store,
            applied,
            snapshots,
            apply_latency,
            state,
            freshness,
            transfers,
            lease,
            recovered_end,
            changing: Arc::default(),
            keeping: tokio::sync::Mutex::default(),
            tasks,
            threads: Mutex::new(Some(Threads { writer, apply })),
        })))
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.0.raft
    }

    pub(super) fn receiver(&self) -> &Receiver {
        &self.0.receiver
    }

    pub(super) fn freshness(&self) -> &Arc<Freshness> {
        &self.0.freshness
    }

    pub(super) fn lease(&self) -> &Arc<LeaderLease> {
        &self.0.lease
    }

    pub(super) fn last_log_id(&self) -> Option<LogId> {
        self.0.log.last().map(log_id)
    }

    /// Makes a new cluster of these voters. To be called on one founder only, once all have agreed.
    /// Does nothing if the group has begun already.
    pub async fn initialize(&self, voters: BTreeMap<MemberId, PeerAddress>) -> Result<()> {
        voters.values().try_for_each(membership::check_address)?;
        let nodes: BTreeMap<u64, PeerAddress> = voters
            .into_iter()
            .map(|(id, address)| (id.0, address))
            .collect();
        match self.0.raft.initialize(nodes).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(error))) => {
                Err(Error::new(Reason::InvalidArgument, error.to_string()))
            }
            Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal)),
        }
    }

    /// True once this replica has voted, or holds anything of a log.
    pub async fn is_initialized(&self) -> Result<bool> {
        self.0
            .raft
            .is_initialized()
            .await
            .map_err(|fatal| stopped(&fatal))
    }

    /// Proposes an entry, and returns what it came to once it is committed and applied here.
    ///
    /// After an error with an unknown outcome the entry may still be committed, by this leader or
    /// the next one. After any other error it never is.
    pub async fn submit(&self, payload: Arc<Payload>) -> Result<Committed> {
        let (answer, answered) = oneshot::channel();
        let sent = self
            .0
            .raft
            .client_write_ff(payload, Some(Answer(answer)))
            .await;
        sent.map_err(|fatal| stopped(&fatal))?;
        match answered.await {
            Ok(Ok(response)) => Ok(Committed {
                position: position(&response.log_id),
                outcomes: response.data,
            }),
            Ok(Err(error)) => Err(self.write_error(error)),
            Err(_) => Err(self.fatal().with_unknown_outcome()),
        }
    }

    fn write_error(&self, error: ClientWriteError<TypeConfig>) -> Error {
        match error {
            ClientWriteError::ForwardToLeader(forward) => self.not_leader(&forward),
            ClientWriteError::LogEntryDiscarded(forward) => {
                let text = "another leader took over before the entry was known to be committed";
                Error::new(Reason::LeaderChanged, text)
                    .with_leader(self.hint(forward.leader_id))
                    .with_unknown_outcome()
            }
            ClientWriteError::ChangeMembershipError(error) => {
                Error::new(Reason::MembershipConflict, error.to_string())
            }
            ClientWriteError::PreconditionFailed(error) => {
                let text = format!("the membership changed meanwhile: {error}");
                Error::new(Reason::MembershipConflict, text)
            }
        }
    }

    fn not_leader(&self, forward: &ForwardToLeader<TypeConfig>) -> Error {
        match forward.reason {
            ForwardReason::LeaseExpired => {
                let text = "this node leads, and no majority answers it";
                Error::new(Reason::NoLeader, text)
            }
            ForwardReason::LeadershipTransfer => {
                let text = "this node is handing over leadership";
                Error::new(Reason::NotLeader, text).with_leader(self.hint(forward.leader_id))
            }
            ForwardReason::NotLeader => {
                let text = "this node does not lead";
                Error::new(Reason::NotLeader, text).with_leader(self.hint(forward.leader_id))
            }
        }
    }

    fn hint(&self, leader: Option<u64>) -> Option<LeaderHint> {
        let member = MemberId(leader.filter(|leader| *leader != self.0.node.0)?);
        let state = self.0.state.borrow();
        let address = state.members.nodes.get(&member);
        let client_address = address
            .map(|node| node.client_address.clone())
            .unwrap_or_default();
        Some(LeaderHint {
            member,
            client_address,
        })
    }

    /// Where a linearizable read must have applied to, on any node: everything that was committed when
    /// this was called. For the leader only; it asks a majority whether it still is. Never a lease.
    pub async fn read_index(&self) -> Result<LogPosition> {
        let confirmed = LinearizerOption::new(Some(Duration::ZERO), true);
        match self.0.raft.get_read_linearizer(confirmed).await {
            Ok(linearizer) => {
                let at = position(linearizer.read_log_id().log_id());
                self.0.lease.tell(at);
                Ok(at)
            }
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(self.not_leader(&forward))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(error))) => {
                let text = format!("no majority confirms that this node leads: {error}");
                Err(Error::new(Reason::NoLeader, text))
            }
            Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal)),
        }
    }

    /// Succeeds if the state is at most `max_staleness` old, as far as this node can tell by itself.
    pub fn confirm_within(&self, max_staleness: Duration) -> Result<()> {
        let applied = self.0.applied.borrow().position;
        match self.0.freshness.age(applied) {
            Some(age) if age <= max_staleness => Ok(()),
            Some(age) => Err(Error::new(
                Reason::TooStale,
                format!(
                    "this node's state may be {age:?} old; at most {max_staleness:?} was asked for"
                ),
            )),
            None => Err(Error::new(
                Reason::TooStale,
                "this node has not heard from a leader yet",
            )),
        }
    }

    /// How long ago a majority followed a leader, as far as this node knows; `None` if it never heard of that.
    pub fn majority_age(&self) -> Option<Duration> {
        self.0.freshness.majority_age()
    }

    /// How the group is, and how that changes.
    pub fn state(&self) -> watch::Receiver<GroupState> {
        self.0.state.clone()
    }

    /// How far the state is, and how that changes.
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.0.applied.clone()
    }

    /// Returns when everything that this node held when it was started is applied, as far as it is
    /// committed: from then on its state is never older than before it stopped. Needs a leader.
    pub async fn wait_recovered(&self) -> Result<()> {
        // openraft's own wait compares with the end of the log as it grows: on a busy follower it may
        // never return.
        let end = self.0.recovered_end;
        let mut metrics = self.0.raft.metrics();
        loop {
            {
                let metrics = metrics.borrow_and_update();
                if let Err(fatal) = &metrics.running_state {
                    return Err(stopped(fatal));
                }
                let index = |id: &Option<LogId>| id.as_ref().map(|id| id.index);
                let (committed, applied) = (
                    index(&metrics.cluster_committed),
                    index(&metrics.last_applied),
                );
                if has_recovered(end, metrics.last_log_index, committed, applied) {
                    return Ok(());
                }
            }
            metrics.changed().await.map_err(|_| self.fatal())?;
        }
    }

    /// Figures about the log.
    pub fn log_stats(&self) -> LogStats {
        self.0.log.stats()
    }

    /// For how long the disk has not answered a write of the log; `None` if nothing is being written.
    pub fn log_writing_for(&self) -> Option<Duration> {
        self.0.log.writing_for()
    }

    /// How long batches of entries took to apply.
    pub fn apply_latency(&self) -> HistogramSnapshot {
        self.0.apply_latency.snapshot()
    }

    /// What was done with snapshots since the start.
    pub fn snapshot_stats(&self) -> SnapshotStats {
        self.0.snapshots.stats()
    }

    /// A peer is there again: replication to it does not wait any longer.
    pub async fn peer_is_back(&self, peer: MemberId) -> Result<()> {
        self.0
            .raft
            .trigger()
            .reset_backoff([peer.0])
            .await
            .map_err(|fatal| stopped(&fatal))
    }

    /// Makes the state durable, builds a snapshot of it, and purges the log up to what both cover,
    /// but for the last `keep_bytes`. Returns what the snapshot covers at least; `None` if it was put off,
    /// because one is on its way to a peer, or nothing is applied yet.
    pub async fn snapshot_and_purge(&self, keep_bytes: u64) -> Result<Option<LogPosition>> {
        let _one = self.0.keeping.lock().await;
        if self.0.transfers.held() {
            return Ok(None);
        }
        let Some(durable) = self.flush().await? else {
            return Ok(None);
        };
        self.build_snapshot(durable).await?;
        // A transfer may have begun with this very snapshot; what it needs lies behind it.
        let upto = self.0.log.purgeable(keep_bytes);
        let upto = upto.map(|upto| upto.min(durable.index));
        let purged = self.0.log.purged().map(|purged| purged.index);
        if let Some(upto) = upto.filter(|upto| purged.is_none_or(|purged| purged < *upto)) {
            let purge = self.0.raft.trigger().purge_log(upto).await;
            purge.map_err(|fatal| stopped(&fatal))?;
        }
        Ok(Some(durable))
    }

    /// Makes everything that is applied durable, and returns up to where.
    async fn flush(&self) -> Result<Option<LogPosition>> {
        let store = self.0.store.clone();
        let workers = store.workers();
        let flush = move || -> Result<Option<LogPosition>> {
            store.flush()?;
            let record = store.get_durable(&applied_key())?;
            let position = record
                .map(|record| record::decode_applied(&record))
                .transpose();
            position.map_err(|error| Error::new(Reason::Corrupt, error.to_string()))
        };
        joined(workers.spawn(flush).await)?
    }

    /// Returns when a snapshot covers `at`, and whoever asks for the [state](Self::state) sees it.
    async fn build_snapshot(&self, at: LogPosition) -> Result<()> {
        let mut state = self.state();
        let covered = |state: &GroupState| {
            state
                .snapshot
                .is_some_and(|snapshot| snapshot.index >= at.index)
        };
        if covered(&state.borrow()) {
            return Ok(());
        }
        self.0
            .raft
            .trigger()
            .snapshot()
            .await
            .map_err(|fatal| stopped(&fatal))?;
        let deadline = Instant::now() + SNAPSHOT_TIMEOUT;
        loop {
            if covered(&state.borrow_and_update()) {
                return Ok(());
            }
            match timeout_at(deadline, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(self.fatal()),
                Err(_) => {
                    let text = format!("no snapshot was built within {SNAPSHOT_TIMEOUT:?}");
                    return Err(Error::new(Reason::DeadlineExceeded, text));
                }
            }
        }
    }

    /// Why the group has stopped.
    fn fatal(&self) -> Error {
        match &self.0.raft.metrics().borrow_watched().running_state {
            Err(fatal) => stopped(fatal),
            Ok(()) => stopped(&Fatal::Stopped),
        }
    }

    /// Stops Raft, writes what is queued, and returns when every thread and task has ended. What was
    /// not answered has an unknown outcome.
    pub async fn shutdown(&self) {
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::error!(%error, "raft ended badly");
        }
        self.0.tasks.close();
        self.0.tasks.wait().await;
        let threads = self
            .0
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Threads { writer, apply }) = threads {
            // The state machine goes with openraft, and its thread with it.
            if !apply.join().await {
                tracing::error!("the apply thread panicked");
            }
            writer.stop().await;
        }
    }
}

type Opened = (Log, Writer, Machine, Worker);

fn open(
    log: Arc<dyn LogStore>,
    log_cache_bytes: usize,
    state: Arc<dyn StateStore>,
    events: Arc<dyn EventSink>,
    transfers: Arc<Transfers>,
) -> Result<Opened> {
    let (log, writer) = Log::open(log, log_cache_bytes)?;
    let (machine, apply) =
        Machine::open(state, events, transfers, Some(log.clone())).map_err(unreadable)?;
    Ok((log, writer, machine, apply))
}

fn unreadable(error: io::Error) -> Error {
    Error::new(
        Reason::Corrupt,
        format!("the state cannot be read: {error}"),
    )
    .with_source(error)
}

/// Whether everything that was committed in a log that ended at `end` is applied. `last` is its end now:
/// a leader that never saw the tail has cut it off, and what is cut off was not committed. Nothing is
/// known to be committed (`None`) until a leader of this start said so.
fn has_recovered(
    end: Option<u64>,
    last: Option<u64>,
    committed: Option<u64>,
    applied: Option<u64>,
) -> bool {
    let end = end.min(last);
    committed.is_some() && committed >= end && applied.is_some() && applied >= end
}

fn joined<T>(result: std::result::Result<T, tokio::task::JoinError>) -> Result<T> {
    result.map_err(|error| Error::internal("a storage task ended badly").with_source(error))
}

/// Raft has stopped: by itself, or because it was told to.
fn stopped(fatal: &Fatal<TypeConfig>) -> Error {
    match fatal {
        Fatal::Stopped => Error::new(
            Reason::NodeNotReady,
            "the node is stopping: ask another one",
        ),
        Fatal::Panicked => Error::internal("raft panicked; the node must be restarted"),
        Fatal::StorageError(error) => {
            let text = format!("the node has stopped: {error}");
            Error::internal(text).with_source(error.clone())
        }
    }
}

fn voter_ids(ids: &BTreeSet<MemberId>) -> BTreeSet<u64> {
    ids.iter().map(|id| id.0).collect()
}

#[cfg(test)]
mod tests;
