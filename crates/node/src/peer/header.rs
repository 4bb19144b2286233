//! What every call between nodes says about its sender and its target.

use std::ops::RangeInclusive;
use std::sync::Arc;

use podkv_api::MemberId;
use podkv_proto::peer as wire;

use super::gate::Gate;
use crate::identity::Identity;

/// The version of `podkv.peer.v1` that this release speaks. Raised only by a change that the other side
/// cannot ignore; fields are added without it.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

/// The cluster feature levels that this release can run at.
pub(crate) const FEATURES: RangeInclusive<u32> = 0..=podkv_core::FEATURE_LEVEL;

/// The Raft group. Reserved: there is one.
pub(crate) const GROUP: u32 = 0;

/// Writes the headers of one node.
#[derive(Clone)]
pub(crate) struct PeerHeaders {
    identity: Arc<Identity>,
}

impl PeerHeaders {
    pub(crate) fn new(identity: Arc<Identity>) -> Self {
        Self { identity }
    }

    /// A gate for the answers to such calls.
    pub(crate) fn gate(&self) -> Gate {
        Gate::new(self.identity.clone())
    }

    /// The header of a call to `target`; [`MemberId`] 0 where it is not known yet. Cluster 0 while the node
    /// is not a member: an acceptance alone makes it part of nothing.
    pub(crate) fn to(&self, target: MemberId) -> wire::PeerHeader {
        let (cluster, incarnation) = self.identity.membership().unwrap_or_default();
        wire::PeerHeader {
            protocol_version: PROTOCOL_VERSION,
            feature_min: *FEATURES.start(),
            feature_max: *FEATURES.end(),
            group_id: GROUP,
            cluster_id: cluster.0,
            incarnation: incarnation.0,
            sender_id: self.identity.node_id().0,
            target_id: target.0,
            boot_counter: self.identity.boot_counter(),
            boot_nonce: self.identity.boot_nonce(),
            credentials: Vec::new().into(),
            sender_name: self.identity.name().to_owned(),
        }
    }
}
