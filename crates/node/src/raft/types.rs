//! openraft's generics, fixed once. Nothing outside this folder names them.
//!
//! A log id is (term, index): [`leader_id_std`] allows one leader a term, and the choice sits in
//! every log id that is ever written.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use openraft::impls::{BoxedErrorSource, InlineBatch, TokioRuntime, leader_id_std};
use openraft::raft::responder::Responder;
use openraft::vote::RaftLeaderId;
use podkv_api::MemberId;
use podkv_core::codec::{self, CodecError, FrameKind, MAX_FRAME_BYTES};
use podkv_core::{Entry, Outcome};

use crate::membership::{LogPosition, Members, PeerAddress};

/// podkv's choice of types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Arc<Payload>;
    type R = Vec<Outcome>;
    /// A [`MemberId`].
    type NodeId = u64;
    type Node = PeerAddress;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = EntryPayload;
    type Entry = LogEntry;
    type AsyncRuntime = TokioRuntime;
    type Responder<T>
        = Answer<T>
    where
        T: Send + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = BoxedErrorSource;
}

pub(crate) type LeaderId = leader_id_std::LeaderId<u64, u64>;
pub(crate) type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Vote = openraft::impls::Vote<LeaderId>;
pub(crate) type LogEntry = openraft::Entry<CommittedLeaderId, EntryPayload>;
pub(crate) type EntryPayload = openraft::EntryPayload<Arc<Payload>, u64, PeerAddress>;
pub(crate) type Membership = openraft::Membership<u64, PeerAddress>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, PeerAddress>;
pub(crate) type SnapshotMeta = openraft::storage::SnapshotMeta<CommittedLeaderId, u64, PeerAddress>;
pub(crate) type Snapshot<D> = openraft::storage::Snapshot<CommittedLeaderId, u64, PeerAddress, D>;

/// Where openraft puts the answer to a proposal. Nobody may be waiting for it any more.
pub(crate) struct Answer<T>(pub tokio::sync::oneshot::Sender<T>);

impl<T: Send + 'static> Responder<TypeConfig, T> for Answer<T> {
    fn on_complete(self, result: T) {
        let _ = self.0.send(result);
    }
}

/// What one entry of the log carries: the bytes that the leader encoded once, and what they mean.
///
/// It is passed around as a shared pointer. The leader never decodes what it encoded; a follower
/// decodes when it applies, once.
pub(crate) struct Payload {
    encoded: Bytes,
    entry: OnceLock<Entry>,
}

impl Payload {
    /// Of a leader: it has the entry, and encodes it.
    pub fn new(entry: Entry) -> Arc<Self> {
        let encoded = entry.encode();
        Arc::new(Self {
            encoded,
            entry: OnceLock::from(entry),
        })
    }

    /// Of bytes from a peer: checks the frame and its checksum, so that nothing damaged is
    /// acknowledged or written.
    pub fn check(encoded: Bytes) -> Result<Arc<Self>, CodecError> {
        codec::unframe(FrameKind::Entry, &encoded, MAX_FRAME_BYTES)?;
        Ok(Self::from_log(encoded))
    }

    /// Of bytes from the own log, whose record has been checked.
    pub fn from_log(encoded: Bytes) -> Arc<Self> {
        Arc::new(Self {
            encoded,
            entry: OnceLock::new(),
        })
    }

    /// The frame, as it is written and sent.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// What it means.
    pub fn entry(&self) -> Result<&Entry, CodecError> {
        if let Some(entry) = self.entry.get() {
            return Ok(entry);
        }
        let entry = Entry::decode(&self.encoded)?;
        Ok(self.entry.get_or_init(|| entry))
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.encoded.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.encoded.len())
    }
}

/// Our position as openraft's log id.
pub(crate) fn log_id(position: LogPosition) -> LogId {
    LogId::new(CommittedLeaderId::new(position.term), position.index)
}

/// openraft's log id as our position.
pub(crate) fn position(id: &LogId) -> LogPosition {
    LogPosition {
        term: id.leader_id.term,
        index: id.index,
    }
}

/// openraft's membership as ours.
pub(crate) fn members(stored: &StoredMembership) -> Members {
    Members {
        position: stored.log_id().as_ref().map(position),
        voters: stored
            .get_joint_config()
            .iter()
            .map(|set| set.iter().copied().map(MemberId).collect())
            .collect(),
        nodes: stored
            .nodes()
            .map(|(id, node)| (MemberId(*id), node.clone()))
            .collect(),
    }
}

/// About how much memory an entry takes beside its payload.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// What an entry weighs in caches and batches.
pub(crate) fn weight(entry: &LogEntry) -> usize {
    ENTRY_OVERHEAD_BYTES
        + match &entry.payload {
            EntryPayload::Blank => 0,
            EntryPayload::Normal(payload) => payload.encoded.len(),
            // A member is an id and three short names.
            EntryPayload::Membership(membership) => membership.nodes().count() * 256,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_leader_encoded_a_follower_decodes_once() {
        let entry = Entry {
            clock_ms: 7,
            proposals: Vec::new(),
        };
        let leader = Payload::new(entry.clone());
        let follower = Payload::check(leader.encoded().clone()).unwrap();
        let first: *const Entry = follower.entry().unwrap();
        let second: *const Entry = follower.entry().unwrap();
        assert_eq!(follower.entry().unwrap(), &entry);
        assert_eq!(first, second);
    }

    #[test]
    fn damaged_bytes_from_a_peer_are_refused() {
        let mut bytes = Payload::new(Entry::default()).encoded().to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert!(matches!(
            Payload::check(bytes.into()),
            Err(CodecError::BadCrc { .. })
        ));
    }
}
