//! How much may be in flight on one node: a bound on proposals, on their bytes, and on how long they wait.
//!
//! Beyond it a write is refused at once, with advice to come back. Waiting here would only hide the
//! overload and grow memory.
//!
//! A fixed number alone is no bound on the wait: what a fast disk does in a tenth of a second takes a slow one longer than
//! any caller waits, and a node whose callers have all given up does nothing of use. So what may be in flight follows
//! what the node was seen to do, by Little's law: with `rate` decided a second, who comes behind `rate * WAIT` others
//! waits for [`WAIT`].
//!
//! ```text
//!   limit ──► limit/2 + rate * WAIT / 2     each WINDOW in which as much as half of the limit was in flight,
//!                                           within FLOOR and what the settings allow
//! ```
//!
//! With less in flight the rate says how much was asked for, and nothing of what could be done.

use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podkv_api::{Error, Reason, Result};
use tokio::time::Instant;

/// How long a write may have to wait for others on this node. It may wait on the leader once more; together it is half of
/// the time that a client gives one attempt.
const WAIT: Duration = Duration::from_millis(500);
/// How often the limits are set. Some entries are decided in it even on a slow volume.
const WINDOW: Duration = Duration::from_millis(100);
/// Before anything was measured, and never below: group commit needs some to be there, and an election, in which nothing is
/// decided, should not shut the door.
const START: Amount = Amount {
    proposals: 8192,
    bytes: 16 << 20,
};
const FLOOR: Amount = Amount {
    proposals: 512,
    bytes: 4 << 20,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Amount {
    proposals: usize,
    bytes: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: Amount,
    proposals: Gate,
    bytes: Gate,
    window: Mutex<Instant>,
}

/// One of the two things that are bounded.
#[derive(Debug)]
struct Gate {
    in_flight: AtomicUsize,
    limit: AtomicUsize,
    /// The most that was in flight in this window.
    peak: AtomicUsize,
    /// Decided in this window.
    decided: AtomicUsize,
}

impl Gate {
    fn new(limit: usize) -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            peak: AtomicUsize::new(0),
            decided: AtomicUsize::new(0),
        }
    }

    /// What is in flight with `amount` more.
    fn enter(&self, amount: usize) -> usize {
        let total = self.in_flight.fetch_add(amount, AcqRel) + amount;
        self.peak.fetch_max(total, Relaxed);
        total
    }

    fn leave(&self, amount: usize) {
        self.in_flight.fetch_sub(amount, AcqRel);
    }

    /// A window of `time` is over.
    fn turn(&self, time: Duration, floor: usize, most: usize) {
        let decided = self.decided.swap(0, Relaxed);
        let peak = self.peak.swap(self.in_flight.load(Relaxed), Relaxed);
        let limit = self.limit.load(Relaxed);
        if peak < limit / 2 {
            return;
        }
        let bearable = decided as f64 * WAIT.as_secs_f64() / time.as_secs_f64();
        // Saturates.
        let next = limit / 2 + bearable as usize / 2;
        self.limit.store(next.clamp(floor.min(most), most), Relaxed);
    }
}

/// Room for one proposal, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Inner>,
    bytes: usize,
}

impl Admission {
    /// Never more than `max_proposals` and `max_bytes`.
    pub fn new(max_proposals: usize, max_bytes: usize) -> Self {
        Self(Arc::new(Inner {
            most: Amount {
                proposals: max_proposals,
                bytes: max_bytes,
            },
            proposals: Gate::new(START.proposals.min(max_proposals)),
            bytes: Gate::new(START.bytes.min(max_bytes)),
            window: Mutex::new(Instant::now()),
        }))
    }

    pub fn max_proposals(&self) -> usize {
        self.0.most.proposals
    }

    pub fn in_flight(&self) -> usize {
        self.0.proposals.in_flight.load(Relaxed)
    }

    /// Admits a proposal, or says that there is too much in flight. A proposal larger than the bound
    /// passes when nothing else is in flight, so that the bound can never refuse it for ever.
    pub fn admit(&self, bytes: usize, now: Instant) -> Result<Permit> {
        self.turn(now);
        let Inner {
            proposals: count,
            bytes: size,
            ..
        } = &*self.0;
        let (proposals, total) = (count.enter(1), size.enter(bytes));
        let permit = Permit {
            admission: self.0.clone(),
            bytes,
        };
        let alone = total == bytes;
        if proposals > count.limit.load(Relaxed) || (total > size.limit.load(Relaxed) && !alone) {
            drop(permit);
            return Err(Error::new(
                Reason::Overloaded,
                format!(
                    "too much in flight on this node ({proposals} writes, {total} bytes): \
                     wait for some answers, then try again"
                ),
            ));
        }
        Ok(permit)
    }

    /// A proposal of so many bytes was decided.
    pub fn decided(&self, bytes: usize) {
        self.0.proposals.decided.fetch_add(1, Relaxed);
        self.0.bytes.decided.fetch_add(bytes, Relaxed);
    }

    /// Sets the limits, once in a window.
    fn turn(&self, now: Instant) {
        // Whoever finds it locked need not wait: it is being done.
        let Ok(mut began) = self.0.window.try_lock() else {
            return;
        };
        let time = now.saturating_duration_since(*began);
        if time < WINDOW {
            return;
        }
        *began = now;
        let most = self.0.most;
        let (proposals, bytes) = (&self.0.proposals, &self.0.bytes);
        proposals.turn(time, FLOOR.proposals, most.proposals);
        bytes.turn(time, FLOOR.bytes, most.bytes);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.proposals.leave(1);
        self.admission.bytes.leave(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(admitted: Result<Permit>) {
        assert_eq!(admitted.unwrap_err().reason(), Reason::Overloaded);
    }

    #[test]
    fn refuses_beyond_either_bound_and_gives_room_back() {
        let now = Instant::now();
        let admission = Admission::new(2, 100);
        let first = admission.admit(60, now).unwrap();
        refused(admission.admit(60, now));
        let second = admission.admit(10, now).unwrap();
        refused(admission.admit(1, now));
        drop((first, second));
        assert_eq!(admission.in_flight(), 0);
        admission
            .admit(1_000, now)
            .expect("one that is larger than the bound passes alone");
    }

    /// As many as are let in, with `rate` decided a second, for six seconds. Returns how many there are at the end.
    fn flood(admission: &Admission, rate: usize, bytes: usize) -> usize {
        let mut inside = std::collections::VecDeque::new();
        let mut now = Instant::now();
        for _ in 0..600 {
            now += Duration::from_millis(10);
            while let Ok(permit) = admission.admit(bytes, now) {
                inside.push_back(permit);
            }
            for permit in inside.drain(..inside.len().min(rate / 100)) {
                drop(permit);
                admission.decided(bytes);
            }
        }
        inside.len()
    }

    #[test]
    fn who_is_let_in_is_decided_in_time_whatever_the_rate() {
        for rate in [3_000, 20_000, 100_000] {
            let admission = Admission::new(65_536, 64 << 20);
            let inside = flood(&admission, rate, 10);
            let wait = inside as f64 / rate as f64;
            assert!(
                (0.4..0.6).contains(&wait),
                "{rate}/s: {inside} wait {wait} s"
            );
        }
        // By bytes.
        let admission = Admission::new(65_536, 64 << 20);
        let inside = flood(&admission, 100, 1 << 20);
        assert!((40..60).contains(&inside), "{inside} MiB");
        // A node on which nothing is decided, as in an election, still takes some.
        let admission = Admission::new(65_536, 64 << 20);
        assert_eq!(flood(&admission, 0, 10), START.proposals);
        assert_eq!(admission.0.proposals.limit.load(Relaxed), FLOOR.proposals);
    }

    #[test]
    fn a_quiet_time_says_nothing_about_what_could_be_done() {
        let admission = Admission::new(65_536, 64 << 20);
        let mut now = Instant::now();
        for _ in 0..1000 {
            now += Duration::from_millis(10);
            drop(admission.admit(10, now).unwrap());
            admission.decided(10);
        }
        assert_eq!(admission.0.proposals.limit.load(Relaxed), START.proposals);
    }
}
