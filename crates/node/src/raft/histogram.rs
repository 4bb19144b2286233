//! How long something takes, for metrics. Plain atomics in fixed buckets: nobody waits, nothing is allocated.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the histogram's buckets double from 64 µs to about 8 s; the last has none.
const BUCKETS: usize = 19;
const FIRST_BOUND_MICROS: u64 = 64;

/// How long something took, in doubling buckets.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HistogramSnapshot {
    /// (upper bound in microseconds, how many took no longer and more than the bound before);
    /// `u64::MAX` bounds the last.
    pub buckets: Vec<(u64, u64)>,
    pub sum_micros: u64,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (0..BUCKETS - 1).find(|bucket| micros <= FIRST_BOUND_MICROS << bucket);
        self.buckets[bucket.unwrap_or(BUCKETS - 1)].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(micros, Relaxed);
    }

    pub fn snapshot(&self) -> HistogramSnapshot {
        let bound = |bucket: usize| {
            if bucket == BUCKETS - 1 {
                u64::MAX
            } else {
                FIRST_BOUND_MICROS << bucket
            }
        };
        HistogramSnapshot {
            buckets: self
                .buckets
                .iter()
                .enumerate()
                .map(|(bucket, count)| (bound(bucket), count.load(Relaxed)))
                .collect(),
            sum_micros: self.sum_micros.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_falls_into_one_bucket() {
        let histogram = Histogram::default();
        for micros in [0, 64, 65, 1_000_000, u64::MAX / 4] {
            histogram.observe(Duration::from_micros(micros));
        }
        let counted: Vec<_> = histogram
            .snapshot()
            .buckets
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(counted, [(64, 2), (128, 1), (1 << 20, 1), (u64::MAX, 1)]);
    }
}
