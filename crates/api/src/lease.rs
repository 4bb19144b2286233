//! Leases: keys that live as long as somebody keeps them alive.

use bytes::Bytes;

use crate::cluster::Header;

/// Names a lease. Never 0: absence is `Option<LeaseId>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl std::fmt::Display for LeaseId {
    /// Hexadecimal, as etcdctl prints it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseGrantResponse {
    pub header: Header,
    pub lease: LeaseId,
    /// The TTL that was granted, in milliseconds; at least what was asked for.
    pub ttl_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    pub header: Header,
    pub lease: LeaseId,
    /// The TTL that was granted, in milliseconds.
    pub granted_ttl_ms: u64,
    /// What is left of it on the cluster clock, in milliseconds.
    pub remaining_ms: u64,
    /// The keys attached, if they were asked for.
    pub keys: Vec<Bytes>,
}
