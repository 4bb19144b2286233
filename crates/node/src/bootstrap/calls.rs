//! The answers that this node gives others, in every phase of its life.

use futures_util::future::BoxFuture;
use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason, Result};
use podkv_proto::peer as wire;

use super::Bootstrap;
use super::founders::Acceptor;
use crate::identity::{Founder, Phase, Proposal};
use crate::membership::PeerAddress;
use crate::peer::service::Admit;
use crate::peer::{FoundingCalls, Reply};
use crate::transport::split_address;

impl FoundingCalls for Bootstrap {
    fn hello(&self, request: wire::HelloRequest) -> Reply<'_, wire::HelloResponse> {
        let sender = sender(request.header.as_ref());
        Box::pin(async move {
            if let Some(host) = self.host.get() {
                host.heard_from(sender);
            }
            Ok(self.introduce(sender))
        })
    }

    fn reserve(&self, request: wire::ReserveRequest) -> Reply<'_, wire::ReserveResponse> {
        Box::pin(async move {
            let sender = sender(request.header.as_ref());
            let proposal = proposal_from_wire(request);
            let refusal = self.accept(sender, proposal).await.err();
            if let Some(error) = &refusal {
                tracing::info!(proposer = %sender, %error, "did not accept a proposed cluster");
            }
            Ok(wire::ReserveResponse {
                header: Some(self.parts.peers.header(sender)),
                accepted: refusal.is_none(),
                refusal: refusal.as_ref().map(refusal_to_wire),
            })
        })
    }

    fn join(&self, request: wire::JoinRequest) -> Reply<'_, wire::JoinResponse> {
        Box::pin(async move {
            let sender = sender(request.header.as_ref());
            let added = self.add(sender, request).await;
            let refusal = added.as_ref().err().map(refusal_to_wire);
            let (cluster, incarnation) = added.unwrap_or_default();
            Ok(wire::JoinResponse {
                header: Some(self.parts.peers.header(sender)),
                accepted: refusal.is_none(),
                refusal,
                cluster_id: cluster.0,
                incarnation: incarnation.0,
            })
        })
    }
}

impl Admit for Bootstrap {
    fn admit(&self, cluster: ClusterId, incarnation: Incarnation) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            // The gate has compared a member's cluster and incarnation with the caller's.
            if self.parts.identity.membership() == Some((cluster, incarnation)) {
                return Ok(());
            }
            let may_follow = match self.parts.identity.phase() {
                Phase::Reserved(proposal) => proposal.cluster == cluster,
                // The leader may be faster with its first append than the answer to the request.
                Phase::Virgin => *self.joining() == Some((cluster, incarnation)),
                Phase::Member { .. } | Phase::Retired { .. } => false,
            };
            if !may_follow {
                let phase = self.parts.identity.phase();
                let text =
                    format!("this node does not follow cluster {cluster} now: it is {phase}");
                return Err(Error::new(Reason::NodeNotReady, text));
            }
            self.on_disk(move |identity| identity.become_member(cluster, incarnation))
                .await
        })
    }
}

impl Bootstrap {
    /// The answer to Hello.
    fn introduce(&self, sender: MemberId) -> wire::HelloResponse {
        let me = self.me();
        let none = (ClusterId(0), Incarnation(0));
        let (phase, (cluster, incarnation)) = match self.parts.identity.phase() {
            Phase::Virgin => (wire::Phase::Virgin, none),
            Phase::Reserved(proposal) => (wire::Phase::Reserved, (proposal.cluster, none.1)),
            Phase::Member {
                cluster,
                incarnation,
            } => (wire::Phase::Member, (cluster, incarnation)),
            Phase::Retired {
                cluster,
                incarnation,
            } => (wire::Phase::Retired, (cluster, incarnation)),
        };
        let leader = self
            .host
            .get()
            .and_then(|host| host.leader())
            .unwrap_or_default();
        wire::HelloResponse {
            header: Some(self.parts.peers.header(sender)),
            name: me.name.to_string(),
            phase: phase.into(),
            cluster_id: cluster.0,
            incarnation: incarnation.0,
            peer_address: me.peer_address,
            client_address: me.client_address,
            leader_id: leader.0,
            expected_replicas: me.expected.map_or(0, |expected| expected.replicas),
        }
    }

    /// Accepts a proposal durably, or says why not.
    async fn accept(&self, sender: MemberId, proposal: Proposal) -> Result<()> {
        let phase = self.parts.identity.phase();
        let me = self.me();
        let acceptor = Acceptor {
            name: &me.name,
            id: me.id,
            expected: me.expected,
            phase: &phase,
            released: self.parts.identity.refuses(proposal.cluster),
            joining: self.joining().map(|(cluster, _)| cluster),
        };
        acceptor.consider(sender, &proposal)?;
        if let Phase::Member { .. } = phase {
            return Ok(());
        }
        self.on_disk(move |identity| identity.reserve(proposal))
            .await
    }

    /// Has a node added to this node's cluster.
    async fn add(
        &self,
        sender: MemberId,
        request: wire::JoinRequest,
    ) -> Result<(ClusterId, Incarnation)> {
        let not_ready = |text: &str| Error::new(Reason::NodeNotReady, text);
        let cluster = self
            .parts
            .identity
            .membership()
            .ok_or_else(|| not_ready("this node belongs to no cluster"))?;
        let host = self
            .host
            .get()
            .ok_or_else(|| not_ready("the node is starting"))?;
        check_joiner(&request)?;
        let address = PeerAddress {
            name: request.name,
            peer_address: request.peer_address,
            client_address: request.client_address,
        };
        host.add_learner(sender, address).await?;
        Ok(cluster)
    }
}

/// What goes into the membership stays there for years, and every member dials it.
fn check_joiner(request: &wire::JoinRequest) -> Result<()> {
    const MAX_TEXT_BYTES: usize = 320;
    let bad = |text: String| Error::new(Reason::InvalidArgument, text);
    let fields = [
        &request.name,
        &request.peer_address,
        &request.client_address,
    ];
    if request.name.is_empty() || fields.iter().any(|field| field.len() > MAX_TEXT_BYTES) {
        return Err(bad(format!(
            "expected a name, and no name or address above {MAX_TEXT_BYTES} bytes"
        )));
    }
    for address in [&request.peer_address, &request.client_address] {
        split_address(address).map_err(|error| bad(error.to_string()))?;
    }
    Ok(())
}

/// The gate has checked that there is one.
fn sender(header: Option<&wire::PeerHeader>) -> MemberId {
    MemberId(header.map_or(0, |header| header.sender_id))
}

fn proposal_from_wire(request: wire::ReserveRequest) -> Proposal {
    let founders = request.founders.into_iter().map(|founder| Founder {
        name: founder.name,
        id: MemberId(founder.node_id),
        peer_address: founder.peer_address,
        client_address: founder.client_address,
        voter: founder.voter,
    });
    Proposal {
        cluster: ClusterId(request.cluster_id),
        replicas: request.expected_replicas,
        founders: founders.collect(),
    }
}

fn refusal_to_wire(error: &Error) -> wire::Refusal {
    wire::Refusal {
        reason: error.reason() as u32,
        text: error.text().into(),
    }
}
