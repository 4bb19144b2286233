//! Where a pod goes back to whose data was put aside because it was damaged.
//!
//! ```text
//!   member, damaged ──► REJOIN is written ──► retired ──► all of it goes aside ──► virgin, bound ──► member ──► whole: REJOIN goes
//!                         the old id still               REJOIN stays                 founds nothing, joins that cluster alone
//! ```
//!
//! Without it the pod would be as new. Where every other pod is new as well, they would found an empty cluster, and
//! nobody would notice what was lost. With it the pod waits for its cluster, and says so.
//!
//! As long as the file is there, the new node does not hold everything that the old one held.
//!
//! The file is one frame around a positional record. Its bytes are pinned by a test.
//!
//! ```text
//! REJOIN   cluster u64 | incarnation u64 | from u64
//! ```

use podkv_api::{ClusterId, Error, Incarnation, MemberId};
use podkv_core::codec::{self, Decode, Encode, FrameKind};

use super::marker::unreadable;
use super::{IdentityFile, MarkerStore};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejoin {
    pub cluster: ClusterId,
    /// Of the data that was put aside. The cluster may have been recovered into a later one since.
    pub incarnation: Incarnation,
    /// The id whose data was put aside.
    pub from: MemberId,
}

#[derive(Encode, Decode)]
#[bincode(crate = "podkv_core::bincode")]
struct RejoinV1 {
    cluster: u64,
    incarnation: u64,
    from: u64,
}

impl Rejoin {
    fn encode(&self) -> bytes::Bytes {
        let record = RejoinV1 {
            cluster: self.cluster.0,
            incarnation: self.incarnation.0,
            from: self.from.0,
        };
        codec::encode_frame(FrameKind::Rejoin, &record)
    }

    pub fn save(&self, markers: &dyn MarkerStore) -> Result<(), Error> {
        Ok(markers.save(IdentityFile::Rejoin, &self.encode())?)
    }

    pub fn load(markers: &dyn MarkerStore) -> Result<Option<Self>, Error> {
        let file = IdentityFile::Rejoin;
        let Some(bytes) = markers.load(file)? else {
            return Ok(None);
        };
        let record: RejoinV1 = codec::decode_frame(FrameKind::Rejoin, &bytes, file.max_bytes())
            .map_err(|error| unreadable(&markers.describe(file), error))?;
        Ok(Some(Self {
            cluster: ClusterId(record.cluster),
            incarnation: Incarnation(record.incarnation),
            from: MemberId(record.from),
        }))
    }

    /// Why not another cluster.
    pub fn refusal(&self, other: ClusterId) -> String {
        format!(
            "the data of this pod was put aside to be copied again from cluster {}: it takes no part in cluster {other}",
            self.cluster
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Founder, Identity, Proposal, Resident};
    use super::*;
    use crate::storage::{MemoryDisk, Volume};
    use podkv_api::Reason;

    const CLUSTER: ClusterId = ClusterId(9);

    /// What lies on volumes out there.
    #[test]
    fn golden_bytes() {
        let rejoin = Rejoin {
            cluster: CLUSTER,
            incarnation: Incarnation(2),
            from: MemberId(7),
        };
        let bytes: String = rejoin
            .encode()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(bytes, "0113000000000300000024b4a810090207");
    }

    #[test]
    fn a_pod_whose_data_was_put_aside_goes_back_to_its_cluster_alone() {
        let volume = Volume::memory(&MemoryDisk::new());
        let old = Identity::open(volume.markers(), "podkv-0").unwrap();
        old.become_member(CLUSTER, Incarnation(1)).unwrap();
        let mut resident = Resident::read(volume.markers()).unwrap();
        resident.put_aside().unwrap();

        let new = Identity::open(volume.markers(), "podkv-0").unwrap();
        assert_ne!(new.node_id(), old.node_id());
        let rejoin = new.rejoin().unwrap();
        assert_eq!((rejoin.cluster, rejoin.from), (CLUSTER, old.node_id()));
        let proposal = Proposal {
            cluster: ClusterId(10),
            replicas: 1,
            founders: vec![Founder {
                name: "podkv-0".into(),
                id: new.node_id(),
                peer_address: "podkv-0:2380".into(),
                client_address: "podkv-0:2379".into(),
                voter: true,
            }],
        };
        let founding = new.reserve(proposal).unwrap_err();
        assert_eq!(founding.reason(), Reason::MembershipConflict);
        let other = new.become_member(ClusterId(10), Incarnation(1));
        assert_eq!(other.unwrap_err().reason(), Reason::WrongCluster);
        // In whatever incarnation: it may have been recovered since.
        new.become_member(CLUSTER, Incarnation(2)).unwrap();
    }

    #[test]
    fn putting_aside_is_ended_wherever_it_was_interrupted() {
        // After REJOIN: still the old node. After the marker: what follows is put aside by whoever comes first.
        let volume = Volume::memory(&MemoryDisk::new());
        let old = Identity::open(volume.markers(), "podkv-0").unwrap();
        old.become_member(CLUSTER, Incarnation(1)).unwrap();
        let rejoin = Rejoin {
            cluster: CLUSTER,
            incarnation: Incarnation(1),
            from: old.node_id(),
        };
        rejoin.save(&*volume.markers()).unwrap();
        let again = Identity::open(volume.markers(), "podkv-0").unwrap();
        assert_eq!(again.node_id(), old.node_id());
        again.retire().unwrap();
        let mut resident = Resident::read(volume.markers()).unwrap();
        resident.put_aside().unwrap();
        let new = Identity::open(volume.markers(), "podkv-0").unwrap();
        assert_ne!(new.node_id(), old.node_id());
        assert_eq!(new.rejoin(), Some(&rejoin));
    }
}
