//! The pipe: many operations over one kept stream.
//!
//! ```text
//!   client ──[op 1, op 2, op 3]──►                          ──► node: proposed together
//!   client ◄──────[result 2, result 1]── whatever is ready  ◄──
//! ```
//!
//! One stream is one state machine, driven by whoever sends its answers: there is no task, no queue and
//! no timer of its own. That is also its backpressure. HTTP/2 asks for the next answer only when the
//! client has room for it; a client that does not read stops being asked, so its requests are not read
//! either, and what it holds here is bounded by its credits.
//!
//! Who asks is found out once, when the stream begins; what it may do, at each operation.
//!
//! Dropping the stream (the client is gone) gives up its operations: a write that is already on its way
//! may still be applied.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, unfold};
use futures_util::{Stream, StreamExt};
use podkv_api::{Error, Reason};
use podkv_node::{Access, Method};
use podkv_proto::convert::{Malformed, to_status};
use podkv_proto::v1;
use podkv_proto::v1::pipe_operation::Operation;
use podkv_proto::v1::pipe_result::Result as Outcome;
use prost::Message;
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, Streaming};

use super::calls::Calls;
use super::draining::{draining, goodbye};
use super::{MESSAGE_BYTES, oversized};

/// The answers of one pipe.
pub(super) fn serve(
    calls: Calls,
    access: Access,
    requests: Streaming<v1::PipeRequest>,
) -> impl Stream<Item = Result<v1::PipeResponse, Status>> + Send {
    unfold(
        Some(Pipe::new(calls, access, requests)),
        |pipe| async move {
            let mut pipe = pipe?;
            match pipe.next().await {
                Ok(Some(message)) => Some((Ok(message), Some(pipe))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        },
    )
}

/// What all operations of a pipe share.
struct Shared {
    calls: Calls,
    access: Access,
}

struct Pipe {
    shared: Arc<Shared>,
    requests: Streaming<v1::PipeRequest>,
    in_flight: FuturesUnordered<BoxFuture<'static, v1::PipeResult>>,
    /// Answers to operations that were beyond the credits.
    refused: Vec<v1::PipeResult>,
    phase: Phase,
    /// False once the client has said all, or nothing more is taken from it.
    reading: bool,
    /// How the stream ends when everything is answered.
    end: Result<(), Status>,
}

enum Phase {
    /// Nothing was sent yet: the credits come first.
    New,
    /// Until the node drains.
    Open(BoxFuture<'static, ()>),
    /// The client was told to go away, and has until then.
    Leaving(Pin<Box<Sleep>>),
    /// Only the operations under way are answered.
    Left,
}

/// What happened next.
enum Happened {
    Ready(Vec<v1::PipeResult>),
    Request(Result<Option<v1::PipeRequest>, Status>),
    Draining,
    FarewellOver,
}

impl Pipe {
    fn new(calls: Calls, access: Access, requests: Streaming<v1::PipeRequest>) -> Self {
        Self {
            shared: Arc::new(Shared { calls, access }),
            requests,
            in_flight: FuturesUnordered::new(),
            refused: Vec::new(),
            phase: Phase::New,
            reading: true,
            end: Ok(()),
        }
    }

    /// The next message for the client; `None` ends the stream.
    async fn next(&mut self) -> Result<Option<v1::PipeResponse>, Status> {
        if let Phase::New = self.phase {
            self.phase = Phase::Open(Box::pin(draining(self.shared.calls.node.health())));
            let credits = self.shared.calls.settings.pipe_credits;
            return Ok(Some(v1::PipeResponse {
                credits,
                ..Default::default()
            }));
        }
        loop {
            if !self.refused.is_empty() {
                let results = std::mem::take(&mut self.refused);
                return Ok(Some(v1::PipeResponse {
                    results,
                    ..Default::default()
                }));
            }
            if !self.reading && self.in_flight.is_empty() {
                return std::mem::replace(&mut self.end, Ok(())).map(|()| None);
            }
            match self.happened().await {
                Happened::Ready(results) => {
                    return Ok(Some(v1::PipeResponse {
                        results,
                        ..Default::default()
                    }));
                }
                Happened::Request(Ok(Some(request))) => self.start(request),
                Happened::Request(Ok(None)) => self.reading = false,
                Happened::Request(Err(status)) => self.fail(status),
                Happened::Draining => {
                    let farewell = self.shared.calls.settings.pipe_farewell;
                    let until = tokio::time::sleep_until(Instant::now() + farewell);
                    self.phase = Phase::Leaving(Box::pin(until));
                    return Ok(Some(v1::PipeResponse {
                        go_away: true,
                        ..Default::default()
                    }));
                }
                Happened::FarewellOver => {
                    self.phase = Phase::Left;
                    if self.reading {
                        let last = goodbye(&self.shared.calls.node);
                        self.fail(last);
                    }
                }
            }
        }
    }

    /// Waits for anything to happen. The end of the phase comes first, because under load there is always
    /// an answer or a request; then answers, because they make room.
    async fn happened(&mut self) -> Happened {
        let phase = &mut self.phase;
        let phase_over = poll_fn(|cx| match phase {
            Phase::Open(draining) => draining.as_mut().poll(cx).map(|()| Happened::Draining),
            Phase::Leaving(until) => until.as_mut().poll(cx).map(|()| Happened::FarewellOver),
            Phase::New | Phase::Left => Poll::Pending,
        });
        tokio::select! {
            biased;
            happened = phase_over => happened,
            results = ready_results(&mut self.in_flight), if !self.in_flight.is_empty() => {
                Happened::Ready(results)
            }
            request = self.requests.message(), if self.reading => Happened::Request(request),
        }
    }

    /// Starts every operation of a message before any of them is waited for, so that their writes queue
    /// together.
    fn start(&mut self, request: v1::PipeRequest) {
        let credits = self.shared.calls.settings.pipe_credits as usize;
        let room = credits.saturating_sub(self.in_flight.len());
        let mut operations = request.operations.into_iter();
        for operation in operations.by_ref().take(room) {
            self.in_flight
                .push(Box::pin(run(self.shared.clone(), operation)));
        }
        // A client that overlooks a few credits is told so; one that ignores them is not listened to.
        if operations.len() > credits {
            let text = format!(
                "{} operations beyond the {credits} credits",
                operations.len()
            );
            return self.fail(to_status(&Error::new(Reason::Overloaded, text)));
        }
        self.refused = operations
            .map(|operation| refusal(operation.id, credits))
            .collect();
    }

    /// Reads nothing more, answers what is under way, then ends with `status`.
    fn fail(&mut self, status: Status) {
        self.reading = false;
        self.end = Err(match status.code() {
            // The decode limit.
            Code::OutOfRange if status.details().is_empty() => {
                oversized::too_large(super::max_request_bytes(&self.shared.calls.node))
            }
            _ => status,
        });
    }
}

/// Takes every result that is ready, up to about one message full. Waits for the first.
async fn ready_results(
    in_flight: &mut FuturesUnordered<BoxFuture<'static, v1::PipeResult>>,
) -> Vec<v1::PipeResult> {
    let mut results = Vec::new();
    let mut bytes = 0;
    poll_fn(move |cx| {
        while bytes < MESSAGE_BYTES {
            match in_flight.poll_next_unpin(cx) {
                Poll::Ready(Some(result)) => {
                    bytes += result.encoded_len();
                    results.push(result);
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if results.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(std::mem::take(&mut results))
        }
    })
    .await
}

fn refusal(id: u64, credits: usize) -> v1::PipeResult {
    let text = format!("{credits} operations of this pipe are unanswered: wait for answers");
    let error = Error::new(Reason::Overloaded, text);
    v1::PipeResult {
        id,
        result: Some(Outcome::Error((&error).into())),
    }
}

fn method(operation: Option<&Operation>) -> Method {
    match operation {
        Some(Operation::Put(_)) => Method::KvPut,
        Some(Operation::Delete(_)) => Method::KvDelete,
        Some(Operation::Txn(_)) => Method::KvTxn,
        Some(Operation::Get(_)) => Method::KvGet,
        Some(Operation::Range(_)) => Method::KvRange,
        None => Method::KvPipe,
    }
}

async fn run(shared: Arc<Shared>, operation: v1::PipeOperation) -> v1::PipeResult {
    let Shared { calls, access } = &*shared;
    let timeout = (operation.deadline_ms != 0).then(|| {
        Duration::from_millis(operation.deadline_ms.into()).min(calls.settings.max_deadline)
    });
    let method = method(operation.operation.as_ref());
    let result = match operation.operation {
        Some(Operation::Put(put)) => calls.put(put, access, timeout).await.map(Outcome::Put),
        Some(Operation::Delete(delete)) => calls
            .delete(delete, access, timeout)
            .await
            .map(Outcome::Delete),
        Some(Operation::Txn(txn)) => calls.txn(txn, access, timeout).await.map(Outcome::Txn),
        Some(Operation::Get(get)) => calls.get(get, access, timeout).await.map(Outcome::Get),
        Some(Operation::Range(range)) => calls
            .range(range, access, timeout)
            .await
            .map(Outcome::Range),
        None => {
            let problem = "not set; expected put, delete, txn, get or range";
            Err(Malformed::request("operation", problem).into())
        }
    };
    let code = result
        .as_ref()
        .err()
        .map_or(Code::Ok, |error| to_status(error).code());
    calls.node.requests().count(method, code.into());
    let result = result.unwrap_or_else(|error| Outcome::Error((&error).into()));
    v1::PipeResult {
        id: operation.id,
        result: Some(result),
    }
}
