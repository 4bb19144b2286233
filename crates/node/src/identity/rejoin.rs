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
//! As long as the file is there, the new node does not hold everything that the old one held. So its own data is never put
//! aside without a person: see [`crate::resync`].
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
