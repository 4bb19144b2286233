//! Sessions.

/// A sequence is accepted if it is less than this above its `acknowledged_below`.
pub const SESSION_WINDOW: u64 = 4096;

/// How many sessions may be open at once.
pub(crate) const MAX_SESSIONS: u64 = 100_000;
