//! The limits on requests, in one place.

/// Limits that every face of a node checks before a request goes further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request: keys and values together, in bytes.
    pub max_request_bytes: usize,
    /// The most operations in one list of a transaction (compare, then, else), per level.
    pub max_txn_ops: usize,
    /// How deep transactions may nest.
    pub max_txn_depth: usize,
    /// The longest key, in bytes.
    pub max_key_bytes: usize,
}

impl Limits {
    /// etcd's own default.
    pub const DEFAULT_MAX_REQUEST_BYTES: usize = 1536 * 1024;
    /// etcd's own default.
    pub const DEFAULT_MAX_TXN_OPS: usize = 128;
    /// Far more than any program nests, far less than any stack holds.
    pub const DEFAULT_MAX_TXN_DEPTH: usize = 8;
    /// Keys are indexed several times over; values are the place for data.
    pub const DEFAULT_MAX_KEY_BYTES: usize = 64 * 1024;
    /// The largest answer that is sent in one message; a client accepts a little more than that. Larger
    /// ranges are streamed in chunks.
    pub const MAX_ANSWER_BYTES: usize = 16 << 20;
    /// About 285 years: etcd's bound, in milliseconds.
    pub const MAX_TTL_MS: u64 = 9_000_000_000_000;
    /// Shorter than an election takes, a lease would expire before its holder could renew it.
    pub const MIN_LEASE_TTL_MS: u64 = 2_000;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_request_bytes: Self::DEFAULT_MAX_REQUEST_BYTES,
            max_txn_ops: Self::DEFAULT_MAX_TXN_OPS,
            max_txn_depth: Self::DEFAULT_MAX_TXN_DEPTH,
            max_key_bytes: Self::DEFAULT_MAX_KEY_BYTES,
        }
    }
}
