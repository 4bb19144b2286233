//! openraft's configuration. Whatever differs from its defaults says why.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use podkv_api::{Error, Reason, Result};

use crate::config::RaftTiming;

/// For the last step of a snapshot's transfer, in which the receiver reads and checks every byte of it:
/// 60 GB at 100 MB/s. Pieces on the way have a limit of their own.
const INSTALL_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);

/// Entries in one replication request; bytes are bounded where the log is read.
const MAX_PAYLOAD_ENTRIES: u64 = 1024;

pub(super) fn raft_config(timing: &RaftTiming) -> Result<Arc<Config>> {
    let election_max = millis(timing.election_max);
    let config = Config {
        cluster_name: "podkv".into(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: election_max,
        // A node that comes back from a partition does not depose a leader that works.
        enable_pre_vote: Some(true),
        // A leader that lost its majority falls silent, so that the others elect one.
        quorum_loss_probe_interval: Some(2 * election_max),
        // The state is not synced: a leader that was restarted could serve an older one.
        enable_leader_restore: Some(false),
        // A log that goes backwards under a live id is a lost write, never normal.
        allow_log_reversion: Some(false),
        // Snapshots and purges go by bytes and by time: see `LogKeeper`. So openraft builds none by itself,
        // and purges nothing when one was built.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        install_snapshot_timeout: millis(INSTALL_SNAPSHOT_TIMEOUT),
        max_payload_entries: MAX_PAYLOAD_ENTRIES,
        // What queues is merged; nothing ever waits for more.
        api_batch_linger_ms: 0,
        // A peer that restarts is back within a second: look for it that often.
        backoff: "20ms 40ms 80ms ...500ms".into(),
        ..Config::default()
    };
    let config = config.validate().map_err(|error| {
        let text = format!("raft timing: {error}");
        Error::new(Reason::Configuration, text).with_source(error)
    })?;
    Ok(Arc::new(config))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_timings_are_valid() {
        for timing in [RaftTiming::default(), RaftTiming::fast()] {
            let config = raft_config(&timing).unwrap();
            assert!(config.quorum_loss_probe_interval.unwrap() >= 2 * config.election_timeout_max);
        }
    }

    #[test]
    fn a_bad_timing_is_named() {
        let timing = RaftTiming {
            election_max: Duration::ZERO,
            ..RaftTiming::fast()
        };
        assert_eq!(
            raft_config(&timing).unwrap_err().reason(),
            Reason::Configuration
        );
    }
}
