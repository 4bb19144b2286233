//! A disk that does not answer: no error, no end. Volumes over a network do that.
//!
//! Raft does not notice. A leader's heartbeats need no disk, so its followers stay, and the entries that it sends them
//! are even committed; but it applies nothing that it has not synced itself, so nobody is answered any more. So each
//! node watches how long its log's writer has been in one write:
//!
//! ```text
//!   longer than stall_timeout     unready, a line in the log, podkv_log_stalls_total
//!   … and it leads                hands over, if a majority of the others has synced everything that it holds
//!   the write came to an end      ready again, as a follower
//! ```
//!
//! A disk that is slow is not one that hangs: what counts is one write, not many. And no node hands over for this more often
//! than once in [`REST`]: if all volumes of a cluster are that bad, leaders that change make nothing better.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use podkv_api::{Error, MemberId, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::raft::Group;
use crate::write::Writer;

/// Between two hand-overs of one node.
const REST: Duration = Duration::from_secs(60);

/// What was seen of stalls since the start.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    pub total: AtomicU64,
}

/// The task that looks.
pub(crate) struct StallWatch {
    pub me: MemberId,
    pub group: Group,
    pub writer: Writer,
    pub stalls: Arc<Stalls>,
    pub timeout: Duration,
    /// Where the disk is, for whoever has to look at it.
    pub volume: String,
}

impl StallWatch {
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.watch()).await;
    }

    async fn watch(self) {
        let mut tick = tokio::time::interval(self.timeout / 10);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stalled = false;
        let mut handed_over: Option<Instant> = None;
        loop {
            tick.tick().await;
            let hangs = self.group.log_writing_for();
            let hangs = hangs.filter(|hangs| *hangs >= self.timeout);
            match (hangs, stalled) {
                (Some(hangs), false) => {
                    self.stalls.total.fetch_add(1, Relaxed);
                    tracing::error!(volume = %self.volume, ?hangs, "the disk does not answer: the log cannot be written");
                }
                (None, true) => tracing::info!(volume = %self.volume, "the disk answers again"),
                _ => {}
            }
            stalled = hangs.is_some();
            let rested = handed_over.is_none_or(|at| at.elapsed() >= REST);
            if stalled && rested && self.leads() {
                match self.hand_over().await {
                    Ok(Some(to)) => {
                        handed_over = Some(Instant::now());
                        tracing::warn!(%to, "handed over leadership: this node's disk does not answer");
                    }
                    // The others' disks are no better.
                    Ok(None) => {}
                    Err(error) => {
                        handed_over = Some(Instant::now());
                        tracing::warn!(why = error.text(), "leadership was to be handed over");
                    }
                }
            }
        }
    }

    fn leads(&self) -> bool {
        self.group.state().borrow().leader == Some(self.me)
    }

    /// What is in flight is not waited for: it cannot come to an end here, and the next leader has it.
    async fn hand_over(&self) -> Result<Option<MemberId>, Error> {
        let _hold = self.writer.handover().hold();
        // By now what was proposed before has reached whoever can take it.
        let Some(to) = self.group.relief() else {
            return Ok(None);
        };
        self.group.transfer_leadership(Some(to)).await.map(Some)
    }
}
