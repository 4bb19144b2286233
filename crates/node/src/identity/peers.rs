//! The starts of other nodes that this one has seen, to notice volumes that were rewound or copied.
//!
//! A node counts its starts durably and draws a nonce for each. So per node id the counter only rises,
//! and one counter has one nonce:
//!
//! ```text
//!   seen: counter 7, nonce a       then   8, b    → a restart: remembered
//!                                         7, a    → the same start
//!                                         7, c    → two volumes under one id: a copy
//!                                         6, …    → the volume was put back to an earlier day
//! ```
//!
//! ```text
//! peers, a frame of kind PeerBoots:   [ node id u64, boot counter u64, nonce u64 ]   oldest change first
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use podkv_api::{Error, MemberId, Reason};
use podkv_core::codec::{self, Decode, Encode, FrameKind};

use super::IdentityFile;
use super::marker::unreadable;

/// More nodes than a cluster sees in years. Beyond it the one that changed longest ago is forgotten.
const MAX_PEERS: usize = 4096;

/// What is known of the starts of other nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerBoots {
    peers: BTreeMap<MemberId, Boot>,
    changes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Boot {
    counter: u64,
    nonce: u64,
    /// Orders entries by their last change.
    change: u64,
}

#[derive(Encode, Decode)]
#[bincode(crate = "podkv_core::bincode")]
struct PeersV1(Vec<(u64, u64, u64)>);

/// What an observation means.
#[derive(Debug)]
pub(super) enum Observation {
    /// The start that is known already.
    Known,
    /// A later start, or a node never seen: to be remembered.
    New,
}

impl PeerBoots {
    /// Judges a start. [`Reason::RewoundVolume`] if it cannot be the same volume going on.
    pub fn judge(&self, id: MemberId, counter: u64, nonce: u64) -> Result<Observation, Error> {
        let Some(seen) = self.peers.get(&id) else {
            return Ok(Observation::New);
        };
        if counter > seen.counter {
            return Ok(Observation::New);
        }
        if counter == seen.counter && nonce == seen.nonce {
            return Ok(Observation::Known);
        }
        let what = if counter == seen.counter {
            format!("two processes claim start {counter} of it: its volume was copied")
        } else {
            format!(
                "it claims start {counter}, but start {} was seen: its volume was put back to an \
                 earlier time",
                seen.counter
            )
        };
        Err(rewound(id, &what))
    }

    pub fn insert(&mut self, id: MemberId, counter: u64, nonce: u64) {
        self.changes += 1;
        let change = self.changes;
        let boot = Boot {
            counter,
            nonce,
            change,
        };
        self.peers.insert(id, boot);
        if self.peers.len() > MAX_PEERS
            && let Some((oldest, _)) = self.peers.iter().min_by_key(|(_, boot)| boot.change)
        {
            let oldest = *oldest;
            tracing::warn!(node = %oldest, "forgetting the starts of a node: more than {MAX_PEERS} seen");
            self.peers.remove(&oldest);
        }
    }

    pub fn encode(&self) -> Bytes {
        let mut peers: Vec<_> = self.peers.iter().collect();
        peers.sort_by_key(|(_, boot)| boot.change);
        let peers = peers
            .into_iter()
            .map(|(id, boot)| (id.0, boot.counter, boot.nonce))
            .collect();
        codec::encode_frame(FrameKind::PeerBoots, &PeersV1(peers))
    }

    /// Reads the file that lies at `place`.
    pub fn decode(bytes: &[u8], place: &str) -> Result<Self, Error> {
        let limit = IdentityFile::Peers.max_bytes();
        let PeersV1(peers) = codec::decode_frame(FrameKind::PeerBoots, bytes, limit)
            .map_err(|error| unreadable(place, error))?;
        let mut boots = Self::default();
        for (id, counter, nonce) in peers {
            boots.insert(MemberId(id), counter, nonce);
        }
        Ok(boots)
    }
}

pub(super) fn rewound(id: MemberId, what: &str) -> Error {
    Error::new(
        Reason::RewoundVolume,
        format!("node {id} is refused: {what}. Give that pod an empty volume: it joins anew"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: MemberId = MemberId(1);

    fn seen() -> PeerBoots {
        let mut boots = PeerBoots::default();
        boots.insert(NODE, 7, 70);
        boots
    }

    #[test]
    fn counters_rise_and_have_one_nonce() {
        let boots = seen();
        assert!(matches!(boots.judge(NODE, 8, 1).unwrap(), Observation::New));
        assert!(matches!(
            boots.judge(NODE, 7, 70).unwrap(),
            Observation::Known
        ));
        for (counter, nonce) in [(7, 71), (6, 70), (0, 0)] {
            let error = boots.judge(NODE, counter, nonce).unwrap_err();
            assert_eq!(error.reason(), Reason::RewoundVolume);
        }
        assert!(matches!(
            boots.judge(MemberId(2), 1, 1).unwrap(),
            Observation::New
        ));
    }

    #[test]
    fn golden_bytes() {
        let bytes: String = seen().encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(bytes, "010f0000000004000000eff7817701010746");
        assert_eq!(
            PeerBoots::decode(&seen().encode(), "peers")
                .unwrap()
                .peers
                .len(),
            1
        );
    }

    #[test]
    fn the_one_that_changed_longest_ago_is_forgotten() {
        let mut boots = PeerBoots::default();
        for id in 0..=MAX_PEERS as u64 {
            boots.insert(MemberId(id), 1, 1);
            boots.insert(MemberId(0), 1 + id, 1);
        }
        assert_eq!(boots.peers.len(), MAX_PEERS);
        assert!(boots.peers.contains_key(&MemberId(0)));
        assert!(!boots.peers.contains_key(&MemberId(1)));
        assert!(boots.encode().len() < IdentityFile::Peers.max_bytes());
    }
}
