//! The operation stream to one node: `KV.Pipe`.
//!
//! A call costs a message, not an RPC. Whatever queued while the last message was on its way goes into
//! the next one: batches form under load by themselves, and a lone operation waits for nothing.
//!
//! ```text
//!   calls ──► queue (bounded) ──► batch ──► stream ──► node
//!                                   │ credits: at most that many unanswered
//!   calls ◄── by operation id ◄─────┴───────────────── node
//! ```
//!
//! A pipe lives as long as its stream. When the stream breaks, what was sent is lost (perhaps
//! executed) and what was not is returned as such; whether to try again is for the caller to say. A
//! node that says `go_away` still answers what it has.
//!
//! # Who was sent
//!
//! A caller that gives up must know whether its operation was sent. The [`Claim`] decides: either the pipe
//! claims the operation and sends it, or the caller withdraws it and it never is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use podkv_api::{Error, Reason};
use podkv_proto::v1;
use podkv_proto::v1::kv_client::KvClient;
use podkv_proto::v1::pipe_operation::Operation;
use podkv_proto::v1::pipe_result;
use prost::Message as _;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::credentials::Authorized;
use crate::endpoint::{Runtime, no_answer};
use crate::failure::Failure;

/// The most that one message carries, in bytes of operations. A node accepts its limit on a request plus
/// half a MiB in one message, whatever that limit is; the rest is for what is around each operation.
///
/// An operation that is larger goes as an RPC of its own. A node that finds it too large can then refuse it
/// alone; on the stream it would have to end the stream, with everybody's operations.
const MAX_BATCH_BYTES: usize = 448 << 10;
/// … and in operations: the node works on them concurrently anyway, and a message is decoded whole.
const MAX_BATCH_OPERATIONS: usize = 1024;

type Reply = oneshot::Sender<Result<pipe_result::Result, Failure>>;

struct Queued {
    operation: Operation,
    bytes: usize,
    until: Instant,
    claim: Arc<Claim>,
    reply: Reply,
}

/// Whether an operation has left this client.
#[derive(Debug, Default)]
struct Claim(AtomicU8);

impl Claim {
    const QUEUED: u8 = 0;
    const SENT: u8 = 1;
    const WITHDRAWN: u8 = 2;

    /// For the pipe, before it sends. False if the caller has given up.
    fn send(&self) -> bool {
        self.settle(Self::SENT)
    }

    /// For the caller, when it gives up. True if the operation never was sent and never will be.
    fn withdraw(&self) -> bool {
        self.settle(Self::WITHDRAWN)
    }

    fn settle(&self, state: u8) -> bool {
        self.0
            .compare_exchange(Self::QUEUED, state, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// True if the operation should be an RPC of its own.
pub(crate) fn is_too_large(operation: &Operation) -> bool {
    encoded_len(operation) > MAX_BATCH_BYTES
}

/// A handle on an operation stream. Cheap to clone; the stream ends when all handles are gone.
#[derive(Clone)]
pub(crate) struct Pipe {
    queue: mpsc::Sender<Queued>,
}

impl Pipe {
    pub fn open(channel: Authorized, runtime: &Runtime) -> Self {
        let (queue, queued) = mpsc::channel(runtime.settings.queue);
        let limit = runtime.settings.max_response_bytes;
        let client = KvClient::new(channel).max_decoding_message_size(limit);
        runtime.spawn(run(client, queued));
        Self { queue }
    }

    /// True if it takes no more operations.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Sends an operation and waits for its result, until then.
    pub async fn call(
        &self,
        operation: Operation,
        until: Instant,
    ) -> Result<pipe_result::Result, Failure> {
        let claim = Arc::new(Claim::default());
        let (reply, answer) = oneshot::channel();
        let queued = Queued {
            bytes: encoded_len(&operation),
            operation,
            until,
            claim: claim.clone(),
            reply,
        };
        match timeout_at(until, self.queue.send(queued)).await {
            Ok(Ok(())) => {}
            Ok(Err(_closed)) => return Err(Failure::not_sent(broken())),
            Err(_elapsed) => return Err(Failure::not_sent(no_answer())),
        }
        let error = match timeout_at(until, answer).await {
            Ok(Ok(result)) => return result,
            Ok(Err(_dropped)) => broken(),
            Err(_elapsed) => no_answer(),
        };
        if claim.withdraw() {
            Err(Failure::not_sent(error))
        } else {
            Err(Failure::lost(error))
        }
    }
}

fn broken() -> Error {
    Error::new(Reason::Unreachable, "the stream to the node broke")
}

fn encoded_len(operation: &Operation) -> usize {
    match operation {
        Operation::Put(put) => put.encoded_len(),
        Operation::Delete(delete) => delete.encoded_len(),
        Operation::Txn(txn) => txn.encoded_len(),
        Operation::Get(get) => get.encoded_len(),
        Operation::Range(range) => range.encoded_len(),
    }
}

/// What one stream has in hand.
struct Flight {
    queue: mpsc::Receiver<Queued>,
    /// Taken from the queue, and did not fit into the last batch.
    carried: Option<Queued>,
    unanswered: HashMap<u64, Reply>,
    credits: usize,
    next_id: u64,
    /// The node said go away, or nobody is left to call: take nothing more.
    ending: bool,
}

async fn run(mut client: KvClient<Authorized>, queue: mpsc::Receiver<Queued>) {
    let mut flight = Flight {
        queue,
        carried: None,
        unanswered: HashMap::new(),
        credits: 0,
        next_id: 1,
        ending: false,
    };
    // One message in hand, so that operations wait in the queue, where they can be batched.
    let (outbox, outgoing) = mpsc::channel(1);
    let ended = match client.pipe(ReceiverStream::new(outgoing)).await {
        Ok(response) => flight.carry(response.into_inner(), outbox).await,
        Err(status) => Some(status),
    };
    flight.end(ended);
}

impl Flight {
    /// Carries operations until the stream ends; gives why.
    async fn carry(
        &mut self,
        mut incoming: Streaming<v1::PipeResponse>,
        outbox: mpsc::Sender<v1::PipeRequest>,
    ) -> Option<Status> {
        let mut permit: Option<OwnedPermit<v1::PipeRequest>> = None;
        loop {
            if self.ending && self.unanswered.is_empty() {
                return None;
            }
            let room = self.credits.saturating_sub(self.unanswered.len());
            let may_take = permit.is_some() && room > 0 && !self.ending;
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(message)) => self.receive(message),
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                },
                reserved = outbox.clone().reserve_owned(), if permit.is_none() => match reserved {
                    Ok(reserved) => permit = Some(reserved),
                    Err(_ended) => return None,
                },
                taken = self.take(), if may_take => match taken {
                    None => self.ending = true,
                    Some(first) => {
                        let operations = self.batch(first, room);
                        if !operations.is_empty()
                            && let Some(permit) = permit.take()
                        {
                            permit.send(v1::PipeRequest { operations });
                        }
                    }
                },
            }
        }
    }

    /// The next operation, when there is one. Loses nothing if dropped half-way.
    async fn take(&mut self) -> Option<Queued> {
        match self.carried.take() {
            Some(queued) => Some(queued),
            None => self.queue.recv().await,
        }
    }

    /// `first`, and what else is queued and fits.
    fn batch(&mut self, first: Queued, room: usize) -> Vec<v1::PipeOperation> {
        let mut operations = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(queued) = next.take() {
            if bytes > 0 && bytes + queued.bytes > MAX_BATCH_BYTES {
                self.carried = Some(queued);
                break;
            }
            if !queued.reply.is_closed() && queued.claim.send() {
                bytes += queued.bytes;
                operations.push(self.stamp(queued));
            }
            if operations.len() < room.min(MAX_BATCH_OPERATIONS) {
                next = self.queue.try_recv().ok();
            }
        }
        operations
    }

    fn stamp(&mut self, queued: Queued) -> v1::PipeOperation {
        let id = self.next_id;
        self.next_id += 1;
        self.unanswered.insert(id, queued.reply);
        let left = queued.until.saturating_duration_since(Instant::now());
        v1::PipeOperation {
            id,
            // 0 would be "no limit of mine".
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
            operation: Some(queued.operation),
        }
    }

    fn receive(&mut self, message: v1::PipeResponse) {
        if message.credits > 0 {
            self.credits = message.credits as usize;
        }
        for result in message.results {
            // An id without a caller was answered before: ids are not used twice.
            let Some(reply) = self.unanswered.remove(&result.id) else {
                continue;
            };
            let answer = match result.result {
                Some(pipe_result::Result::Error(error)) => Err(Failure::refused(error.into())),
                Some(answer) => Ok(answer),
                None => Err(Failure::lost(Error::new(
                    Reason::Unsupported,
                    "the node gave a result that this release does not know",
                ))),
            };
            // Nobody waits any more for an operation whose caller gave up.
            let _ = reply.send(answer);
        }
        if message.go_away && !self.ending {
            self.ending = true;
            self.refuse_queued(&Failure::not_sent(Error::new(
                Reason::NodeNotReady,
                "the node is draining",
            )));
        }
    }

    fn refuse_queued(&mut self, failure: &Failure) {
        self.queue.close();
        while let Some(queued) = self.carried.take().or_else(|| self.queue.try_recv().ok()) {
            if queued.claim.withdraw() {
                let _ = queued.reply.send(Err(failure.clone()));
            }
        }
    }

    /// Tells everybody that is left.
    fn end(mut self, status: Option<Status>) {
        let failure = status.as_ref().map(Failure::from_status);
        let error = match &failure {
            Some(failure) => failure.error.clone(),
            None => broken(),
        };
        // A refusal of the stream (not allowed, not ready) is about what was not sent. What was sent may
        // have been executed, whatever ended the stream.
        let unsent = match failure {
            Some(failure) if failure.fate == crate::failure::Fate::Refused => failure,
            _ => Failure::not_sent(Error::new(Reason::Unreachable, error.text())),
        };
        let lost = Failure::lost(
            Error::new(Reason::Unreachable, "the stream to the node broke").with_source(error),
        );
        for (_, reply) in self.unanswered.drain() {
            let _ = reply.send(Err(lost.clone()));
        }
        self.refuse_queued(&unsent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_the_pipe_sends_or_the_caller_withdraws() {
        let claim = Claim::default();
        assert!(claim.withdraw());
        assert!(!claim.send());
        let claim = Claim::default();
        assert!(claim.send());
        assert!(!claim.withdraw());
    }
}
