//! What peers ask of Raft: the server side of `network`.

mod receive;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{AppendEntriesRequest, VoteResponse};
use podkv_proto::peer as wire;
use tokio::time::Instant;
use tonic::{Status, Streaming};

pub(super) use self::receive::Receiver;
use super::Applied;
use super::freshness::Freshness;
use super::group::Group;
use super::leader_lease::LeaderLease;
use super::types::{TypeConfig, position};
use super::wire as convert;
use crate::membership::LogPosition;
use crate::peer::{RaftCalls, Reply, ReplyStream};

/// openraft has stopped: the group's state says why.
fn stopped(error: &Fatal<TypeConfig>) -> Status {
    Status::unavailable(format!("raft has stopped: {error}"))
}

fn refused(error: RaftError<TypeConfig>) -> Status {
    match error {
        RaftError::Fatal(fatal) => stopped(&fatal),
        RaftError::APIError(never) => Status::internal(never.to_string()),
    }
}

/// What an append says about the leader: its commit index, and since when a majority followed it.
struct Heard {
    as_of: Instant,
    commit: LogPosition,
}

impl Heard {
    fn new(request: &AppendEntriesRequest<TypeConfig>, quorum_age_ms: Option<u32>) -> Option<Self> {
        let age = Duration::from_millis(quorum_age_ms?.into());
        let as_of = Instant::now().checked_sub(age)?;
        let commit = request
            .leader_commit
            .as_ref()
            .map(position)
            .unwrap_or_default();
        Some(Self { as_of, commit })
    }
}

/// What the two ends of one append stream share.
#[derive(Default)]
struct AppendState {
    /// One for each request that is not answered yet, and what is promised if it is accepted.
    heard: VecDeque<(Option<Heard>, Option<Duration>)>,
    /// Why no more requests are taken.
    error: Option<Status>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<AppendState>>);

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, AppendState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request for openraft, or the end of the stream.
    fn take(
        &self,
        message: Result<wire::AppendRequest, Status>,
        lease: &LeaderLease,
    ) -> Option<AppendEntriesRequest<TypeConfig>> {
        let taken = message.and_then(|message| {
            let age = message.quorum_age_ms;
            Ok((convert::append_from_wire(message)?, age))
        });
        let mut state = self.lock();
        match taken {
            Ok((request, age)) => {
                // Before openraft sees it: see the lease's module.
                let promise = lease.heard(request.vote.leader_id.term);
                state.heard.push_back((Heard::new(&request, age), promise));
                Some(request)
            }
            Err(status) => {
                state.error = Some(status);
                None
            }
        }
    }

    /// Returns what is promised with the answer.
    fn answered(
        &self,
        accepted: bool,
        freshness: &Freshness,
        applied: &Applied,
    ) -> Option<Duration> {
        let (heard, promise) = self.lock().heard.pop_front()?;
        if !accepted {
            return None;
        }
        if let Some(Heard { as_of, commit }) = heard {
            freshness.heard(as_of, commit, applied.position);
        }
        promise
    }
}

fn requests(
    shared: Shared,
    lease: Arc<LeaderLease>,
    first: wire::AppendRequest,
    rest: Streaming<wire::AppendRequest>,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    // Ends at the first message that makes no sense; what came before it is still answered.
    stream::iter([Ok(first)])
        .chain(rest)
        .map(move |message| shared.take(message, &lease))
        .take_while(|request| std::future::ready(request.is_some()))
        .filter_map(std::future::ready)
}

impl Group {
    /// The answer to who asks for a vote that is promised.
    fn promised(&self) -> VoteResponse<TypeConfig> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        VoteResponse::new(&metrics.vote, self.last_log_id(), false)
    }
}

impl RaftCalls for Group {
    fn append(
        &self,
        first: wire::AppendRequest,
        rest: Streaming<wire::AppendRequest>,
    ) -> ReplyStream<wire::AppendResponse> {
        let shared = Shared::default();
        let (freshness, applied) = (self.freshness().clone(), self.applied());
        let answers =
            self.raft()
                .stream_append(requests(shared.clone(), self.lease().clone(), first, rest));
        let seen = shared.clone();
        let answers = answers.map(move |answer| {
            let answer = answer.map_err(|fatal| stopped(&fatal))?;
            let promise = seen.answered(answer.is_ok(), &freshness, &applied.borrow());
            Ok(convert::appended_to_wire(answer, promise))
        });
        let last = stream::once(async move { shared.lock().error.take() });
        let last = last.filter_map(|error| std::future::ready(error.map(Err)));
        answers.chain(last).boxed()
    }

    fn vote(&self, request: wire::VoteRequest) -> Reply<'_, wire::VoteResponse> {
        Box::pin(async move {
            let request = convert::vote_request_from_wire(request)?;
            let (term, transfer) = (request.vote.leader_id.term, request.leadership_transfer);
            let Some(voting) = self.lease().admit_vote(term, transfer) else {
                return Ok(convert::vote_response_to_wire(&self.promised()));
            };
            let response = self.raft().vote(request).await.map_err(refused)?;
            voting.decided(response.vote_granted);
            Ok(convert::vote_response_to_wire(&response))
        })
    }

    fn pre_vote(&self, request: wire::VoteRequest) -> Reply<'_, wire::VoteResponse> {
        Box::pin(async move {
            let request = convert::vote_request_from_wire(request)?;
            if !self.lease().may_vote() {
                return Ok(convert::vote_response_to_wire(&self.promised()));
            }
            let response = self.raft().pre_vote(request).await.map_err(refused)?;
            Ok(convert::vote_response_to_wire(&response))
        })
    }

    fn transfer_leader(
        &self,
        request: wire::TransferLeaderRequest,
    ) -> Reply<'_, wire::TransferLeaderResponse> {
        Box::pin(async move {
            let request = convert::transfer_from_wire(request)?;
            let taken = self.raft().handle_transfer_leader(request).await;
            Ok(match taken.map_err(|fatal| stopped(&fatal))? {
                Ok(()) => wire::TransferLeaderResponse {
                    accepted: true,
                    text: String::new(),
                },
                Err(error) => wire::TransferLeaderResponse {
                    accepted: false,
                    text: error.to_string(),
                },
            })
        })
    }

    fn offer_snapshot(
        &self,
        request: wire::OfferSnapshotRequest,
    ) -> Reply<'_, wire::OfferSnapshotResponse> {
        Box::pin(self.receiver().offer(self.raft(), request))
    }

    fn send_snapshot(
        &self,
        first: wire::SendSnapshotRequest,
        rest: Streaming<wire::SendSnapshotRequest>,
    ) -> Reply<'_, wire::SendSnapshotResponse> {
        Box::pin(self.receiver().receive(first, rest))
    }

    fn install_snapshot(
        &self,
        request: wire::InstallSnapshotRequest,
    ) -> Reply<'_, wire::InstallSnapshotResponse> {
        Box::pin(self.receiver().install(self.raft(), request))
    }
}
