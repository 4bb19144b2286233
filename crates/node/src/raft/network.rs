//! What Raft says to its peers: openraft's network trait over kept gRPC channels.
//!
//! ```text
//!   replication ── append stream ────► Lane::Append      pipelined; answers in order
//!   heartbeats ─── kept stream ──────► Lane::Heartbeat   one at a time, never behind data
//!   snapshot ───── offer, chunks ────► Lane::Snapshot    resumable; see snapshot.rs
//!   votes, transfer ─────────────────► Lane::Control
//! ```
//!
//! Nothing is dialed per call: the pool keeps the channels, and a stream is kept until it fails. Every wait
//! has a limit, after which the channel is given up and dialed afresh, with the name resolved anew.

mod snapshot;
mod stream;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use podkv_api::MemberId;
use podkv_proto::peer as wire;
use tonic::{Response, Status};

use self::stream::AppendLane;
use super::freshness::Freshness;
use super::leader_lease::LeaderLease;
use super::machine::SnapshotData;
use super::transfer::Transfers;
use super::types::{Snapshot, TypeConfig, Vote};
use super::wire as convert;
use crate::membership::PeerAddress;
use crate::peer::pool::{Lane, PeerClient, PeerLane, PeerPool};

type Boxed<'s, T> = futures_util::future::BoxFuture<'s, T>;
type Answers<'s> =
    futures_util::stream::BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>;
type RpcError = RPCError<TypeConfig>;

/// Makes the ways to each peer.
pub(super) struct Network {
    pub me: MemberId,
    pub peers: PeerPool,
    pub freshness: Arc<Freshness>,
    pub transfers: Arc<Transfers>,
    pub lease: Arc<LeaderLease>,
    /// An append that is not answered for this long is sent again, over another connection. Its
    /// answer waits for the follower's disk.
    pub append_timeout: Duration,
}

impl Network {
    fn peer(&self, target: u64, node: &PeerAddress, lane: Lane) -> Peer {
        let target = MemberId(target);
        let lane = self.peers.client(target, node, lane);
        Peer {
            me: self.me,
            target,
            control: self.peers.client(target, node, Lane::Control),
            append: Mutex::new(AppendLane::new(
                target,
                lane.clone(),
                self.freshness.clone(),
                self.lease.clone(),
            )),
            lane,
            lease: self.lease.clone(),
            append_timeout: self.append_timeout,
            transfers: self.transfers.clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &PeerAddress) -> Peer {
        self.peer(target, node, Lane::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &PeerAddress) -> Peer {
        let mut peer = self.peer(target, node, Lane::Heartbeat);
        // openraft gives up after the heartbeat interval anyway.
        peer.append_timeout = Duration::ZERO;
        peer
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &PeerAddress) -> Peer {
        self.peer(target, node, Lane::Snapshot)
    }
}

/// The way to one peer, for one of openraft's tasks.
pub(super) struct Peer {
    me: MemberId,
    target: MemberId,
    control: PeerLane,
    /// The lane of this task.
    lane: PeerLane,
    /// Used by one task at a time. The lock is never taken: openraft wants the whole to be `Sync`, and the
    /// futures in here are not.
    append: Mutex<AppendLane>,
    append_timeout: Duration,
    transfers: Arc<Transfers>,
    lease: Arc<LeaderLease>,
}

impl Peer {
    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout {
            action,
            id: self.me.0,
            target: self.target.0,
            timeout,
        }
    }

    /// One call on the control lane, within `ttl`, dialing included.
    async fn control<T, F>(
        &self,
        action: RPCTypes,
        ttl: Duration,
        call: impl FnOnce(PeerClient, wire::PeerHeader) -> F,
    ) -> Result<T, RpcError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let attempt = async {
            let client = self
                .control
                .get()
                .await
                .map_err(|error| unreachable(&error))?;
            call(client, self.control.header())
                .await
                .map_err(|status| unreachable(&status))
        };
        match tokio::time::timeout(ttl, attempt).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(error)) => {
                self.control.broken();
                Err(error)
            }
            Err(_) => {
                self.control.broken();
                Err(self.timeout(action, ttl).into())
            }
        }
    }
}

/// openraft backs off before it tries such a peer again.
fn unreachable(error: &(impl std::error::Error + 'static)) -> RpcError {
    RPCError::Unreachable(Unreachable::new(error))
}

/// This node has promised not to campaign. openraft asks again later.
fn promised() -> RpcError {
    unreachable(&Status::failed_precondition(
        "this node may have promised a leader not to campaign yet",
    ))
}

/// What a peer said makes no sense.
fn malformed(error: convert::WireError) -> RpcError {
    RPCError::Network(NetworkError::new(&error))
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let one = futures_util::stream::iter([request]);
        let mut answers = RaftNetworkV2::stream_append(self, one, option).await?;
        match answers.next().await {
            Some(answer) => Ok(answer?.into()),
            None => Err(unreachable(&Status::unavailable("the append stream ended"))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> Boxed<'s, Result<Answers<'s>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let ttl = option.soft_ttl();
        let answer_ttl = self.append_timeout.max(ttl);
        let timeout = self.timeout(RPCTypes::AppendEntries, answer_ttl);
        let append = self
            .append
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        Box::pin(async move { append.session(input, ttl, timeout).await })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let term = request.vote.leader_id.term;
        if !self.lease.campaign(term, request.leadership_transfer) {
            return Err(promised());
        }
        let call = |mut client: PeerClient, header| async move {
            client
                .vote(convert::vote_request_to_wire(header, &request))
                .await
        };
        let response = self
            .control(RPCTypes::Vote, option.soft_ttl(), call)
            .await?;
        convert::vote_response_from_wire(response).map_err(malformed)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        if !self.lease.may_vote() {
            return Err(promised());
        }
        let call = |mut client: PeerClient, header| async move {
            client
                .pre_vote(convert::vote_request_to_wire(header, &request))
                .await
        };
        let response = self
            .control(RPCTypes::Vote, option.soft_ttl(), call)
            .await?;
        convert::vote_response_from_wire(response).map_err(malformed)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        // Dropping the transfer resets its streams: the receiver keeps what it has.
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot, option.soft_ttl()) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let from = *request.from_leader();
        let call = |mut client: PeerClient, header| async move {
            client
                .transfer_leader(convert::transfer_to_wire(header, &request))
                .await
        };
        let response = self
            .control(RPCTypes::TransferLeader, option.soft_ttl(), call)
            .await?;
        if response.accepted {
            return Ok(Ok(()));
        }
        tracing::info!(target = %self.target, why = response.text, "leadership was not taken over");
        // openraft looks at nothing but the refusal itself.
        Ok(Err(TransferLeaderError::VoteChanged {
            expected: from,
            actual: from,
        }))
    }

    fn backoff(&self) -> Option<Backoff> {
        // The policy of the configuration.
        None
    }
}
