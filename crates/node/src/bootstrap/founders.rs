//! Who may found a cluster together, and who of them votes.
//!
//! ```text
//!   replicas = 5, max_voters = 3      podkv-0  podkv-1  podkv-2  podkv-3  podkv-4
//!                                     proposer
//!                                     voter    voter    voter    learner  learner
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason, Result};

use crate::config;
use crate::discovery::Ordinals;
use crate::identity::{Founder, MAX_FOUNDERS, Phase, Proposal};
use crate::membership::PeerAddress;

/// The incarnation of a new cluster. A recovery from a lost majority adds one.
pub(crate) const FIRST_INCARNATION: Incarnation = Incarnation(1);

/// A pod's name, taken apart: `podkv-0` is base `podkv`, ordinal 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodName {
    base: String,
    ordinal: u32,
}

impl PodName {
    pub(crate) fn parse(name: &str) -> Result<Self> {
        let parsed = config::ordinal(name).and_then(|ordinal| {
            let (base, _) = name.rsplit_once('-')?;
            Some(Self {
                base: base.into(),
                ordinal,
            })
        });
        // `podkv-00` and `podkv-0` would be one founder under two names.
        parsed
            .filter(|parsed| parsed.to_string() == name)
            .ok_or_else(|| {
                let text =
                    format!("pod name {name:?} has no ordinal; expected a form like podkv-0");
                Error::new(Reason::InvalidArgument, text)
            })
    }

    /// The name of its StatefulSet.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The name of a pod beside this one.
    pub(crate) fn with_ordinal(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.base)
    }

    /// The names of the pods that found a cluster together. No more than can do so.
    pub(crate) fn founders(&self, expected: Ordinals) -> Vec<String> {
        let ordinals = expected.range().take(MAX_FOUNDERS);
        ordinals.map(|ordinal| self.with_ordinal(ordinal)).collect()
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.base, self.ordinal)
    }
}

/// How many of `founders` vote: the largest odd number up to `max_voters`; of two, both.
pub(crate) fn voter_count(founders: usize, max_voters: u32) -> usize {
    let most = founders.min(usize::try_from(max_voters).unwrap_or(usize::MAX));
    match founders {
        2 => most,
        _ if most.is_multiple_of(2) => most.saturating_sub(1),
        _ => most,
    }
}

/// The lowest ordinals vote. `founders` are in that order.
pub(crate) fn choose_voters(founders: &mut [Founder], max_voters: u32) {
    let voters = voter_count(founders.len(), max_voters);
    for (place, founder) in founders.iter_mut().enumerate() {
        founder.voter = place < voters;
    }
}

/// What a new cluster is founded with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Founding {
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    /// The first membership: those to initialise Raft with.
    pub voters: BTreeMap<MemberId, PeerAddress>,
    /// To be added as learners by whoever leads.
    pub learners: BTreeMap<MemberId, PeerAddress>,
}

impl From<&Proposal> for Founding {
    fn from(proposal: &Proposal) -> Self {
        let (voters, learners): (Vec<_>, Vec<_>) =
            proposal.founders.iter().partition(|founder| founder.voter);
        let by_id = |founders: Vec<&Founder>| {
            founders
                .into_iter()
                .map(|founder| (founder.id, address(founder)))
                .collect()
        };
        Self {
            cluster: proposal.cluster,
            incarnation: FIRST_INCARNATION,
            voters: by_id(voters),
            learners: by_id(learners),
        }
    }
}

fn address(founder: &Founder) -> PeerAddress {
    PeerAddress {
        name: founder.name.clone(),
        peer_address: founder.peer_address.clone(),
        client_address: founder.client_address.clone(),
    }
}

/// What an acceptor looks at.
#[derive(Clone, Debug)]
pub(crate) struct Acceptor<'a> {
    pub name: &'a PodName,
    pub id: MemberId,
    /// The pods that it expects, or why it does not know them yet.
    pub expected: Result<Ordinals, String>,
    pub phase: &'a Phase,
    /// It has released this very cluster.
    pub released: bool,
    /// It has asked a cluster to add it.
    pub joining: Option<ClusterId>,
}

impl Acceptor<'_> {
    /// May this node accept the proposal? The same one again is fine. Pure; the acceptance is then made
    /// durable by [`crate::identity::Identity::reserve`], which refuses a second one whatever happens here.
    ///
    /// The reason of a refusal tells the proposer what to do: [`Reason::WrongCluster`] alone is for ever.
    pub(crate) fn consider(&self, sender: MemberId, proposal: &Proposal) -> Result<()> {
        check(proposal)?;
        self.check_parties(sender, proposal)?;
        if self.released {
            let text = format!(
                "this node released cluster {} and refuses it for ever",
                proposal.cluster
            );
            return Err(Error::new(Reason::WrongCluster, text));
        }
        match self.phase {
            Phase::Reserved(accepted) if accepted == proposal => return Ok(()),
            Phase::Member { cluster, .. } if *cluster == proposal.cluster => return Ok(()),
            Phase::Virgin => {}
            phase => return Err(conflict(format!("this node is {phase}"))),
        }
        if let Some(cluster) = self.joining {
            return Err(conflict(format!("this node is joining cluster {cluster}")));
        }
        // Only before the acceptance: afterwards the setting may change, the promise may not.
        let expected = self.expected.as_ref().map_err(|why| {
            let text = format!("this node does not know how many replicas there should be: {why}");
            Error::new(Reason::NodeNotReady, text)
        })?;
        let proposed = &proposal.founders[0].name;
        let agrees = proposal.replicas == expected.replicas
            && *proposed == self.name.with_ordinal(expected.start);
        if !agrees {
            let text = format!(
                "the proposal is for {} replicas from {proposed}, and this node expects {} from {}; set the \
                 same on all",
                proposal.replicas,
                expected.replicas,
                self.name.with_ordinal(expected.start)
            );
            return Err(Error::new(Reason::Configuration, text));
        }
        Ok(())
    }

    fn check_parties(&self, sender: MemberId, proposal: &Proposal) -> Result<()> {
        let proposer = proposal.founders.first().map(|founder| founder.id);
        if proposer != Some(sender) {
            return Err(bad(
                "only the founder with the lowest ordinal proposes".into()
            ));
        }
        let me = self.name.to_string();
        if proposal
            .founders
            .iter()
            .any(|founder| founder.id == self.id && founder.name == me)
        {
            return Ok(());
        }
        let text = format!(
            "the proposal does not name this node, {me} with id {}",
            self.id
        );
        Err(Error::new(Reason::WrongTarget, text))
    }
}

/// Is this a proposal that a proposer can make at all?
fn check(proposal: &Proposal) -> Result<()> {
    let founders = &proposal.founders;
    if proposal.cluster == ClusterId(0) || founders.is_empty() || founders.len() > MAX_FOUNDERS {
        return Err(bad(format!(
            "expected a cluster id and 1 to {MAX_FOUNDERS} founders"
        )));
    }
    if founders.len() != proposal.replicas as usize {
        return Err(bad(format!(
            "{} founders for {} replicas",
            founders.len(),
            proposal.replicas
        )));
    }
    let first = PodName::parse(&founders[0].name)?;
    let names = first.founders(Ordinals {
        start: first.ordinal(),
        replicas: proposal.replicas,
    });
    if !founders.iter().map(|founder| &founder.name).eq(&names) {
        return Err(bad(format!(
            "expected the founders {}, in that order",
            names.join(", ")
        )));
    }
    let ids: BTreeSet<_> = founders.iter().map(|founder| founder.id).collect();
    if ids.len() != founders.len() || ids.contains(&MemberId(0)) {
        return Err(bad("a founder's id is missing, or is there twice".into()));
    }
    let voters = founders.iter().filter(|founder| founder.voter).count();
    let lowest_vote = founders.iter().take(voters).all(|founder| founder.voter);
    if !lowest_vote
        || voters == 0
        || voter_count(founders.len(), u32::try_from(voters).unwrap_or(0)) != voters
    {
        return Err(bad(
            "expected an odd number of voters, or two of two, with the lowest ordinals".into(),
        ));
    }
    Ok(())
}

fn bad(text: String) -> Error {
    Error::new(Reason::InvalidArgument, text)
}

fn conflict(text: String) -> Error {
    Error::new(Reason::MembershipConflict, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: MemberId = MemberId(10);

    fn proposal(replicas: u32) -> Proposal {
        let mut founders: Vec<_> = (0..replicas)
            .map(|ordinal| Founder {
                name: format!("podkv-{ordinal}"),
                id: MemberId(10 + u64::from(ordinal)),
                peer_address: format!("podkv-{ordinal}:2380"),
                client_address: format!("podkv-{ordinal}:2379"),
                voter: false,
            })
            .collect();
        choose_voters(&mut founders, 5);
        Proposal {
            cluster: ClusterId(7),
            replicas,
            founders,
        }
    }

    /// podkv-1 considers the proposal, and says why it refuses.
    fn consider(
        phase: &Phase,
        change: impl FnOnce(&mut Acceptor<'_>),
        proposal: &Proposal,
    ) -> Option<Reason> {
        let name = PodName::parse("podkv-1").unwrap();
        let expected = Ok(Ordinals {
            start: 0,
            replicas: 3,
        });
        let mut acceptor = Acceptor {
            name: &name,
            id: MemberId(11),
            expected,
            phase,
            released: false,
            joining: None,
        };
        change(&mut acceptor);
        acceptor
            .consider(SENDER, proposal)
            .err()
            .map(|error| error.reason())
    }

    #[test]
    fn the_largest_odd_number_votes_and_of_two_both() {
        let counts = |max| [1, 2, 3, 4, 5, 6, 9].map(|founders| voter_count(founders, max));
        assert_eq!(counts(5), [1, 2, 3, 3, 5, 5, 5]);
        assert_eq!(counts(3), [1, 2, 3, 3, 3, 3, 3]);
        assert_eq!(counts(1), [1, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn names_have_one_spelling() {
        assert_eq!(
            PodName::parse("my-db-12").unwrap().with_ordinal(3),
            "my-db-3"
        );
        for bad in ["podkv", "podkv-", "podkv-x", "podkv-01", "podkv-+1"] {
            PodName::parse(bad).unwrap_err();
        }
    }

    #[test]
    fn an_acceptance_is_for_one_proposal() {
        let (virgin, ours) = (Phase::Virgin, proposal(3));
        let five = Ok(Ordinals {
            start: 0,
            replicas: 5,
        });
        assert_eq!(consider(&virgin, |_| (), &ours), None);
        assert_eq!(
            consider(&Phase::Reserved(ours.clone()), |_| (), &ours),
            None
        );
        // The promise outlives the setting.
        let reserved = Phase::Reserved(ours.clone());
        assert_eq!(
            consider(&reserved, |me| me.expected = five.clone(), &ours),
            None
        );

        let other = Proposal {
            cluster: ClusterId(8),
            ..ours.clone()
        };
        for phase in [
            Phase::Reserved(other.clone()),
            Phase::Member {
                cluster: other.cluster,
                incarnation: FIRST_INCARNATION,
            },
            Phase::Retired {
                cluster: ours.cluster,
                incarnation: FIRST_INCARNATION,
            },
        ] {
            assert_eq!(
                consider(&phase, |_| (), &ours),
                Some(Reason::MembershipConflict),
                "{phase}"
            );
        }
        let joining = |me: &mut Acceptor<'_>| me.joining = Some(other.cluster);
        assert_eq!(
            consider(&virgin, joining, &ours),
            Some(Reason::MembershipConflict)
        );
        assert_eq!(
            consider(&virgin, |me| me.released = true, &ours),
            Some(Reason::WrongCluster)
        );
        assert_eq!(
            consider(&virgin, |me| me.expected = five, &ours),
            Some(Reason::Configuration)
        );
        let from_one = Ok(Ordinals {
            start: 1,
            replicas: 3,
        });
        assert_eq!(
            consider(&virgin, |me| me.expected = from_one, &ours),
            Some(Reason::Configuration)
        );
        let unknown = Err("nobody has said".into());
        assert_eq!(
            consider(&virgin, |me| me.expected = unknown, &ours),
            Some(Reason::NodeNotReady)
        );
        // The volume was lost after it said hello.
        assert_eq!(
            consider(&virgin, |me| me.id = MemberId(99), &ours),
            Some(Reason::WrongTarget)
        );
    }

    #[test]
    fn a_malformed_proposal_is_refused() {
        let refused = |change: fn(&mut Proposal)| {
            let mut proposal = proposal(3);
            change(&mut proposal);
            assert_eq!(
                consider(&Phase::Virgin, |_| (), &proposal),
                Some(Reason::InvalidArgument)
            );
        };
        refused(|p| p.cluster = ClusterId(0));
        refused(|p| p.founders.clear());
        refused(|p| p.replicas = 4);
        refused(|p| p.founders.swap(1, 2));
        refused(|p| p.founders[2].id = MemberId(11));
        refused(|p| p.founders[2].id = MemberId(0));
        refused(|p| p.founders[2].name = "other-2".into());
        refused(|p| p.founders[2].voter = false);
        refused(|p| p.founders[0].voter = false);
        refused(|p| p.founders[0].id = MemberId(99));
    }

    #[test]
    fn a_founding_has_voters_and_learners() {
        let founding = Founding::from(&proposal(4));
        let ids =
            |set: &BTreeMap<MemberId, PeerAddress>| set.keys().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(ids(&founding.voters), [10, 11, 12]);
        assert_eq!(ids(&founding.learners), [13]);
        assert_eq!(founding.learners[&MemberId(13)].name, "podkv-3");
    }
}
