//! What to do next, given what this node has promised and what the others say. Pure.
//!
//! Every branch must hold with answers that are old by the time they are used: what an answer proves
//! is only what its sender had promised when it answered. The module header of [`super`] says why that
//! is enough.

use std::collections::{BTreeMap, BTreeSet};

use podkv_api::{ClusterId, Incarnation, MemberId};

use super::founders::{PodName, choose_voters};
use super::why::{Gone, Why};
use crate::discovery::{Ordinals, Suggestion};
use crate::identity::{Founder, MAX_FOUNDERS, Phase, Proposal};

/// What this node is and was told, apart from what it has promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Me {
    pub name: PodName,
    pub id: MemberId,
    pub peer_address: String,
    pub client_address: String,
    /// The pods that found the cluster together, or why nobody has said yet how many there are.
    pub expected: Result<Ordinals, String>,
    /// At most this many of them vote; odd.
    pub max_voters: u32,
    /// Joins a cluster of other names, and never founds one.
    pub read_only: bool,
}

/// A suggested peer, and what it said in this round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub suggestion: Suggestion,
    /// `None` if it was silent, or refused to answer.
    pub answer: Option<Answer>,
}

/// A peer's answer to Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub name: String,
    pub id: MemberId,
    pub peer_address: String,
    pub client_address: String,
    /// How many pods it expects; 0 as long as it does not know.
    pub replicas: u32,
    pub said: Said,
}

/// How far a peer's life has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Virgin,
    Reserved {
        cluster: ClusterId,
    },
    Member {
        cluster: ClusterId,
        incarnation: Incarnation,
        leader: Option<MemberId>,
    },
    Retired {
        cluster: ClusterId,
    },
}

/// Everything that a decision depends on.
#[derive(Clone, Debug)]
pub(crate) struct Situation<'a> {
    pub me: &'a Me,
    pub phase: &'a Phase,
    /// Of a member: the proposal through which it became one.
    pub founding: Option<&'a Proposal>,
    /// Clusters that this node has released.
    pub released: &'a BTreeSet<ClusterId>,
    /// The only cluster that this node may join, if its pod's data was put aside.
    pub rejoins: Option<ClusterId>,
    /// Founders of this node's own proposal that refuse it for ever.
    pub refusals: &'a BTreeSet<MemberId>,
    /// All that discovery suggests, without this node itself.
    pub peers: &'a [Peer],
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing yet.
    Wait(Why),
    /// Draw a cluster id, accept the proposal of these founders durably; then ask the others.
    Propose { founders: Vec<Founder> },
    /// Ask these founders of the proposal to accept it.
    Ask { founders: Vec<Founder> },
    /// Become a member durably, then initialise Raft. Also if that may have been done already.
    Initialize(Proposal),
    /// Take the acceptance of this cluster back, durably and for ever.
    Release { cluster: ClusterId, because: Gone },
    /// Ask one of these members, the best first, to be added.
    Join {
        cluster: ClusterId,
        incarnation: Incarnation,
        via: Vec<Via>,
    },
    /// There is nothing to do any more: this node is a member.
    Member,
    /// There is nothing to do any more under this id: this node was removed from its cluster.
    Retired,
}

/// A member that can take a request to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Via {
    pub id: MemberId,
    pub peer_address: String,
}

/// What to do next.
pub(crate) fn decide(situation: &Situation<'_>) -> Action {
    match situation.phase {
        Phase::Virgin => situation.virgin(),
        Phase::Reserved(proposal) if situation.is_mine(proposal) => situation.proposer(proposal),
        Phase::Reserved(proposal) => situation.acceptor(proposal),
        Phase::Member { .. } => match situation.founding {
            // It may have crashed before Raft was initialised.
            Some(proposal) if situation.is_mine(proposal) => Action::Initialize(proposal.clone()),
            _ => Action::Member,
        },
        Phase::Retired { .. } => Action::Retired,
    }
}

impl<'a> Situation<'a> {
    /// Promised nothing: join what exists, or else help to found.
    fn virgin(&self) -> Action {
        let mut clusters = self.clusters();
        if let Some(cluster) = self.rejoins {
            // What it held is damaged, and may be needed yet: no other cluster takes the place of this one.
            clusters.retain(|id, _| *id == cluster);
            if clusters.is_empty() {
                return Action::Wait(Why::Rejoins { cluster });
            }
        }
        let mut ids = clusters.iter();
        match (ids.next(), ids.next()) {
            (None, _) if self.me.read_only => Action::Wait(Why::OnlyJoins),
            (None, _) => self.found(),
            (Some((&cluster, members)), None) => match self.namesake() {
                Some(name) => Action::Wait(Why::ReadOnlyNamesake { name }),
                None => self.join(cluster, members),
            },
            _ => Action::Wait(Why::SeveralClusters(clusters.into_keys().collect())),
        }
    }

    fn join(&self, cluster: ClusterId, members: &[&Answer]) -> Action {
        if self.released.contains(&cluster) {
            return Action::Wait(Why::Released { cluster });
        }
        let incarnation_of = |answer: &Answer| match answer.said {
            Said::Member { incarnation, .. } => Some(incarnation),
            _ => None,
        };
        // After a recovery from a lost majority, the past may still answer.
        let Some(incarnation) = members
            .iter()
            .filter_map(|answer| incarnation_of(answer))
            .max()
        else {
            return Action::Wait(Why::OnlyRetired { cluster });
        };
        let current = members
            .iter()
            .filter(|answer| incarnation_of(answer) == Some(incarnation));
        let leads = |answer: &Answer| matches!(answer.said, Said::Member { leader: Some(leader), .. } if leader == answer.id);
        let (leaders, others): (Vec<&Answer>, Vec<&Answer>) =
            current.copied().partition(|answer| leads(answer));
        let via = leaders.into_iter().chain(others).map(|answer| Via {
            id: answer.id,
            peer_address: answer.peer_address.clone(),
        });
        Action::Join {
            cluster,
            incarnation,
            via: via.collect(),
        }
    }

    /// Nobody that answers belongs to a cluster. The lowest ordinal proposes one, once it has heard
    /// everybody.
    /// The leader, if this is a read-only replica and the leader a pod of its own set: those get votes.
    fn namesake(&self) -> Option<String> {
        let leads = |answer: &&Answer| matches!(answer.said, Said::Member { leader, .. } if leader == Some(answer.id));
        let is_ours = |answer: &&Answer| {
            PodName::parse(&answer.name).is_ok_and(|name| name.base() == self.me.name.base())
        };
        let mut answers = self.peers.iter().filter_map(|peer| peer.answer.as_ref());
        let found = answers.find(|answer| self.me.read_only && leads(answer) && is_ours(answer));
        found.map(|answer| answer.name.clone())
    }

    fn found(&self) -> Action {
        let expected = match &self.me.expected {
            Ok(expected) if expected.replicas as usize > MAX_FOUNDERS => {
                return Action::Wait(Why::TooManyReplicas(expected.replicas));
            }
            Ok(expected) => *expected,
            Err(why) => return Action::Wait(Why::ReplicasUnknown(why.clone())),
        };
        let names = self.me.name.founders(expected);
        match names.first() {
            Some(first) if *first == self.me.name.to_string() => {}
            _ => {
                return Action::Wait(Why::Founding {
                    proposer: self.me.name.with_ordinal(expected.start),
                });
            }
        }
        // Whoever is silent may be a member, also one beyond the expected replicas.
        let silent = self.silent();
        if !silent.is_empty() {
            return Action::Wait(Why::Silent(silent));
        }
        if let Some(why) = self.disagreement(expected.replicas) {
            return Action::Wait(why);
        }
        let (mut founders, mut missing) = (vec![self.me.founder()], Vec::new());
        for name in names.into_iter().skip(1) {
            let answer = self.answers_of(&name).next();
            match answer {
                Some(answer) => founders.push(answer.founder()),
                None => missing.push(name),
            }
        }
        if !missing.is_empty() {
            return Action::Wait(Why::Missing(missing));
        }
        choose_voters(&mut founders, self.me.max_voters);
        Action::Propose { founders }
    }

    /// What keeps answers from becoming a proposal.
    fn disagreement(&self, replicas: u32) -> Option<Why> {
        let mut ids = BTreeMap::from([(self.me.id, self.me.name.to_string())]);
        let mut names = BTreeMap::from([(self.me.name.to_string(), self.me.id)]);
        for answer in self.answers() {
            let name = answer.name.clone();
            // One node may be suggested twice; that is one node still.
            let same_name = *ids.entry(answer.id).or_insert_with(|| name.clone()) == name;
            let same_id = *names.entry(name.clone()).or_insert(answer.id) == answer.id;
            if !same_name || !same_id {
                return Some(Why::Ambiguous { name });
            }
            if answer.replicas == 0 {
                return Some(Why::ReplicasUnknownTo { name });
            }
            if answer.replicas != replicas {
                let (theirs, mine) = (answer.replicas, replicas);
                return Some(Why::ReplicasDiffer { name, theirs, mine });
            }
            if let Said::Reserved { cluster } = answer.said {
                return Some(Why::ReservedElsewhere { name, cluster });
            }
        }
        None
    }

    /// Holds its own proposal. It alone can initialise it, and has not: it may withdraw at any time.
    fn proposer(&self, proposal: &Proposal) -> Action {
        let cluster = proposal.cluster;
        let clusters = self.clusters();
        if clusters.contains_key(&cluster) {
            return Action::Wait(Why::OwnPast { cluster });
        }
        let withdraw = |because| Action::Release { cluster, because };
        if !clusters.is_empty() {
            return withdraw(Gone::ClusterExists);
        }
        // Not to know it any more, after a restart, is no change.
        let changed = |expected: &Ordinals| {
            self.me.name.with_ordinal(expected.start) != proposal.founders[0].name
                || expected.replicas != proposal.replicas
        };
        if self.me.expected.as_ref().is_ok_and(changed) {
            return withdraw(Gone::ReplicasChanged);
        }
        if self.answers_of(&self.me.name.to_string()).next().is_some() {
            return Action::Wait(Why::Ambiguous {
                name: self.me.name.to_string(),
            });
        }
        let (mut ask, mut silent, mut elsewhere) = (Vec::new(), Vec::new(), None);
        for founder in proposal
            .founders
            .iter()
            .filter(|founder| founder.id != self.me.id)
        {
            if self.refusals.contains(&founder.id) {
                return withdraw(Gone::FounderRefuses);
            }
            match self.answer_of(founder) {
                Some(answer) => match answer.said {
                    Said::Reserved { cluster: accepted } if accepted == cluster => {}
                    Said::Reserved { cluster } => {
                        elsewhere = Some(Why::ReservedElsewhere {
                            name: founder.name.clone(),
                            cluster,
                        });
                    }
                    _ => ask.push(founder.clone()),
                },
                None if self.answers_of(&founder.name).next().is_some() => {
                    return withdraw(Gone::FounderReplaced);
                }
                None => silent.push(founder.name.clone()),
            }
        }
        match elsewhere {
            _ if !ask.is_empty() => Action::Ask { founders: ask },
            Some(why) => Action::Wait(why),
            None if !silent.is_empty() => Action::Wait(Why::Silent(silent)),
            None => Action::Initialize(proposal.clone()),
        }
    }

    /// Has accepted somebody's proposal, and is in its hands: unless it is provably gone.
    fn acceptor(&self, proposal: &Proposal) -> Action {
        let cluster = proposal.cluster;
        let clusters = self.clusters();
        if let Some(members) = clusters.get(&cluster) {
            if clusters.len() > 1 {
                return Action::Wait(Why::SeveralClusters(clusters.into_keys().collect()));
            }
            // It was founded. The leader will come, too; asking also helps one that was removed meanwhile.
            return self.join(cluster, members);
        }
        let Some(proposer) = proposal.founders.first() else {
            // No proposal without founders is ever accepted.
            return Action::Wait(Why::Missing(Vec::new()));
        };
        if let Some(answer) = self.answer_of(proposer) {
            // It accepted before it asked me. If it holds no such acceptance now, it released it.
            return match answer.said {
                Said::Reserved { cluster: still } if still == cluster => {
                    Action::Wait(Why::Proposer {
                        name: proposer.name.clone(),
                        cluster,
                    })
                }
                _ => Action::Release {
                    cluster,
                    because: Gone::ProposerWithdrew,
                },
            };
        }
        if self.answers_of(&proposer.name).next().is_none() {
            return Action::Wait(Why::Proposer {
                name: proposer.name.clone(),
                cluster,
            });
        }
        self.replaced_proposer(proposal, proposer)
    }

    /// The proposer lost its volume. Before that it may have initialised the cluster, and gathered votes.
    fn replaced_proposer(&self, proposal: &Proposal, proposer: &Founder) -> Action {
        let cluster = proposal.cluster;
        if proposal
            .founders
            .iter()
            .filter(|founder| founder.voter)
            .count()
            < 2
        {
            return Action::Wait(Why::SingleVoter { cluster });
        }
        // Had any of them voted, it would say that it is a member.
        let is_other = |founder: &&Founder| founder.id != self.me.id && founder.id != proposer.id;
        let silent: Vec<_> = proposal
            .founders
            .iter()
            .filter(is_other)
            .filter(|founder| self.answers_of(&founder.name).next().is_none())
            .map(|founder| founder.name.clone())
            .collect();
        if silent.is_empty() {
            Action::Release {
                cluster,
                because: Gone::ProposerReplaced,
            }
        } else {
            Action::Wait(Why::Witness {
                names: silent,
                cluster,
            })
        }
    }

    fn is_mine(&self, proposal: &Proposal) -> bool {
        proposal
            .founders
            .first()
            .is_some_and(|proposer| proposer.id == self.me.id)
    }

    fn answers(&self) -> impl Iterator<Item = &'a Answer> {
        self.peers.iter().filter_map(|peer| peer.answer.as_ref())
    }

    /// Every answer under that name: more than one if a pod was replaced and its past still runs.
    fn answers_of(&self, name: &str) -> impl Iterator<Item = &'a Answer> {
        self.answers().filter(move |answer| answer.name == name)
    }

    /// The answer of exactly that node.
    fn answer_of(&self, founder: &Founder) -> Option<&'a Answer> {
        self.answers_of(&founder.name)
            .find(|answer| answer.id == founder.id)
    }

    fn silent(&self) -> Vec<String> {
        self.peers
            .iter()
            .filter(|peer| peer.answer.is_none())
            .map(|peer| match &peer.suggestion.name {
                Some(name) => format!("{name} at {}", peer.suggestion.peer_address),
                None => peer.suggestion.peer_address.clone(),
            })
            .collect()
    }

    /// Every cluster that a peer is, or was, a member of, with those who say so.
    fn clusters(&self) -> BTreeMap<ClusterId, Vec<&'a Answer>> {
        let mut clusters: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for answer in self.answers() {
            match answer.said {
                Said::Member { cluster, .. } | Said::Retired { cluster } => {
                    clusters.entry(cluster).or_default().push(answer);
                }
                Said::Virgin | Said::Reserved { .. } => {}
            }
        }
        clusters
    }
}

impl Me {
    pub(crate) fn founder(&self) -> Founder {
        Founder {
            name: self.name.to_string(),
            id: self.id,
            peer_address: self.peer_address.clone(),
            client_address: self.client_address.clone(),
            voter: false,
        }
    }
}

impl Answer {
    fn founder(&self) -> Founder {
        Founder {
            name: self.name.clone(),
            id: self.id,
            peer_address: self.peer_address.clone(),
            client_address: self.client_address.clone(),
            voter: false,
        }
    }
}
