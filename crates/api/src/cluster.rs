//! The cluster: who answered, who belongs to it, how it is.

use crate::kv::Revision;

/// Names a cluster, for ever. Random, agreed on once at bootstrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

/// Names a node. Random, never reused: a node that lost its volume comes back under a new id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// Fences a cluster against its own past: recovery from a lost majority adds one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::fmt::Display for MemberId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Comes with every answer: which state it speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    /// The node that answered.
    pub member: MemberId,
    /// The Raft term that the node was in.
    pub term: u64,
    /// Of a write: its revision. Of a read: the latest revision of the state it was served from.
    pub revision: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    Voter,
    /// Holds everything, serves every call, has no vote.
    Learner,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: MemberId,
    /// The pod's name, `podkv-0`.
    pub name: String,
    /// `host:port` for peers; a name, resolved afresh on every dial.
    pub peer_address: String,
    /// `host:port` for clients.
    pub client_address: String,
    pub role: MemberRole,
}

/// One node's view of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    pub header: Header,
    pub name: String,
    /// The release, as semver.
    pub version: String,
    pub role: Option<MemberRole>,
    pub leader: Option<MemberId>,
    pub committed_index: u64,
    pub applied_index: u64,
    /// The index of the first log entry that this node holds. If a snapshot covers the whole log, one more
    /// than `last_log_index`.
    pub first_log_index: u64,
    /// The index of the last log entry, held or covered by a snapshot. 0 before the first.
    pub last_log_index: u64,
    /// The index that the newest snapshot covers.
    pub snapshot_index: u64,
    pub compacted_revision: Revision,
    /// How many keys there are.
    pub keys: u64,
    /// Bytes on the volume: the log and the state.
    pub disk_bytes: u64,
    /// False if acknowledged writes may be lost with the process: memory storage.
    pub durable: bool,
    /// The cluster clock, in milliseconds.
    pub clock_ms: u64,
    pub retention: Retention,
    /// What the cluster's members have agreed to understand. Releases above it behave as it says.
    pub feature_level: u32,
    /// How many pods there should be; `None` if nobody has told the cluster yet.
    pub desired_size: Option<DesiredSize>,
    /// What is wrong with which members, as far as this node has applied it.
    pub alarms: Vec<Alarm>,
    /// The node has the setting `lease-reads`: while it leads, linearizable reads may go by its lease.
    pub lease_reads: bool,
}

/// What is wrong with a member, so that the whole cluster has to know. Replicated: every node tells the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alarm {
    pub member: MemberId,
    pub kind: AlarmKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum AlarmKind {
    /// The member's volume is nearly full, or its data is beyond its quota. Writes that add data are refused with
    /// [`Reason::NoSpace`](crate::Reason::NoSpace) until the member takes the alarm back.
    NoSpace = 1,
    /// The member's data differs from what most members hold at the same revision. It is to be set aside and
    /// taken from the others anew; nothing does that by itself.
    Corrupt = 2,
}

impl AlarmKind {
    /// As etcd names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSpace => "NOSPACE",
            Self::Corrupt => "CORRUPT",
        }
    }

    /// The kind for a number from a disk or a wire; `None` for one that this release does not know.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::NoSpace),
            2 => Some(Self::Corrupt),
            _ => None,
        }
    }
}

impl std::fmt::Display for Alarm {
    /// As etcd's status words it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "memberID:{} alarm:{} ", self.member.0, self.kind.name())
    }
}

/// How many pods there should be, replicated. Who is beyond it leaves, the lowest ordinals vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredSize {
    /// The StatefulSet's UID; empty if the size was set by hand.
    pub source: String,
    /// Only a larger one of the same source counts.
    pub generation: u64,
    /// The lowest ordinal.
    pub start: u32,
    /// 0 is suspension: the same members come back.
    pub replicas: u32,
}

impl DesiredSize {
    /// The most pods of one cluster. Each holds everything, and all but a few are standbys.
    pub const MAX_REPLICAS: u32 = 256;
}

/// How much history automatic compaction leaves, replicated. What either bound gives up may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// History younger than this is kept; `None` puts no bound on age.
    pub keep_ms: Option<u64>,
    /// At most this many revisions are kept; `None` puts no bound on their number.
    pub max_revisions: Option<u64>,
}

impl Retention {
    /// Long enough for a watcher to come back from almost anything.
    pub const DEFAULT_KEEP_MS: u64 = 60 * 60 * 1000;
    /// Bounds the space of a store that is written to without pause.
    pub const DEFAULT_MAX_REVISIONS: u64 = 1_000_000;
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            keep_ms: Some(Self::DEFAULT_KEEP_MS),
            max_revisions: Some(Self::DEFAULT_MAX_REVISIONS),
        }
    }
}
