//! The time of the world. It moves in ticks; nobody in it can read another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::history::Nanos;

/// The world moves by this much at a time: what happens within a tick on two hosts happens in the order in which they
/// are played.
pub const TICK: Duration = Duration::from_millis(1);

/// Clones are the same clock.
#[derive(Clone, Default)]
pub struct Clock(Arc<Times>);

#[derive(Default)]
struct Times {
    now: AtomicU64,
    /// The last stamp that was given out.
    last: AtomicU64,
}

impl Clock {
    pub fn now(&self) -> Nanos {
        self.0.now.load(Relaxed)
    }

    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.now())
    }

    pub fn advance(&self) {
        self.0.now.fetch_add(nanos(TICK), Relaxed);
    }

    /// Now, and later than every stamp before: so stamps tell in which order things really happened.
    pub fn stamp(&self) -> Nanos {
        let stamp = self.now().max(self.0.last.load(Relaxed) + 1);
        self.0.last.store(stamp, Relaxed);
        stamp
    }
}

pub fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
