//! Single reads and writes: put, delete, range.

use std::time::Duration;

use bytes::Bytes;

use crate::cluster::Header;
use crate::key::KeyRange;
use crate::lease::LeaseId;

/// The cluster-wide version of the keyspace. An empty store is at revision 1; each committed write
/// transaction that changes anything adds one. 0 means "none" or "latest", depending on the field.
pub type Revision = u64;

/// How fresh a read must be. Weaker reads are asked for by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began. Any node may serve it.
    #[default]
    Linearizable,
    /// Served from the node's own state, if that state is at most this old; else the error is
    /// [`Reason::TooStale`](crate::Reason::TooStale).
    Bounded(Duration),
    /// Served from the node's own state, however old.
    Local,
}

/// A key with its value and metadata, as of some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    /// Empty in a keys-only range and in a delete event.
    pub value: Bytes,
    /// The revision that created the key (for this life of it).
    pub create_revision: Revision,
    /// The revision that wrote this value.
    pub mod_revision: Revision,
    /// The number of writes in this life of the key; the first is 1.
    pub version: u64,
    /// The lease that the key is attached to.
    pub lease: Option<LeaseId>,
    /// When the key expires by a TTL of its own, in milliseconds of the cluster clock.
    pub expires_at_ms: Option<u64>,
}

/// Writes one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    /// Attach the key to this lease. `None` detaches it from the lease that it had.
    pub lease: Option<LeaseId>,
    /// Let the key expire by itself, in milliseconds. `None` clears an earlier TTL.
    /// Excludes `lease`.
    pub ttl_ms: Option<u64>,
    /// Return the value that was replaced.
    pub prev_kv: bool,
    /// Keep the value, change the rest. The key must exist and `value` must be empty.
    pub ignore_value: bool,
    /// Keep the lease (and the TTL) that the key has. The key must exist and `lease` must be `None`.
    pub ignore_lease: bool,
}

impl Put {
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            lease: None,
            ttl_ms: None,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }
    }

    pub fn lease(mut self, lease: LeaseId) -> Self {
        self.lease = Some(lease);
        self
    }

    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl_ms = Some(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        self
    }

    pub fn prev_kv(mut self) -> Self {
        self.prev_kv = true;
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutResponse {
    pub header: Header,
    /// The value before, if it was asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

/// Deletes the keys of a range, all in one revision. Deleting nothing makes no revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    pub range: KeyRange,
    /// Return what was deleted.
    pub prev_kv: bool,
}

impl Delete {
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            prev_kv: false,
        }
    }

    pub fn prev_kv(mut self) -> Self {
        self.prev_kv = true;
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteResponse {
    pub header: Header,
    /// How many keys were deleted.
    pub deleted: u64,
    /// What was deleted, in key order, if it was asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// Reads the keys of a range, all at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub range: KeyRange,
    /// At most this many keys; 0 is no limit.
    pub limit: u64,
    /// From the last key to the first.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Return the count and no keys.
    pub count_only: bool,
    /// Read as of this revision; 0 is the latest.
    pub revision: Revision,
    pub consistency: Consistency,
}

impl Range {
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            limit: 0,
            reverse: false,
            keys_only: false,
            count_only: false,
            revision: 0,
            consistency: Consistency::Linearizable,
        }
    }

    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    pub fn count_only(mut self) -> Self {
        self.count_only = true;
        self
    }

    pub fn at(mut self, revision: Revision) -> Self {
        self.revision = revision;
        self
    }

    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeResponse {
    /// Its revision is the store's latest, also for a read of the past.
    pub header: Header,
    pub kvs: Vec<KeyValue>,
    /// How many keys the range holds, whatever the limit.
    pub count: u64,
    /// True if the limit cut keys off.
    pub more: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactResponse {
    pub header: Header,
}
