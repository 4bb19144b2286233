//! Sessions: writes that are applied at most once, however often they are sent.

/// Names a session. Random, chosen when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u128);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a write carries to be applied at most once.
///
/// The same `sequence` again gets the first answer back. With another payload it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStamp {
    pub session: SessionId,
    /// Numbers the writes of the session, from 1. Concurrent writes take distinct numbers.
    pub sequence: u64,
    /// The sender has the answers to all sequences below this one, so they may be forgotten.
    pub acknowledged_below: u64,
}
