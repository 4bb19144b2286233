//! The questions that this node asks others: who are you, do you accept, will you add me.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason, Result};
use podkv_proto::convert::{Call, from_status};
use podkv_proto::peer as wire;
use tokio::time::timeout;
use tonic::Status;

use super::decide::{Answer, Me, Peer, Said, Via};
use super::{Bootstrap, Memory};
use crate::discovery::Suggestion;
use crate::identity::{Founder, Proposal};
use crate::peer::pool::PeerClient;
use crate::peer::standing::is_member;

/// Peers that are asked at the same time.
const PARALLEL: usize = 16;

/// No honest source suggests more.
const MAX_SUGGESTIONS: usize = 1024;

impl Bootstrap {
    /// Says hello to everybody whom discovery suggests, but this node itself.
    pub(super) async fn ask_everybody(&self, me: &Me) -> Result<Vec<Peer>> {
        let expected = me.expected.clone().unwrap_or_default();
        let suggestions = self.parts.discovery.suggest(expected).await?;
        if suggestions.len() > MAX_SUGGESTIONS {
            let text = format!(
                "discovery suggests {} peers; expected at most {MAX_SUGGESTIONS}",
                suggestions.len()
            );
            return Err(Error::new(Reason::Configuration, text));
        }
        let asked = stream::iter(suggestions).map(|suggestion| self.ask(suggestion));
        let mut peers: Vec<Peer> = asked
            .buffer_unordered(PARALLEL)
            .filter_map(std::future::ready)
            .collect()
            .await;
        // The order in which they happened to answer must not matter.
        peers.sort_by(|a, b| a.suggestion.cmp(&b.suggestion));
        Ok(peers)
    }

    /// `None` for this node itself. Its own address may well lead nowhere from here; but if another node answers
    /// under its name, that counts.
    async fn ask(&self, suggestion: Suggestion) -> Option<Peer> {
        let me = &self.parts.me;
        let should_be_me = suggestion.peer_address == me.peer_address
            || suggestion
                .name
                .as_ref()
                .is_some_and(|name| *name == me.name.to_string());
        match self.hello(&suggestion.peer_address).await {
            Ok(answer) if answer.id == me.id => None,
            Ok(answer) => Some(Peer {
                suggestion,
                answer: Some(answer),
            }),
            Err(_) if should_be_me => None,
            Err(error) => {
                let peer = &suggestion.peer_address;
                tracing::debug!(peer, reason = error.reason().name(), %error, "no answer to hello");
                Some(Peer {
                    suggestion,
                    answer: None,
                })
            }
        }
    }

    async fn hello(&self, address: &str) -> Result<Answer> {
        let limit = self.parts.settings.hello_timeout;
        let nobody_yet = MemberId(0);
        let request = wire::HelloRequest {
            header: Some(self.parts.peers.header(nobody_yet)),
            name: self.parts.me.name.to_string(),
        };
        let response = self
            .call(address, limit, async |mut peer| {
                peer.hello(request).await.map(tonic::Response::into_inner)
            })
            .await?;
        let id = self
            .parts
            .gate
            .check_answer(response.header.as_ref())
            .await?;
        let said = Said::from_wire(&response)?;
        Ok(Answer {
            name: response.name,
            id,
            peer_address: response.peer_address,
            client_address: response.client_address,
            replicas: response.expected_replicas,
            said,
        })
    }

    /// Asks founders to accept the proposal. What they promise is told by their next Hello; only a refusal
    /// for ever is remembered here.
    pub(super) async fn ask_founders(
        &self,
        proposal: &Proposal,
        founders: Vec<Founder>,
        memory: &mut Memory,
    ) {
        let asked = founders
            .iter()
            .map(|founder| self.reserve(proposal, founder));
        for (founder, result) in founders.iter().zip(join_all(asked).await) {
            match result {
                Ok(()) => {
                    tracing::info!(founder = founder.name, cluster = %proposal.cluster, "accepted");
                    // The next round need not wait.
                    self.changed.notify_one();
                }
                Err(error) => {
                    tracing::warn!(founder = founder.name, cluster = %proposal.cluster, %error, "not accepted");
                    if error.reason() == Reason::WrongCluster {
                        memory.refusals.insert(founder.id);
                    }
                }
            }
        }
    }

    async fn reserve(&self, proposal: &Proposal, founder: &Founder) -> Result<()> {
        let request = wire::ReserveRequest {
            header: Some(self.parts.peers.header(founder.id)),
            cluster_id: proposal.cluster.0,
            expected_replicas: proposal.replicas,
            founders: proposal.founders.iter().map(founder_to_wire).collect(),
        };
        let limit = self.parts.settings.reserve_timeout;
        let response = self
            .call(&founder.peer_address, limit, async |mut peer| {
                peer.reserve(request).await.map(tonic::Response::into_inner)
            })
            .await?;
        self.parts
            .gate
            .check_answer(response.header.as_ref())
            .await?;
        accepted(response.accepted, response.refusal)
    }

    /// Asks a member to be added, and waits until that is committed.
    pub(super) async fn ask_to_join(
        &self,
        cluster: ClusterId,
        incarnation: Incarnation,
        via: &Via,
    ) -> Result<()> {
        let me = &self.parts.me;
        let request = wire::JoinRequest {
            header: Some(self.parts.peers.header(via.id)),
            name: me.name.to_string(),
            peer_address: me.peer_address.clone(),
            client_address: me.client_address.clone(),
        };
        let limit = self.parts.settings.join_timeout;
        let response = self
            .call(&via.peer_address, limit, async |mut peer| {
                peer.join(request).await.map(tonic::Response::into_inner)
            })
            .await?;
        self.parts
            .gate
            .check_answer(response.header.as_ref())
            .await?;
        accepted(response.accepted, response.refusal)?;
        let joined = (
            ClusterId(response.cluster_id),
            Incarnation(response.incarnation),
        );
        if joined == (cluster, incarnation) {
            return Ok(());
        }
        let text = format!(
            "asked to join cluster {cluster} in incarnation {incarnation}, added to {} in {}",
            joined.0, joined.1
        );
        Err(Error::new(Reason::WrongCluster, text))
    }

    /// Whether this node is still a member of its cluster, as the leader says. An error if no leader could
    /// be found, or it could not make sure.
    pub(crate) async fn standing(&self) -> Result<bool> {
        let unknown = || Error::new(Reason::NoLeader, "no leader of this node's cluster answers");
        let mine = self.parts.identity.membership().ok_or_else(unknown)?;
        let peers = self.ask_everybody(&self.me()).await?;
        let leads = |answer: &&Answer| {
            matches!(
                answer.said,
                Said::Member { cluster, incarnation, leader: Some(leader) }
                    if (cluster, incarnation) == mine && leader == answer.id
            )
        };
        let mut answers = peers.iter().filter_map(|peer| peer.answer.as_ref());
        let leader = answers.find(leads).ok_or_else(unknown)?;
        let header = self.parts.peers.header(leader.id);
        let limit = self.parts.settings.hello_timeout;
        let asking = async |peer| is_member(peer, header).await;
        self.dialed(&leader.peer_address, limit, asking).await
    }

    /// One call over a connection of its own, with the name resolved afresh: in this phase pods come and go.
    async fn call<T>(
        &self,
        address: &str,
        limit: Duration,
        call: impl AsyncFnOnce(PeerClient) -> Result<T, Status>,
    ) -> Result<T> {
        let asking = async |peer| {
            // Every question may be asked twice, so none has an outcome that is unknown.
            call(peer)
                .await
                .map_err(|status| from_status(&status, Call::Read))
        };
        self.dialed(address, limit, asking).await
    }

    async fn dialed<T>(
        &self,
        address: &str,
        limit: Duration,
        asking: impl AsyncFnOnce(PeerClient) -> Result<T>,
    ) -> Result<T> {
        let dialed = async { asking(self.parts.peers.dial(address).await?).await };
        timeout(limit, dialed).await.unwrap_or_else(|_| {
            let text = format!("{address} did not answer within {limit:?}");
            Err(Error::new(Reason::DeadlineExceeded, text))
        })
    }
}

impl Said {
    /// The cluster that a peer speaks of.
    pub(super) fn cluster(&self) -> Option<ClusterId> {
        match *self {
            Self::Virgin => None,
            Self::Reserved { cluster }
            | Self::Member { cluster, .. }
            | Self::Retired { cluster } => Some(cluster),
        }
    }

    fn from_wire(response: &wire::HelloResponse) -> Result<Self> {
        let cluster = ClusterId(response.cluster_id);
        let said = match response.phase() {
            wire::Phase::Virgin => return Ok(Self::Virgin),
            wire::Phase::Reserved => Self::Reserved { cluster },
            wire::Phase::Member => Self::Member {
                cluster,
                incarnation: Incarnation(response.incarnation),
                leader: Some(MemberId(response.leader_id)).filter(|id| *id != MemberId(0)),
            },
            wire::Phase::Retired => Self::Retired { cluster },
            wire::Phase::Unspecified => {
                let text = format!(
                    "the answer to hello has the unknown phase {}",
                    response.phase
                );
                return Err(Error::new(Reason::Unsupported, text));
            }
        };
        if cluster == ClusterId(0) {
            return Err(Error::new(
                Reason::InvalidArgument,
                "the answer to hello names no cluster",
            ));
        }
        Ok(said)
    }
}

fn accepted(accepted: bool, refusal: Option<wire::Refusal>) -> Result<()> {
    if accepted {
        return Ok(());
    }
    let refusal = refusal.unwrap_or_default();
    let reason = u16::try_from(refusal.reason).map_or(Reason::Internal, Reason::from_code);
    Err(Error::new(reason, refusal.text))
}

fn founder_to_wire(founder: &Founder) -> wire::Founder {
    wire::Founder {
        name: founder.name.clone(),
        node_id: founder.id.0,
        peer_address: founder.peer_address.clone(),
        client_address: founder.client_address.clone(),
        voter: founder.voter,
    }
}
