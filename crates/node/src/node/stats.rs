//! Figures for metrics and balancers. Cheap to take: counters, no disk.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Node;
use super::requests::Requests;
use crate::config::StorageConfig;
use crate::raft::{HistogramSnapshot, LogStats, Role, SnapshotStats};
use crate::space::VolumeSpace;
use crate::watch::WatchStats;

/// A node's figures at one moment. Totals count since the start.
#[derive(Clone, Debug)]
pub struct NodeStats {
    /// What it does in the Raft group.
    pub role: &'static str,
    /// Writes that were admitted here and have no answer yet.
    pub writes_in_flight: usize,
    pub log_bytes: u64,
    /// Batches of the log that were synced: one fsync each.
    pub log_fsyncs_total: u64,
    pub log_entries_total: u64,
    pub log_bytes_total: u64,
    /// One write of a batch of the log with its fsync.
    pub log_write_latency: Latency,
    /// For how long the disk has not answered the write of the log that is under way; zero if none is.
    pub log_writing_for: Duration,
    /// Writes of the log that took longer than [`stall_timeout`](crate::NodeConfig::stall_timeout).
    pub log_stalls_total: u64,
    /// One batch of committed entries, applied to the state.
    pub apply_latency: Latency,
    /// Of the leader: how many entries each other member lacks, by the pod's name. Empty elsewhere.
    pub peers_behind: BTreeMap<String, u64>,
    /// Snapshots of the own state that were built, to purge the log and to send to peers.
    pub snapshots_built_total: u64,
    /// Snapshots of a peer that took the place of the own state: this node had fallen behind a purged log.
    pub snapshots_installed_total: u64,
    /// Wrong names and passwords.
    pub passwords_refused_total: u64,
    /// Tokens that did not hold, or no longer.
    pub tokens_refused_total: u64,
    pub watches: usize,
    /// Watches that catch up, or are too slow for what happens now.
    pub watches_behind: usize,
    /// Events in memory for watches.
    pub watch_buffered_bytes: usize,
    pub watches_fell_behind_total: u64,
    /// Watches that ended because their place was compacted.
    pub watches_compacted_total: u64,
    /// Reads of the state for watches.
    pub watch_reads_total: u64,
    /// Reads of the state because the hub itself fell behind, or a snapshot was installed.
    pub watch_gaps_total: u64,
}

/// How long something took.
#[derive(Clone, Debug)]
pub struct Latency {
    /// (upper bound in microseconds, how many took no longer and more than the bound before);
    /// `u64::MAX` bounds the last.
    pub buckets: Vec<(u64, u64)>,
    pub sum_micros: u64,
}

impl From<HistogramSnapshot> for Latency {
    fn from(snapshot: HistogramSnapshot) -> Self {
        Self {
            buckets: snapshot.buckets,
            sum_micros: snapshot.sum_micros,
        }
    }
}

impl Node {
    /// What clients asked of this node over the network; whoever serves them counts.
    pub fn requests(&self) -> &Requests {
        &self.0.requests
    }

    /// The space on the volume; `None` on memory storage. Asks the file system, and waits for it.
    pub async fn volume_space(&self) -> Option<VolumeSpace> {
        let StorageConfig::Disk { data_dir } = &self.0.config.storage else {
            return None;
        };
        let data_dir = data_dir.clone();
        let asked = tokio::task::spawn_blocking(move || VolumeSpace::of(&data_dir)).await;
        asked.ok()?.ok()
    }

    fn peers_behind(&self) -> BTreeMap<String, u64> {
        let Some(observed) = self.0.group.observe().filter(|_| self.is_leader()) else {
            return BTreeMap::new();
        };
        let nodes = &observed.members.nodes;
        let peers = observed.peers.iter();
        peers
            .filter_map(|(id, peer)| Some((nodes.get(id)?.name.clone(), peer.behind)))
            .collect()
    }

    /// The node's figures now.
    pub fn stats(&self) -> NodeStats {
        let log: LogStats = self.0.group.log_stats();
        let snapshots: SnapshotStats = self.0.group.snapshot_stats();
        let watch: WatchStats = self.0.watches.stats();
        // Let go of at once: what is asked below borrows it again, and with a change in between both would wait for ever.
        let role = self.0.group.state().borrow().role;
        NodeStats {
            role: match role {
                Role::Learner => "learner",
                Role::Follower => "follower",
                Role::Candidate => "candidate",
                Role::Leader => "leader",
                Role::Stopped => "stopped",
            },
            writes_in_flight: self.0.writer.in_flight(),
            log_bytes: log.bytes,
            log_fsyncs_total: log.fsyncs,
            log_entries_total: log.entries_written,
            log_bytes_total: log.bytes_written,
            log_write_latency: log.write_latency.into(),
            log_writing_for: self.0.group.log_writing_for().unwrap_or_default(),
            log_stalls_total: self.0.stalls.total.load(Relaxed),
            apply_latency: self.0.group.apply_latency().into(),
            peers_behind: self.peers_behind(),
            snapshots_built_total: snapshots.built,
            snapshots_installed_total: snapshots.installed,
            passwords_refused_total: self.0.refusals.passwords.load(Relaxed),
            tokens_refused_total: self.0.refusals.tokens.load(Relaxed),
            watches: watch.watchers,
            watches_behind: watch.behind,
            watch_buffered_bytes: watch.buffered_bytes,
            watches_fell_behind_total: watch.fell_behind_total,
            watches_compacted_total: watch.compacted_total,
            watch_reads_total: watch.reads_total,
            watch_gaps_total: watch.gaps_total,
        }
    }
}
