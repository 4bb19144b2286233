//! How a node comes to belong to a cluster: it joins the one that exists, or founds one with the others.
//! There must never come to be two.
//!
//! # The protocol
//!
//! ```text
//!              podkv-0 (proposer)                 podkv-1                        podkv-2
//!   virgin     Hello? ──────────────────────────► virgin, N = 3 ───────────────► virgin, N = 3
//!              all N names answered, nobody is a member
//!   reserved   draws X; fsyncs {X, N, (name, id)…}
//!              Reserve X ───────────────────────► fsyncs: reserved X ──────────► fsyncs: reserved X
//!              all N say "reserved X"
//!   member     fsyncs; initialises Raft
//!              Vote ────────────────────────────► fsyncs: member; votes ───────► fsyncs: member; votes
//! ```
//!
//! [`decide`](decide::decide) chooses each step and is pure; the loop below asks, decides, acts, waits. Each
//! arrow of the phases is on the disk before anything that depends on it is said or done.
//!
//! # Why there is one cluster
//!
//! Two facts carry everything. **(A)** A node id accepts one proposal at a time; what it released it refuses for
//! ever; a member never goes back. **(B)** A cluster X is initialised by its proposer alone, and only when
//! *every* one of the N names had accepted X under the very id that X names.
//!
//! Say X lives: a majority of its voters are members of it. For Y to be founded beside it, with the same
//! N, every name must have accepted Y, also the names of that majority. Their ids cannot accept (A), and another
//! id under such a name means that the volume of a voter was lost. So Y needs a majority of X's volumes
//! lost, and then X is dead, not a second cluster.
//!
//! Case by case:
//!
//! - **The proposer crashes before its own fsync.** Nobody has heard of X.
//! - **… after it, or while asking.** It restarts as reserved, with the whole proposal, and goes on with the same X.
//! - **… after all accepted.** The same. X is initialised by whoever wakes up as its proposer, once.
//! - **… between becoming a member and initialising Raft.** The marker keeps the proposal; initialising is repeated,
//!   and has no effect on a log that holds anything.
//! - **An acceptor crashes.** It is reserved again, or it never answered and is asked again.
//! - **An acceptor's volume is lost before all accepted.** Its name answers under another id. X can never be
//!   complete. The proposer withdraws X: nobody else could have initialised it, and it has not.
//! - **… after all accepted.** X is initialised without it; its new id joins X.
//! - **The proposer's volume is lost.** Its name answers under another id, b. It may have initialised X and died, so an
//!   acceptor lets go only when every *other* founder's name answers, and nobody is a member of X: then nobody
//!   but the lost id ever voted in X. Some acceptor may become a member just after it answered (the vote
//!   was still on its way); then the one that released lacks in X, and Y still lacks that member's
//!   acceptance. Where one voter alone is the quorum of X, no answer of others proves anything: acceptors stay.
//! - **The proposer is silent.** Nobody lets go. Silence proves nothing.
//! - **The proposer withdrew and an acceptor missed it.** The proposer answers Hello without holding X. It fsynced X
//!   before it asked, so it has released it.
//! - **Two nodes under one name** (a pod that was deleted by force still runs). Nobody proposes while
//!   both answer. If they never see each other, either may propose; (A) lets one of the two proposals be complete.
//! - **Delayed and repeated messages.** A late Reserve is accepted by a virgin at most: then its proposer, asked, holds
//!   X or not; see above. A repeated one finds the acceptance, or the refusal. An answer counts only in the
//!   round that asked for it, and a round only if this node's phase did not change meanwhile.
//! - **N is unknown** (the StatefulSet cannot be read). Nobody proposes, and a virgin accepts nothing. It joins
//!   a cluster that it finds, because that takes no N. Who has accepted keeps its word.
//! - **N differs.** A proposer waits while any answer disagrees with its N, an acceptor refuses an N that is not
//!   its own. If N changes after an acceptance, the proposer withdraws; an acceptor keeps its word.
//! - **A member is silent while others are asked.** A proposer waits for *every* suggested peer, also beyond N: any of them
//!   may be a member. NXDOMAIN, a time-out and an error of discovery are silence.
//! - **Discovery is old or partial.** The N expected names are suggested whatever it says, and all must answer.
//! - **N = 1.** Nobody else is expected, so the own marker decides. Should discovery suggest others, they must answer.
//!
//! # What it rests on
//!
//! Node ids are never reused, volumes that were copied or rewound are refused by boot counter
//! ([`crate::identity`]). N and the list of peers are right or missing, not *consistently wrong on every pod*: N = 1
//! with a list that hides the members, on an empty volume, is an order to found another cluster.

mod ask;
mod calls;
pub(crate) mod decide;
pub(crate) mod founders;
mod why;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason, Result};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::decide::{Action, Me, Peer, Situation, Via, decide};
use self::founders::{FIRST_INCARNATION, Founding};
use self::why::Why;
use crate::discovery::{Discovery, Ordinals};
use crate::identity::{Founder, Identity, Phase, Proposal};
use crate::membership::PeerAddress;
use crate::peer::gate::Gate;
use crate::peer::pool::PeerPool;

/// What founding and joining need of the node around them.
pub(crate) trait FoundingHost: Send + Sync + 'static {
    /// Initialises Raft with the voters as its first membership, and sees to it that the learners are added
    /// by whoever leads. Succeeds without doing anything if Raft holds a vote or an entry already: it is called again
    /// after a crash.
    fn initialize(&self, founding: Founding) -> BoxFuture<'_, Result<()>>;

    /// Has the leader add a node as a learner; any member is asked. Succeeds when that is committed, or if
    /// the node is a member in whatever role already.
    fn add_learner(&self, id: MemberId, address: PeerAddress) -> BoxFuture<'_, Result<()>>;

    /// The leader that this node knows.
    fn leader(&self) -> Option<MemberId>;

    /// A peer is up: retries that wait for it need not wait longer.
    fn heard_from(&self, id: MemberId);
}

/// The timing of founding and joining.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BootstrapSettings {
    /// For a Hello, dialing included. A peer that takes longer is silent in that round.
    pub hello_timeout: Duration,
    /// For an acceptance, which is one fsync on a disk that may be slow.
    pub reserve_timeout: Duration,
    /// For being added, which is a change of membership: an election may have to come first.
    pub join_timeout: Duration,
    /// Wait between rounds: this long at first, doubled up to `retry_max` while nothing changes.
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// Say again what is waited for, if it is still the same.
    pub report_interval: Duration,
}

impl Default for BootstrapSettings {
    fn default() -> Self {
        Self {
            hello_timeout: Duration::from_secs(2),
            reserve_timeout: Duration::from_secs(5),
            join_timeout: Duration::from_secs(10),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(1),
            report_interval: Duration::from_secs(30),
        }
    }
}

/// What [`Bootstrap::run`] is told of its surroundings.
pub(crate) struct BootstrapParts {
    pub me: Me,
    /// What is known now of the pods that there should be; `me` has what was known at the start.
    pub expected: watch::Receiver<Result<Ordinals, String>>,
    pub identity: Arc<Identity>,
    pub gate: Gate,
    pub peers: PeerPool,
    pub discovery: Arc<dyn Discovery>,
    pub settings: BootstrapSettings,
}

/// How the life before a cluster ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// This node belongs to a cluster. If it founded it, Raft is initialised.
    Member {
        cluster: ClusterId,
        incarnation: Incarnation,
    },
    /// This node id was removed from its cluster.
    Retired,
    /// The node is shutting down.
    Stopped,
}

/// Brings a node into a cluster, and answers the same questions of others.
pub(crate) struct Bootstrap {
    parts: BootstrapParts,
    host: OnceLock<Arc<dyn FoundingHost>>,
    /// The cluster that was asked to add this node. Only that one may make a virgin a member.
    joining: Mutex<Option<(ClusterId, Incarnation)>>,
    /// This node's phase may have changed: look at once.
    changed: Notify,
    waiting: watch::Sender<Option<String>>,
}

/// What the loop remembers from round to round. None of it is a promise.
#[derive(Default)]
struct Memory {
    /// Founders that refuse this node's proposal for ever.
    refusals: BTreeSet<MemberId>,
    reported: Option<(Why, Instant)>,
}

/// What a round came to.
enum Step {
    Settled(Settled),
    /// Something changed: go on at once.
    Again,
    Wait,
}

impl Bootstrap {
    pub(crate) fn new(parts: BootstrapParts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            host: OnceLock::new(),
            joining: Mutex::default(),
            changed: Notify::new(),
            waiting: watch::Sender::default(),
        })
    }

    /// This node with what it knows now.
    fn me(&self) -> Me {
        Me {
            expected: self.parts.expected.borrow().clone(),
            ..self.parts.me.clone()
        }
    }

    /// What is being waited for, in words; `None` once it is over.
    pub(crate) fn waiting(&self) -> watch::Receiver<Option<String>> {
        self.waiting.subscribe()
    }

    /// Plugs in the node, as soon as it can take part in Raft. Questions that need it are refused before.
    pub(crate) fn bind(&self, host: Arc<dyn FoundingHost>) {
        // Bound once in a node's life.
        let _ = self.host.set(host);
        self.changed.notify_one();
    }

    /// Returns when this node is durably a member of a cluster, and has initialised it if it founded it.
    /// Waits as long as that takes. An error is a failed disk: the node must stop.
    pub(crate) async fn run(&self, stop: &CancellationToken) -> Result<Settled> {
        let settings = &self.parts.settings;
        let mut memory = Memory::default();
        let mut pause = settings.retry_min;
        loop {
            let step = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Settled::Stopped),
                step = self.round(&mut memory) => step?,
            };
            match step {
                Step::Settled(settled) => {
                    self.waiting.send_replace(None);
                    return Ok(settled);
                }
                Step::Again => pause = settings.retry_min,
                Step::Wait => {
                    tokio::select! {
                        () = stop.cancelled() => return Ok(Settled::Stopped),
                        () = self.changed.notified() => pause = settings.retry_min,
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(settings.retry_max),
                    }
                }
            }
        }
    }

    /// Asks everybody, decides, acts.
    async fn round(&self, memory: &mut Memory) -> Result<Step> {
        let (me, phase) = (self.me(), self.parts.identity.phase());
        let settles_alone = matches!(phase, Phase::Member { .. } | Phase::Retired { .. });
        let peers = if settles_alone {
            Vec::new()
        } else {
            match self.ask_everybody(&me).await {
                Ok(peers) => peers,
                Err(error) => {
                    self.report(Why::Discovery(error.to_string()), memory);
                    return Ok(Step::Wait);
                }
            }
        };
        // An answer proves something about a promise only if it was asked for after the promise: hence the
        // phase from before. If it moved meanwhile, a decision would be about the past.
        if self.parts.identity.phase() != phase {
            return Ok(Step::Again);
        }
        let founding = self.parts.identity.founding();
        let action = decide(&Situation {
            me: &me,
            phase: &phase,
            founding: founding.as_ref(),
            released: &self.released(&peers),
            rejoins: self.parts.identity.rejoin().map(|rejoin| rejoin.cluster),
            refusals: &memory.refusals,
            peers: &peers,
        });
        if !matches!(action, Action::Join { .. }) {
            *self.joining() = None;
        }
        self.act(action, &phase, memory).await
    }

    async fn act(&self, action: Action, phase: &Phase, memory: &mut Memory) -> Result<Step> {
        if !matches!(action, Action::Wait(_)) {
            memory.reported = None;
        }
        match action {
            Action::Wait(why) => {
                self.report(why, memory);
                Ok(Step::Wait)
            }
            Action::Propose { founders } => self.propose(founders).await,
            Action::Ask { founders } => {
                let Phase::Reserved(proposal) = phase else {
                    return Ok(Step::Again);
                };
                self.ask_founders(proposal, founders, memory).await;
                // What they promised is seen from their next answer.
                Ok(Step::Wait)
            }
            Action::Initialize(proposal) => self.initialize(&proposal).await,
            Action::Release { cluster, because } => {
                tracing::warn!(%cluster, %because, "letting go of a proposed cluster");
                memory.refusals.clear();
                self.promise(Identity::release).await
            }
            Action::Join {
                cluster,
                incarnation,
                via,
            } => self.join(cluster, incarnation, &via).await,
            Action::Member | Action::Retired => Ok(self.settled(phase)),
        }
    }

    async fn propose(&self, founders: Vec<Founder>) -> Result<Step> {
        let cluster = ClusterId(rand::random_range(1..=u64::MAX));
        let names: Vec<_> = founders
            .iter()
            .map(|founder| founder.name.as_str())
            .collect();
        tracing::info!(%cluster, founders = names.join(", "), "proposing a new cluster");
        let proposal = Proposal {
            cluster,
            // One founder for each expected replica, or there would be no proposal.
            replicas: u32::try_from(founders.len()).unwrap_or(u32::MAX),
            founders,
        };
        self.promise(move |identity| identity.reserve(proposal))
            .await
    }

    /// All have accepted. The marker first: once Raft is initialised, this node has voted.
    async fn initialize(&self, proposal: &Proposal) -> Result<Step> {
        let cluster = proposal.cluster;
        if self.parts.identity.membership().is_none() {
            self.promise(move |identity| identity.become_member(cluster, FIRST_INCARNATION))
                .await?;
        }
        let Some(host) = self.host.get() else {
            self.waiting
                .send_replace(Some("for this node's own start".into()));
            return Ok(Step::Wait);
        };
        match host.initialize(Founding::from(proposal)).await {
            Ok(()) => {
                tracing::info!(%cluster, "the cluster is founded");
                Ok(self.settled(&self.parts.identity.phase()))
            }
            Err(error) => {
                tracing::warn!(%cluster, %error, "could not initialise the cluster; trying again");
                self.waiting
                    .send_replace(Some(format!("to initialise cluster {cluster}: {error}")));
                Ok(Step::Wait)
            }
        }
    }

    async fn join(
        &self,
        cluster: ClusterId,
        incarnation: Incarnation,
        via: &[Via],
    ) -> Result<Step> {
        *self.joining() = Some((cluster, incarnation));
        for member in via {
            match self.ask_to_join(cluster, incarnation, member).await {
                Ok(()) => {
                    tracing::info!(%cluster, %incarnation, via = %member.id, "added to the cluster");
                    return self
                        .promise(move |identity| identity.become_member(cluster, incarnation))
                        .await;
                }
                Err(error) => {
                    tracing::info!(%cluster, via = %member.id, %error, "not added to the cluster yet");
                    self.waiting
                        .send_replace(Some(format!("to join cluster {cluster}: {error}")));
                }
            }
        }
        Ok(Step::Wait)
    }

    /// Makes a promise durable, off the async threads. A promise that came too late, because this
    /// node's phase changed meanwhile, is not an error: the next round sees the new phase.
    async fn promise(
        &self,
        change: impl FnOnce(&Identity) -> Result<()> + Send + 'static,
    ) -> Result<Step> {
        match self.on_disk(change).await {
            Ok(()) => Ok(Step::Again),
            Err(error) => match error.reason() {
                Reason::MembershipConflict | Reason::WrongCluster | Reason::WrongIncarnation => {
                    tracing::warn!(%error, "this node's promises forbid that");
                    Ok(Step::Wait)
                }
                _ => Err(error),
            },
        }
    }

    async fn on_disk(
        &self,
        change: impl FnOnce(&Identity) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let identity = self.parts.identity.clone();
        let workers = identity.workers();
        let result = workers
            .spawn(move || change(&identity))
            .await
            .map_err(|error| {
                Error::internal("changing the node's phase failed").with_source(error)
            })?;
        if result.is_ok() {
            self.changed.notify_one();
        }
        result
    }

    fn settled(&self, phase: &Phase) -> Step {
        match phase {
            Phase::Member {
                cluster,
                incarnation,
            } => Step::Settled(Settled::Member {
                cluster: *cluster,
                incarnation: *incarnation,
            }),
            Phase::Retired { .. } => Step::Settled(Settled::Retired),
            Phase::Virgin | Phase::Reserved(_) => Step::Again,
        }
    }

    /// Which of the clusters that peers speak of this node has released.
    fn released(&self, peers: &[Peer]) -> BTreeSet<ClusterId> {
        let clusters = peers
            .iter()
            .filter_map(|peer| peer.answer.as_ref()?.said.cluster());
        clusters
            .filter(|cluster| self.parts.identity.refuses(*cluster))
            .collect()
    }

    /// Says what is waited for: when it changes, and again after a while.
    fn report(&self, why: Why, memory: &mut Memory) {
        let now = Instant::now();
        let is_fresh = memory.reported.as_ref().is_none_or(|(before, at)| {
            *before != why || now - *at >= self.parts.settings.report_interval
        });
        if !is_fresh {
            return;
        }
        if why.needs_help() {
            tracing::warn!(waiting = %why, "not part of a cluster yet, and this may need a person");
        } else {
            tracing::info!(waiting = %why, "not part of a cluster yet");
        }
        self.waiting.send_replace(Some(why.to_string()));
        memory.reported = Some((why, now));
    }

    fn joining(&self) -> MutexGuard<'_, Option<(ClusterId, Incarnation)>> {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod random;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod tests;
