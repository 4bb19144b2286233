//! Keep-alives of all leases over one stream to a node: `Lease.KeepAlive`.
//!
//! The stream answers in order. While a request waits to be sent, others for the same lease join it
//! and share its answer: each of them is renewed after it was asked for, so each gets what it asked.
//! Once a request is sent, a newcomer makes a new one.

use std::collections::{HashMap, VecDeque};

use podkv_api::{Error, LeaseId, LeaseStatus, Reason};
use podkv_proto::v1;
use podkv_proto::v1::lease_client::LeaseClient;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::credentials::Authorized;
use crate::endpoint::{Runtime, no_answer};
use crate::failure::{Failure, corrupt};

type Reply = oneshot::Sender<Result<LeaseStatus, Failure>>;

/// A handle on a keep-alive stream. Ends with the stream, or when all handles are gone.
#[derive(Clone)]
pub(crate) struct KeepAlives {
    queue: mpsc::Sender<(LeaseId, Reply)>,
}

impl KeepAlives {
    pub fn open(channel: Authorized, runtime: &Runtime) -> Self {
        let (queue, queued) = mpsc::channel(runtime.settings.queue);
        runtime.spawn(run(channel, queued, runtime.settings.queue));
        Self { queue }
    }

    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Renews a lease. Doing it twice is harmless, so what became of the request does not matter.
    pub async fn renew(&self, lease: LeaseId, until: Instant) -> Result<LeaseStatus, Failure> {
        let (reply, answer) = oneshot::channel();
        let answered = async {
            self.queue.send((lease, reply)).await.ok()?;
            answer.await.ok()
        };
        match timeout_at(until, answered).await {
            Ok(Some(result)) => result,
            Ok(None) => Err(Failure::lost(broken())),
            Err(_elapsed) => Err(Failure::lost(no_answer())),
        }
    }
}

fn broken() -> Error {
    Error::new(
        Reason::Unreachable,
        "the keep-alive stream to the node broke",
    )
}

struct Flight {
    /// Leases to be sent, each once, in the order in which they were asked for.
    to_send: VecDeque<LeaseId>,
    /// Who waits for them.
    joined: HashMap<LeaseId, Vec<Reply>>,
    /// Sent, in the order of the answers to come.
    unanswered: VecDeque<(LeaseId, Vec<Reply>)>,
}

async fn run(channel: Authorized, mut queue: mpsc::Receiver<(LeaseId, Reply)>, limit: usize) {
    let mut flight = Flight {
        to_send: VecDeque::new(),
        joined: HashMap::new(),
        unanswered: VecDeque::new(),
    };
    let (outbox, outgoing) = mpsc::channel(64);
    let failure = match LeaseClient::new(channel)
        .keep_alive(ReceiverStream::new(outgoing))
        .await
    {
        Ok(response) => {
            flight
                .carry(response.into_inner(), outbox, &mut queue, limit)
                .await
        }
        Err(status) => Failure::from_status(&status),
    };
    queue.close();
    while let Ok((lease, reply)) = queue.try_recv() {
        flight.join(lease, reply);
    }
    flight.end(&failure);
}

impl Flight {
    async fn carry(
        &mut self,
        mut incoming: Streaming<v1::LeaseKeepAliveResponse>,
        outbox: mpsc::Sender<v1::LeaseKeepAliveRequest>,
        queue: &mut mpsc::Receiver<(LeaseId, Reply)>,
        limit: usize,
    ) -> Failure {
        loop {
            tokio::select! {
                asked = queue.recv(), if self.waiting() < limit => match asked {
                    Some((lease, reply)) => {
                        self.join(lease, reply);
                        // Everybody who is there goes together.
                        while self.waiting() < limit
                            && let Ok((lease, reply)) = queue.try_recv()
                        {
                            self.join(lease, reply);
                        }
                    }
                    None => return Failure::lost(broken()),
                },
                permit = outbox.reserve(), if !self.to_send.is_empty() => match permit {
                    Ok(permit) => if let Some(lease) = self.next_to_send() {
                        permit.send(v1::LeaseKeepAliveRequest { id: lease.0 });
                    },
                    Err(_ended) => return Failure::lost(broken()),
                },
                answer = incoming.message() => match answer {
                    Ok(Some(answer)) => if let Err(failure) = self.answer(answer) {
                        return failure;
                    },
                    Ok(None) => return Failure::lost(broken()),
                    Err(status) => return Failure::from_status(&status),
                },
            }
        }
    }

    fn waiting(&self) -> usize {
        self.to_send.len() + self.unanswered.len()
    }

    fn join(&mut self, lease: LeaseId, reply: Reply) {
        let joined = self.joined.entry(lease).or_default();
        if joined.is_empty() {
            self.to_send.push_back(lease);
        }
        joined.push(reply);
    }

    /// Takes the next lease that somebody still waits for.
    fn next_to_send(&mut self) -> Option<LeaseId> {
        while let Some(lease) = self.to_send.pop_front() {
            let mut replies = self.joined.remove(&lease).unwrap_or_default();
            replies.retain(|reply| !reply.is_closed());
            if !replies.is_empty() {
                self.unanswered.push_back((lease, replies));
                return Some(lease);
            }
        }
        None
    }

    fn answer(&mut self, answer: v1::LeaseKeepAliveResponse) -> Result<(), Failure> {
        let (lease, replies) = self
            .unanswered
            .pop_front()
            .ok_or_else(|| corrupt("a keep-alive was answered that was not asked for"))?;
        let result = if answer.id == lease.0 {
            answer.into_result().map_err(Failure::refused)
        } else {
            Err(corrupt(format!(
                "the node answered for lease {}, expected {lease}",
                LeaseId(answer.id)
            )))
        };
        let out_of_step =
            matches!(&result, Err(failure) if failure.error.reason() == Reason::Corrupt);
        let failure = result.clone().err().filter(|_| out_of_step);
        for reply in replies {
            let _ = reply.send(result.clone());
        }
        failure.map_or(Ok(()), Err)
    }

    fn end(self, failure: &Failure) {
        let sent = self.unanswered.into_iter().flat_map(|(_, replies)| replies);
        let unsent = self.joined.into_values().flatten();
        for reply in sent.chain(unsent) {
            let _ = reply.send(Err(failure.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight() -> Flight {
        Flight {
            to_send: VecDeque::new(),
            joined: HashMap::new(),
            unanswered: VecDeque::new(),
        }
    }

    #[tokio::test]
    async fn callers_join_what_is_not_yet_sent_and_no_more() {
        let mut flight = flight();
        let mut waiting = Vec::new();
        let mut ask = |flight: &mut Flight| {
            let (reply, answer) = oneshot::channel();
            flight.join(LeaseId(5), reply);
            waiting.push(answer);
        };
        ask(&mut flight);
        ask(&mut flight);
        assert_eq!(flight.next_to_send(), Some(LeaseId(5)));
        assert_eq!(flight.next_to_send(), None);
        ask(&mut flight);
        assert_eq!(flight.next_to_send(), Some(LeaseId(5)));
        let joined: Vec<usize> = flight
            .unanswered
            .iter()
            .map(|(_, replies)| replies.len())
            .collect();
        assert_eq!(joined, [2, 1]);
    }

    #[tokio::test]
    async fn an_answer_out_of_step_ends_the_stream() {
        let mut flight = flight();
        let (reply, answer) = oneshot::channel();
        flight.join(LeaseId(5), reply);
        flight.next_to_send();
        let wrong = v1::LeaseKeepAliveResponse {
            id: 6,
            ..Default::default()
        };
        assert!(flight.answer(wrong).is_err());
        let failure = answer.await.unwrap().unwrap_err();
        assert_eq!(failure.error.reason(), Reason::Corrupt);
    }
}
