//! What a node does by itself, next to serving requests.
//!
//! The leader proposes what time demands: expiry of what is past its deadline, automatic compaction, and
//! the freeing of compacted history, all in bounded steps. Every node, leader or not, builds snapshots
//! and purges its log when it has grown.

use std::sync::Arc;
use std::time::Duration;

use podkv_api::DesiredSize;
use podkv_core::{Answer, Command, Proposal, read_meta};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::LeaderClock;
use crate::raft::Group;
use crate::storage::StateStore;
use crate::write::{Origin, Writer};

/// How often deadlines are looked at. A deadline may be served this much late, never early.
const TICK: Duration = Duration::from_millis(200);
/// While anything can expire, the clock goes into the log at least this often, so that a new leader
/// goes on from nearly where the old one stopped.
const CLOCK_INTERVAL: Duration = Duration::from_secs(5);
/// How often retention and size are looked at.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(10);
/// Expired keys, leases and sessions in one command: small beside a busy entry.
const EXPIRE_STEP: u32 = 1000;
/// Changes freed in one command, and commands a tick: 25 000 changes a second at most. The gaps are the
/// writers', and expiry never waits behind a long sweep.
const SWEEP_STEP: u32 = 1000;
const SWEEP_STEPS_PER_TICK: u32 = 5;

pub(crate) struct LeaderDuties {
    pub writer: Writer,
    pub state: Arc<dyn StateStore>,
    pub clock: watch::Receiver<Option<LeaderClock>>,
    pub group: Group,
    pub me: podkv_api::MemberId,
    pub timeout: Duration,
    /// How many pods founded the cluster: the desired size until somebody says another. `None` if their
    /// StatefulSet is asked: what was set by hand would stand against it.
    pub replicas: Option<u32>,
}

/// What the state says is due.
struct Due {
    expire: bool,
    compact: Option<u64>,
    sweep: bool,
    /// Nobody has said yet how many pods there should be.
    size: bool,
}

impl LeaderDuties {
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.tick_for_ever()).await;
    }

    async fn tick_for_ever(self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut next_look = Instant::now();
        loop {
            tick.tick().await;
            if self.group.state().borrow().leader != Some(self.me) {
                continue;
            }
            let look_at_settings = Instant::now() >= next_look;
            if look_at_settings {
                next_look = Instant::now() + SETTINGS_INTERVAL;
            }
            let due = match self.due(look_at_settings).await {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(%error, "the state cannot be read");
                    continue;
                }
            };
            self.serve(due).await;
        }
    }

    async fn due(&self, look_at_settings: bool) -> Result<Due, podkv_core::ViewError> {
        let (state, workers) = (self.state.clone(), self.state.workers());
        let look_at_size = look_at_settings && self.replicas.is_some();
        // Without a clock of its own the leader has written nothing yet in its term; its first write
        // starts one.
        let now_ms = self.clock.borrow().map(|clock| clock.now_ms());
        let read = move || {
            let view = state.view();
            let meta = read_meta(&*view)?;
            let expire = match podkv_core::next_deadline(&*view)? {
                None => false,
                Some(deadline) => {
                    let stale_ms = u64::try_from(CLOCK_INTERVAL.as_millis()).unwrap_or(u64::MAX);
                    now_ms.is_none_or(|now| deadline <= now || meta.clock_ms + stale_ms <= now)
                }
            };
            let compact = if look_at_settings {
                podkv_core::retention_target(&*view)?
                    .filter(|target| *target > meta.compacted_revision)
            } else {
                None
            };
            Ok(Due {
                expire,
                compact,
                sweep: meta.swept_revision < meta.compacted_revision,
                size: look_at_size && podkv_core::desired_size(&*view)?.is_none(),
            })
        };
        match workers.spawn(read).await {
            Ok(due) => due,
            // The runtime is going down.
            Err(_) => Ok(Due {
                expire: false,
                compact: None,
                sweep: false,
                size: false,
            }),
        }
    }

    async fn serve(&self, due: Due) {
        if due.expire {
            while let Some(Answer::Expire { more: true, .. }) =
                self.propose(Command::Expire { limit: EXPIRE_STEP }).await
            {}
        }
        if let Some(replicas) = self.replicas.filter(|_| due.size) {
            self.propose(Command::SetDesiredSize(DesiredSize {
                source: String::new(),
                generation: 0,
                start: 0,
                replicas,
            }))
            .await;
        }
        if let Some(revision) = due.compact {
            self.propose(Command::Compact { revision }).await;
        }
        if due.sweep || due.compact.is_some() {
            for _ in 0..SWEEP_STEPS_PER_TICK {
                let swept = self.propose(Command::Sweep { limit: SWEEP_STEP }).await;
                if !matches!(swept, Some(Answer::Sweep { more: true })) {
                    break;
                }
            }
        }
    }

    async fn propose(&self, command: Command) -> Option<Answer> {
        // Forwarded, so that it is refused when leadership has moved: its new holder does its own duties.
        match self
            .writer
            .write(Proposal::from(command), Origin::Forwarded, self.timeout)
            .await
        {
            Ok(decided) => decided.outcome.result.ok(),
            Err(error) => {
                tracing::debug!(%error, "a duty of the leader was not done; it comes round again");
                None
            }
        }
    }
}

/// When to build a snapshot and purge the log.
pub(crate) struct LogKeeper {
    pub group: Group,
    pub snapshot_log_bytes: u64,
    pub snapshot_interval: Duration,
    pub keep_bytes: u64,
}

impl LogKeeper {
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_for_ever()).await;
    }

    async fn keep_for_ever(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last = Instant::now();
        let mut last_index = 0;
        loop {
            tick.tick().await;
            let stats = self.group.log_stats();
            let applied = self.group.applied().borrow().position.index;
            let grown = stats.bytes >= self.snapshot_log_bytes.saturating_add(self.keep_bytes);
            let old = last.elapsed() >= self.snapshot_interval && applied > last_index;
            if !grown && !old {
                continue;
            }
            match self.group.snapshot_and_purge(self.keep_bytes).await {
                Ok(Some(_)) => {
                    last = Instant::now();
                    last_index = applied;
                }
                // Put off: it comes round again.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "no snapshot was built; the log keeps growing until one is")
                }
            }
        }
    }
}
