//! Where other nodes might be.
//!
//! Discovery only *suggests* addresses. Who is a member is decided by committed membership, and who founds
//! a cluster by `bootstrap`: a wrong, stale or missing suggestion can delay either, and change
//! neither.

pub mod fixed;

use futures_util::future::BoxFuture;
use podkv_api::Result;

pub use self::fixed::FixedDiscovery;

/// An address at which a node might answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suggestion {
    /// The pod's name that is expected there; `None` if the source cannot tell. A hint: the node says
    /// its own name.
    pub name: Option<String>,
    /// `host:port`; the name is resolved on dialing, not here.
    pub peer_address: String,
}

/// A source of suggestions.
pub trait Discovery: Send + Sync + 'static {
    /// Every address that is worth asking now, this node's own among them or not, in any order.
    ///
    /// An empty list means that the source was asked and knows of nobody. A source that could not be asked
    /// (a DNS failure, NXDOMAIN, a time-out) must fail instead: silence never means "I am alone".
    fn suggest(&self) -> BoxFuture<'_, Result<Vec<Suggestion>>>;
}
