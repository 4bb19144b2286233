//! Fresh enough: what a read waits for before it may look at the state.
//!
//! A linearizable read needs an index that was committed when the read began. One *read-index round*
//! (Raft §6.4) finds it: the leader confirms with a majority that it still leads. One round serves every
//! reader that arrived before the round started, on any node: a follower asks the leader for the index
//! only, and waits until it has applied that far itself.
//!
//! ```text
//! readers:    a b   c d e        f
//! rounds:    [--1--][----2----] [--3--]     1 serves a; 2 serves b c d e; 3 serves f
//! ```
//!
//! `b` may not use round 1: it began after the round, so a write acknowledged in between could be missed.
//!
//! A leader with a lease needs no round: see `raft/leader_lease.rs` and `Node::read_at`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use podkv_api::{Error, LeaderHint, MemberId, Reason, Result};
use podkv_proto::peer as wire;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::peer::pool::{Lane, PeerPool};
use crate::raft::{Applied, Group, GroupState};

/// Readers that may wait for a round.
const WAITING: usize = 65_536;
/// Between two rounds that failed: an election is about to end.
const RETRY: Duration = Duration::from_millis(20);

/// Brings reads up to date. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ReadIndex {
    waiting: mpsc::Sender<oneshot::Sender<Applied>>,
    state: watch::Receiver<GroupState>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    rounds: AtomicU64,
    by_lease: AtomicU64,
}

/// What linearizable reads have cost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Rounds to a majority, or to the leader, that succeeded; many reads share one.
    pub rounds: u64,
    /// Reads, of this node and of followers, that this node answered by its leader's lease alone.
    pub by_lease: u64,
}

pub(crate) struct ReadIndexParts {
    pub group: Group,
    pub peers: PeerPool,
    pub me: MemberId,
    /// How long one round may take; several fit into a request's deadline.
    pub round_timeout: Duration,
}

impl ReadIndex {
    pub fn start(parts: ReadIndexParts, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let (waiting, readers) = mpsc::channel(WAITING);
        let state = parts.group.state();
        let counters = Arc::<Counters>::default();
        let counted = counters.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(run(parts, readers, &counted))
                .await;
        });
        Self {
            waiting,
            state,
            counters,
        }
    }

    /// A read was answered by the leader's lease.
    pub fn by_lease(&self) {
        self.counters.by_lease.fetch_add(1, Relaxed);
    }

    pub fn stats(&self) -> ReadStats {
        ReadStats {
            rounds: self.counters.rounds.load(Relaxed),
            by_lease: self.counters.by_lease.load(Relaxed),
        }
    }

    /// Returns when this node has applied everything that was committed when this was called.
    pub async fn linearizable(&self, timeout: Duration) -> Result<Applied> {
        let (done, answer) = oneshot::channel();
        self.waiting
            .try_send(done)
            .map_err(|refused| match refused {
                mpsc::error::TrySendError::Full(_) => Error::new(
                    Reason::Overloaded,
                    "too many reads wait on this node: try again, or elsewhere",
                ),
                mpsc::error::TrySendError::Closed(_) => stopping(),
            })?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(_dropped)) => Err(stopping()),
            Err(_elapsed) => Err(self.timed_out(timeout)),
        }
    }

    fn timed_out(&self, timeout: Duration) -> Error {
        let state = self.state.borrow();
        match state.leader {
            None => Error::new(
                Reason::NoLeader,
                format!(
                    "no leader within {timeout:?}: a majority of the voters must run and reach each other; `local` reads still work"
                ),
            ),
            Some(leader) => Error::new(
                Reason::DeadlineExceeded,
                format!("the leader did not confirm within {timeout:?}; `local` reads still work"),
            )
            .with_leader(Some(LeaderHint {
                member: leader,
                client_address: state
                    .members
                    .nodes
                    .get(&leader)
                    .map(|address| address.client_address.clone())
                    .unwrap_or_default(),
            })),
        }
    }
}

async fn run(
    parts: ReadIndexParts,
    mut readers: mpsc::Receiver<oneshot::Sender<Applied>>,
    counters: &Counters,
) {
    let mut applied = parts.group.applied();
    let mut batch = Vec::new();
    while readers.recv_many(&mut batch, WAITING).await > 0 {
        // Those that arrive from here on wait for the next round.
        loop {
            batch.retain(|reader| !reader.is_closed());
            if batch.is_empty() {
                break;
            }
            match tokio::time::timeout(parts.round_timeout, round(&parts, &mut applied)).await {
                Ok(Ok(state)) => {
                    counters.rounds.fetch_add(1, Relaxed);
                    for reader in batch.drain(..) {
                        // A reader that gave up meanwhile needs no answer.
                        let _ = reader.send(state.clone());
                    }
                    break;
                }
                Ok(Err(_)) | Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }
}

async fn round(parts: &ReadIndexParts, applied: &mut watch::Receiver<Applied>) -> Result<Applied> {
    let state = parts.group.state().borrow().clone();
    let index = match state.leader {
        None => return Err(Error::new(Reason::NoLeader, "no leader is known")),
        Some(leader) if leader == parts.me => parts.group.read_index().await?.index,
        Some(leader) => ask(parts, leader, &state).await?,
    };
    let reached = applied
        .wait_for(|state| state.position.index >= index)
        .await;
    reached.map(|state| state.clone()).map_err(|_| stopping())
}

async fn ask(parts: &ReadIndexParts, leader: MemberId, state: &GroupState) -> Result<u64> {
    let unreachable = || Error::new(Reason::Unreachable, "the leader does not answer");
    let address = state.members.nodes.get(&leader).ok_or_else(unreachable)?;
    let lane = parts.peers.client(leader, address, Lane::Control);
    let mut client = lane
        .get()
        .await
        .map_err(|error| unreachable().with_source(error))?;
    let request = wire::ReadIndexRequest {
        header: Some(lane.header()),
    };
    let response = client.read_index(request).await.map_err(|status| {
        lane.broken();
        unreachable().with_source(status)
    })?;
    let response = response.into_inner();
    match (response.read_log_id, response.refusal) {
        (Some(log_id), None) => Ok(log_id.index),
        _ => Err(Error::new(
            Reason::NotLeader,
            "the leader that was asked does not lead",
        )),
    }
}

fn stopping() -> Error {
    Error::new(
        Reason::NodeNotReady,
        "the node is stopping: ask another one",
    )
}
