//! One replica, as a library.
//!
//! ```no_run
//! # async fn example() -> podkv_api::Result<()> {
//! use podkv_api::{Put, Store};
//! use podkv_node::{Node, NodeConfig, config::StorageConfig};
//!
//! let storage = StorageConfig::Disk { data_dir: "/var/lib/podkv".into() };
//! let node = Node::builder(NodeConfig::new("podkv-0", storage)).start().await?;
//! node.put(Put::new("greeting", "hello")).await?;
//! node.drain().await;
//! node.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`Node`] implements the store trait: writes apply exactly once, reads are linearizable by default and
//! served from this replica. It takes no signals, installs no logger, owns no global. It starts inside
//! the caller's tokio runtime and ends with [`Node::shutdown`].

mod access;
mod admin;
mod auth;
mod calls;
mod founding;
mod large;
mod lookout;
mod promise;
mod readiness;
mod requests;
mod restore;
mod scrub;
mod size;
mod snapshot;
mod standing;
mod start;
mod stats;
mod store;

use std::sync::Arc;
use std::time::Duration;

use podkv_api::{
    ClusterId, Consistency, Error, Header, Incarnation, LeaderHint, LeaseId, Limits, MemberId,
    Reason, Result, Revision, SessionId,
};
use podkv_core::{Answer, Proposal};
use podkv_tls::Tls;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::access::Access;
pub use self::admin::DataDigest;
pub use self::requests::{Method, Requests, Total};
pub use self::restore::{RestoreWriter, Restored};
pub use self::scrub::Scrubbed;
pub use self::snapshot::SnapshotReader;
pub use self::start::{NodeBuilder, open_tls};
pub use self::stats::{Latency, NodeStats};

use crate::auth::{Passwords, Refusals};
use crate::clock::LeaderClock;
use crate::config::NodeConfig;
use crate::health::Health;
use crate::identity::Identity;
use crate::own_session::OwnSession;
use crate::peer::pool::PeerPool;
use crate::query::Query;
use crate::raft::{Applied, Group, GroupState};
use crate::read::ReadIndex;
use crate::renew::Renewals;
use crate::size::SizeSource;
use crate::space::Alarms;
use crate::stall::Stalls;
use crate::storage::Storage;
use crate::watch::WatchHub;
use crate::write::{Decided, Origin, Writer};

/// One replica of a podkv cluster. A handle: cheap to clone, all clones are the same node.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    config: NodeConfig,
    identity: Arc<Identity>,
    storage: Storage,
    group: Group,
    peers: PeerPool,
    tls: Option<Tls>,
    writer: Writer,
    alarms: Alarms,
    stalls: Arc<Stalls>,
    read_index: ReadIndex,
    query: Query,
    watches: WatchHub,
    lease_renewals: Renewals<LeaseId>,
    session_renewals: Renewals<SessionId>,
    own_session: OwnSession,
    /// One opener at a time.
    opening_session: tokio::sync::Mutex<()>,
    clock: watch::Receiver<Option<LeaderClock>>,
    health: watch::Sender<Health>,
    /// Why the node cannot go on, if it cannot.
    failure: watch::Sender<Option<Error>>,
    /// What keeps the membership from what it should be, while this node leads.
    membership_waits: watch::Sender<Option<String>>,
    size_source: Option<Arc<dyn SizeSource>>,
    /// What keeps the size source from being followed.
    size_waits: watch::Sender<Option<String>>,
    /// Turns true when the state is at least as new as anything this node ever answered from.
    recovered: watch::Receiver<bool>,
    requests: Requests,
    passwords: Passwords,
    refusals: Refusals,
    /// One backup at a time.
    backups: Arc<tokio::sync::Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The answer to a write, and the header to send with it.
#[derive(Clone, Debug)]
pub struct Written {
    pub header: Header,
    pub answer: Answer,
    /// The write was applied before, in its session; this is the first answer again.
    pub duplicate: bool,
}

/// The TTL of the node's own session. Far longer than any request may take: see `own_session`.
const OWN_SESSION_TTL: Duration = Duration::from_secs(60);

impl Node {
    /// A node that is yet to be started.
    pub fn builder(config: NodeConfig) -> NodeBuilder {
        NodeBuilder::new(config)
    }

    pub fn config(&self) -> &NodeConfig {
        &self.0.config
    }

    pub fn limits(&self) -> &Limits {
        &self.0.config.limits
    }

    pub fn id(&self) -> MemberId {
        self.0.identity.node_id()
    }

    /// The TLS of this node's ports, unless it is off.
    pub fn tls(&self) -> Option<&Tls> {
        self.0.tls.as_ref()
    }

    /// How the node is, and how that changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    /// Returns when the node cannot go on: a failed disk, or damaged data. It answers no more; shut it down.
    pub async fn failed(&self) -> Error {
        let mut group = self.0.group.state();
        let mut failure = self.0.failure.subscribe();
        let stopped = || Error::internal("the node stopped");
        tokio::select! {
            state = group.wait_for(|state| state.fatal.is_some()) => match state {
                Ok(state) => state.fatal.clone().map_or_else(stopped, Error::internal),
                Err(_) => stopped(),
            },
            error = failure.wait_for(Option::is_some) => match error {
                Ok(error) => error.clone().unwrap_or_else(stopped),
                Err(_) => stopped(),
            },
        }
    }

    /// What keeps the membership from what it should be, in words; `None` if nothing does, or if this node
    /// does not lead.
    pub fn membership_waits(&self) -> Option<String> {
        self.0.membership_waits.borrow().clone()
    }

    /// A header for an answer from this node's state as it is now.
    pub fn header(&self) -> Header {
        let applied = self.0.group.applied().borrow().clone();
        self.header_at(applied.revision)
    }

    fn header_at(&self, revision: Revision) -> Header {
        let (cluster, incarnation) = self.cluster();
        let term = self.0.group.state().borrow().term;
        Header {
            cluster,
            incarnation,
            member: self.id(),
            term,
            revision,
        }
    }

    fn cluster(&self) -> (ClusterId, Incarnation) {
        self.0.identity.membership().unwrap_or_default()
    }

    /// The leader that this node knows.
    pub fn leader(&self) -> Option<MemberId> {
        self.0.group.state().borrow().leader
    }

    /// The leader that this node knows, with its address for clients; `None` if it is this node itself.
    pub fn leader_hint(&self) -> Option<LeaderHint> {
        let state = self.0.group.state();
        let state: watch::Ref<'_, GroupState> = state.borrow();
        let member = state.leader.filter(|leader| *leader != self.id())?;
        let client_address = state.members.nodes.get(&member)?.client_address.clone();
        Some(LeaderHint {
            member,
            client_address,
        })
    }

    /// True if this node leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.id())
    }

    /// Writes one proposal, stamped by its caller or not. `None` waits as long as the configuration says.
    ///
    /// An unstamped write whose outcome is unknown must not be repeated blindly; a stamped one may.
    pub async fn propose(&self, proposal: Proposal, timeout: Option<Duration>) -> Result<Written> {
        let timeout = timeout.unwrap_or(self.0.config.request_timeout);
        let decided = self.0.writer.write(proposal, Origin::Local, timeout).await;
        self.written(decided.map_err(|error| self.with_leader_address(error))?)
    }

    fn written(&self, decided: Decided) -> Result<Written> {
        let header = Header {
            term: decided.term,
            ..self.header_at(decided.outcome.revision)
        };
        let mut answer = decided.outcome.result?;
        if matches!(answer, Answer::RevisionOnly) {
            return Err(Error::new(
                Reason::AnswerNotKept,
                format!(
                    "the write was applied at revision {}, and its answer was too large to keep for a retry: \
                     read what it did at that revision",
                    decided.outcome.revision
                ),
            )
            .with_revision(decided.outcome.revision));
        }
        answer.stamp(header);
        Ok(Written {
            header,
            answer,
            duplicate: decided.outcome.duplicate,
        })
    }

    /// Waits until this node may answer a read of that consistency.
    pub(crate) async fn fresh(
        &self,
        consistency: Consistency,
        timeout: Option<Duration>,
    ) -> Result<Applied> {
        let timeout = timeout.unwrap_or(self.0.config.request_timeout);
        match consistency {
            Consistency::Linearizable => {
                let applied = self.0.read_index.linearizable(timeout).await;
                applied.map_err(|error| self.with_leader_address(error))
            }
            Consistency::Local => self.recovered(timeout).await,
            Consistency::Bounded(max_staleness) => {
                let applied = self.recovered(timeout).await?;
                self.0.group.confirm_within(max_staleness)?;
                Ok(applied)
            }
        }
    }

    /// Reads what is fresh enough. A leader with a lease reads first and asks for the lease then; `read` is called
    /// again if it does not hold any more.
    pub(crate) async fn read_at<T, F>(
        &self,
        consistency: Consistency,
        timeout: Option<Duration>,
        read: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        if consistency == Consistency::Linearizable {
            let patience = self.0.config.timing.election_max;
            let deadline =
                Instant::now() + timeout.map_or(patience, |timeout| timeout.min(patience));
            if let Some(lease) = self.0.group.lease_read(deadline).await {
                let result = read().await;
                if lease.holds() {
                    self.0.read_index.by_lease();
                    return result;
                }
            }
        }
        self.fresh(consistency, timeout).await?;
        read().await
    }

    /// Local reads wait until the node belongs to a cluster, and until the log that survived the last stop is
    /// applied again: the state may never look older than it did before.
    async fn recovered(&self, timeout: Duration) -> Result<Applied> {
        let mut recovered = self.0.recovered.clone();
        match tokio::time::timeout(timeout, recovered.wait_for(|done| *done)).await {
            Ok(Ok(_)) => Ok(self.0.group.applied().borrow().clone()),
            _ => Err(Error::new(
                Reason::NodeNotReady,
                match self.0.identity.membership() {
                    None => self.0.health.borrow().reason.clone(),
                    Some(_) => "this node has not yet caught up with what it knew before it stopped: it needs \
                                a leader for that"
                        .into(),
                },
            )),
        }
    }

    /// Names the leader's client address, so that a caller can go there.
    fn with_leader_address(&self, error: Error) -> Error {
        let Some(hint) = error.leader().cloned() else {
            return error;
        };
        let state = self.0.group.state();
        let state: watch::Ref<'_, GroupState> = state.borrow();
        let Some(address) = state.members.nodes.get(&hint.member) else {
            return error;
        };
        let hint = podkv_api::LeaderHint {
            client_address: address.client_address.clone(),
            ..hint
        };
        error.with_leader(Some(hint))
    }

    /// Hands leadership to a voter. No write is left in doubt by it: see [`crate::write`].
    async fn hand_over(&self, to: Option<MemberId>) -> Result<MemberId> {
        let hold = self.0.writer.handover().hold();
        // What does not get through in time may not at all: there is no majority, perhaps, and then no transfer.
        let patience = 3 * self.0.config.timing.election_max;
        if tokio::time::timeout(patience, hold.settled())
            .await
            .is_err()
        {
            tracing::warn!(?patience, "writes are under way that do not end");
        }
        self.0.group.transfer_leadership(to).await
    }

    /// Waits until the other nodes have their answers and send their writes elsewhere. A node that cannot be
    /// reached does not learn who leads now, and is not waited for beyond an election.
    async fn say_farewell(&self) {
        let patience = self.0.config.timing.election_max;
        let farewell = self.0.writer.handover().farewell();
        if tokio::time::timeout(patience, farewell).await.is_err() {
            tracing::info!(?patience, "a node still sends its writes here");
        }
    }

    /// Prepares to stop: unready at once, hands over leadership if it leads. Calls are still served.
    pub async fn drain(&self) {
        self.0.health.send_replace(Health::draining());
        if self.is_leader()
            && self
                .0
                .group
                .state()
                .borrow()
                .members
                .voters
                .iter()
                .any(|set| set.len() > 1)
        {
            match self.hand_over(None).await {
                Ok(to) => {
                    tracing::info!(%to, "handed over leadership");
                    self.say_farewell().await;
                }
                Err(error) => {
                    tracing::warn!(
                        why = error.text(),
                        "could not hand over leadership; the others will elect a leader"
                    );
                }
            }
        }
    }

    /// Stops, and returns when every task has ended and the storage is closed. Safe at any time; after a
    /// plain drop or a kill nothing that was acknowledged is lost either.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.group.shutdown().await;
        self.0.watches.shutdown().await;
        self.0.tasks.wait().await;
    }
}

fn unexpected() -> Error {
    Error::internal("a command was answered by something else")
}
