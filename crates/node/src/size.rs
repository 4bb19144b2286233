//! How many pods there should be: asked of their StatefulSet, written down by the leader.
//!
//! ```text
//!   before this node is a member   what was read says who founds the cluster; until then it waits
//!   while it leads                 what was read goes into the log if it is news
//!   otherwise                      nobody asks
//! ```
//!
//! What cannot be read changes nothing: a size that is known stays known. Which word counts is decided in the
//! log ([`podkv_core::size_counts`]); the look here only spares the log what would be refused.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use podkv_api::{DesiredSize, Error, MemberId, Reason, Result};
use podkv_core::{Command, Proposal, size_counts};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::MembershipTiming;
use crate::discovery::Ordinals;
use crate::identity::Identity;
use crate::raft::Group;
use crate::storage::StateStore;
use crate::write::{Origin, Writer};

/// Whoever decides how many pods there are: in Kubernetes, the StatefulSet.
pub trait SizeSource: Send + Sync + 'static {
    /// What it says now; not older than the call. `None` is no information: it is being deleted, and what
    /// it says has no meaning any more. An error says why it could not be read: it is not there, may not
    /// be read, or does not answer. The caller bounds the time.
    fn read(&self) -> BoxFuture<'_, Result<Option<DesiredSize>>>;
}

/// Reads, with a limit. An error is told in words for people.
pub(crate) async fn read(source: &dyn SizeSource, limit: Duration) -> Result<DesiredSize> {
    let no_answer = || {
        let text = format!("the StatefulSet could not be read within {limit:?}");
        Error::new(Reason::DeadlineExceeded, text)
    };
    let read = tokio::time::timeout(limit, source.read()).await;
    read.unwrap_or_else(|_| Err(no_answer()))?.ok_or_else(|| {
        Error::new(
            Reason::Unreachable,
            "the StatefulSet is being deleted, so it says nothing",
        )
    })
}

/// The task that follows a source.
pub(crate) struct SizeFollower {
    pub me: MemberId,
    pub source: Arc<dyn SizeSource>,
    pub identity: Arc<Identity>,
    pub group: Group,
    pub state: Arc<dyn StateStore>,
    pub writer: Writer,
    pub timing: MembershipTiming,
    pub request_timeout: Duration,
    /// For founding.
    pub expected: watch::Sender<Result<Ordinals, String>>,
    /// What keeps the size from being followed, for people.
    pub waiting: watch::Sender<Option<String>>,
}

impl SizeFollower {
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(self) {
        let mut state = self.group.state();
        let every = self.timing.read_size_every;
        let first_pause = (every / 16).max(Duration::from_millis(1));
        let mut pause = first_pause;
        loop {
            let leads = self.leads();
            let founds = self.identity.membership().is_none();
            let failed = if leads || founds {
                let waits = self.look(leads).await.err();
                self.report(waits.as_ref().map(Error::to_string));
                waits.is_some()
            } else {
                self.report(None);
                false
            };
            let wait = match failed && founds {
                // A founder may wait for nothing but this: it looks often at first.
                true => pause,
                false => every,
            };
            pause = match failed {
                true => (pause * 2).min(every),
                false => first_pause,
            };
            let begins_to_lead = state.wait_for(|state| state.leader == Some(self.me));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                gone = begins_to_lead, if !leads => if gone.is_err() {
                    return;
                },
            }
        }
    }

    fn leads(&self) -> bool {
        self.group.state().borrow().leader == Some(self.me)
    }

    /// Reads once and makes use of it. An error says what keeps the size from being followed.
    async fn look(&self, leads: bool) -> Result<()> {
        let read = read(&*self.source, self.timing.read_size_timeout).await;
        let size = match read {
            Ok(size) => size,
            Err(error) => {
                // What was known stays known.
                self.expected.send_if_modified(|expected| {
                    let why = error.to_string();
                    let news = matches!(expected, Err(before) if *before != why);
                    if news {
                        *expected = Err(why);
                    }
                    news
                });
                return Err(error);
            }
        };
        let expected = match size.replicas {
            0 => Err("the StatefulSet is scaled to 0".into()),
            replicas => Ok(Ordinals {
                start: size.start,
                replicas,
            }),
        };
        self.expected.send_if_modified(|known| {
            let news = *known != expected;
            if news {
                *known = expected;
            }
            news
        });
        match leads {
            true => self.write_down(size).await,
            false => Ok(()),
        }
    }

    async fn write_down(&self, size: DesiredSize) -> Result<()> {
        let state = self.state.clone();
        let workers = state.workers();
        let known = workers.spawn(move || podkv_core::desired_size(&*state.view()));
        let known = known
            .await
            .map_err(|_| Error::internal("reading the desired size did not come to an end"))?
            .map_err(|error| {
                Error::internal("reading the desired size failed").with_source(error)
            })?;
        if known.as_ref() == Some(&size) {
            return Ok(());
        }
        if !size_counts(known.as_ref(), &size) {
            return match known {
                Some(known) if known.source != size.source => Err(refused(&known, &size)),
                // An older read than the one that counts.
                _ => Ok(()),
            };
        }
        let (start, replicas) = (size.start, size.replicas);
        let command = Proposal::from(Command::SetDesiredSize(size));
        // Forwarded, so that it is refused when leadership has moved: its new holder reads for itself.
        let decided = self
            .writer
            .write(command, Origin::Forwarded, self.request_timeout)
            .await?;
        decided.outcome.result?;
        tracing::info!(start, replicas, "the StatefulSet says a new size");
        Ok(())
    }

    fn report(&self, waits: Option<String>) {
        self.waiting.send_if_modified(|before| {
            let news = *before != waits;
            if news {
                if let Some(waits) = &waits {
                    tracing::warn!(%waits, "the StatefulSet's size is not followed");
                }
                *before = waits;
            }
            news
        });
    }
}

fn refused(known: &DesiredSize, read: &DesiredSize) -> Error {
    let known_by = match known.source.as_str() {
        "" => "a person".into(),
        uid => format!("another StatefulSet ({uid})"),
    };
    let text = format!(
        "the StatefulSet says {} replicas from ordinal {}, and {known_by} said {} from {}: it is followed again \
         once both are the same, by `kubectl scale` or by `podkv resize`",
        read.replicas, read.start, known.replicas, known.start
    );
    Error::new(Reason::MembershipConflict, text)
}
