//! Watches that outlive their node.
//!
//! [`resume`] keeps the place; here is the I/O. There is no task: the user's polling drives the stream,
//! and a user who does not poll holds the node back by HTTP/2 flow control, not by a growing queue.
//!
//! A watch that stands is resumed for as long as somebody waits for it. It ends with an error that no
//! other node would answer differently: its place is compacted, the cluster is not the one it began
//! in, the caller may not, the client is closed.

mod resume;

use std::sync::Arc;

use futures_util::stream;
use podkv_api::{Error, Header, Range, Reason, Result, Revision, Watch, WatchMessage, WatchStream};
use podkv_proto::convert::watch::Assembler;
use podkv_proto::v1;
use podkv_proto::v1::watch_client::WatchClient;
use tokio::time::sleep;
use tonic::{Status, Streaming};

use self::resume::{Ask, Resume};
use crate::client::Client;
use crate::core::Core;
use crate::endpoints::Route;
use crate::failure::{Failure, closed};
use crate::fence::Freshness;
use crate::retry::{Attempt, Attempts};
use crate::scan::Scan;

enum Source {
    Watch {
        attempt: Attempt,
        stream: Box<Streaming<v1::WatchResponse>>,
        /// Of this stream: a revision that broke off is forgotten with it.
        assembler: Assembler,
    },
    List {
        scan: Box<Scan>,
        revision: Revision,
    },
}

struct Watching {
    /// A watch is a handle: the client's tasks live while it does.
    client: Client,
    resume: Resume,
    source: Option<Source>,
    /// Since the last progress.
    attempts: Attempts,
    ended: bool,
}

/// Starts a watch. Returns when it stands, or with why it cannot.
pub(crate) async fn watch(client: &Client, watch: Watch) -> Result<WatchStream> {
    let core = client.core();
    let mut watching = Watching {
        attempts: core.attempts(Route::Any, Some(core.deadline())),
        client: client.clone(),
        resume: Resume::new(watch),
        source: None,
        ended: false,
    };
    let first = watching.next().await?;
    let rest = stream::unfold(watching, |mut watching| async move {
        if watching.ended {
            return None;
        }
        let next = watching.next().await;
        watching.ended = next.is_err();
        Some((next, watching))
    });
    let first = stream::iter([Ok(first)]);
    Ok(Box::pin(futures_util::StreamExt::chain(first, rest)))
}

impl Watching {
    async fn next(&mut self) -> Result<WatchMessage> {
        loop {
            if let Some(message) = self.resume.pop() {
                return Ok(message);
            }
            let source = match self.source.take() {
                Some(source) => source,
                None => self.ask().await?,
            };
            self.source = match source {
                Source::Watch {
                    attempt,
                    stream,
                    assembler,
                } => self.follow(attempt, stream, assembler).await?,
                Source::List { scan, revision } => self.list(scan, revision).await?,
            };
        }
    }

    fn core(&self) -> &Arc<Core> {
        self.client.core()
    }

    async fn ask(&mut self) -> Result<Source> {
        let watch = match self.resume.ask() {
            Ask::List { range, revision } => {
                let range = Range::new(range).at(revision);
                let scan = Box::new(Scan::new(self.core(), range, true));
                return Ok(Source::List { scan, revision });
            }
            Ask::Watch(watch) => watch,
        };
        loop {
            let Some(attempt) = self.attempts.next().await else {
                return Err(self.attempts.exhausted());
            };
            let endpoint = &attempt.endpoint;
            let limit = endpoint.max_response_bytes();
            let mut client = WatchClient::new(endpoint.channel()).max_decoding_message_size(limit);
            let request = v1::WatchRequest::from(watch.clone());
            match endpoint.unary(attempt.until, client.watch(request)).await {
                Ok(stream) => {
                    return Ok(Source::Watch {
                        attempt,
                        stream: Box::new(stream),
                        assembler: Assembler::default(),
                    });
                }
                Err(failure) => self.broke(&attempt, failure)?,
            }
        }
    }

    /// One message of a node. Gives the source back while it lasts.
    async fn follow(
        &mut self,
        attempt: Attempt,
        mut stream: Box<Streaming<v1::WatchResponse>>,
        mut assembler: Assembler,
    ) -> Result<Option<Source>> {
        let runtime = self.core().runtime.clone();
        let is_late = async {
            // A watch that stands may be quiet for ever. One that does not is waited for like a call.
            if self.resume.has_begun() {
                std::future::pending().await
            } else {
                sleep(runtime.settings.attempt_timeout).await;
            }
        };
        let message = tokio::select! {
            () = runtime.stop.cancelled() => return Err(closed()),
            () = is_late => Err(Status::deadline_exceeded("the watch did not begin")),
            message = stream.message() => message,
        };
        let failure = match message {
            Ok(Some(message)) => {
                if let Some(message) = assembler.push(message)? {
                    self.accept(&attempt, message)?;
                }
                return Ok(Some(Source::Watch {
                    attempt,
                    stream,
                    assembler,
                }));
            }
            Ok(None) => Failure::lost(Error::new(Reason::WatchLost, "the node ended the watch")),
            Err(status) => Failure::from_status(&status),
        };
        let judged = attempt
            .endpoint
            .judged(Err::<(), _>(failure), attempt.generation);
        if let Err(failure) = judged.await {
            self.broke(&attempt, failure)?;
        }
        Ok(None)
    }

    fn accept(&mut self, attempt: &Attempt, message: WatchMessage) -> Result<()> {
        let core = self.client.core();
        let header = header(&message);
        core.fence
            .admit(core.fence.begin(), header, Freshness::Any)?;
        attempt.endpoint.answered(header.member);
        let is_created = matches!(message, WatchMessage::Created { .. });
        if self.resume.accept(message)? || (is_created && self.resume.has_begun()) {
            self.progressed(is_created);
        }
        Ok(())
    }

    /// From now on, whatever fails has not failed for long. A stream that is created again and breaks again
    /// is no progress, or a node that ends each watch at once would be asked without a pause.
    fn progressed(&mut self, is_only_created: bool) {
        if !is_only_created {
            self.attempts = self.core().attempts(Route::Any, None);
        } else {
            self.attempts.forget_deadline();
        }
    }

    /// One chunk of the rest of a list.
    async fn list(&mut self, mut scan: Box<Scan>, revision: Revision) -> Result<Option<Source>> {
        let Some(chunk) = scan.next().await else {
            return Ok(None);
        };
        let chunk = match chunk {
            Ok(chunk) => chunk,
            // No node answered within a call's deadline; a watch has none.
            Err(error) if error.is_retryable() && !self.core().runtime.stop.is_cancelled() => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let is_last = scan.is_done();
        let header = chunk.header;
        self.resume.accept(WatchMessage::List {
            header,
            revision,
            kvs: chunk.kvs,
        })?;
        self.progressed(false);
        if !is_last {
            return Ok(Some(Source::List { scan, revision }));
        }
        self.resume
            .accept(WatchMessage::Listed { header, revision })?;
        Ok(None)
    }

    /// Decides whether another node may go on.
    fn broke(&mut self, attempt: &Attempt, failure: Failure) -> Result<()> {
        self.attempts.failed(attempt, &failure);
        // The place is one that we have seen, so a node that does not know it yet only lags.
        let lags = self.resume.has_begun() && failure.error.reason() == Reason::FutureRevision;
        if failure.is_retryable() || lags {
            Ok(())
        } else {
            Err(failure.error)
        }
    }
}

fn header(message: &WatchMessage) -> Header {
    match message {
        WatchMessage::Created { header, .. }
        | WatchMessage::List { header, .. }
        | WatchMessage::Listed { header, .. }
        | WatchMessage::Events { header, .. }
        | WatchMessage::Bookmark { header, .. } => *header,
    }
}
