//! The client's settings: data only, each with a default and its reason.

use std::time::Duration;

use podkv_api::{Error, Reason, Result};

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// A call that has no answer by then fails.
    pub deadline: Duration,
    /// One attempt of a call; then another node is asked.
    pub attempt_timeout: Duration,
    pub connect_timeout: Duration,
    /// Between attempts, growing from the first to the second.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// How often members and leader are asked for when nothing goes wrong.
    pub refresh_interval: Duration,
    /// At least; see [`Settings::session_ttl`].
    pub session_ttl: Duration,
    /// Stay on the given endpoints.
    pub fixed: bool,
    /// Calls that may wait for room on one node's stream.
    pub queue: usize,
    /// The largest answer that is accepted, in bytes.
    pub max_response_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // An election takes about a second; this rides over a slow one and its first retry.
            deadline: Duration::from_secs(5),
            // Above an election, so that a healthy node is not left for being slow; below half of the
            // deadline, so that a silent one costs no failure.
            attempt_timeout: Duration::from_secs(2),
            // A pod whose packets vanish. In a cluster's network a connection takes milliseconds.
            connect_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(25),
            backoff_max: Duration::from_secs(1),
            refresh_interval: Duration::from_secs(10),
            // Far above any deadline: a session must outlive its last retry.
            session_ttl: Duration::from_secs(60),
            fixed: false,
            queue: 1024,
            max_response_bytes: 64 << 20,
        }
    }
}

/// Pings on quiet connections: a node that vanished without a word is found after the sum of both.
pub(crate) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 windows: what one stream and one connection may have under way. Fixed, because the
/// protocol's default of 64 KiB caps a stream at a few MB/s already at the latency of one zone.
pub(crate) const STREAM_WINDOW: u32 = 2 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;

impl Settings {
    /// Refuses settings that cannot work, naming the setting and what would be accepted.
    pub fn check(&self) -> Result<()> {
        let above_zero = [
            ("deadline", self.deadline),
            ("attempt_timeout", self.attempt_timeout),
            ("connect_timeout", self.connect_timeout),
            ("refresh_interval", self.refresh_interval),
            ("backoff minimum", self.backoff_min),
        ];
        for (name, value) in above_zero {
            if value.is_zero() {
                return Err(bad(format!("{name} is 0; expected more")));
            }
        }
        if self.backoff_max < self.backoff_min {
            return Err(bad(format!(
                "backoff is {:?} to {:?}; expected the minimum first",
                self.backoff_min, self.backoff_max
            )));
        }
        if self.queue == 0 || self.max_response_bytes == 0 {
            return Err(bad("queue or max_response_bytes is 0; expected more".into()));
        }
        Ok(())
    }

    /// The TTL to ask for. A session must outlive the retries in it, or what became of them is lost.
    pub fn session_ttl(&self) -> Duration {
        self.session_ttl.max(self.deadline.saturating_mul(2))
    }

    /// How long to wait after the `count`th failure in a row: doubled each time, with jitter, so that
    /// clients that failed together do not come back together.
    pub fn backoff(&self, count: u32) -> Duration {
        let doubled = self
            .backoff_min
            .saturating_mul(1 << count.saturating_sub(1).min(16));
        let full = doubled.min(self.backoff_max);
        full.mul_f64(rand::random_range(0.5..=1.0))
    }
}

pub(crate) fn bad(text: String) -> Error {
    Error::new(Reason::Configuration, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_pass_and_bad_settings_name_themselves() {
        Settings::default().check().unwrap();
        let settings = Settings {
            attempt_timeout: Duration::ZERO,
            ..Settings::default()
        };
        let error = settings.check().unwrap_err();
        assert_eq!(error.reason(), Reason::Configuration);
        assert!(error.text().contains("attempt_timeout"));
    }

    #[test]
    fn a_session_outlives_the_retries_in_it() {
        let settings = Settings {
            deadline: Duration::from_secs(300),
            ..Settings::default()
        };
        assert_eq!(settings.session_ttl(), Duration::from_secs(600));
    }

    #[test]
    fn backoff_grows_to_its_bound() {
        let settings = Settings::default();
        for count in 1..100 {
            let wait = settings.backoff(count);
            assert!(wait >= settings.backoff_min / 2 && wait <= settings.backoff_max);
        }
        assert!(settings.backoff(20) >= settings.backoff_max / 2);
    }
}
