//! Keeps a directory equal to a prefix.
//!
//! ```text
//!   Mirror ──a whole revision──► plan ──► Target::write ──► Status
//!     ▲ lists, watches, lists again after a compaction         │ wait: a change · a retry · an old folder · a second
//!     └────────────────────────────────────────────────────────┘
//! ```
//!
//! Not every revision is shown: what changed while the last one was written is shown at once, as one. What is shown is always
//! one revision, and never an earlier one than before.
//!
//! The last good state stays, and [`Status::problem`] says why, when
//! - the store cannot be reached, or the disk refuses;
//! - an import below the prefix, or into a folder around it, is not finished ([`IMPORT_MARKER`](crate::IMPORT_MARKER));
//! - there is no key left, unless [`ProjectOptions::allow_empty`]: a prefix that disappears is far more often a slip, or an
//!   empty store restored in place of the real one, than a wish for a program without any configuration.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use podkv_api::large::keys_below;
use podkv_api::recipes::{Mirror, Snapshot};
use podkv_api::{KeyRange, Range, Reason, Revision, Store};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::{Error, Result};
use crate::fetch::{Ask, Asker, Fetcher};
use crate::plan::{IMPORT_MARKER, Refused, folder_prefix, plan_snapshot};
use crate::target::{About, Fetch, Target, TargetOptions};

/// How often the status is brought up to date while nothing happens.
const LOOK: Duration = Duration::from_secs(1);

/// When a directory follows.
#[derive(Clone, Debug)]
pub struct ProjectOptions {
    /// Show a prefix without keys as a directory without files.
    pub allow_empty: bool,
    /// At least this long from one swap to the next, so that a burst of changes is a few swaps, and a few reloads of the
    /// program that reads. A change after a quiet time is shown at once. Default 100 ms.
    pub debounce: Duration,
    /// How long after a failure to try again. Default 1 s.
    pub retry: Duration,
}

impl Default for ProjectOptions {
    fn default() -> Self {
        Self {
            allow_empty: false,
            debounce: Duration::from_millis(100),
            retry: Duration::from_secs(1),
        }
    }
}

/// How a projection is.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What the directory shows; `None` until it shows something.
    pub shown: Option<About>,
    /// Every change up to this revision is shown; 0 until something is.
    pub revision: Revision,
    /// How long the directory may be behind: since the store last said that nothing changed, or since the first change
    /// that is not shown yet.
    pub behind: Duration,
    /// Swaps since the start, and files that were written in them, not linked.
    pub swaps: u64,
    pub files_written: u64,
    /// Keys that are no files.
    pub refused: Vec<Refused>,
    /// Why the directory does not follow right now.
    pub problem: Option<String>,
}

/// A directory that follows a prefix.
pub struct Projection {
    mirror: Mirror,
    ask: Arc<dyn Ask>,
    /// Ends what a blocking thread fetches, also when the projection is dropped meanwhile.
    cancelled: CancellationToken,
    _cancel: DropGuard,
    cluster: String,
    prefix: String,
    /// Lent to a blocking thread while it is written.
    target: Option<Target>,
    options: ProjectOptions,
    status: watch::Sender<Status>,
    /// The revision of the last snapshot that was looked at, shown or not.
    seen: Revision,
    /// Since when there is a change that is not shown.
    due_since: Option<Instant>,
}

impl std::fmt::Debug for Projection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Projection")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// What became of a snapshot.
enum Step {
    Shown,
    /// Only a change of the keys helps.
    Held,
    /// A change of a key that is not mirrored helps.
    HeldAround,
    Failed(Error),
}

impl Projection {
    /// Takes the directory and lists the prefix. Waits for a store that is not up; [`Projection::status`] cannot be asked
    /// yet, so `waiting` is told why.
    ///
    /// # Errors
    ///
    /// As [`Target::open`], and what a later attempt would not mend.
    pub async fn open<S: Store>(
        store: &S,
        prefix: &str,
        directory: &Path,
        target: TargetOptions,
        options: ProjectOptions,
        mut waiting: impl FnMut(&Error),
    ) -> Result<Self> {
        let prefix = folder_prefix(prefix);
        // First: what is wrong with it should be known before a minute of waiting for a store.
        let opened = {
            let (directory, prefix) = (directory.to_owned(), prefix.clone());
            blocking(move || Target::open(&directory, &prefix, &target)).await?
        };
        let range = keys_below(prefix.clone());
        let (cluster, mirror) = loop {
            let error = match reach(store, &prefix, &range).await {
                Ok(reached) => break reached,
                Err(error) => Error::from(error),
            };
            if !error.is_transient() {
                return Err(error);
            }
            waiting(&error);
            tokio::time::sleep(options.retry).await;
        };
        let status = Status {
            shown: opened.about().cloned(),
            ..Status::default()
        };
        let cancelled = CancellationToken::new();
        Ok(Self {
            mirror,
            ask: Arc::new(Asker(store.clone())),
            _cancel: cancelled.clone().drop_guard(),
            cancelled,
            cluster,
            prefix,
            target: Some(opened),
            options,
            status: watch::Sender::new(status),
            seen: 0,
            due_since: Some(Instant::now()),
        })
    }

    /// How it is, from now on.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Shows the prefix once, as it is now or as soon as it can be shown.
    ///
    /// # Errors
    ///
    /// What a later attempt would not mend.
    pub async fn once(mut self) -> Result<()> {
        self.first().await?;
        // A reader that opened the folder before may still be there.
        while let Some(due) = self.sweep_due() {
            sleep_until(due).await;
            self.sweep().await;
        }
        Ok(())
    }

    /// Follows the prefix until `stop` is ready.
    ///
    /// # Errors
    ///
    /// As [`Projection::once`], until the directory shows something for the first time. Afterwards whatever fails is tried
    /// again, and said in the status.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<()> {
        let cancelled = self.cancelled.clone();
        let following = self.follow();
        tokio::pin!(following);
        tokio::select! {
            followed = &mut following => followed,
            () = stop => {
                cancelled.cancel();
                // Until the directory is not written any more: the next projection may take it at once.
                following.await
            }
        }
    }

    /// Until it is cancelled.
    async fn follow(mut self) -> Result<()> {
        let cancelled = self.cancelled.clone();
        self.first().await?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut not_before = Instant::now() + self.options.debounce;
        let mut retry_at = None;
        loop {
            let sweep_due = self.sweep_due();
            let change = self.mirror.changed(self.seen);
            tokio::select! {
                biased;
                () = cancelled.cancelled() => return Ok(()),
                // Before changes: they may never end, and each leaves a folder.
                () = at(sweep_due) => {
                    self.sweep().await;
                    continue;
                }
                changed = change => {
                    changed?;
                    self.due_since.get_or_insert_with(Instant::now);
                    cancelled.run_until_cancelled(sleep_until(not_before)).await;
                }
                () = at(retry_at) => {}
                _ = look.tick() => {
                    self.publish(|_| {});
                    continue;
                }
            }
            retry_at = match self.step().await {
                Step::Shown | Step::Held => None,
                Step::HeldAround | Step::Failed(_) => Some(Instant::now() + self.options.retry),
            };
            not_before = Instant::now() + self.options.debounce;
        }
    }

    /// Until the directory shows something, or it is cancelled.
    async fn first(&mut self) -> Result<()> {
        let cancelled = self.cancelled.clone();
        while !cancelled.is_cancelled() {
            match self.step().await {
                Step::Shown => return Ok(()),
                Step::Held => {
                    let changed = self.mirror.changed(self.seen);
                    if let Some(changed) = cancelled.run_until_cancelled(changed).await {
                        changed?;
                    }
                }
                Step::Failed(error) if !error.is_transient() => return Err(error),
                Step::HeldAround | Step::Failed(_) => {
                    let again = tokio::time::sleep(self.options.retry);
                    cancelled.run_until_cancelled(again).await;
                }
            }
        }
        Ok(())
    }

    /// Shows what the mirror holds.
    async fn step(&mut self) -> Step {
        let snapshot = self.mirror.snapshot();
        self.seen = snapshot.revision();
        let Some(mut target) = self.target.take() else {
            // It was lent, and the thread that had it has panicked.
            return Step::Failed(podkv_api::Error::internal("the target is lost").into());
        };
        let around = self.ask.importing_around(&self.prefix, snapshot.revision());
        let around = around.await;
        let show = Show {
            prefix: self.prefix.clone(),
            cluster: self.cluster.clone(),
            snapshot: snapshot.clone(),
            allow_empty: self.options.allow_empty,
        };
        let mut fetcher = Fetcher {
            ask: self.ask.clone(),
            at: snapshot.revision(),
            runtime: Handle::current(),
            cancelled: self.cancelled.clone(),
        };
        let done = tokio::task::spawn_blocking(move || {
            let shown = match around {
                Ok(marker) => show.show(&mut target, marker, &mut fetcher),
                Err(error) => (Vec::new(), Err(error.into())),
            };
            (target, shown)
        })
        .await;
        let (target, (refused, result)) = match done {
            Ok(done) => done,
            Err(panic) => {
                return Step::Failed(podkv_api::Error::internal(panic.to_string()).into());
            }
        };
        let about = target.about().cloned();
        self.target = Some(target);
        let mut written = None;
        let (step, problem) = match result {
            Ok(Shown::Held(why)) => (Step::Held, Some(why)),
            Ok(Shown::HeldAround(why)) => (Step::HeldAround, Some(why)),
            Ok(Shown::Written { swapped, files }) => {
                self.due_since = None;
                written = Some((swapped, files));
                (Step::Shown, None)
            }
            Err(error) => {
                let text = error.to_string();
                (Step::Failed(error), Some(text))
            }
        };
        if problem.is_some() {
            self.due_since.get_or_insert_with(Instant::now);
        }
        // At once: nobody should see what is shown now beside the problem of before.
        self.publish(|status| {
            status.shown = about;
            status.refused = refused;
            status.problem = problem;
            if let Some((swapped, files)) = written {
                status.swaps += u64::from(swapped);
                status.files_written += files as u64;
                status.revision = status.revision.max(snapshot.revision());
            }
        });
        step
    }

    /// What was found just now, and how far behind it is. A problem that nothing new was found about stays until the
    /// directory is level.
    fn publish(&self, found: impl FnOnce(&mut Status)) {
        let snapshot = self.mirror.snapshot();
        let follows = self.mirror.problem();
        let behind = match self.due_since {
            Some(since) => since.elapsed().max(self.mirror.staleness()),
            None => self.mirror.staleness(),
        };
        self.status.send_modify(|status| {
            status.behind = behind;
            let is_level = self.due_since.is_none() && snapshot.changed_at() <= self.seen;
            if is_level {
                status.revision = status.revision.max(snapshot.revision());
                status.problem = None;
            }
            found(status);
            if status.problem.is_none() {
                status.problem = follows.map(|error| format!("the store: {error}"));
            }
        });
    }

    fn sweep_due(&self) -> Option<Instant> {
        let due = self.target.as_ref()?.sweep_due()?;
        Some(Instant::from_std(due))
    }

    async fn sweep(&mut self) {
        let Some(mut target) = self.target.take() else {
            return;
        };
        let swept = tokio::task::spawn_blocking(move || {
            let swept = target.sweep(std::time::Instant::now());
            (target, swept)
        });
        if let Ok((target, swept)) = swept.await {
            self.target = Some(target);
            if let Err(error) = swept {
                tracing::warn!(%error, "an old folder stays for now");
            }
        }
    }
}

enum Shown {
    Written { swapped: bool, files: usize },
    Held(String),
    HeldAround(String),
}

/// One state that is to be shown.
struct Show {
    prefix: String,
    cluster: String,
    snapshot: Snapshot,
    allow_empty: bool,
}

impl Show {
    fn show(
        &self,
        target: &mut Target,
        around: Option<Bytes>,
        fetch: &mut dyn Fetch,
    ) -> (Vec<Refused>, Result<Shown>) {
        let plan = plan_snapshot(&self.prefix, &self.snapshot);
        let unfinished = |marker: &Bytes| {
            let marker = marker.escape_ascii();
            format!("an import is not finished: {marker} is there until it is")
        };
        let result = if let Some(marker) = &plan.importing {
            Ok(Shown::Held(unfinished(marker)))
        } else if let Some(marker) = &around {
            Ok(Shown::HeldAround(unfinished(marker)))
        } else if plan.tree.is_empty() && !self.allow_empty {
            let prefix = &self.prefix;
            let text = format!("{prefix:?} holds no key that is a file; --allow-empty shows that");
            Ok(Shown::Held(text))
        } else {
            target
                .write(&plan.tree, &self.cluster, self.snapshot.revision(), fetch)
                .map(|written| Shown::Written {
                    swapped: written.swapped,
                    files: written.count.written,
                })
        };
        (plan.refused, result)
    }
}

async fn reach<S: Store>(
    store: &S,
    prefix: &str,
    range: &KeyRange,
) -> podkv_api::Result<(String, Mirror)> {
    let ask = Range::new(KeyRange::key(format!("{prefix}{IMPORT_MARKER}"))).keys_only();
    let cluster = store.range(ask).await?.header.cluster;
    let mirror = Mirror::open(store, range.clone()).await?;
    Ok((cluster.to_string(), mirror))
}

/// Never, without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => {
            let error = podkv_api::Error::new(Reason::Internal, panic.to_string());
            Err(error.into())
        }
    }
}
