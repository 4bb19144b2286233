//! Proposals from a follower to the leader, over one kept stream.
//!
//! A message carries everything that queued since the last one, in both directions, so a busy
//! follower costs the leader few messages.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use podkv_api::{Error, LeaderHint, MemberId, Reason};
use podkv_core::{Outcome, Proposal};
use podkv_proto::peer as wire;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Streaming;

use super::{Decided, Origin, Pending, Writer};
use crate::peer::ReplyStream;
use crate::peer::pool::PeerLane;

/// Proposals that may wait for room in a message.
const OUTGOING: usize = 4096;
/// The most proposals, and bytes of them, in one message.
const MESSAGE_PROPOSALS: usize = 1024;
const MESSAGE_BYTES: usize = 1 << 20;
/// Messages that may wait for HTTP/2 to take them.
const MESSAGES: usize = 4;
/// How often the table of unanswered proposals is cleared of those whose callers have given up.
const CLEAR_ABANDONED: Duration = Duration::from_secs(1);

/// The sending end of a kept stream to one leader.
pub(crate) struct ForwardStream {
    leader: MemberId,
    sender: mpsc::Sender<Pending>,
}

impl ForwardStream {
    /// Starts the stream's task. What may be sent again when the stream breaks goes to `returns`.
    pub fn open(
        leader: MemberId,
        lane: PeerLane,
        returns: mpsc::Sender<Pending>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(OUTGOING);
        let conversation = Conversation {
            lane,
            batch: Vec::new(),
            unanswered: HashMap::new(),
            next_id: 1,
            returns,
        };
        tasks.spawn(async move {
            stop.run_until_cancelled(conversation.run(receiver)).await;
        });
        Self { leader, sender }
    }

    pub fn leader(&self) -> MemberId {
        self.leader
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Gives the proposal back if there is no room, or the stream has ended; `None` if it was taken.
    pub fn send(&self, pending: Pending) -> Option<Pending> {
        self.sender
            .try_send(pending)
            .err()
            .map(|refused| refused.into_inner())
    }
}

/// How long a leader that leads no more is waited for. One that lets go in good order has answered everything by then; one
/// whose disk hangs never does, and what can be repeated goes to its successor.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

struct Conversation {
    lane: PeerLane,
    /// Taken from the queue, waiting for room in a message.
    batch: Vec<Pending>,
    unanswered: HashMap<u64, Pending>,
    next_id: u64,
    returns: mpsc::Sender<Pending>,
}

impl Conversation {
    /// Runs until the stream breaks or its sender is dropped and everything is answered.
    async fn run(mut self, mut receiver: mpsc::Receiver<Pending>) {
        let broken = self.converse(&mut receiver).await;
        if broken {
            self.lane.broken();
        }
        receiver.close();
        // These were never exposed: the router sends them again.
        for pending in std::mem::take(&mut self.batch) {
            self.give_back(pending);
        }
        while let Ok(pending) = receiver.try_recv() {
            self.give_back(pending);
        }
        for (_, pending) in std::mem::take(&mut self.unanswered) {
            let lost = lost_leader().with_unknown_outcome();
            if pending.is_repeatable() {
                self.give_back(pending.again_after(&lost));
            } else {
                pending.answer(Err(lost));
            }
        }
    }

    fn give_back(&self, pending: Pending) {
        if let Err(refused) = self.returns.try_send(pending) {
            refused
                .into_inner()
                .answer(Err(lost_leader().with_unknown_outcome()));
        }
    }

    /// True if the stream broke.
    async fn converse(&mut self, receiver: &mut mpsc::Receiver<Pending>) -> bool {
        let Ok(mut client) = self.lane.get().await else {
            return true;
        };
        let (messages, outgoing) = mpsc::channel(MESSAGES);
        let first = wire::ForwardRequest {
            header: Some(self.lane.header()),
            proposals: Vec::new(),
        };
        if messages.try_send(first).is_err() {
            return true;
        }
        let Ok(response) = client.forward(ReceiverStream::new(outgoing)).await else {
            return true;
        };
        let mut answers = response.into_inner();
        let mut clear = tokio::time::interval(CLEAR_ABANDONED);
        let mut sending = true;
        let mut give_up: Option<Instant> = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => return true,
                answer = answers.next() => match answer {
                    Some(Ok(answer)) => self.answered(answer),
                    Some(Err(_)) | None => return true,
                },
                permit = messages.reserve(), if !self.batch.is_empty() => {
                    let Ok(permit) = permit else { return true };
                    permit.send(self.message());
                }
                taken = receiver.recv_many(&mut self.batch, MESSAGE_PROPOSALS), if sending && self.batch.is_empty() => {
                    sending = taken > 0;
                    if !sending {
                        give_up = Some(Instant::now() + LAST_ANSWERS);
                    }
                }
                _ = clear.tick() => self.unanswered.retain(|_, pending| !pending.is_abandoned()),
            }
            if !sending && self.batch.is_empty() && self.unanswered.is_empty() {
                return false;
            }
        }
    }

    /// Moves as much of the batch as fits into one message, and notes it as unanswered.
    fn message(&mut self) -> wire::ForwardRequest {
        let mut bytes = 0;
        let fits = self
            .batch
            .iter()
            .take_while(|pending| {
                let first = bytes == 0;
                bytes += pending.bytes.max(1);
                first || bytes <= MESSAGE_BYTES
            })
            .count();
        let mut proposals = Vec::with_capacity(fits);
        let now = Instant::now();
        for pending in self.batch.drain(..fits) {
            if !pending.expose() {
                continue;
            }
            let id = self.next_id;
            self.next_id += 1;
            proposals.push(wire::ForwardedProposal {
                id,
                proposal_frame: pending.proposal.encode(),
                deadline_ms: millis(pending.deadline.saturating_duration_since(now)),
            });
            self.unanswered.insert(id, pending);
        }
        wire::ForwardRequest {
            header: None,
            proposals,
        }
    }

    fn answered(&mut self, answer: wire::ForwardResponse) {
        for decided in answer.outcomes {
            let Some(pending) = self.unanswered.remove(&decided.id) else {
                continue;
            };
            match into_result(decided) {
                Err(error)
                    if error.is_retryable()
                        && (!error.outcome_unknown() || pending.is_repeatable()) =>
                {
                    self.give_back(pending.again_after(&error));
                }
                result => pending.answer(result),
            }
        }
    }
}

fn lost_leader() -> Error {
    Error::new(
        Reason::LeaderChanged,
        "the connection to the leader was lost before it answered",
    )
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis())
        .unwrap_or(u32::MAX)
        .max(1)
}

fn into_result(decided: wire::ForwardedOutcome) -> podkv_api::Result<Decided> {
    match decided.result {
        Some(wire::forwarded_outcome::Result::OutcomeFrame(frame)) => match Outcome::decode(&frame)
        {
            Ok(outcome) => Ok(Decided {
                term: decided.term,
                outcome,
            }),
            Err(error) => Err(
                Error::new(Reason::Corrupt, "the leader's answer does not decode")
                    .with_source(error)
                    .with_unknown_outcome(),
            ),
        },
        Some(wire::forwarded_outcome::Result::Refusal(refusal)) => {
            let reason = u16::try_from(refusal.reason).map_or(Reason::Internal, Reason::from_code);
            let hint = (decided.leader_id != 0).then(|| LeaderHint {
                member: MemberId(decided.leader_id),
                client_address: String::new(),
            });
            let error = Error::new(reason, refusal.text).with_leader(hint);
            Err(if decided.outcome_unknown {
                error.with_unknown_outcome()
            } else {
                error
            })
        }
        None => {
            Err(Error::new(Reason::Corrupt, "the leader's answer is empty").with_unknown_outcome())
        }
    }
}

fn from_result(id: u64, result: podkv_api::Result<Decided>) -> wire::ForwardedOutcome {
    match result {
        Ok(decided) => wire::ForwardedOutcome {
            id,
            term: decided.term,
            result: Some(wire::forwarded_outcome::Result::OutcomeFrame(
                decided.outcome.encode(),
            )),
            outcome_unknown: false,
            leader_id: 0,
        },
        Err(error) => wire::ForwardedOutcome {
            id,
            term: 0,
            outcome_unknown: error.outcome_unknown(),
            leader_id: error.leader().map_or(0, |hint| hint.member.0),
            result: Some(wire::forwarded_outcome::Result::Refusal(wire::Refusal {
                reason: u32::from(error.reason() as u16),
                text: error.text().to_string(),
            })),
        },
    }
}

/// The leader's end: proposals in, outcomes out as they are decided, in any order.
pub(crate) fn serve_forward(
    writer: Writer,
    first: wire::ForwardRequest,
    mut rest: Streaming<wire::ForwardRequest>,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> ReplyStream<wire::ForwardResponse> {
    let (answers, outgoing) = mpsc::channel(MESSAGES);
    let served = writer.handover().serve();
    tasks.spawn(async move {
        let _served = served;
        let mut running = FuturesUnordered::new();
        accept(&writer, first, &mut running);
        let mut ready = Vec::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                // Its bound is what the follower may have unanswered: OUTGOING and one message.
                message = rest.next(), if running.len() < 2 * OUTGOING => match message {
                    Some(Ok(message)) => accept(&writer, message, &mut running),
                    Some(Err(_)) | None => return,
                },
                Some(outcome) = running.next() => {
                    ready.push(outcome);
                    while ready.len() < MESSAGE_PROPOSALS
                        && let std::task::Poll::Ready(Some(outcome)) = futures_util::poll!(running.next())
                    {
                        ready.push(outcome);
                    }
                    let message = wire::ForwardResponse { outcomes: std::mem::take(&mut ready) };
                    if answers.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    Box::pin(ReceiverStream::new(outgoing))
}

fn accept(
    writer: &Writer,
    message: wire::ForwardRequest,
    running: &mut FuturesUnordered<
        futures_util::future::BoxFuture<'static, wire::ForwardedOutcome>,
    >,
) {
    for forwarded in message.proposals {
        let writer = writer.clone();
        running.push(Box::pin(async move {
            let result = decide(&writer, &forwarded.proposal_frame, forwarded.deadline_ms).await;
            from_result(forwarded.id, result)
        }));
    }
}

async fn decide(writer: &Writer, frame: &Bytes, deadline_ms: u32) -> podkv_api::Result<Decided> {
    let proposal = Proposal::decode(frame).map_err(|error| {
        Error::new(Reason::Corrupt, "a forwarded proposal does not decode").with_source(error)
    })?;
    writer
        .write(
            proposal,
            Origin::Forwarded,
            Duration::from_millis(deadline_ms.into()),
        )
        .await
}
