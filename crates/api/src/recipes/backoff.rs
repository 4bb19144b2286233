//! Waiting between attempts: longer each time, up to a bound, and never in step with others.

use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// Delays that double from `first` to `most`, each cut at random to between a half and the whole.
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        let first = first.min(most);
        Self {
            first,
            most,
            next: first,
        }
    }

    /// How long to wait before the next attempt.
    pub(super) fn delay(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.most);
        whole.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// After a success: the next failure is the first again.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// For what watches: soon at first, since most losses are a leader change, then rarely.
pub(super) fn watch_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(5))
}

/// True if an attempt that has no side effect, or is safe to repeat, may fare better later.
/// Compaction is among them: who starts over from the present is not hurt by it.
pub(super) fn is_transient(error: &Error) -> bool {
    error.is_retryable() || error.kind() == ErrorKind::Compacted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_bound_and_start_over() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(10), ms(40));
        for whole in [10, 20, 40, 40] {
            let delay = backoff.delay();
            assert!(delay >= ms(whole / 2) && delay <= ms(whole), "{delay:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= ms(10));
    }
}
