//! Which membership changes are allowed: pure rules over what a leader sees.
//!
//! Membership changes one at a time, and only from a committed, uniform membership. No change may
//! leave a set of voters of which no majority answers: such a cluster could not even undo it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podkv_api::{Error, MemberId, Reason, Result};

use crate::membership::{CAUGHT_UP_ENTRIES, LogPosition, Members, PeerAddress};

/// One change, as it is asked for.
#[derive(Clone, Debug)]
pub(super) enum Change {
    AddLearner(MemberId, PeerAddress),
    Promote(MemberId),
    /// From voter to learner.
    Demote(MemberId),
    Remove(MemberId),
    /// The learner `new` takes the vote of `old`, which leaves, in one joint change.
    Replace {
        old: MemberId,
        new: MemberId,
    },
    /// The second half of a joint change whose leader did not get to it.
    Finish,
}

/// What a change comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    AddLearner(MemberId, PeerAddress),
    /// These are the voters then. Who is no more of them leaves.
    Voters(BTreeSet<MemberId>),
    /// These are the voters then. Who is no more of them stays as a learner.
    Demote(BTreeSet<MemberId>),
    RemoveLearner(MemberId),
    /// The second half of a joint change: the new voters are the voters. Who is no more of them stays as a learner: what it
    /// was to become is not known any more.
    Finish,
}

/// What the leader knows of the cluster.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub me: MemberId,
    pub members: Members,
    /// The membership is committed.
    pub committed: bool,
    pub last_index: u64,
    /// Up to where each peer's log matches.
    pub matched: BTreeMap<MemberId, Option<LogPosition>>,
    /// How long ago each peer last answered.
    pub answered: BTreeMap<MemberId, Duration>,
    /// A peer that has answered within this time is there.
    pub alive_within: Duration,
}

/// Names longer than this are refused: they are kept in every membership record.
const MAX_NAME_BYTES: usize = 1024;

/// More members than anybody runs; their number is kept in 16 bits.
const MAX_MEMBERS: usize = 1000;

/// Refuses an address that a membership record does not hold.
pub(super) fn check_address(address: &PeerAddress) -> Result<()> {
    let PeerAddress {
        name,
        peer_address,
        client_address,
    } = address;
    for text in [name, peer_address, client_address] {
        if text.len() > MAX_NAME_BYTES {
            return Err(Error::new(
                Reason::InvalidArgument,
                format!(
                    "a name of {} bytes; a member's names have at most {MAX_NAME_BYTES}",
                    text.len()
                ),
            ));
        }
    }
    Ok(())
}

fn conflict(text: impl Into<String>) -> Error {
    Error::new(Reason::MembershipConflict, text)
}

impl Seen {
    /// What to do for `change`; `None` if it is done already.
    pub fn plan(&self, change: &Change) -> Result<Option<Step>> {
        if !self.committed {
            return Err(conflict(
                "another membership change is not committed yet: try again",
            ));
        }
        let [voters] = self.members.voters.as_slice() else {
            return match change {
                Change::Finish => Ok(Some(Step::Finish)),
                _ => Err(conflict(
                    "another membership change is half done: try again",
                )),
            };
        };
        let step = match change {
            Change::AddLearner(id, address) => match self.members.nodes.get(id) {
                Some(known) if known == address => None,
                Some(known) => {
                    return Err(conflict(format!(
                        "member {id} is known as {} at {}; an id is never used again",
                        known.name, known.peer_address
                    )));
                }
                None if self.members.nodes.len() >= MAX_MEMBERS => {
                    return Err(conflict(format!("there are {MAX_MEMBERS} members already")));
                }
                None => {
                    check_address(address)?;
                    self.name_is_free(&address.name)?;
                    Some(Step::AddLearner(*id, address.clone()))
                }
            },
            Change::Promote(id) if voters.contains(id) => None,
            Change::Promote(id) => {
                self.caught_up(*id)?;
                Some(Step::Voters(self.vote(voters | &BTreeSet::from([*id]))?))
            }
            Change::Demote(id) if voters.contains(id) => {
                Some(Step::Demote(self.vote(voters - &BTreeSet::from([*id]))?))
            }
            Change::Demote(id) if self.members.contains(*id) => None,
            Change::Demote(id) => return Err(not_found(*id, "member")),
            Change::Remove(id) if voters.contains(id) => {
                Some(Step::Voters(self.vote(voters - &BTreeSet::from([*id]))?))
            }
            Change::Remove(id) => self
                .members
                .contains(*id)
                .then_some(Step::RemoveLearner(*id)),
            Change::Replace { old, new } => {
                if voters.contains(new) && !self.members.contains(*old) {
                    return Ok(None);
                }
                if !voters.contains(old) {
                    return match voters.contains(new) {
                        // Half of it was done, and then finished.
                        true => Ok(Some(Step::RemoveLearner(*old))),
                        false => Err(not_found(*old, "voter")),
                    };
                }
                self.caught_up(*new)?;
                let rest = voters - &BTreeSet::from([*old]);
                Some(Step::Voters(self.vote(&rest | &BTreeSet::from([*new]))?))
            }
            Change::Finish => None,
        };
        Ok(step)
    }

    /// Two nodes that both answer must not take turns under one name: the second waits until the first has
    /// been silent for a while.
    fn name_is_free(&self, name: &str) -> Result<()> {
        let holds =
            |(id, address): &(&MemberId, &PeerAddress)| address.name == name && self.is_alive(**id);
        match self.members.nodes.iter().find(holds) {
            None => Ok(()),
            Some((id, _)) => Err(conflict(format!(
                "{name} is member {id}, which answers: two pods claim one name, or the old one is just ending"
            ))),
        }
    }

    /// These voters, if a majority of them answers.
    fn vote(&self, voters: BTreeSet<MemberId>) -> Result<BTreeSet<MemberId>> {
        if voters.is_empty() {
            return Err(conflict("the last voter cannot be removed"));
        }
        let alive = voters.iter().filter(|id| self.is_alive(**id)).count();
        let majority = voters.len() / 2 + 1;
        if alive < majority {
            return Err(conflict(format!(
                "of the {} voters that it would leave {alive} answer, and {majority} are needed",
                voters.len()
            )));
        }
        Ok(voters)
    }

    fn is_alive(&self, id: MemberId) -> bool {
        id == self.me
            || self
                .answered
                .get(&id)
                .is_some_and(|ago| *ago <= self.alive_within)
    }

    fn caught_up(&self, id: MemberId) -> Result<()> {
        if !self.members.contains(id) {
            return Err(not_found(id, "member"));
        }
        let matched = self
            .matched
            .get(&id)
            .copied()
            .flatten()
            .map_or(0, |at| at.index);
        if matched + CAUGHT_UP_ENTRIES < self.last_index {
            return Err(conflict(format!(
                "learner {id} has not caught up: it is at index {matched} of {}",
                self.last_index
            )));
        }
        Ok(())
    }

    /// Who can take over leadership: the voter that is nearest to the end of the log.
    pub fn successor(&self) -> Option<MemberId> {
        let voters = self
            .members
            .nodes
            .keys()
            .filter(|id| self.members.is_voter(**id));
        voters
            .filter(|id| **id != self.me && self.is_alive(**id))
            .max_by_key(|id| self.matched.get(id).copied().flatten())
            .copied()
    }

    /// The successor of a leader whose own disk hangs: only if, without it, a majority of the voters has synced everything
    /// that this leader holds. Their disks work then. Otherwise to hand over would only carry the trouble around.
    pub fn relief(&self) -> Option<MemberId> {
        let has_all = |id: &&MemberId| {
            let matched = self.matched.get(id).copied().flatten();
            **id != self.me
                && self.is_alive(**id)
                && matched.is_some_and(|at| at.index >= self.last_index)
        };
        let majority =
            |set: &BTreeSet<MemberId>| set.iter().filter(has_all).count() > set.len() / 2;
        match self.members.voters.iter().all(majority) {
            true => self.successor().filter(|id| has_all(&id)),
            false => None,
        }
    }
}

pub(super) fn not_found(id: MemberId, what: &str) -> Error {
    Error::new(
        Reason::MemberNotFound,
        format!("{id} is no {what} of this cluster"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<MemberId> {
        ids.iter().copied().map(MemberId).collect()
    }

    fn address(id: u64) -> PeerAddress {
        PeerAddress {
            name: format!("podkv-{id}"),
            ..PeerAddress::default()
        }
    }

    /// Member 1 leads; `dead` do not answer.
    fn seen(voters: &[u64], learners: &[u64], dead: &[u64]) -> Seen {
        let all: Vec<u64> = voters.iter().chain(learners).copied().collect();
        let at = LogPosition {
            term: 2,
            index: 1000,
        };
        Seen {
            me: MemberId(1),
            members: Members {
                position: Some(LogPosition { term: 1, index: 5 }),
                voters: vec![ids(voters)],
                nodes: all.iter().map(|id| (MemberId(*id), address(*id))).collect(),
            },
            committed: true,
            last_index: 1000,
            matched: all.iter().map(|id| (MemberId(*id), Some(at))).collect(),
            answered: all
                .iter()
                .filter(|id| !dead.contains(id))
                .map(|id| (MemberId(*id), Duration::ZERO))
                .collect(),
            alive_within: Duration::from_secs(1),
        }
    }

    fn reason(result: Result<Option<Step>>) -> Reason {
        result.unwrap_err().reason()
    }

    #[test]
    fn a_learner_is_added_once_and_its_id_is_never_used_again() {
        let seen = seen(&[1, 2, 3], &[], &[]);
        let add = |id, name| Change::AddLearner(MemberId(id), address(name));
        let step = seen.plan(&add(4, 4)).unwrap();
        assert_eq!(step, Some(Step::AddLearner(MemberId(4), address(4))));
        assert_eq!(seen.plan(&add(3, 3)).unwrap(), None);
        assert_eq!(reason(seen.plan(&add(3, 9))), Reason::MembershipConflict);
    }

    #[test]
    fn a_name_has_one_node_that_answers() {
        let add = Change::AddLearner(MemberId(9), address(2));
        let alive = seen(&[1, 2, 3], &[], &[]);
        assert_eq!(reason(alive.plan(&add)), Reason::MembershipConflict);
        let dead = seen(&[1, 2, 3], &[], &[2]);
        let step = dead.plan(&add).unwrap();
        assert_eq!(step, Some(Step::AddLearner(MemberId(9), address(2))));
    }

    #[test]
    fn a_voter_can_become_a_standby() {
        let demote = |id| Change::Demote(MemberId(id));
        let seen = seen(&[1, 2, 3], &[4], &[2]);
        let step = seen.plan(&demote(2)).unwrap();
        assert_eq!(step, Some(Step::Demote(ids(&[1, 3]))));
        assert_eq!(reason(seen.plan(&demote(3))), Reason::MembershipConflict);
        assert_eq!(seen.plan(&demote(4)).unwrap(), None, "it is one already");
        assert_eq!(reason(seen.plan(&demote(9))), Reason::MemberNotFound);
    }

    #[test]
    fn names_that_no_record_holds_are_refused() {
        let long = PeerAddress {
            name: "x".repeat(70_000),
            ..PeerAddress::default()
        };
        let add = Change::AddLearner(MemberId(4), long);
        assert_eq!(
            reason(seen(&[1], &[], &[]).plan(&add)),
            Reason::InvalidArgument
        );
    }

    #[test]
    fn a_learner_votes_when_it_has_caught_up() {
        let promote = Change::Promote(MemberId(4));
        let mut seen = seen(&[1, 2, 3], &[4], &[]);
        let step = seen.plan(&promote).unwrap();
        assert_eq!(step, Some(Step::Voters(ids(&[1, 2, 3, 4]))));
        seen.matched
            .insert(MemberId(4), Some(LogPosition { term: 2, index: 1 }));
        assert_eq!(reason(seen.plan(&promote)), Reason::MembershipConflict);
        assert_eq!(
            reason(seen.plan(&Change::Promote(MemberId(9)))),
            Reason::MemberNotFound
        );
        assert_eq!(seen.plan(&Change::Promote(MemberId(2))).unwrap(), None);
    }

    #[test]
    fn no_change_loses_the_majority() {
        let remove = |id| Change::Remove(MemberId(id));
        // 2 is dead: without 3, member 1 would be alone of two.
        assert_eq!(
            reason(seen(&[1, 2, 3], &[], &[2]).plan(&remove(3))),
            Reason::MembershipConflict
        );
        let step = seen(&[1, 2, 3], &[], &[2]).plan(&remove(2)).unwrap();
        assert_eq!(step, Some(Step::Voters(ids(&[1, 3]))));
        assert_eq!(
            reason(seen(&[1], &[], &[]).plan(&remove(1))),
            Reason::MembershipConflict
        );
        let step = seen(&[1, 2], &[3], &[3]).plan(&remove(3)).unwrap();
        assert_eq!(step, Some(Step::RemoveLearner(MemberId(3))));
        assert_eq!(seen(&[1, 2], &[], &[]).plan(&remove(9)).unwrap(), None);
        // One of three is dead, and a fourth voter would raise the majority to three.
        let promote = Change::Promote(MemberId(4));
        assert!(seen(&[1, 2, 3], &[4], &[3]).plan(&promote).is_ok());
        assert_eq!(
            reason(seen(&[1, 2, 3], &[4], &[3, 4]).plan(&promote)),
            Reason::MembershipConflict
        );
    }

    #[test]
    fn a_replacement_is_one_change() {
        let replace = Change::Replace {
            old: MemberId(2),
            new: MemberId(4),
        };
        let step = seen(&[1, 2, 3], &[4], &[2]).plan(&replace).unwrap();
        assert_eq!(step, Some(Step::Voters(ids(&[1, 3, 4]))));
        assert_eq!(
            seen(&[1, 3, 4], &[], &[]).plan(&replace).unwrap(),
            None,
            "done already"
        );
        assert_eq!(
            seen(&[1, 3, 4], &[2], &[2]).plan(&replace).unwrap(),
            Some(Step::RemoveLearner(MemberId(2))),
            "half of it was done, and then finished"
        );
        assert_eq!(
            reason(seen(&[1, 3], &[4], &[]).plan(&replace)),
            Reason::MemberNotFound
        );
    }

    #[test]
    fn one_change_at_a_time() {
        let change = Change::Remove(MemberId(3));
        let mut seen = seen(&[1, 2, 3], &[], &[]);
        seen.committed = false;
        assert_eq!(reason(seen.plan(&change)), Reason::MembershipConflict);
        seen.committed = true;
        seen.members.voters.push(ids(&[1, 2]));
        assert_eq!(reason(seen.plan(&change)), Reason::MembershipConflict);
    }

    #[test]
    fn half_a_change_is_finished_once_it_is_committed() {
        let mut seen = seen(&[1, 2, 3], &[], &[]);
        assert_eq!(seen.plan(&Change::Finish).unwrap(), None);
        seen.members.voters.push(ids(&[1, 2]));
        assert_eq!(seen.plan(&Change::Finish).unwrap(), Some(Step::Finish));
        seen.committed = false;
        assert_eq!(
            reason(seen.plan(&Change::Finish)),
            Reason::MembershipConflict
        );
    }

    #[test]
    fn a_leader_is_relieved_only_by_a_majority_that_has_synced_everything() {
        let mut seen = seen(&[1, 2, 3], &[4], &[]);
        let at = |index| Some(LogPosition { term: 2, index });
        seen.last_index = 900;
        seen.matched.insert(MemberId(2), at(900));
        seen.matched.insert(MemberId(3), at(899));
        assert_eq!(seen.relief(), None, "its disk may hang as well");
        seen.matched.insert(MemberId(3), at(900));
        assert!(seen.relief().is_some());
        seen.answered.remove(&MemberId(3));
        assert_eq!(seen.relief(), None, "it may be gone");
    }

    #[test]
    fn the_successor_is_the_voter_nearest_to_the_end() {
        let mut seen = seen(&[1, 2, 3], &[4], &[]);
        seen.matched.insert(
            MemberId(2),
            Some(LogPosition {
                term: 2,
                index: 900,
            }),
        );
        assert_eq!(seen.successor(), Some(MemberId(3)));
        seen.answered.remove(&MemberId(3));
        assert_eq!(seen.successor(), Some(MemberId(2)));
        seen.answered.clear();
        assert_eq!(seen.successor(), None);
    }
}
