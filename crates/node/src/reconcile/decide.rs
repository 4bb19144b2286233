//! What the membership should become next, from what the leader sees. Pure.
//!
//! At most one change comes out, the most urgent one; the loop makes it and looks again. So every
//! step is taken from a committed membership, and none depends on the one before it.
//!
//! ```text
//!   0  half a joint change     finish it: nobody else does, and nothing else can be changed before
//!   0  a leader without vote   it was to lose it in that change, and would lead on as a learner: hand over
//!   1  one name, several ids   the pod came back with an empty volume: replace, or clear away
//!   2  a vote to give          the lowest ordinals vote, once they have caught up
//!   3  beyond the size         leave, the highest ordinal first, after a while
//!   4  a vote too many         becomes a standby
//! ```
//!
//! Silence is a reason to replace only where a successor of the same name has come: a dead pod alone
//! changes nothing, because a restart is not a decommission.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use podkv_api::MemberId;

use crate::bootstrap::founders::{PodName, voter_count};
use crate::config::MembershipTiming;
use crate::discovery::Ordinals;
use crate::membership::{CAUGHT_UP_ENTRIES, Members};

/// What the leader sees of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Since it last answered; of the leader itself, nothing.
    pub silent: Duration,
    /// Entries that it lacks.
    pub behind: u64,
}

/// How many pods there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub ordinals: Ordinals,
    /// How long it has been so.
    pub since: Duration,
}

/// Everything that a decision depends on.
#[derive(Clone, Debug)]
pub(crate) struct Situation<'a> {
    /// The leader.
    pub me: MemberId,
    pub members: &'a Members,
    /// The membership is committed.
    pub settled: bool,
    /// This leader is making a change of it; of a joint one, the second half is its business still.
    pub changing: bool,
    /// Since the membership last changed, as far as this leader knows.
    pub unchanged: Duration,
    pub peers: &'a BTreeMap<MemberId, Peer>,
    /// `None` is no information: the membership holds.
    pub size: Option<Size>,
    pub max_voters: u32,
    pub timing: &'a MembershipTiming,
    /// A peer that answered within this time is there.
    pub alive_within: Duration,
    /// Names under which an id was replaced, and how long ago.
    pub replaced: &'a BTreeMap<String, Duration>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    Wait(Why),
    /// The second half of a joint change whose leader did not get to it.
    Finish,
    Promote(MemberId),
    /// From voter to standby.
    Demote(MemberId),
    /// The learner `new` takes the place of `old`, which leaves.
    Replace {
        old: MemberId,
        new: MemberId,
    },
    Remove(MemberId),
    /// This leader is to leave or to lose its vote: another one makes that change.
    HandOver(MemberId),
}

/// What keeps a change from being made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// A change is not committed yet.
    Unfinished,
    /// Two nodes that both answer claim one name.
    TwoClaimants { name: String },
    /// The successor of a lost volume does not hold everything yet.
    CatchingUp { name: String, behind: u64 },
    /// The name's id was replaced just now.
    ReplacedJustNow { name: String },
    /// This leader is to leave, and no other voter that stays answers.
    NoSuccessor,
}

/// What to do next.
pub(crate) fn decide(situation: &Situation<'_>) -> Action {
    if !situation.settled || situation.changing {
        return Action::Wait(Why::Unfinished);
    }
    if situation.members.voters.len() > 1 {
        return Action::Finish;
    }
    let mut waiting = None;
    let steps = [
        Situation::lead_with_a_vote,
        Situation::one_id_a_name,
        Situation::give_a_vote,
        Situation::shrink,
        Situation::take_a_vote,
    ];
    for step in steps {
        match step(situation) {
            Action::Nothing => {}
            // Something else may be possible meanwhile.
            Action::Wait(why) => waiting = waiting.or(Some(why)),
            action => return action,
        }
    }
    waiting.map_or(Action::Nothing, Action::Wait)
}

impl Situation<'_> {
    /// A leader that lost its vote would go on as a learner.
    fn lead_with_a_vote(&self) -> Action {
        let voter = |(_, id): &(u32, MemberId)| self.votes(*id) && self.is_alive(*id);
        match self.ours().into_iter().filter(voter).min() {
            Some((_, successor)) if !self.votes(self.me) => Action::HandOver(successor),
            _ => Action::Nothing,
        }
    }

    /// A pod that lost its volume came back under a new id: the old one goes.
    fn one_id_a_name(&self) -> Action {
        let mut names: BTreeMap<(String, u32), Vec<MemberId>> = BTreeMap::new();
        for (id, address) in &self.members.nodes {
            if let Ok(name) = PodName::parse(&address.name) {
                let key = (name.base().to_owned(), name.ordinal());
                names.entry(key).or_default().push(*id);
            }
        }
        let mut waiting = None;
        for ids in names.into_values().filter(|ids| ids.len() > 1) {
            match self.choose_between(&ids) {
                Action::Nothing => {}
                Action::Wait(why) => waiting = waiting.or(Some(why)),
                action => return action,
            }
        }
        waiting.map_or(Action::Nothing, Action::Wait)
    }

    /// Of several ids under one name.
    fn choose_between(&self, ids: &[MemberId]) -> Action {
        let name = || self.members.nodes[&ids[0]].name.clone();
        let alive: Vec<_> = ids.iter().filter(|id| self.is_alive(**id)).collect();
        let [new] = alive.as_slice() else {
            return match alive.len() {
                0 => Action::Nothing,
                _ => Action::Wait(Why::TwoClaimants { name: name() }),
            };
        };
        let gone = |id: &&MemberId| *id != *new && self.silent(**id) >= self.timing.replace_after;
        // Those without a vote are cleared away first: it needs nothing of anybody.
        if let Some(old) = ids.iter().filter(gone).find(|id| !self.votes(**id)) {
            return Action::Remove(*old);
        }
        let Some(old) = ids.iter().find(gone) else {
            return Action::Nothing;
        };
        if self.votes(**new) {
            return Action::Remove(*old);
        }
        if let Some(ago) = self.replaced.get(&name())
            && *ago < self.timing.replace_interval
        {
            return Action::Wait(Why::ReplacedJustNow { name: name() });
        }
        let behind = self.behind(**new);
        if behind > CAUGHT_UP_ENTRIES {
            return Action::Wait(Why::CatchingUp {
                name: name(),
                behind,
            });
        }
        Action::Replace {
            old: *old,
            new: **new,
        }
    }

    /// The lowest wanted ordinal without a vote gets one.
    fn give_a_vote(&self) -> Action {
        let wanted = self.wanted();
        let next = wanted.iter().find(|id| !self.votes(**id));
        next.map_or(Action::Nothing, |id| Action::Promote(*id))
    }

    /// The highest ordinal beyond the size leaves.
    fn shrink(&self) -> Action {
        let Some(size) = self.usable_size() else {
            return Action::Nothing;
        };
        if size.since < self.timing.shrink_after {
            return Action::Nothing;
        }
        let beyond = |(ordinal, _): &(u32, MemberId)| !size.ordinals.contains(*ordinal);
        let leaving = self.ours().into_iter().filter(beyond).max();
        match leaving {
            None => Action::Nothing,
            Some((_, id)) => self.unless_me(id, Action::Remove(id)),
        }
    }

    /// The highest ordinal that votes and need not becomes a standby, once everybody who should vote does.
    fn take_a_vote(&self) -> Action {
        let Some(size) = self.usable_size() else {
            return Action::Nothing;
        };
        if self.unchanged < self.timing.demote_after {
            return Action::Nothing;
        }
        let wanted = self.wanted();
        if wanted.is_empty() || !wanted.iter().all(|id| self.votes(*id)) {
            return Action::Nothing;
        }
        let surplus = |(ordinal, id): &(u32, MemberId)| {
            size.ordinals.contains(*ordinal) && self.votes(*id) && !wanted.contains(id)
        };
        let surplus = self.ours().into_iter().filter(surplus).max();
        match surplus {
            None => Action::Nothing,
            Some((_, id)) => self.unless_me(id, Action::Demote(id)),
        }
    }

    /// Changes that cost the leader its place are made by its successor.
    fn unless_me(&self, id: MemberId, action: Action) -> Action {
        if id != self.me {
            return action;
        }
        let stays = |(ordinal, id): &(u32, MemberId)| {
            self.usable_size()
                .is_none_or(|size| size.ordinals.contains(*ordinal))
                && *id != self.me
                && self.votes(*id)
                && self.is_alive(*id)
        };
        // The lowest: it stays longest.
        match self.ours().into_iter().filter(stays).min() {
            Some((_, successor)) => Action::HandOver(successor),
            None => Action::Wait(Why::NoSuccessor),
        }
    }

    /// Those who should vote, lowest ordinal first: of the pods in the size that vote, or could.
    ///
    /// Pods that have not come yet do not count: three voters and one newcomer stay three voters, until a fifth
    /// pod makes five possible.
    fn wanted(&self) -> Vec<MemberId> {
        let Some(size) = self.usable_size() else {
            return Vec::new();
        };
        let could = |id: MemberId| {
            self.votes(id) || (self.is_alive(id) && self.behind(id) <= CAUGHT_UP_ENTRIES)
        };
        let mut present: BTreeMap<u32, MemberId> = BTreeMap::new();
        for (ordinal, id) in self.ours() {
            if size.ordinals.contains(ordinal) && could(id) {
                let chosen = present.entry(ordinal).or_insert(id);
                if self.votes(id) {
                    *chosen = id;
                }
            }
        }
        let count = voter_count(present.len(), self.max_voters);
        present.into_values().take(count).collect()
    }

    /// A size of 0 is suspension: the pods come back.
    fn usable_size(&self) -> Option<Size> {
        self.size.filter(|size| size.ordinals.replicas > 0)
    }

    /// The members of the leader's own StatefulSet. Those of another one are read-only replicas: they join and
    /// leave by themselves.
    fn ours(&self) -> Vec<(u32, MemberId)> {
        let name_of = |id: &MemberId| PodName::parse(&self.members.nodes.get(id)?.name).ok();
        let Some(mine) = name_of(&self.me) else {
            return Vec::new();
        };
        let ids = self.members.nodes.keys();
        ids.filter_map(|id| Some((name_of(id)?, *id)))
            .filter(|(name, _)| name.base() == mine.base())
            .map(|(name, id)| (name.ordinal(), id))
            .collect()
    }

    fn votes(&self, id: MemberId) -> bool {
        self.members.is_voter(id)
    }

    fn is_alive(&self, id: MemberId) -> bool {
        self.silent(id) <= self.alive_within
    }

    fn silent(&self, id: MemberId) -> Duration {
        if id == self.me {
            return Duration::ZERO;
        }
        self.peers
            .get(&id)
            .map_or(Duration::MAX, |peer| peer.silent)
    }

    fn behind(&self, id: MemberId) -> u64 {
        if id == self.me {
            return 0;
        }
        self.peers.get(&id).map_or(u64::MAX, |peer| peer.behind)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfinished => f.write_str("a change of the membership is not committed yet"),
            Self::TwoClaimants { name } => {
                write!(f, "two nodes answer as {name}; one of them must end")
            }
            Self::CatchingUp { name, behind } => {
                write!(
                    f,
                    "{name} has a new volume and lacks {behind} entries still"
                )
            }
            Self::ReplacedJustNow { name } => {
                write!(
                    f,
                    "{name} was replaced just now; its volume keeps getting lost"
                )
            }
            Self::NoSuccessor => {
                f.write_str("this leader is to leave, and no other voter that stays answers")
            }
        }
    }
}
