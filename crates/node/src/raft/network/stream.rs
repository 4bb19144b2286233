//! One kept append stream to a peer.
//!
//! openraft replicates in *sessions*: a stream of requests in, one answer for each out, in order. Sessions
//! of a healthy leader last, heartbeats are a session each. The gRPC stream below outlives them: a session
//! that got all its answers leaves it behind for the next; one that broke off, or was cancelled, takes it along,
//! since answers to its requests may still come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::errors::{RPCError, Timeout};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use podkv_api::MemberId;
use podkv_proto::peer as wire;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::super::freshness::Freshness;
use super::super::leader_lease::LeaderLease;
use super::super::types::{TypeConfig, position};
use super::super::wire as convert;
use super::{Answers, RpcError, malformed, unreachable};
use crate::peer::pool::{PeerClient, PeerError, PeerLane};

/// Requests that may be unanswered: enough for a long way to the peer, and no more than its openraft
/// takes in without answering.
const WINDOW: usize = 64;

/// Requests that may wait for HTTP/2 to take them.
const SEND_QUEUE: usize = 4;

/// Sessions that end without all their answers before the channel itself is given up. The other end
/// may only be slow to sync.
const BAD_SESSIONS: u32 = 3;

/// A stream to the peer.
struct Kept {
    requests: mpsc::Sender<wire::AppendRequest>,
    answers: Incoming,
    /// The first request, which carries the header, is on its way.
    greeted: bool,
}

/// The peer opens its side when it has seen the first request.
#[expect(
    clippy::large_enum_variant,
    reason = "one for each peer, and it ends as the large one"
)]
enum Incoming {
    Opening(BoxFuture<'static, Result<Response<Streaming<wire::AppendResponse>>, Status>>),
    Open(Streaming<wire::AppendResponse>),
}

impl Incoming {
    /// Cancel-safe. Not to be called again after an error.
    async fn next(&mut self) -> Option<Result<wire::AppendResponse, Status>> {
        loop {
            match self {
                Incoming::Open(answers) => return answers.next().await,
                Incoming::Opening(call) => match call.await {
                    Ok(response) => *self = Incoming::Open(response.into_inner()),
                    Err(status) => return Some(Err(status)),
                },
            }
        }
    }
}

type Dialing = BoxFuture<'static, Result<PeerClient, PeerError>>;

pub(super) struct AppendLane {
    target: MemberId,
    lane: PeerLane,
    freshness: Arc<Freshness>,
    lease: Arc<LeaderLease>,
    kept: Option<Kept>,
    /// A dial that did not end in time: the next session goes on with it. Began anew each time, a
    /// slow dial would never end.
    dialing: Option<Dialing>,
    bad_sessions: u32,
}

impl AppendLane {
    pub fn new(
        target: MemberId,
        lane: PeerLane,
        freshness: Arc<Freshness>,
        lease: Arc<LeaderLease>,
    ) -> Self {
        Self {
            target,
            lane,
            freshness,
            lease,
            kept: None,
            dialing: None,
            bad_sessions: 0,
        }
    }

    /// Runs one session. `dial_ttl` limits the dial, `timeout` the wait for each answer.
    pub async fn session<'s, S>(
        &'s mut self,
        mut input: S,
        dial_ttl: Duration,
        timeout: Timeout<TypeConfig>,
    ) -> Result<Answers<'s>, RpcError>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.bad_sessions >= BAD_SESSIONS {
            self.lane.broken();
            self.bad_sessions = 0;
        }
        let (kept, first) = match self.kept.take() {
            Some(kept) => (kept, None),
            None => {
                // The wait for the first request is where openraft backs off. Dialed before it, a peer whose
                // port is closed would be dialed a thousand times a second.
                let Some(first) = input.next().await else {
                    return Ok(futures_util::stream::empty().boxed());
                };
                (self.open(dial_ttl, &timeout).await?, Some(first))
            }
        };
        // Until its end this counts as a bad one: it may be dropped at any await.
        self.bad_sessions += 1;
        let mut session = Session {
            lane: self,
            kept,
            input: Some(input),
            unanswered: VecDeque::new(),
            deadline: Instant::now() + timeout.timeout,
            timeout,
        };
        if let Some(first) = first {
            session.send(first);
        }
        Ok(
            futures_util::stream::unfold(Some(session), |session| async { session?.next().await })
                .boxed(),
        )
    }

    async fn open(
        &mut self,
        ttl: Duration,
        timeout: &Timeout<TypeConfig>,
    ) -> Result<Kept, RpcError> {
        let lane = &self.lane;
        let dial = || {
            let lane = lane.clone();
            async move { lane.get().await }.boxed()
        };
        let dialing = self.dialing.get_or_insert_with(dial);
        let Ok(dialed) = tokio::time::timeout(ttl, dialing.as_mut()).await else {
            return Err(RPCError::Timeout(Timeout {
                timeout: ttl,
                ..timeout.clone()
            }));
        };
        self.dialing = None;
        let mut client = dialed.map_err(|error| unreachable(&error))?;
        // The handle that was dialed with is gone: this one must know its channel, to report it broken.
        client = self.lane.get().await.unwrap_or(client);
        let (requests, queue) = mpsc::channel(SEND_QUEUE);
        let call = async move { client.append(ReceiverStream::new(queue)).await };
        Ok(Kept {
            requests,
            answers: Incoming::Opening(call.boxed()),
            greeted: false,
        })
    }
}

struct Session<'s, S> {
    lane: &'s mut AppendLane,
    kept: Kept,
    /// `None` when it has ended.
    input: Option<S>,
    /// Of each request that is not answered yet: its term, and when it was sent.
    unanswered: VecDeque<(u64, Instant)>,
    /// When the oldest unanswered request must have its answer.
    deadline: Instant,
    timeout: Timeout<TypeConfig>,
}

enum Event {
    Answer(Option<Result<wire::AppendResponse, Status>>),
    Request(AppendEntriesRequest<TypeConfig>),
    InputEnded,
    PeerGone,
    TimedOut,
}

type Item = Result<StreamAppendResult<TypeConfig>, RpcError>;

impl<S> Session<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin,
{
    /// The next answer, and the session if it goes on. Sends what there is to send meanwhile.
    async fn next(mut self) -> Option<(Item, Option<Self>)> {
        loop {
            // Looked at first: the input may have ended before the last answer came.
            if self.input.is_none() && self.unanswered.is_empty() {
                self.lane.bad_sessions = 0;
                self.lane.kept = Some(self.kept);
                return None;
            }
            match self.event().await {
                Event::Request(request) => self.send(request),
                Event::Answer(Some(Ok(answer))) => return self.answered(answer),
                Event::Answer(Some(Err(status))) => return self.failed(unreachable(&status)),
                Event::Answer(None) | Event::PeerGone => {
                    return self.failed(unreachable(&Status::unavailable("the stream ended")));
                }
                Event::InputEnded => self.input = None,
                // The stream goes, the channel may be sound: see `BAD_SESSIONS`.
                Event::TimedOut => return Some((Err(self.timeout.into()), None)),
            }
        }
    }

    async fn event(&mut self) -> Event {
        let Self {
            kept,
            input,
            unanswered,
            deadline,
            ..
        } = self;
        let send = async {
            match input {
                Some(input) if unanswered.len() < WINDOW => {
                    if kept.requests.reserve().await.is_err() {
                        return Event::PeerGone;
                    }
                    input.next().await.map_or(Event::InputEnded, Event::Request)
                }
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // Also without anything unanswered: the end of the stream shows here.
            answer = kept.answers.next() => Event::Answer(answer),
            event = send => event,
            () = tokio::time::sleep_until(*deadline), if !unanswered.is_empty() => Event::TimedOut,
        }
    }

    fn send(&mut self, request: AppendEntriesRequest<TypeConfig>) {
        let header = (!self.kept.greeted).then(|| self.lane.lane.header());
        let age = self.lane.freshness.quorum_age_ms();
        let term = request.vote.leader_id.term;
        let committed = request.leader_commit.as_ref().map(position);
        let sent = self.lane.lease.sending(committed);
        let request = convert::append_to_wire(header, request, age);
        // There is room: it was waited for, and nobody else sends. If the other end went away, the
        // answers say so.
        if self.kept.requests.try_send(request).is_ok() {
            self.kept.greeted = true;
        }
        if self.unanswered.is_empty() {
            self.deadline = Instant::now() + self.timeout.timeout;
        }
        self.unanswered.push_back((term, sent));
    }

    fn answered(mut self, answer: wire::AppendResponse) -> Option<(Item, Option<Self>)> {
        let Some((term, sent)) = self.unanswered.pop_front() else {
            return self.failed(unreachable(&Status::internal("an answer to nothing")));
        };
        self.deadline = Instant::now() + self.timeout.timeout;
        let promise = answer.promise_ms;
        match convert::appended_from_wire(answer) {
            Ok(Ok(last)) => {
                if let Some(promise) = promise {
                    let promise = Duration::from_millis(promise.into());
                    let lane = &self.lane;
                    lane.lease.answered(lane.target, term, sent, promise);
                }
                self.lane.bad_sessions = 0;
                Some((Ok(Ok(last)), Some(self)))
            }
            // The other end closes the stream with such an answer.
            Ok(Err(refused)) => {
                self.lane.bad_sessions = 0;
                Some((Ok(Err(refused)), None))
            }
            Err(error) => self.failed(malformed(error)),
        }
    }

    fn failed(self, error: RpcError) -> Option<(Item, Option<Self>)> {
        self.lane.lane.broken();
        Some((Err(error), None))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::membership::PeerAddress;
    use crate::peer::header::PeerHeaders;
    use crate::peer::pool::{Lane, PeerPool};
    use crate::peer::settings::PeerSettings;
    use crate::peer::tests::identity;
    use crate::raft::leader_lease::LeaseTerms;
    use crate::raft::types::Vote;
    use crate::storage::MemoryDisk;
    use crate::transport::{ByteStream, Listener, Transport};
    use openraft::network::RPCTypes;

    /// Every port is closed.
    #[derive(Default)]
    struct Closed {
        dials: AtomicUsize,
    }

    impl Transport for Closed {
        fn dial<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<ByteStream>> {
            self.dials.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())).boxed()
        }

        fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
            std::future::ready(Err(io::ErrorKind::Unsupported.into())).boxed()
        }
    }

    /// openraft backs off in its stream of requests: until that has one, the peer is left alone.
    #[tokio::test(start_paused = true)]
    async fn a_peer_is_dialed_only_when_there_is_something_to_send() {
        let closed = Arc::new(Closed::default());
        let headers = PeerHeaders::new(identity(&MemoryDisk::new(), "podkv-0"));
        let pool = PeerPool::new(closed.clone(), headers, PeerSettings::default());
        let address = PeerAddress {
            peer_address: "podkv-1:2380".into(),
            ..PeerAddress::default()
        };
        let lane = pool.client(MemberId(2), &address, Lane::Append);
        let lease = Arc::new(LeaderLease::new(MemberId(1), LeaseTerms::default()));
        let mut lane = AppendLane::new(MemberId(2), lane, Arc::default(), lease);
        let ttl = Duration::from_secs(1);
        let timeout = Timeout {
            action: RPCTypes::AppendEntries,
            id: 1,
            target: 2,
            timeout: ttl,
        };

        let backing_off = lane.session(futures_util::stream::pending(), ttl, timeout.clone());
        // The clock goes on when nothing else does.
        assert!(tokio::time::timeout(ttl, backing_off).await.is_err());
        assert_eq!(closed.dials.load(Ordering::Relaxed), 0);

        let request = AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        let input = futures_util::stream::iter([request]);
        assert!(lane.session(input, ttl, timeout).await.is_err());
        assert_eq!(closed.dials.load(Ordering::Relaxed), 1);
    }
}
