//! The marker: who a volume belongs to, in one small file.
//!
//! A frame of kind `Marker` (its header carries the frame's version and the group id), around a
//! positional record:
//!
//! ```text
//! +--------+---------+------+--------------+-------+---------+-----------+
//! | format | node id | name | boot counter | phase | refused | founding  |
//! | u32    | u64     | str  | u64          | enum  | [u64]   | proposal? |
//! +--------+---------+------+--------------+-------+---------+-----------+
//!
//! phase 0 virgin     belongs to nothing, has promised nothing
//!       1 reserved   has accepted a proposal: cluster, replicas, [name, id, peer, client, voter]
//!       2 member     of (cluster, incarnation)
//!       3 retired    was a member of (cluster, incarnation); never again
//! ```
//!
//! The bytes are pinned by a test. A struct is never changed; a new one is added, under a new format.

use bytes::Bytes;
use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason};
use podkv_core::codec::{self, CodecError, Decode, Encode, FrameKind};

use super::IdentityFile;

/// The format of the whole folder that this release writes, and the highest that it reads.
pub const FOLDER_FORMAT: u32 = 1;

/// A node that takes part in the founding of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    /// The pod's name.
    pub name: String,
    pub id: MemberId,
    /// `host:port` for peers.
    pub peer_address: String,
    /// `host:port` for clients.
    pub client_address: String,
    pub voter: bool,
}

/// A cluster that is to be founded: its id and exactly who belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub cluster: ClusterId,
    /// How many replicas each founder was configured with.
    pub replicas: u32,
    pub founders: Vec<Founder>,
}

/// How far a node's life has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Belongs to nothing, has accepted nothing.
    Virgin,
    /// Has accepted a proposal, and has not voted or appended.
    Reserved(Proposal),
    /// Part of a cluster.
    Member {
        cluster: ClusterId,
        incarnation: Incarnation,
    },
    /// Was removed. This node id never takes part in anything again.
    Retired {
        cluster: ClusterId,
        incarnation: Incarnation,
    },
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Virgin => f.write_str("virgin"),
            Self::Reserved(proposal) => write!(f, "reserved for cluster {}", proposal.cluster),
            Self::Member { cluster, .. } => write!(f, "a member of cluster {cluster}"),
            Self::Retired { cluster, .. } => write!(f, "retired from cluster {cluster}"),
        }
    }
}

/// What the marker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    pub node: MemberId,
    pub name: String,
    pub boot_counter: u64,
    pub phase: Phase,
    /// Clusters whose proposals were accepted and released. Never accepted again.
    pub refused: Vec<ClusterId>,
    /// Of a member: the proposal through which it became one. A proposer that crashed between becoming a
    /// member and initialising its log goes on from it.
    pub founding: Option<Proposal>,
}

#[derive(Encode, Decode)]
#[bincode(crate = "podkv_core::bincode")]
struct MarkerV1 {
    format: u32,
    node: u64,
    name: String,
    boot_counter: u64,
    phase: PhaseV1,
    refused: Vec<u64>,
    founding: Option<ProposalV1>,
}

#[derive(Encode, Decode)]
#[bincode(crate = "podkv_core::bincode")]
enum PhaseV1 {
    Virgin,
    Reserved(ProposalV1),
    Member { cluster: u64, incarnation: u64 },
    Retired { cluster: u64, incarnation: u64 },
}

#[derive(Encode, Decode)]
#[bincode(crate = "podkv_core::bincode")]
struct ProposalV1 {
    cluster: u64,
    replicas: u32,
    founders: Vec<FounderV1>,
}

#[derive(Encode, Decode)]
#[bincode(crate = "podkv_core::bincode")]
struct FounderV1 {
    name: String,
    id: u64,
    peer_address: String,
    client_address: String,
    voter: bool,
}

impl Marker {
    pub fn encode(&self) -> Bytes {
        let record = MarkerV1 {
            format: FOLDER_FORMAT,
            node: self.node.0,
            name: self.name.clone(),
            boot_counter: self.boot_counter,
            phase: PhaseV1::from(&self.phase),
            refused: self.refused.iter().map(|cluster| cluster.0).collect(),
            founding: self.founding.as_ref().map(ProposalV1::from),
        };
        codec::encode_frame(FrameKind::Marker, &record)
    }

    /// Reads a marker that lies at `place`.
    pub fn decode(bytes: &[u8], place: &str) -> Result<Self, Error> {
        let record: MarkerV1 =
            codec::decode_frame(FrameKind::Marker, bytes, IdentityFile::Marker.max_bytes())
                .map_err(|error| unreadable(place, error))?;
        if record.format > FOLDER_FORMAT {
            return Err(Error::new(
                Reason::DataFolder,
                format!(
                    "{place} has format {}; this release knows up to {FOLDER_FORMAT}. Run the \
                     release that wrote it, or a newer one",
                    record.format
                ),
            ));
        }
        if record.format == 0 || record.node == 0 || record.boot_counter == 0 {
            let error = CodecError::malformed("marker", "a number in it is 0");
            return Err(unreadable(place, error));
        }
        Ok(Self {
            node: MemberId(record.node),
            name: record.name,
            boot_counter: record.boot_counter,
            phase: record.phase.into(),
            refused: record.refused.into_iter().map(ClusterId).collect(),
            founding: record.founding.map(Proposal::from),
        })
    }
}

/// What a file of the identity that does not decode means, and what to do.
pub(super) fn unreadable(place: &str, error: CodecError) -> Error {
    let (reason, advice) = match &error {
        CodecError::UnknownVersion { .. } => (
            Reason::DataFolder,
            "Run the release that wrote it, or a newer one; if there is none, the file is damaged: \
             give this pod an empty volume, and it rejoins under a new id",
        ),
        _ => (
            Reason::Corrupt,
            "Nothing was changed or deleted. Keep a copy of the folder if you want to know why, then \
             give this pod an empty volume: it rejoins under a new id",
        ),
    };
    Error::new(reason, format!("{place} cannot be used: {error}. {advice}")).with_source(error)
}

impl From<&Phase> for PhaseV1 {
    fn from(phase: &Phase) -> Self {
        match phase {
            Phase::Virgin => Self::Virgin,
            Phase::Reserved(proposal) => Self::Reserved(ProposalV1::from(proposal)),
            Phase::Member {
                cluster,
                incarnation,
            } => Self::Member {
                cluster: cluster.0,
                incarnation: incarnation.0,
            },
            Phase::Retired {
                cluster,
                incarnation,
            } => Self::Retired {
                cluster: cluster.0,
                incarnation: incarnation.0,
            },
        }
    }
}

impl From<PhaseV1> for Phase {
    fn from(phase: PhaseV1) -> Self {
        match phase {
            PhaseV1::Virgin => Self::Virgin,
            PhaseV1::Reserved(proposal) => Self::Reserved(proposal.into()),
            PhaseV1::Member {
                cluster,
                incarnation,
            } => Self::Member {
                cluster: ClusterId(cluster),
                incarnation: Incarnation(incarnation),
            },
            PhaseV1::Retired {
                cluster,
                incarnation,
            } => Self::Retired {
                cluster: ClusterId(cluster),
                incarnation: Incarnation(incarnation),
            },
        }
    }
}

impl From<&Proposal> for ProposalV1 {
    fn from(proposal: &Proposal) -> Self {
        Self {
            cluster: proposal.cluster.0,
            replicas: proposal.replicas,
            founders: proposal.founders.iter().map(FounderV1::from).collect(),
        }
    }
}

impl From<ProposalV1> for Proposal {
    fn from(proposal: ProposalV1) -> Self {
        Self {
            cluster: ClusterId(proposal.cluster),
            replicas: proposal.replicas,
            founders: proposal.founders.into_iter().map(Founder::from).collect(),
        }
    }
}

impl From<&Founder> for FounderV1 {
    fn from(founder: &Founder) -> Self {
        Self {
            name: founder.name.clone(),
            id: founder.id.0,
            peer_address: founder.peer_address.clone(),
            client_address: founder.client_address.clone(),
            voter: founder.voter,
        }
    }
}

impl From<FounderV1> for Founder {
    fn from(founder: FounderV1) -> Self {
        Self {
            name: founder.name,
            id: MemberId(founder.id),
            peer_address: founder.peer_address,
            client_address: founder.client_address,
            voter: founder.voter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn markers() -> Vec<Marker> {
        let founder = Founder {
            name: "podkv-0".into(),
            id: MemberId(7),
            peer_address: "a:2380".into(),
            client_address: "a:2379".into(),
            voter: true,
        };
        let proposal = Proposal {
            cluster: ClusterId(9),
            replicas: 3,
            founders: vec![founder],
        };
        let (cluster, incarnation) = (ClusterId(9), Incarnation(2));
        [
            Phase::Virgin,
            Phase::Reserved(proposal.clone()),
            Phase::Member {
                cluster,
                incarnation,
            },
            Phase::Retired {
                cluster,
                incarnation,
            },
        ]
        .map(|phase| Marker {
            node: MemberId(7),
            name: "podkv-0".into(),
            boot_counter: 3,
            founding: match &phase {
                Phase::Member { .. } => Some(proposal.clone()),
                _ => None,
            },
            phase,
            refused: vec![ClusterId(5)],
        })
        .into()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What lies on volumes out there. A change here needs a new format, not a new golden.
    #[test]
    fn golden_bytes() {
        let encoded: Vec<_> = markers().iter().map(|m| hex(&m.encode())).collect();
        assert_eq!(encoded, GOLDEN);
    }

    const GOLDEN: [&str; 4] = [
        "0107000000000f000000781ac08c010707706f646b762d300300010500",
        "0107000000002a00000085904a27010707706f646b762d30030109030107706f646b762d300706613a3233383006613a3233373901010500",
        "0107000000002c0000007dbd3868010707706f646b762d300302090201050109030107706f646b762d300706613a3233383006613a3233373901",
        "01070000000011000000f82deb2e010707706f646b762d3003030902010500",
    ];

    #[test]
    fn every_phase_survives() {
        for marker in markers() {
            assert_eq!(Marker::decode(&marker.encode(), "MARKER").unwrap(), marker);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        for marker in markers() {
            let bytes = marker.encode();
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let error = Marker::decode(&flipped, "/data/podkv/MARKER").unwrap_err();
                assert!(
                    matches!(error.reason(), Reason::Corrupt | Reason::DataFolder),
                    "bit {bit}: {error:?}"
                );
                assert!(error.text().contains("/data/podkv/MARKER"), "{error}");
            }
            for length in 0..bytes.len() {
                let error = Marker::decode(&bytes[..length], "MARKER").unwrap_err();
                assert_eq!(error.reason(), Reason::Corrupt, "length {length}");
            }
        }
    }

    #[test]
    fn a_newer_format_says_what_to_run() {
        let record = MarkerV1 {
            format: FOLDER_FORMAT + 1,
            node: 7,
            name: "podkv-0".into(),
            boot_counter: 1,
            phase: PhaseV1::Virgin,
            refused: Vec::new(),
            founding: None,
        };
        let bytes = codec::encode_frame(FrameKind::Marker, &record);
        let error = Marker::decode(&bytes, "MARKER").unwrap_err();
        assert_eq!(error.reason(), Reason::DataFolder);
        assert!(error.text().contains("newer"), "{error}");
    }
}
