//! What a seed decides before the first tick: how large the cluster is, its settings, how its disks and clocks are, who
//! calls, and what will be done to it.

use std::time::Duration;

use podkv_node::config::{MembershipTiming, NodeConfig, RaftTiming};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::disk::Temper;
use super::people::Crowd;

/// A bug that is put into the world around podkv, to see whether it is found: what ships holds no switch for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Planted {
    /// The log's disk says that a batch is synced while it waits for the next one.
    LostFsync,
    /// A pod with an empty volume goes on under its old node id, as with ids made of ordinals.
    ReusedNodeId,
    /// Linearizable reads are served like local ones.
    StaleRead,
    /// What has no answer is sent again as if it were new.
    DoubleApply,
    /// Now and then a watcher is not told of a revision.
    SkippedEvent,
    /// The pods' clocks go a fifth too fast: leases end early.
    FastClock,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Pods at the beginning.
    pub pods: u32,
    /// The cluster is scaled while it runs.
    pub scales: bool,
    /// Volumes are lost and rewound.
    pub loses_volumes: bool,
    /// How long faults are made.
    pub trouble: Duration,
    /// Between two faults, at most.
    pub calm: Duration,
    pub temper: Temper,
    pub crowd: Crowd,
    /// Clients live on so many hosts.
    pub crowds: u32,
    /// Pods' clocks go slower than the clients' by up to this, in parts of a million.
    pub skew_ppm: i32,
    pub planted: Option<Planted>,
    fast: bool,
    snapshot_log_bytes: u64,
    log_keep_bytes: u64,
    log_cache_bytes: usize,
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let pods = match rng.random_range(0..10) {
            0 => 1,
            1 => 5,
            _ => 3,
        };
        let sync = [2, 5, 5, 20][rng.random_range(0..4)];
        let crowd = Crowd {
            everywhere: rng.random_range(2..=4),
            fixed: rng.random_range(1..=2),
            lease_holders: rng.random_range(0..=1),
            lockers: rng.random_range(0..=2),
            watchers: rng.random_range(0..=2),
            rest: Duration::from_millis([30, 80, 200][rng.random_range(0..3)]),
        };
        Self {
            seed,
            pods,
            scales: pods == 3 && rng.random_bool(0.15),
            loses_volumes: pods > 1 && rng.random_bool(0.3),
            trouble: Duration::from_secs(rng.random_range(8..30)),
            calm: Duration::from_millis([400, 1200, 3000][rng.random_range(0..3)]),
            temper: Temper {
                sync: Duration::from_millis(sync),
                access: Duration::from_millis(rng.random_range(0..=2)),
                flush: [0.0, 0.02, 0.2][rng.random_range(0..3)],
            },
            crowd,
            crowds: 2,
            skew_ppm: [0, 0, 1000, 20_000][rng.random_range(0..4)],
            planted: None,
            fast: rng.random_bool(0.5),
            snapshot_log_bytes: 1 << rng.random_range(12..20),
            log_keep_bytes: [0, 4 << 10, 64 << 10][rng.random_range(0..3)],
            log_cache_bytes: [0, 16 << 10, 64 << 20][rng.random_range(0..3)],
        }
    }

    /// The same, with a bug. Faults that it takes to see it are made.
    #[must_use]
    pub fn with(mut self, planted: Option<Planted>) -> Self {
        self.planted = planted;
        if planted == Some(Planted::ReusedNodeId) {
            self.pods = self.pods.max(3);
            self.loses_volumes = true;
        }
        self
    }

    /// Changes a pod's settings from their defaults.
    pub fn configure(&self, config: &mut NodeConfig) {
        if self.fast {
            config.timing = RaftTiming::fast();
            config.membership = MembershipTiming {
                read_size_every: Duration::from_secs(1),
                ..MembershipTiming::fast()
            };
        }
        config.snapshot_log_bytes = self.snapshot_log_bytes;
        config.log_keep_bytes = self.log_keep_bytes;
        config.log_cache_bytes = self.log_cache_bytes;
    }
}
