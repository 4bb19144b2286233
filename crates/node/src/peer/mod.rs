//! What nodes say to each other: kept gRPC channels out, one service in.
//!
//! Every call names its sender and its target. The [`Gate`](gate::Gate) refuses a wrong cluster, a wrong
//! incarnation, a wrong target and a boot counter that went backwards; it never refuses a sender
//! merely for being unknown here, because membership may be known there first.
//!
//! The service is up before the node belongs to anything. What answers behind it is plugged in as
//! the node comes to life: founding first, then raft, then the node's own calls.
//!
//! ```text
//!   out: PeerPool ─ Lane ─► PeerLane::get ─► gRPC client     header(): PeerHeaders
//!   in:  PeerServer ─► PeerService ─► Gate ─► (Admit) ─► RaftCalls | NodeCalls | FoundingCalls
//! ```

mod connection;
pub(crate) mod gate;
pub(crate) mod header;
pub(crate) mod pool;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod standing;

use std::pin::Pin;

use futures_util::Stream;
use futures_util::future::BoxFuture;
use podkv_proto::peer as wire;
use tonic::{Status, Streaming};

pub(crate) type Reply<'a, T> = BoxFuture<'a, Result<T, Status>>;
pub(crate) type ReplyStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The calls that Raft itself makes. Implemented by `raft::Group`.
///
/// The header has been checked when these are called. A stream's first message comes apart, because
/// it carried the header.
pub(crate) trait RaftCalls: Send + Sync + 'static {
    fn append(
        &self,
        first: wire::AppendRequest,
        rest: Streaming<wire::AppendRequest>,
    ) -> ReplyStream<wire::AppendResponse>;
    fn vote(&self, request: wire::VoteRequest) -> Reply<'_, wire::VoteResponse>;
    fn pre_vote(&self, request: wire::VoteRequest) -> Reply<'_, wire::VoteResponse>;
    fn transfer_leader(
        &self,
        request: wire::TransferLeaderRequest,
    ) -> Reply<'_, wire::TransferLeaderResponse>;
    fn offer_snapshot(
        &self,
        request: wire::OfferSnapshotRequest,
    ) -> Reply<'_, wire::OfferSnapshotResponse>;
    fn send_snapshot(
        &self,
        first: wire::SendSnapshotRequest,
        rest: Streaming<wire::SendSnapshotRequest>,
    ) -> Reply<'_, wire::SendSnapshotResponse>;
    fn install_snapshot(
        &self,
        request: wire::InstallSnapshotRequest,
    ) -> Reply<'_, wire::InstallSnapshotResponse>;
}

/// The calls that a running node serves for other nodes. Implemented by `node`.
pub(crate) trait NodeCalls: Send + Sync + 'static {
    fn forward(
        &self,
        first: wire::ForwardRequest,
        rest: Streaming<wire::ForwardRequest>,
    ) -> ReplyStream<wire::ForwardResponse>;
    fn read_index(&self, request: wire::ReadIndexRequest) -> Reply<'_, wire::ReadIndexResponse>;
    fn admin(&self, request: wire::AdminRequest) -> Reply<'_, wire::AdminResponse>;
    fn standing(&self, request: wire::StandingRequest) -> Reply<'_, wire::StandingResponse>;
    fn digest(&self, request: wire::DigestRequest) -> Reply<'_, wire::DigestResponse>;
}

/// The calls of a cluster's founding. Implemented by `bootstrap`; answered in every phase.
pub(crate) trait FoundingCalls: Send + Sync + 'static {
    fn hello(&self, request: wire::HelloRequest) -> Reply<'_, wire::HelloResponse>;
    fn reserve(&self, request: wire::ReserveRequest) -> Reply<'_, wire::ReserveResponse>;
    fn join(&self, request: wire::JoinRequest) -> Reply<'_, wire::JoinResponse>;
}

#[cfg(test)]
mod certificate_tests;
#[cfg(test)]
pub(crate) mod tests;
