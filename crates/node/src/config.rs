//! The settings of a node. Data only; a front end parses them, [`NodeConfig::check`] checks them.

use std::path::PathBuf;
use std::time::Duration;

use podkv_api::{Error, Limits, Reason, Result};
pub use podkv_tls::{ClientAuth, TlsConfig, TlsMode};

/// Where a node keeps its log and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageConfig {
    /// Two RocksDB databases below this folder.
    Disk { data_dir: PathBuf },
    /// Gone with the process: for tests, and to try podkv without a C++ build.
    Memory,
}

/// The timing of Raft. All of a cluster's nodes should agree on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftTiming {
    /// The leader says "I am here" this often. Its answers wait for the follower's fsync, so keep it
    /// above the disk's p99.9.
    pub heartbeat: Duration,
    /// A follower that heard nothing for the larger of these, plus a random part, campaigns.
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Default for RaftTiming {
    /// For network volumes: fsyncs of 100 ms are seen there on a bad day.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(800),
            election_max: Duration::from_millis(1200),
        }
    }
}

impl RaftTiming {
    /// For local SSDs and loopback.
    pub fn fast() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(250),
        }
    }
}

/// When a leader changes the membership by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipTiming {
    /// An id that was silent for so long is replaced by a newer one of the same name. Far more than an
    /// election; a restart that takes longer keeps its id all the same, as long as its volume is there.
    pub replace_after: Duration,
    /// Between two replacements under one name: a volume that is lost every few seconds is another problem.
    pub replace_interval: Duration,
    /// Pods beyond the desired size leave after this: a typing error can be taken back.
    pub shrink_after: Duration,
    /// A vote is taken away only when the membership was left alone for so long: a pod that comes and goes
    /// must not make others' votes flap.
    pub demote_after: Duration,
    /// The leader reads the StatefulSet this often. A size that was set takes that long to be noticed, and then
    /// waits for `shrink_after` in any case; more often would only burden the API server.
    pub read_size_every: Duration,
    /// One reading, connecting included. An API server that takes longer is as good as away.
    pub read_size_timeout: Duration,
}

impl Default for MembershipTiming {
    fn default() -> Self {
        Self {
            replace_after: Duration::from_secs(10),
            replace_interval: Duration::from_secs(10),
            shrink_after: Duration::from_secs(30),
            demote_after: Duration::from_secs(30),
            read_size_every: Duration::from_secs(10),
            read_size_timeout: Duration::from_secs(5),
        }
    }
}

impl MembershipTiming {
    /// For tests.
    pub fn fast() -> Self {
        Self {
            replace_after: Duration::from_secs(1),
            replace_interval: Duration::from_secs(1),
            shrink_after: Duration::from_secs(1),
            demote_after: Duration::from_secs(1),
            read_size_every: Duration::from_millis(50),
            read_size_timeout: Duration::from_secs(1),
        }
    }
}

/// The settings of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The pod's name, with its ordinal: `podkv-0`.
    pub name: String,
    pub storage: StorageConfig,
    /// Listens here for peers.
    pub peer_listen: String,
    /// What peers dial: a name that is resolved afresh on every dial.
    pub peer_address: String,
    /// What clients are told to dial; empty if this node has no port for them.
    pub client_address: String,
    /// How many replicas found the cluster together. Not used if a [`crate::SizeSource`] says it.
    pub replicas: u32,
    /// At most this many of them vote.
    pub max_voters: u32,
    /// A read-only replica: it joins a cluster of pods of another name, never founds one, and never votes. It serves
    /// every call, as any learner does, and leaves by itself when it stops beyond the size of its own set.
    pub read_only: bool,
    /// TLS between peers, and with clients where a server listens for them; off by default.
    pub tls: TlsConfig,
    pub timing: RaftTiming,
    /// The leader answers linearizable reads without asking a majority while it holds a lease, which the nodes that have
    /// this setting renew with each heartbeat. Off by default: it trusts clocks. No clock of a node may go faster than another's by
    /// more than a tenth, and no node's machine may be suspended, or its virtual machine paused, snapshotted or
    /// migrated live; stopped processes are fine. With it a node that starts neither votes nor campaigns for one
    /// `election_max`. It may differ between nodes: who has it off promises nothing to anybody.
    ///
    /// Turn it off and restart the node, and wait for an `election_max`, before you go back to a release that does not know it.
    pub lease_reads: bool,
    pub membership: MembershipTiming,
    pub limits: Limits,
    /// How long a token holds that a caller was given for its password. Nobody renews one by using it, and clients of
    /// etcd are known that authenticate once in their life, so it is long; changing the password, or deleting the
    /// user, ends it at once.
    pub auth_token_ttl: Duration,
    /// Whether callers may be told to authenticate although [`NodeConfig::tls`] lets them come in clear.
    pub auth_without_tls: bool,
    /// A write that has no answer by then fails with an unknown outcome.
    pub request_timeout: Duration,
    /// Proposals and their bytes that may be waiting for an answer on this node.
    pub max_inflight_proposals: usize,
    pub max_inflight_bytes: usize,
    /// The state may grow to this many bytes on this node; 0 is no quota, and the volume bounds it alone. Beyond it the
    /// cluster refuses writes that add data. None by default: what fits is known to who chose the volume.
    pub quota_bytes: u64,
    /// What is kept free on the volume: below it, the cluster refuses writes that add data. `None` goes by the
    /// volume's size: see [`VolumeSpace::default_headroom`](crate::VolumeSpace::default_headroom).
    pub headroom_bytes: Option<u64>,
    /// The members compare digests of their data this often, and each reads its log through; zero is never. Every day:
    /// what bit rot or a defect has changed unseen should not be found on the day when that replica is needed. It
    /// costs one reading of all keys.
    pub scrub_interval: Duration,
    /// A leader whose disk has not answered a write of the log for so long hands over to a voter whose disk does. Far
    /// longer than the fsyncs of a volume that is slow and works, 100 ms on a bad day: a change of leaders costs more
    /// than those. Writes wait meanwhile, so not much longer.
    pub stall_timeout: Duration,
    /// Build a snapshot and purge when the log has grown by this much since the last one.
    pub snapshot_log_bytes: u64,
    /// … or this much time has passed and there is anything to cover.
    pub snapshot_interval: Duration,
    /// Keep at least this much log behind the snapshot, for followers that are a little behind.
    pub log_keep_bytes: u64,
    /// Recent log entries kept in memory, so that followers that are a little behind cost no disk reads.
    pub log_cache_bytes: usize,
    /// RocksDB's block cache for the state.
    pub cache_bytes: usize,
    /// The watch hub keeps this many bytes of recent events for watchers that fall a little behind.
    pub watch_buffer_bytes: usize,
    /// The leader looks this often for what large values have left: chunks of uploads that died, and of values that were
    /// overwritten. A round without any is two reads. What is found sooner is not free sooner: it stays in the history
    /// until that is compacted.
    pub collect_large_every: Duration,
}

impl NodeConfig {
    /// A node with the default settings.
    pub fn new(name: impl Into<String>, storage: StorageConfig) -> Self {
        Self {
            name: name.into(),
            storage,
            peer_listen: "127.0.0.1:2380".into(),
            peer_address: "127.0.0.1:2380".into(),
            client_address: "127.0.0.1:2379".into(),
            replicas: 1,
            max_voters: 5,
            read_only: false,
            tls: TlsConfig::default(),
            timing: RaftTiming::default(),
            lease_reads: false,
            membership: MembershipTiming::default(),
            limits: Limits::default(),
            auth_token_ttl: Duration::from_secs(24 * 3600),
            auth_without_tls: false,
            request_timeout: Duration::from_secs(5),
            max_inflight_proposals: 65_536,
            max_inflight_bytes: 64 << 20,
            scrub_interval: Duration::from_secs(24 * 3600),
            stall_timeout: Duration::from_secs(2),
            quota_bytes: 0,
            headroom_bytes: None,
            snapshot_log_bytes: 256 << 20,
            snapshot_interval: Duration::from_secs(3600),
            log_keep_bytes: 64 << 20,
            log_cache_bytes: 64 << 20,
            cache_bytes: 128 << 20,
            watch_buffer_bytes: 32 << 20,
            collect_large_every: Duration::from_secs(10),
        }
    }

    /// The StatefulSet ordinal: the digits after the last dash of the name.
    pub fn ordinal(&self) -> Result<u32> {
        ordinal(&self.name).ok_or_else(|| {
            bad(format!(
                "node name {:?} has no ordinal; expected a form like podkv-0",
                self.name
            ))
        })
    }

    /// Refuses settings that cannot work, naming the setting and what would be accepted.
    pub fn check(&self) -> Result<()> {
        self.ordinal()?;
        if self.replicas == 0 {
            return Err(bad("replicas is 0; expected at least 1".into()));
        }
        if self.max_voters.is_multiple_of(2) {
            return Err(bad(format!(
                "max_voters is {}; expected an odd number",
                self.max_voters
            )));
        }
        if self.stall_timeout < Duration::from_millis(100) {
            return Err(bad(format!(
                "stall_timeout is {:?}; expected at least 100 ms",
                self.stall_timeout
            )));
        }
        if self.auth_token_ttl < Duration::from_secs(1) {
            return Err(bad(format!(
                "auth_token_ttl is {:?}; expected at least 1 s",
                self.auth_token_ttl
            )));
        }
        if self.collect_large_every.is_zero() {
            return Err(bad(
                "collect_large_every is 0; expected more, like 10 s".into()
            ));
        }
        let timing = &self.timing;
        if timing.heartbeat * 2 >= timing.election_min || timing.election_min >= timing.election_max
        {
            return Err(bad(format!(
                "heartbeat {:?}, election {:?} to {:?}; expected heartbeat * 2 < election_min < election_max",
                timing.heartbeat, timing.election_min, timing.election_max
            )));
        }
        Ok(())
    }
}

/// The StatefulSet ordinal in a pod's name.
pub fn ordinal(name: &str) -> Option<u32> {
    let (_, digits) = name.rsplit_once('-')?;
    digits.parse().ok()
}

fn bad(text: String) -> Error {
    Error::new(Reason::Configuration, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinal_is_the_number_after_the_last_dash() {
        assert_eq!(ordinal("my-store-12"), Some(12));
        assert_eq!(ordinal("store"), None);
        assert_eq!(ordinal("store-x"), None);
    }

    #[test]
    fn bad_settings_name_themselves() {
        let mut config = NodeConfig::new("podkv-0", StorageConfig::Memory);
        config.check().unwrap();
        config.max_voters = 4;
        assert!(config.check().unwrap_err().text().contains("max_voters"));
    }
}
