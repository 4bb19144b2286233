//! Who belongs to the group: our own types, so that openraft's stay behind the raft folder.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podkv_api::{Member, MemberId, MemberRole};

/// A place in the replicated log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    pub term: u64,
    pub index: u64,
}

impl std::fmt::Display for LogPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

/// A learner this many entries behind has caught up: the rest is replicated while it is promoted.
pub(crate) const CAUGHT_UP_ENTRIES: u64 = 256;

/// How to reach a node. Addresses are names, resolved afresh on every dial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerAddress {
    /// The pod's name.
    pub name: String,
    /// `host:port` for peers.
    pub peer_address: String,
    /// `host:port` for clients.
    pub client_address: String,
}

/// A committed (or at least appended) membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The entry that made it; `None` before there is any.
    pub position: Option<LogPosition>,
    /// One set of voters; two while a joint change is under way, and then a majority of each counts.
    pub voters: Vec<BTreeSet<MemberId>>,
    /// Everybody, learners included.
    pub nodes: BTreeMap<MemberId, PeerAddress>,
}

/// What a leader sees of its members.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub members: Members,
    /// The membership is committed.
    pub settled: bool,
    /// This leader is making a change of it.
    pub changing: bool,
    pub peers: BTreeMap<MemberId, ObservedPeer>,
    /// A peer that has answered within this time is there.
    pub alive_within: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ObservedPeer {
    /// How long ago it last answered this leader; `None` if it never has.
    pub answered: Option<Duration>,
    /// Entries that it lacks.
    pub behind: u64,
}

impl Members {
    pub fn is_voter(&self, id: MemberId) -> bool {
        self.voters.iter().any(|set| set.contains(&id))
    }

    pub fn contains(&self, id: MemberId) -> bool {
        self.nodes.contains_key(&id)
    }

    /// As users see them.
    pub fn list(&self) -> Vec<Member> {
        self.nodes
            .iter()
            .map(|(id, address)| Member {
                id: *id,
                name: address.name.clone(),
                peer_address: address.peer_address.clone(),
                client_address: address.client_address.clone(),
                role: if self.is_voter(*id) {
                    MemberRole::Voter
                } else {
                    MemberRole::Learner
                },
            })
            .collect()
    }
}
