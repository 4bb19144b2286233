//! Why a node waits, or lets a proposal go: what founding says to operators.

use std::collections::BTreeSet;
use std::fmt;

use podkv_api::ClusterId;

use crate::identity::MAX_FOUNDERS;

/// Why a proposal that this node accepted can never become a cluster, or never needs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The pod of the proposer's name is another node now, and nobody else became a member.
    ProposerReplaced,
    /// The proposer itself no longer holds to it.
    ProposerWithdrew,
    /// Of my own proposal: a founder is another node now.
    FounderReplaced,
    /// Of my own proposal: a founder refuses it for ever.
    FounderRefuses,
    /// Of my own proposal: I expect another number of replicas now.
    ReplicasChanged,
    /// Of my own proposal: there is a cluster already.
    ClusterExists,
}

/// What a node waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Nobody could be asked.
    Discovery(String),
    /// These suggested peers do not answer.
    Silent(Vec<String>),
    /// Nobody suggests or answers to these names of founders.
    Missing(Vec<String>),
    /// Nobody has told this node yet how many replicas there should be.
    ReplicasUnknown(String),
    /// A peer has not been told yet.
    ReplicasUnknownTo { name: String },
    /// A read-only replica, and no cluster yet.
    OnlyJoins,
    /// A read-only replica of the same name as the cluster's members.
    ReadOnlyNamesake { name: String },
    /// More than can found a cluster together.
    TooManyReplicas(u32),
    /// A peer expects another number of replicas.
    ReplicasDiffer {
        name: String,
        theirs: u32,
        mine: u32,
    },
    /// Two nodes answer to one name; or one id under two names.
    Ambiguous { name: String },
    /// A founder has accepted another proposal.
    ReservedElsewhere { name: String, cluster: ClusterId },
    /// Not one of the founders, or not the one who proposes.
    Founding { proposer: String },
    /// Accepted; the proposer goes on from here.
    Proposer { name: String, cluster: ClusterId },
    /// The proposer is another node now, but one of the other founders, silent now, may have voted.
    Witness {
        names: Vec<String>,
        cluster: ClusterId,
    },
    /// The proposer is another node now. It alone was to vote, so it may have served alone.
    SingleVoter { cluster: ClusterId },
    /// Peers belong to different clusters.
    SeveralClusters(BTreeSet<ClusterId>),
    /// Only nodes that were removed from a cluster answer, none that belongs to it.
    OnlyRetired { cluster: ClusterId },
    /// The data of this pod was put aside, and no member of its cluster answers.
    Rejoins { cluster: ClusterId },
    /// There is a cluster, and this node has sworn never to take part in it.
    Released { cluster: ClusterId },
    /// There are members of the cluster that only I could have founded, and I have not.
    OwnPast { cluster: ClusterId },
}

impl Why {
    /// True if it takes a person, as far as can be seen from here.
    pub(crate) fn needs_help(&self) -> bool {
        matches!(
            self,
            Self::Discovery(_)
                | Self::ReplicasUnknown(_)
                | Self::ReplicasDiffer { .. }
                | Self::ReadOnlyNamesake { .. }
                | Self::TooManyReplicas(_)
                | Self::Ambiguous { .. }
                | Self::SingleVoter { .. }
                | Self::SeveralClusters(_)
                | Self::OnlyRetired { .. }
                | Self::Released { .. }
                | Self::OwnPast { .. }
        )
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProposerReplaced => {
                "the proposer's pod is another node now, and none of the founders is a member"
            }
            Self::ProposerWithdrew => "the proposer no longer holds to it",
            Self::FounderReplaced => "one of its founders is another node now",
            Self::FounderRefuses => "one of its founders refuses it for ever",
            Self::ReplicasChanged => "another number of replicas is expected now",
            Self::ClusterExists => "there is a cluster already",
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discovery(error) => write!(f, "discovery: {error}"),
            Self::Silent(who) => write!(f, "no answer from {}", who.join(", ")),
            Self::Missing(names) => write!(f, "nothing known of {}", names.join(", ")),
            Self::ReplicasUnknown(why) => write!(f, "replicas unknown: {why}"),
            Self::ReplicasUnknownTo { name } => {
                write!(f, "for {name} to learn how many replicas there should be")
            }
            Self::OnlyJoins => {
                f.write_str("for a cluster to join: a read-only replica founds none")
            }
            Self::ReadOnlyNamesake { name } => write!(
                f,
                "{name} is a member, and would share its vote with this pod, which is read-only: read-only replicas \
                 are pods of a StatefulSet of another name"
            ),
            Self::TooManyReplicas(replicas) => write!(
                f,
                "{replicas} replicas are expected, and at most {MAX_FOUNDERS} can found a cluster together; \
                 start with fewer, and scale up then"
            ),
            Self::ReplicasDiffer { name, theirs, mine } => write!(
                f,
                "{name} expects {theirs} replicas and this node {mine}; set the same number on all"
            ),
            Self::Ambiguous { name } => {
                write!(
                    f,
                    "more than one node answers to {name} or has its id; one of them must end"
                )
            }
            Self::ReservedElsewhere { name, cluster } => {
                write!(f, "{name} has accepted to found cluster {cluster}")
            }
            Self::Founding { proposer } => {
                write!(
                    f,
                    "for {proposer} to propose a cluster, or for a member to appear"
                )
            }
            Self::Proposer { name, cluster } => {
                write!(f, "for {name} to found cluster {cluster}, as was accepted")
            }
            Self::Witness { names, cluster } => write!(
                f,
                "the proposer of cluster {cluster} is gone; before letting go, for {} to say whether \
                 it was founded",
                names.join(", ")
            ),
            Self::SingleVoter { cluster } => write!(
                f,
                "the proposer of cluster {cluster} is gone, and was its only voter; if its volume is lost, \
                 give this pod an empty one"
            ),
            Self::SeveralClusters(clusters) => {
                let ids: Vec<_> = clusters.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "peers belong to different clusters ({}); the list of peers reaches where it should not",
                    ids.join(", ")
                )
            }
            Self::OnlyRetired { cluster } => write!(
                f,
                "only nodes that were removed from cluster {cluster} answer; for one of its members"
            ),
            Self::Rejoins { cluster } => write!(
                f,
                "for a member of cluster {cluster}: the data of this pod was put aside to be copied from there, and it \
                 joins no other cluster and founds none"
            ),
            Self::Released { cluster } => write!(
                f,
                "cluster {cluster} exists, and this node has sworn never to take part in it; give its pod \
                 an empty volume to join under a new id"
            ),
            Self::OwnPast { cluster } => write!(
                f,
                "cluster {cluster} exists, though this node, its proposer, has not founded it: its volume \
                 was put back to an earlier time; give its pod an empty one"
            ),
        }
    }
}
