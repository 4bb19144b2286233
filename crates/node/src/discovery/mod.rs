//! Where other nodes might be.
//!
//! Discovery only *suggests* addresses. Who is a member is decided by committed membership, and who founds
//! a cluster by `bootstrap`: a wrong, stale or missing suggestion can delay either, and change
//! neither.

pub mod fixed;
pub mod ordinal;
pub mod srv;

use std::ops::Range;

use futures_util::future::BoxFuture;
use podkv_api::{DesiredSize, Result};

pub use self::fixed::FixedDiscovery;
pub use self::ordinal::OrdinalDiscovery;
pub use self::srv::SrvDiscovery;

/// An address at which a node might answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suggestion {
    /// The pod's name that is expected there; `None` if the source cannot tell. A hint: the node says
    /// its own name.
    pub name: Option<String>,
    /// `host:port`; the name is resolved on dialing, not here.
    pub peer_address: String,
}

/// The pods that there should be, as far as this node knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ordinals {
    /// The lowest.
    pub start: u32,
    /// How many; 0 as long as nobody has said.
    pub replicas: u32,
}

impl Ordinals {
    pub fn range(self) -> Range<u32> {
        self.start..self.start.saturating_add(self.replicas)
    }

    pub fn contains(self, ordinal: u32) -> bool {
        self.range().contains(&ordinal)
    }
}

impl From<&DesiredSize> for Ordinals {
    fn from(size: &DesiredSize) -> Self {
        Self {
            start: size.start,
            replicas: size.replicas,
        }
    }
}

/// A source of suggestions.
pub trait Discovery: Send + Sync + 'static {
    /// Every address that is worth asking now, this node's own among them or not, in any order. A source
    /// that can name the expected pods suggests all of them, whatever else it has learned: a pod that
    /// is missing from an old or partial answer may be a member.
    ///
    /// A list without anybody else means that the source was asked and knows of nobody. A source that could not
    /// be asked (a DNS failure, NXDOMAIN, a time-out) must fail instead, or suggest every expected pod if
    /// there are others among them: silence never means "I am alone".
    fn suggest(&self, expected: Ordinals) -> BoxFuture<'_, Result<Vec<Suggestion>>>;
}
