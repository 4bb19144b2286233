//! What a seed decides before the first tick: how large the cluster is, its settings, how its disks and clocks are, who
//! calls, and what will be done to it.

use std::time::Duration;

use podkv_node::config::{MembershipTiming, NodeConfig, RaftTiming};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::disk::Temper;
use super::people::{Crowd, Door};

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
    /// The state forgets that a lease was renewed, so the next expiry kills it.
    LostRenewal,
    /// A session that has expired is still there, without what it knew of its writes.
    ExpiredSession,
    /// [`podkv_node::planted::Bug::ApplyAheadOfFsync`].
    #[cfg(feature = "planted")]
    ApplyAheadOfFsync,
    /// [`podkv_node::planted::Bug::PurgeAheadOfSnapshot`].
    #[cfg(feature = "planted")]
    PurgeAheadOfSnapshot,
    /// [`podkv_node::planted::Bug::ClockAcrossRestart`].
    #[cfg(feature = "planted")]
    ClockAcrossRestart,
    /// [`podkv_node::planted::Bug::LongLease`].
    #[cfg(feature = "planted")]
    LongLease,
}

#[cfg(feature = "planted")]
impl Planted {
    /// The bug, if it is one inside the node.
    pub fn in_the_node(self) -> Option<podkv_node::planted::Bug> {
        use podkv_node::planted::Bug;
        match self {
            Self::ApplyAheadOfFsync => Some(Bug::ApplyAheadOfFsync),
            Self::PurgeAheadOfSnapshot => Some(Bug::PurgeAheadOfSnapshot),
            Self::ClockAcrossRestart => Some(Bug::ClockAcrossRestart),
            Self::LongLease => Some(Bug::LongLease),
            _ => None,
        }
    }
}

/// Which pods have the setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseReads {
    Off,
    /// Each start of a pod draws anew: settings are mixed, and change.
    Some,
    On,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Pods at the beginning.
    pub pods: u32,
    /// The cluster is scaled while it runs.
    pub scales: bool,
    /// Volumes are lost, rewound and mounted wrongly, and logs rot.
    pub loses_volumes: bool,
    /// History is compacted all the time.
    pub compacts: bool,
    pub door: Door,
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
    /// Leaders answer reads by their lease.
    pub lease_reads: LeaseReads,
    pub planted: Option<Planted>,
    fast: bool,
    snapshot_log_bytes: u64,
    log_keep_bytes: u64,
    log_cache_bytes: usize,
    /// Members compare their data, and read their logs through, this often.
    scrub_interval: Duration,
    stall_timeout: Duration,
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
        // Drawn apart: what else a seed decides stays as it was.
        let mut leases = StdRng::seed_from_u64(seed ^ 0x1ea5e);
        let lease_reads = match leases.random_range(0..10) {
            0..6 => LeaseReads::Off,
            6 => LeaseReads::Some,
            _ => LeaseReads::On,
        };
        let mut plan = Self {
            seed,
            pods,
            scales: pods == 3 && rng.random_bool(0.15),
            loses_volumes: pods > 1 && rng.random_bool(0.3),
            // Most are short: a second of peace between two faults costs as much as one of trouble. Some are long,
            // because a lost volume or another size takes its time.
            trouble: Duration::from_secs(match rng.random_bool(0.75) {
                true => rng.random_range(5..12),
                false => rng.random_range(12..30),
            }),
            calm: Duration::from_millis([400, 1200, 3000][rng.random_range(0..3)]),
            temper: Temper {
                sync: Duration::from_millis(sync),
                access: Duration::from_millis(rng.random_range(0..=2)),
                flush: [0.0, 0.02, 0.2][rng.random_range(0..3)],
            },
            crowd,
            crowds: 2,
            skew_ppm: [0, 0, 1000, 20_000][rng.random_range(0..4)],
            lease_reads,
            planted: None,
            fast: rng.random_bool(0.5),
            snapshot_log_bytes: 1 << rng.random_range(12..20),
            log_keep_bytes: [0, 4 << 10, 64 << 10][rng.random_range(0..3)],
            log_cache_bytes: [0, 16 << 10, 64 << 20][rng.random_range(0..3)],
            compacts: rng.random_bool(0.3),
            door: Door {
                session_ttl: Duration::from_secs([2, 10, 60][rng.random_range(0..3)]),
                auth: rng.random_bool(0.15),
            },
            scrub_interval: Duration::from_secs([0, 1, 5][rng.random_range(0..3)]),
            stall_timeout: Duration::from_millis([500, 2000][rng.random_range(0..2)]),
        };
        // Two pods' clocks are then as far apart as 2 % too fast is from 2 % too slow.
        if plan.lease_reads != LeaseReads::Off && leases.random_bool(0.5) {
            plan.skew_ppm = 40_000;
        }
        plan
    }

    /// The same, with a bug. Faults that it takes to see it are made.
    #[must_use]
    pub fn with(mut self, planted: Option<Planted>) -> Self {
        self.planted = planted;
        match planted {
            Some(Planted::ReusedNodeId) => {
                self.pods = self.pods.max(3);
                self.loses_volumes = true;
            }
            Some(Planted::LostRenewal) => self.crowd.lease_holders = 1,
            #[cfg(feature = "planted")]
            Some(Planted::LongLease) => {
                // Elections are what it takes, and readers that stay with a leader that is cut off.
                self.pods = 3;
                self.lease_reads = LeaseReads::On;
                self.crowd.fixed = 3;
                self.crowd.rest = Duration::from_millis(30);
                self.calm = Duration::from_millis(400);
                self.trouble = Duration::from_secs(30);
            }
            Some(Planted::ExpiredSession) => self.door.session_ttl = Duration::from_secs(2),
            _ => {}
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
        config.scrub_interval = self.scrub_interval;
        config.stall_timeout = self.stall_timeout;
        // The network is the world's: nobody listens.
        config.auth_without_tls = true;
    }
}
