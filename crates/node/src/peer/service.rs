//! The gRPC service that peers call: gate, then whoever answers.
//!
//! It is up before the node belongs to anything, so that nodes can find each other. What answers is
//! plugged in as the node comes to life; a call that comes before gets `Unavailable`, reason
//! `NodeNotReady`.

use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use podkv_api::{ClusterId, Error, Incarnation, Reason, Result};
use podkv_proto::convert::to_status;
use podkv_proto::peer as wire;
use podkv_tls::Certificate;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::gate::{Gate, Scope, Sender};
use super::header::PeerHeaders;
use super::{FoundingCalls, NodeCalls, RaftCalls, ReplyStream};
use crate::transport::Remote;

/// Decides whom a node that is not a member yet follows. Implemented by `bootstrap`.
pub(crate) trait Admit: Send + Sync + 'static {
    /// Called before Raft sees anything from a member of this cluster. When it returns `Ok`, this node is
    /// durably a member of exactly that cluster and incarnation.
    fn admit(&self, cluster: ClusterId, incarnation: Incarnation) -> BoxFuture<'_, Result<()>>;
}

/// What answers, once it is there.
#[derive(Default)]
pub(crate) struct Slots {
    founding: OnceLock<Arc<dyn FoundingCalls>>,
    admit: OnceLock<Arc<dyn Admit>>,
    raft: OnceLock<Arc<dyn RaftCalls>>,
    node: OnceLock<Arc<dyn NodeCalls>>,
}

/// Each is bound once in the life of a node; a second call has no effect.
impl Slots {
    pub(crate) fn bind_founding(&self, calls: Arc<dyn FoundingCalls>, admit: Arc<dyn Admit>) {
        let _ = self.admit.set(admit);
        let _ = self.founding.set(calls);
    }

    pub(crate) fn bind_raft(&self, calls: Arc<dyn RaftCalls>) {
        let _ = self.raft.set(calls);
    }

    pub(crate) fn bind_node(&self, calls: Arc<dyn NodeCalls>) {
        let _ = self.node.set(calls);
    }
}

/// The service. Clones share their slots.
#[derive(Clone)]
pub(crate) struct PeerService {
    gate: Gate,
    headers: PeerHeaders,
    slots: Arc<Slots>,
}

impl PeerService {
    pub(crate) fn new(gate: Gate, slots: Arc<Slots>) -> Self {
        let headers = gate.headers();
        Self {
            gate,
            headers,
            slots,
        }
    }

    /// Lets a call of the cluster in, and only then makes sure that this node belongs to it. That must come
    /// before Raft, because Raft will vote or append.
    async fn raft(
        &self,
        caller: &Caller,
        header: Option<&wire::PeerHeader>,
    ) -> Result<&dyn RaftCalls, Status> {
        let sender = self.check(caller, header, Scope::Cluster).await?;
        let raft = bound(&self.slots.raft, "raft")?;
        let admit = bound(&self.slots.admit, "founding")?;
        let (cluster, incarnation) = member(sender)?;
        admit
            .admit(cluster, incarnation)
            .await
            .map_err(|error| to_status(&error))?;
        Ok(raft)
    }

    async fn node(
        &self,
        caller: &Caller,
        header: Option<&wire::PeerHeader>,
    ) -> Result<&dyn NodeCalls, Status> {
        self.check(caller, header, Scope::Cluster).await?;
        bound(&self.slots.node, "the node")
    }

    async fn founding(
        &self,
        caller: &Caller,
        header: Option<&wire::PeerHeader>,
        scope: Scope,
    ) -> Result<&dyn FoundingCalls, Status> {
        self.check(caller, header, scope).await?;
        bound(&self.slots.founding, "founding")
    }

    async fn check(
        &self,
        caller: &Caller,
        header: Option<&wire::PeerHeader>,
        scope: Scope,
    ) -> Result<Sender, Status> {
        let checked = match self.gate.check_certificate(caller.certificate(), header) {
            Ok(()) => self.gate.check(header, scope).await,
            Err(error) => Err(error),
        };
        checked.map_err(|error| refused(&error, scope))
    }

    /// A call that is about a pod comes from that pod.
    fn check_named(&self, caller: &Caller, pod: &str, scope: Scope) -> Result<(), Status> {
        match caller.certificate() {
            Some(certificate) => self
                .gate
                .check_named(certificate, pod)
                .map_err(|error| refused(&error, scope)),
            None => Ok(()),
        }
    }
}

fn refused(error: &Error, scope: Scope) -> Status {
    tracing::debug!(reason = error.reason().name(), %error, ?scope, "refused a peer's call");
    to_status(error)
}

/// Who is at the other end of the connection that a call came over.
struct Caller(Option<Remote>);

impl Caller {
    fn certificate(&self) -> Option<&Certificate> {
        self.0.as_ref()?.certificate.as_deref()
    }
}

fn open<T>(mut request: Request<T>) -> (Caller, T) {
    let caller = Caller(request.extensions_mut().remove::<Remote>());
    (caller, request.into_inner())
}

fn bound<'a, T: ?Sized>(slot: &'a OnceLock<Arc<T>>, what: &str) -> Result<&'a T, Status> {
    slot.get().map(|calls| &**calls).ok_or_else(|| {
        to_status(&Error::new(
            Reason::NodeNotReady,
            format!("the node is starting: {what} is not up yet"),
        ))
    })
}

/// The gate never lets a sender without a cluster into [`Scope::Cluster`].
fn member(sender: Sender) -> Result<(ClusterId, Incarnation), Status> {
    sender.cluster.ok_or_else(|| {
        to_status(&Error::new(
            Reason::WrongCluster,
            "the sender belongs to no cluster",
        ))
    })
}

/// The first message of a stream, which carries the header.
async fn first<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    stream.message().await?.ok_or_else(|| {
        to_status(&Error::new(
            Reason::InvalidArgument,
            "the stream ended before its first message",
        ))
    })
}

#[async_trait]
impl wire::peer_server::Peer for PeerService {
    type AppendStream = ReplyStream<wire::AppendResponse>;
    type ForwardStream = ReplyStream<wire::ForwardResponse>;

    async fn hello(
        &self,
        request: Request<wire::HelloRequest>,
    ) -> Result<Response<wire::HelloResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self
            .founding(&caller, request.header.as_ref(), Scope::Hello)
            .await?;
        self.check_named(&caller, &request.name, Scope::Hello)?;
        calls.hello(request).await.map(Response::new)
    }

    async fn greet(
        &self,
        request: Request<wire::GreetRequest>,
    ) -> Result<Response<wire::GreetResponse>, Status> {
        let (caller, request) = open(request);
        let header = request.header.as_ref();
        let sender = self.check(&caller, header, Scope::Founding).await?;
        Ok(Response::new(wire::GreetResponse {
            header: Some(self.headers.to(sender.id)),
        }))
    }

    async fn reserve(
        &self,
        request: Request<wire::ReserveRequest>,
    ) -> Result<Response<wire::ReserveResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self
            .founding(&caller, request.header.as_ref(), Scope::Founding)
            .await?;
        calls.reserve(request).await.map(Response::new)
    }

    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self
            .founding(&caller, request.header.as_ref(), Scope::Founding)
            .await?;
        self.check_named(&caller, &request.name, Scope::Founding)?;
        calls.join(request).await.map(Response::new)
    }

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (caller, mut rest) = open(request);
        let first = first(&mut rest).await?;
        let calls = self.raft(&caller, first.header.as_ref()).await?;
        Ok(Response::new(calls.append(first, rest)))
    }

    async fn vote(
        &self,
        request: Request<wire::VoteRequest>,
    ) -> Result<Response<wire::VoteResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self.raft(&caller, request.header.as_ref()).await?;
        calls.vote(request).await.map(Response::new)
    }

    async fn pre_vote(
        &self,
        request: Request<wire::VoteRequest>,
    ) -> Result<Response<wire::VoteResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self.raft(&caller, request.header.as_ref()).await?;
        calls.pre_vote(request).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self.raft(&caller, request.header.as_ref()).await?;
        calls.transfer_leader(request).await.map(Response::new)
    }

    async fn offer_snapshot(
        &self,
        request: Request<wire::OfferSnapshotRequest>,
    ) -> Result<Response<wire::OfferSnapshotResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self.raft(&caller, request.header.as_ref()).await?;
        calls.offer_snapshot(request).await.map(Response::new)
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<wire::SendSnapshotRequest>>,
    ) -> Result<Response<wire::SendSnapshotResponse>, Status> {
        let (caller, mut rest) = open(request);
        let first = first(&mut rest).await?;
        let calls = self.raft(&caller, first.header.as_ref()).await?;
        calls.send_snapshot(first, rest).await.map(Response::new)
    }

    async fn install_snapshot(
        &self,
        request: Request<wire::InstallSnapshotRequest>,
    ) -> Result<Response<wire::InstallSnapshotResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self.raft(&caller, request.header.as_ref()).await?;
        calls.install_snapshot(request).await.map(Response::new)
    }

    async fn forward(
        &self,
        request: Request<Streaming<wire::ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let (caller, mut rest) = open(request);
        let first = first(&mut rest).await?;
        let calls = self.node(&caller, first.header.as_ref()).await?;
        Ok(Response::new(calls.forward(first, rest)))
    }

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self.node(&caller, request.header.as_ref()).await?;
        calls.read_index(request).await.map(Response::new)
    }

    async fn admin(
        &self,
        request: Request<wire::AdminRequest>,
    ) -> Result<Response<wire::AdminResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self.node(&caller, request.header.as_ref()).await?;
        calls.admin(request).await.map(Response::new)
    }

    async fn digest(
        &self,
        request: Request<wire::DigestRequest>,
    ) -> Result<Response<wire::DigestResponse>, Status> {
        let (caller, request) = open(request);
        let calls = self.node(&caller, request.header.as_ref()).await?;
        calls.digest(request).await.map(Response::new)
    }

    async fn standing(
        &self,
        request: Request<wire::StandingRequest>,
    ) -> Result<Response<wire::StandingResponse>, Status> {
        let (caller, request) = open(request);
        self.check(&caller, request.header.as_ref(), Scope::Standing)
            .await?;
        let calls = bound(&self.slots.node, "the node")?;
        calls.standing(request).await.map(Response::new)
    }
}
