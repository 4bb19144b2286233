//! A host: an async runtime with a clock of its own, in which everything of one process runs.
//!
//! The clock is tokio's, paused: it moves when the world says so, and jumps to the next timer when nobody has anything
//! to do. Everything of a host runs on the one thread of the world, in an order that its runtime decides by what woke
//! whom. So a host can be
//!
//! - **paused**, by not playing it; afterwards its clock has gone on (SIGSTOP), or has not (a suspended machine);
//! - **skewed**: its clock goes faster or slower;
//! - **killed** at any moment: its runtime is dropped, and every task in it ends where it waits.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep_until};

use super::clock::TICK;

/// Parts of a million.
const MILLION: u32 = 1_000_000;

pub struct Host {
    runtime: Runtime,
    /// On the host's own clock.
    reached: Instant,
    /// What is not played yet, for the runtime's clock is in milliseconds.
    owed: Duration,
    /// How much faster than the world its clock goes, in parts of a million.
    skew_ppm: i32,
}

impl Host {
    /// # Errors
    /// If the operating system refuses.
    pub fn new(skew_ppm: i32) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()?;
        let reached = runtime.block_on(async { Instant::now() });
        Ok(Self {
            runtime,
            reached,
            owed: Duration::ZERO,
            skew_ppm,
        })
    }

    /// Starts something in it. It runs when the host is played.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn(task)
    }

    /// Plays a tick of the world.
    pub fn play(&mut self) {
        self.owed += self.own(TICK);
        let whole = Duration::from_millis(u64::try_from(self.owed.as_millis()).unwrap_or(0));
        self.owed -= whole;
        self.reached += whole;
        let until = self.reached;
        self.runtime.block_on(async move {
            // Everybody who was woken from outside gets a turn, also if the clock stands still.
            tokio::task::yield_now().await;
            sleep_until(until).await;
        });
    }

    /// The clock went on while nobody was played.
    pub fn skip(&mut self, time: Duration) {
        let time = self.own(time);
        self.reached += time;
        self.runtime.block_on(advance(time));
    }

    fn own(&self, time: Duration) -> Duration {
        let rate = MILLION.saturating_add_signed(self.skew_ppm);
        time * rate / MILLION
    }

    /// Ends everything in it, now. Work in progress is dropped where it waits.
    pub fn kill(self) {
        self.runtime.shutdown_background();
    }
}
