//! Finds out that the cluster was recovered from a lost majority without this node.
//!
//! The recovered cluster goes on in a later incarnation, with a membership that knows nothing of this node. The majority
//! that was given up may come back all the same, and could elect a leader of its own. Two things keep it from that:
//!
//! - **before Raft starts**, every member that this node knew is asked who it is. One that is a member of a later
//!   incarnation keeps this node from voting, appending and serving;
//! - **while it runs**, whoever refuses it for its incarnation, or a leader that stays away, makes it ask again.
//!
//! A claim alone ends nothing: the id ends only when a leader of the later incarnation, which has made sure that it
//! leads, says so. The data is put aside, and stays: it may hold acknowledged writes that the recovered node lacks.
//!
//! Where no node of the later incarnation can be reached, a majority of the past cannot know. Clients that have seen the
//! later one refuse it ([`Header`](podkv_api::Header) carries the incarnation).

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason, Result};
use podkv_proto::convert::{Call, from_status};
use podkv_proto::peer as wire;
use tokio::time::{Instant, sleep, timeout};

use crate::identity::Identity;
use crate::membership::Members;
use crate::peer::gate::Gate;
use crate::peer::pool::PeerPool;
use crate::peer::standing::is_member;

/// For one question, dialing included. Pods that are up answer within milliseconds; who is not delays each start of a
/// member by this much, at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Between questions about a later incarnation whose leader could not be found.
const RETRY: Duration = Duration::from_millis(500);
/// A start that finds no leader of the later incarnation for so long fails, and says why.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nobody of a later incarnation answers.
    Nothing,
    /// Somebody is a member of this later incarnation, and no leader of it confirms it.
    Claimed(Incarnation),
    /// A leader of this later incarnation has confirmed that this node is no member of it.
    Confirmed(Incarnation),
    /// A node has seen a later start of this one.
    Rewound,
}

impl Found {
    /// Why this node's id has ended, if it has.
    pub(super) fn ended(&self) -> Option<String> {
        match self {
            Self::Nothing | Self::Claimed(_) => None,
            Self::Confirmed(incarnation) => Some(format!(
                "its cluster was recovered from a lost majority without it, and goes on in incarnation {incarnation}. \
                 Its data is put aside and kept: it may hold writes that the recovered cluster lacks"
            )),
            Self::Rewound => {
                Some("a later start of it was seen: its volume was rewound, or is a copy".into())
            }
        }
    }
}

/// Asks the members that a node knows.
pub(super) struct Lookout {
    identity: Arc<Identity>,
    peers: PeerPool,
    gate: Gate,
}

/// What one node said.
enum Said {
    /// Nothing that ends this node.
    Nothing,
    /// It has seen a later start of this one.
    Rewound,
    Later(Later),
}

/// A member of the later incarnation that answered.
struct Later {
    id: MemberId,
    incarnation: Incarnation,
    leads: bool,
    address: String,
}

impl Lookout {
    pub(super) fn new(identity: Arc<Identity>, peers: PeerPool) -> Self {
        Self {
            gate: Gate::new(identity.clone()),
            identity,
            peers,
        }
    }

    /// Lets a member start, unless its cluster went on without it: then its id ends, durably.
    ///
    /// # Errors
    /// [`Reason::Retired`] if the id has ended; [`Reason::WrongIncarnation`] if there is a later incarnation, and no
    /// leader of it says whether it has. What keeps this node from remembering who answered: then nothing is known.
    pub(super) async fn before_start(&self, members: &Members) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.look(members).await;
            if let Some(failure) = &*self.identity.failure().borrow() {
                return Err(failure.clone());
            }
            if let Some(why) = found.ended() {
                let identity = self.identity.clone();
                identity
                    .workers()
                    .spawn(move || identity.retire())
                    .await
                    .map_err(|_| Error::internal("retiring did not come to an end"))??;
                return Err(Error::new(
                    Reason::Retired,
                    format!("node id {} has ended: {why}", self.identity.node_id()),
                ));
            }
            let Found::Claimed(incarnation) = found else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                return Err(Error::new(
                    Reason::WrongIncarnation,
                    format!(
                        "a node is in incarnation {incarnation} of this cluster, which was recovered from a lost \
                         majority; this one is not, and takes part in nothing until a leader of that incarnation \
                         answers"
                    ),
                ));
            }
            tracing::warn!(%incarnation, "the cluster was recovered without this node; waiting for its leader");
            sleep(RETRY).await;
        }
    }

    /// Asks everybody but this node itself, at the same time.
    pub(super) async fn look(&self, members: &Members) -> Found {
        let Some(mine) = self.identity.membership() else {
            return Found::Nothing;
        };
        let addresses = members
            .nodes
            .values()
            .filter(|node| node.name != self.identity.name())
            .map(|node| node.peer_address.as_str());
        let answers = join_all(addresses.map(|address| self.hello(address, mine))).await;
        let mut later = Vec::new();
        for answer in answers {
            match answer {
                Ok(Said::Later(one)) => later.push(one),
                Ok(Said::Nothing) => {}
                Ok(Said::Rewound) => return Found::Rewound,
                Err(error) => tracing::debug!(%error, "a member does not say who it is"),
            }
        }
        let Some(highest) = later.iter().map(|one| one.incarnation).max() else {
            return Found::Nothing;
        };
        for leader in later
            .iter()
            .filter(|one| one.incarnation == highest && one.leads)
        {
            match self.standing(leader).await {
                Ok(false) => return Found::Confirmed(highest),
                Ok(true) => {}
                Err(error) => tracing::debug!(%error, "the leader cannot say"),
            }
        }
        Found::Claimed(highest)
    }

    /// What the node there says of this one, and of itself. That *its* volume was rewound or copied is an error like any
    /// other: such a node is asked nothing, and ends nobody but itself.
    async fn hello(
        &self,
        address: &str,
        (cluster, incarnation): (ClusterId, Incarnation),
    ) -> Result<Said> {
        let request = wire::HelloRequest {
            header: Some(self.peers.header(MemberId(0))),
            name: self.identity.name().to_owned(),
        };
        let asking = async {
            let mut client = self.peers.dial(address).await?;
            Ok(client.hello(request).await)
        };
        let answer = match limited(address, asking).await? {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let refusal = from_status(&status, Call::Read);
                return match refusal.reason() {
                    Reason::RewoundVolume => Ok(Said::Rewound),
                    _ => Err(refusal),
                };
            }
        };
        let id = self.gate.check_answer(answer.header.as_ref()).await?;
        let is_later = answer.phase() == wire::Phase::Member
            && ClusterId(answer.cluster_id) == cluster
            && Incarnation(answer.incarnation) > incarnation;
        if !is_later {
            return Ok(Said::Nothing);
        }
        Ok(Said::Later(Later {
            id,
            incarnation: Incarnation(answer.incarnation),
            leads: MemberId(answer.leader_id) == id,
            address: address.into(),
        }))
    }

    async fn standing(&self, leader: &Later) -> Result<bool> {
        let header = self.peers.header(leader.id);
        let asking = async { is_member(self.peers.dial(&leader.address).await?, header).await };
        limited(&leader.address, asking).await
    }
}

async fn limited<T>(address: &str, asking: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(ANSWER_TIMEOUT, asking).await.unwrap_or_else(|_| {
        let text = format!("{address} did not answer within {ANSWER_TIMEOUT:?}");
        Err(Error::new(Reason::DeadlineExceeded, text))
    })
}
