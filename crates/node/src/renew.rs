//! Keep-alives, in batches.
//!
//! Thousands of leases renew every few seconds. Each renewal is replicated, or a new leader would not
//! know of it; so all that arrive while one command is under way share the next one. A renewal is
//! acknowledged after its commit. One command speaks for one caller: which sessions are its own, and whether it is who it
//! was, is decided where the command is applied.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use podkv_api::{Error, LeaseId, LeaseStatus, Reason, Result, SessionId};
use podkv_core::{Answer, Caller, Command, Proposal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::write::{Origin, Writer};

/// Renewals that may wait; beyond it they are refused.
const WAITING: usize = 65_536;
/// The most in one command. 4096 leases take 36 KiB of an entry.
const BATCH: usize = 4096;

/// Something that can be renewed by id.
pub(crate) trait Renewable: Copy + Send + Sync + 'static {
    type Renewed: Send + 'static;

    fn command(ids: Vec<Self>) -> Command;
    /// In the order of the ids; `None` for an id that does not exist.
    fn renewed(answer: Answer) -> Option<Vec<Option<Self::Renewed>>>;
    fn missing(self) -> Error;
}

impl Renewable for LeaseId {
    type Renewed = LeaseStatus;

    fn command(ids: Vec<Self>) -> Command {
        Command::LeaseKeepAlive { ids }
    }

    fn renewed(answer: Answer) -> Option<Vec<Option<LeaseStatus>>> {
        match answer {
            Answer::LeaseKeepAlive(statuses) => Some(statuses),
            _ => None,
        }
    }

    fn missing(self) -> Error {
        Error::new(
            Reason::LeaseNotFound,
            format!("lease {self} does not exist: it expired or was revoked"),
        )
    }
}

impl Renewable for SessionId {
    type Renewed = u64;

    fn command(ids: Vec<Self>) -> Command {
        Command::SessionKeepAlive { ids }
    }

    fn renewed(answer: Answer) -> Option<Vec<Option<u64>>> {
        match answer {
            Answer::SessionKeepAlive(ttls) => Some(ttls),
            _ => None,
        }
    }

    fn missing(self) -> Error {
        Error::new(
            Reason::SessionNotFound,
            format!("session {self} does not exist: it expired or was closed"),
        )
    }
}

struct Waiting<I: Renewable> {
    id: I,
    /// `None` is the program that embeds the node.
    caller: Option<Caller>,
    done: oneshot::Sender<Result<(u64, I::Renewed)>>,
}

/// Renews leases or sessions. Cheap to clone.
pub(crate) struct Renewals<I: Renewable>(mpsc::Sender<Waiting<I>>);

impl<I: Renewable> Clone for Renewals<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I: Renewable> Renewals<I> {
    pub fn start(
        writer: Writer,
        timeout: Duration,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tasks.spawn(async move {
            stop.run_until_cancelled(run(writer, timeout, receiver))
                .await;
        });
        Self(sender)
    }

    /// Renews one, and returns the term of the commit with what it is now.
    pub fn renew(
        &self,
        id: I,
        caller: Option<Caller>,
    ) -> impl Future<Output = Result<(u64, I::Renewed)>> + Send + use<I> {
        let (done, answer) = oneshot::channel();
        let sent = self.0.try_send(Waiting { id, caller, done });
        async move {
            if sent.is_err() {
                return Err(Error::new(
                    Reason::Overloaded,
                    "too many keep-alives wait on this node: try again",
                ));
            }
            answer.await.unwrap_or_else(|_| {
                Err(Error::new(
                    Reason::NodeNotReady,
                    "the node is stopping: ask another one",
                ))
            })
        }
    }
}

async fn run<I: Renewable>(
    writer: Writer,
    timeout: Duration,
    mut receiver: mpsc::Receiver<Waiting<I>>,
) {
    let mut batch: Vec<Waiting<I>> = Vec::new();
    while receiver.recv_many(&mut batch, BATCH).await > 0 {
        let mut callers: BTreeMap<Option<Caller>, Vec<Waiting<I>>> = BTreeMap::new();
        for waiting in batch.drain(..) {
            let caller = waiting.caller.clone();
            callers.entry(caller).or_default().push(waiting);
        }
        let renewals = callers
            .into_iter()
            .map(|(caller, waiting)| renew(&writer, timeout, caller, waiting));
        join_all(renewals).await;
    }
}

async fn renew<I: Renewable>(
    writer: &Writer,
    timeout: Duration,
    caller: Option<Caller>,
    batch: Vec<Waiting<I>>,
) {
    let command = I::command(batch.iter().map(|waiting| waiting.id).collect());
    let command = match &caller {
        Some(caller) => command.by(caller),
        None => command,
    };
    // Renewing twice does no harm, so an unknown outcome is just a failure to the caller.
    let result = writer
        .write(Proposal::from(command), Origin::Local, timeout)
        .await
        .and_then(|decided| {
            let renewed = I::renewed(decided.outcome.result?).unwrap_or_default();
            Ok((decided.term, renewed))
        });
    match result {
        Ok((term, renewed)) => {
            let padded = renewed.into_iter().chain(std::iter::repeat_with(|| None));
            for (waiting, renewed) in batch.into_iter().zip(padded) {
                let answer = renewed
                    .map(|renewed| (term, renewed))
                    .ok_or_else(|| waiting.id.missing());
                // A caller that gave up needs no answer.
                let _ = waiting.done.send(answer);
            }
        }
        Err(error) => {
            for waiting in batch {
                let _ = waiting.done.send(Err(error.clone()));
            }
        }
    }
}
