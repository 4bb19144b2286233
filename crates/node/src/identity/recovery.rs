//! A recovery from a lost majority, as the volume remembers it: what is to be done, until it is done.
//!
//! ```text
//!   member of incarnation i ──► RECOVERY is written ──► log and state are moved on ──► member of i + 1 ──► RECOVERY goes
//!          as before                 no node starts on it: only the recovery can be run again, to the same end
//! ```
//!
//! The file is one frame around a positional record. Its bytes are pinned by a test.
//!
//! ```text
//! RECOVERY   cluster u64 | incarnation u64 | node u64 | base term u64 | base index u64 | term u64
//! ```

use std::sync::Arc;

use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason};
use podkv_core::codec::{self, Decode, Encode, FrameKind};

use super::marker::{Marker, Phase, unreadable};
use super::{IdentityFile, MarkerStore, Rejoin};
use crate::membership::LogPosition;

/// What a recovery does to this volume. Fixed when it begins: run again, it ends in the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recovery {
    pub cluster: ClusterId,
    /// The new one.
    pub incarnation: Incarnation,
    pub node: MemberId,
    /// The end of the log when it began: all of it is kept.
    pub base: LogPosition,
    /// The term of what the recovery adds. Above every term that this volume has seen.
    pub term: u64,
}

#[derive(Encode, Decode)]
#[bincode(crate = "podkv_core::bincode")]
struct RecoveryV1 {
    cluster: u64,
    incarnation: u64,
    node: u64,
    base_term: u64,
    base_index: u64,
    term: u64,
}

impl Recovery {
    pub(super) fn encode(&self) -> bytes::Bytes {
        let record = RecoveryV1 {
            cluster: self.cluster.0,
            incarnation: self.incarnation.0,
            node: self.node.0,
            base_term: self.base.term,
            base_index: self.base.index,
            term: self.term,
        };
        codec::encode_frame(FrameKind::Recovery, &record)
    }

    fn load(markers: &dyn MarkerStore) -> Result<Option<Self>, Error> {
        let file = IdentityFile::Recovery;
        let Some(bytes) = markers.load(file)? else {
            return Ok(None);
        };
        Self::decode(&bytes, &markers.describe(file)).map(Some)
    }

    /// Reads the file that lies at `place`.
    pub(super) fn decode(bytes: &[u8], place: &str) -> Result<Self, Error> {
        let limit = IdentityFile::Recovery.max_bytes();
        let record: RecoveryV1 = codec::decode_frame(FrameKind::Recovery, bytes, limit)
            .map_err(|error| unreadable(place, error))?;
        Ok(Self {
            cluster: ClusterId(record.cluster),
            incarnation: Incarnation(record.incarnation),
            node: MemberId(record.node),
            base: LogPosition {
                term: record.base_term,
                index: record.base_index,
            },
            term: record.term,
        })
    }
}

/// A node must not start on a volume that is neither the one nor the other.
pub(super) fn refuse_unfinished(markers: &dyn MarkerStore) -> Result<(), Error> {
    if markers.load(IdentityFile::Recovery)?.is_none() {
        return Ok(());
    }
    Err(Error::new(
        Reason::DataFolder,
        format!(
            "{} says that a recovery of this volume has begun and not ended: run the same `podkv recover` again, \
             it goes on where it was",
            markers.describe(IdentityFile::Recovery)
        ),
    ))
}

/// Who a stopped node's volume belongs to. Unlike [`super::Identity`] it counts no start.
pub(crate) struct Resident {
    markers: Arc<dyn MarkerStore>,
    marker: Marker,
    /// The recovery that was begun.
    pub recovery: Option<Recovery>,
}

impl Resident {
    /// Blocking. Fails if the volume has no marker, or one that cannot be read.
    pub fn read(markers: Arc<dyn MarkerStore>) -> Result<Self, Error> {
        let place = markers.describe(IdentityFile::Marker);
        let bytes = markers.load(IdentityFile::Marker)?.ok_or_else(|| {
            let text = format!("{place} is missing: this volume belongs to no node");
            Error::new(Reason::DataFolder, text)
        })?;
        Ok(Self {
            marker: Marker::decode(&bytes, &place)?,
            recovery: Recovery::load(&*markers)?,
            markers,
        })
    }

    pub fn node_id(&self) -> MemberId {
        self.marker.node
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.marker.name
    }

    pub fn phase(&self) -> &Phase {
        &self.marker.phase
    }

    /// What the pod goes back to, if data was put aside here before.
    pub fn rejoin(&self) -> Result<Option<Rejoin>, Error> {
        Rejoin::load(&*self.markers)
    }

    /// Ends this node id and puts all of it aside, for the pod to go back to its cluster under another id. Blocking;
    /// interrupted anywhere, it is called again: a node that starts meanwhile is the old one, or goes on with this.
    pub fn put_aside(&mut self) -> Result<(), Error> {
        if let Phase::Member {
            cluster,
            incarnation,
        } = self.marker.phase
        {
            // First: whoever finds the id ended must find what follows it, too.
            let rejoin = Rejoin {
                cluster,
                incarnation,
                from: self.marker.node,
            };
            rejoin.save(&*self.markers)?;
            self.marker.phase = Phase::Retired {
                cluster,
                incarnation,
            };
            self.markers
                .save(IdentityFile::Marker, &self.marker.encode())?;
        }
        if let Phase::Retired { .. } = self.marker.phase {
            self.markers.set_aside(self.marker.node)?;
        }
        Ok(())
    }

    /// Puts down what is to be done. From here on no node starts on this volume. Blocking.
    pub fn begin(&mut self, recovery: Recovery) -> Result<(), Error> {
        self.markers
            .save(IdentityFile::Recovery, &recovery.encode())?;
        self.recovery = Some(recovery);
        Ok(())
    }

    /// Makes the node a member of the new incarnation: log and state are. Blocking.
    pub fn finish(&mut self) -> Result<(), Error> {
        let Some(recovery) = &self.recovery else {
            return Ok(());
        };
        self.marker.phase = Phase::Member {
            cluster: recovery.cluster,
            incarnation: recovery.incarnation,
        };
        // How the first incarnation was founded is of no matter to this one.
        self.marker.founding = None;
        self.markers
            .save(IdentityFile::Marker, &self.marker.encode())?;
        self.markers.remove(IdentityFile::Recovery)?;
        self.recovery = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::storage::{MemoryDisk, Volume};

    fn recovery() -> Recovery {
        Recovery {
            cluster: ClusterId(9),
            incarnation: Incarnation(2),
            node: MemberId(7),
            base: LogPosition { term: 3, index: 40 },
            term: 5,
        }
    }

    /// What lies on volumes out there.
    #[test]
    fn golden_bytes() {
        let bytes: String = recovery()
            .encode()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(bytes, "011200000000060000005d9f9e70090207032805");
    }

    #[test]
    fn no_node_starts_before_the_recovery_has_ended() {
        let volume = Volume::memory(&MemoryDisk::new());
        let identity = Identity::open(volume.markers(), "podkv-0").unwrap();
        identity
            .become_member(ClusterId(9), Incarnation(1))
            .unwrap();
        drop(identity);
        let mut resident = Resident::read(volume.markers()).unwrap();
        resident.begin(recovery()).unwrap();
        let refused = Identity::open(volume.markers(), "podkv-0").err().unwrap();
        assert_eq!(refused.reason(), Reason::DataFolder);

        let mut resident = Resident::read(volume.markers()).unwrap();
        assert_eq!(resident.recovery, Some(recovery()));
        resident.finish().unwrap();
        resident.finish().unwrap();
        let identity = Identity::open(volume.markers(), "podkv-0").unwrap();
        assert_eq!(identity.membership(), Some((ClusterId(9), Incarnation(2))));
    }
}
