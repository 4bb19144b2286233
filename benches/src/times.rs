//! How long things took.

use std::time::Duration;

/// What of many durations is told: half of them took no longer than `p50`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Percentiles {
    pub p50: Duration,
    pub p99: Duration,
    pub p999: Duration,
}

/// Durations of calls, in microseconds, with three significant digits. One a thread: recording takes no lock.
#[derive(Clone, Debug)]
pub struct Times(hdrhistogram::Histogram<u64>);

/// Longer ones count as this.
const MAX_US: u64 = 60_000_000;

impl Times {
    /// # Panics
    /// Never: the bounds are constants that the histogram accepts.
    #[expect(clippy::expect_used, reason = "constant bounds")]
    pub fn new() -> Self {
        let histogram = hdrhistogram::Histogram::new_with_bounds(1, MAX_US, 3);
        Self(histogram.expect("constant bounds"))
    }

    pub fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(MAX_US);
        self.0.saturating_record(micros.max(1));
    }

    /// Those of another thread.
    pub fn add(&mut self, other: &Self) {
        // Both have the bounds of `new`, so nothing can be out of range.
        let _ = self.0.add(&other.0);
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    pub fn percentiles(&self) -> Percentiles {
        let at = |percent| Duration::from_micros(self.0.value_at_quantile(percent));
        Percentiles {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
        }
    }
}

impl Default for Times {
    fn default() -> Self {
        Self::new()
    }
}
