//! Recovery from a majority that is lost for good: offline, on the volume of one stopped node.
//!
//! While a majority of volumes exists, nothing here is needed: start the pods. When it does not, nobody can say any more
//! which entries were committed, and writes that were acknowledged may be on none of the volumes that are left.
//! Going on is a person's decision, about the best of them:
//!
//! ```text
//!   every volume that is left   inspect ──► who, and where its log ends: (term, index)
//!   the highest one             plan    ──► refused, or: what may be lost, and a word that confirms it
//!                               recover ──► the only voter of the next incarnation; start its pod
//!   every other one             start its pod: it finds the new incarnation, puts its data aside, joins anew
//! ```
//!
//! **What is kept**: every entry of the chosen log, committed or not (see `raft/offline.rs`). **What is lost**: what only
//! the others held. So that nobody takes the one for the other:
//!
//! - the *incarnation* rises by one. Nodes refuse each other across it ([`crate::peer`]), clients refuse to go back;
//! - the *revision* rises by 2^32 and is compacted to there, so that a revision of the lost part is told as lost, and
//!   fencing tokens only rise;
//! - *leases* start again at their full TTL, for their holders had no chance to keep them;
//! - *sessions* end: a session promises that what was answered in it was applied. A write that was under way has an
//!   unknown outcome; it is never executed a second time.
//!
//! **Crash-safe**: a file on the volume says what is being done ([`crate::identity`]); before it is there nothing has
//! changed, and from then on no node starts on the volume until `recover` ran to its end, again and again if need be.
//! Nothing is deleted, and the folder is locked all the time.
//!
//! **Once**: two volumes that are recovered apart from each other would be two clusters under one name, and nobody could
//! tell. So the plan wants every other voter accounted for, as a survivor with its report or as lost by name, and of
//! volumes that are equally good only the first by name may be chosen.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use podkv_api::{ClusterId, Error, Incarnation, MemberId, MemberRole, Reason, Result, Revision};
use podkv_core::FEATURE_LEVEL;

use crate::identity::{Aside, Phase, Recovery, Resident};
pub use crate::membership::{LogPosition, Members};
use crate::raft::{self, Held};
use crate::storage::{Storage, Volume};

/// The block cache of the state while it is looked at: a log is applied, no users are served.
const CACHE_BYTES: usize = 32 << 20;

/// A volume that is left, as far as survivors are compared. Written as one word, to be passed on:
/// `name/id/cluster/incarnation/term.index`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Survivor {
    /// The pod's name.
    pub name: String,
    pub id: MemberId,
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    /// The end of its log.
    pub last: LogPosition,
}

impl fmt::Display for Survivor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            id,
            cluster,
            incarnation,
            last,
        } = self;
        write!(f, "{name}/{id}/{cluster}/{incarnation}/{last}")
    }
}

impl FromStr for Survivor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let mut parts = text.trim().split('/');
            let name = parts.next().filter(|name| !name.is_empty())?.to_owned();
            let id = MemberId(u64::from_str_radix(parts.next()?, 16).ok()?);
            let cluster = ClusterId(u64::from_str_radix(parts.next()?, 16).ok()?);
            let incarnation = Incarnation(parts.next()?.parse().ok()?);
            let (term, index) = parts.next()?.split_once('.')?;
            let last = LogPosition {
                term: term.parse().ok()?,
                index: index.parse().ok()?,
            };
            parts.next().is_none().then_some(Self {
                name,
                id,
                cluster,
                incarnation,
                last,
            })
        };
        read().ok_or_else(|| {
            format!(
                "{text:?} is no report of a survivor; expected name/id/cluster/incarnation/term.index, as \
                 `podkv recover --inspect` prints it"
            )
        })
    }
}

/// What a stopped node's volume holds.
#[derive(Clone, Debug)]
pub struct Report {
    pub survivor: Survivor,
    /// The highest term that it voted in or heard of.
    pub vote_term: u64,
    /// As far as it knew. What is behind may be committed or not.
    pub committed: LogPosition,
    pub applied: LogPosition,
    /// At `applied`. What is behind adds to it.
    pub revision: Revision,
    pub keys: u64,
    pub members: Members,
    /// A recovery of this volume has begun and not ended: to this incarnation.
    pub unfinished: Option<Incarnation>,
    /// A backup was being restored into it: it is half of one.
    pub restoring: bool,
    /// What nodes that were retired left on this volume.
    pub aside: Vec<Aside>,
}

/// What is to be done with a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This may be done, if a person confirms it.
    Possible(Plan),
    /// A recovery of this volume has begun: it must be ended.
    Unfinished,
    /// This node is the only voter of its cluster: start its pod.
    NotNeeded,
}

/// A recovery that may be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub chosen: Survivor,
    pub committed: LogPosition,
    /// The incarnation that follows.
    pub incarnation: Incarnation,
    pub survivors: BTreeSet<Survivor>,
    /// Names of voters that are gone for good, as the operator says.
    pub lost: BTreeSet<String>,
    term: u64,
}

impl Plan {
    /// Stands for exactly this plan on exactly this volume. Who says it has seen what it costs.
    pub fn word(&self) -> String {
        let Self {
            chosen,
            committed,
            incarnation,
            survivors,
            lost,
            term,
        } = self;
        let text = format!("{chosen} {committed} {incarnation} {survivors:?} {lost:?} {term}");
        format!("recover-{:08x}", crc32c::crc32c(text.as_bytes()))
    }
}

/// What a recovery came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    /// What the cluster will be at once its pod has started.
    pub revision: Revision,
}

/// The volume of a node that is stopped, locked as long as this lives. Everything here blocks.
pub struct StoppedNode {
    resident: Resident,
    storage: Storage,
    held: Held,
    cluster: ClusterId,
    incarnation: Incarnation,
}

impl StoppedNode {
    /// Opens the volume and reads all of it that matters, the whole log included. Changes nothing that a start of the
    /// node would not.
    ///
    /// # Errors
    /// [`Reason::DataFolder`] if it belongs to no member, [`Reason::Corrupt`] if anything in it is damaged.
    pub fn open(volume: &Volume) -> Result<Self> {
        let resident = Resident::read(volume.markers())?;
        let (cluster, incarnation) = match resident.phase() {
            Phase::Member {
                cluster,
                incarnation,
            } => (*cluster, *incarnation),
            phase => {
                let text = format!(
                    "the volume of {:?} is no member's: it is {phase}. There is nothing in it to recover from; \
                     nothing was changed",
                    resident.name()
                );
                return Err(Error::new(Reason::DataFolder, text));
            }
        };
        let storage = volume
            .open_existing_stores(CACHE_BYTES)
            .map_err(Error::from)?;
        let held = raft::look(&storage)?;
        if held.meta.feature_level > FEATURE_LEVEL {
            let text = format!(
                "the data is at feature level {}, and this release understands {FEATURE_LEVEL} at most: use the \
                 release that wrote it",
                held.meta.feature_level
            );
            return Err(Error::new(Reason::DataFolder, text));
        }
        Ok(Self {
            resident,
            storage,
            held,
            cluster,
            incarnation,
        })
    }

    fn survivor(&self) -> Survivor {
        Survivor {
            name: self.resident.name().to_owned(),
            id: self.resident.node_id(),
            cluster: self.cluster,
            incarnation: self.incarnation,
            last: self.held.last,
        }
    }

    /// What the volume holds.
    pub fn report(&self) -> Result<Report> {
        let held = &self.held;
        Ok(Report {
            survivor: self.survivor(),
            vote_term: held.vote_term,
            committed: held.committed,
            applied: held.applied,
            revision: held.meta.revision,
            keys: held.meta.keys,
            members: held.members.clone(),
            unfinished: self.resident.recovery.as_ref().map(|one| one.incarnation),
            restoring: held.restoring,
            aside: self.storage.markers.aside()?,
        })
    }

    /// Whether this volume may be the one to go on from, given what is known of the others.
    ///
    /// # Errors
    /// [`Reason::MembershipConflict`], and why not.
    pub fn plan(&self, survivors: &[Survivor], lost: &[String]) -> Result<Verdict> {
        if self.resident.recovery.is_some() {
            return Ok(Verdict::Unfinished);
        }
        let me = self.survivor();
        let members = &self.held.members;
        if !members.contains(me.id) {
            return Err(refused(format!(
                "the newest membership in this log is without {} ({}): it was removed. Recover another one",
                me.name, me.id
            )));
        }
        let survivors: BTreeSet<Survivor> = survivors
            .iter()
            .filter(|other| other.id != me.id)
            .cloned()
            .collect();
        let lost: BTreeSet<String> = lost.iter().cloned().collect();
        if members.voters.iter().all(|set| alone(set, me.id)) {
            return Ok(Verdict::NotNeeded);
        }
        compare(&me, &survivors)?;
        account(&me, members, &survivors, &lost)?;
        Ok(Verdict::Possible(Plan {
            committed: self.held.committed,
            incarnation: Incarnation(me.incarnation.0 + 1),
            term: self.held.vote_term.max(me.last.term) + 1,
            chosen: me,
            survivors,
            lost,
        }))
    }

    /// Does it. `plan` is [`None`] to end a recovery that has begun.
    ///
    /// # Errors
    /// A failed disk. What was begun is ended by running this again.
    pub fn recover(mut self, plan: Option<&Plan>) -> Result<Recovered> {
        if self.resident.recovery.is_none()
            && let Some(plan) = plan
        {
            if plan.chosen != self.survivor() {
                return Err(refused("the plan is for another volume".into()));
            }
            self.resident.begin(Recovery {
                cluster: self.cluster,
                incarnation: plan.incarnation,
                node: plan.chosen.id,
                base: plan.chosen.last,
                term: plan.term,
            })?;
        }
        let Some(recovery) = self.resident.recovery.clone() else {
            return Err(refused("there is no recovery to end".into()));
        };
        let me = self.resident.node_id();
        if recovery.node != me || recovery.cluster != self.cluster {
            let text = "the recovery that has begun here is another node's: files of two volumes were mixed";
            return Err(Error::new(Reason::Corrupt, text));
        }
        let address = self.held.members.nodes.get(&me).cloned();
        let address = address.ok_or_else(|| {
            Error::new(
                Reason::Corrupt,
                "the newest membership in this log is without this node",
            )
        })?;
        raft::apply_all(&self.storage, recovery.base)?;
        let revision =
            raft::append_recovery(&self.storage, recovery.base, recovery.term, (me, address))?;
        self.resident.finish()?;
        Ok(Recovered {
            cluster: recovery.cluster,
            incarnation: recovery.incarnation,
            revision,
        })
    }

    /// Removes what nodes of earlier incarnations left on this volume. Returns how many folders that were.
    pub fn discard_old(&self) -> Result<usize> {
        let count = self.storage.markers.aside()?.len();
        self.storage.markers.remove_aside(Incarnation(0))?;
        Ok(count)
    }
}

fn refused(text: String) -> Error {
    Error::new(Reason::MembershipConflict, text)
}

fn alone(voters: &BTreeSet<MemberId>, me: MemberId) -> bool {
    voters.len() == 1 && voters.contains(&me)
}

/// Whether `me` is the best of all that are left.
fn compare(me: &Survivor, survivors: &BTreeSet<Survivor>) -> Result<()> {
    for other in survivors {
        let name = &other.name;
        if other.cluster != me.cluster {
            return Err(refused(format!(
                "{name} is of cluster {}, and {} of {}: these volumes do not belong together",
                other.cluster, me.name, me.cluster
            )));
        }
        if other.incarnation > me.incarnation {
            return Err(refused(format!(
                "{name} is in incarnation {} already, {} in {}: the cluster was recovered there. Start the pod of {}: \
                 it joins by itself",
                other.incarnation, me.name, me.incarnation, me.name
            )));
        }
        if other.incarnation < me.incarnation {
            // A past of this cluster. What it holds lies before the recovery.
            continue;
        }
        if other.last > me.last {
            return Err(refused(format!(
                "{name} is the better survivor: its log ends at {}, that of {} at {}. Recover {name}",
                other.last, me.name, me.last
            )));
        }
        if other.last == me.last && (&other.name, other.id) < (&me.name, me.id) {
            return Err(refused(format!(
                "{name} is as good as {}: both logs end at {}. Recover {name}, the first by name, so that only one \
                 is ever recovered",
                me.name, me.last
            )));
        }
    }
    Ok(())
}

/// Whether every voter is accounted for, and a majority of them is gone.
fn account(
    me: &Survivor,
    members: &Members,
    survivors: &BTreeSet<Survivor>,
    lost: &BTreeSet<String>,
) -> Result<()> {
    let left = |id: &MemberId| *id == me.id || survivors.iter().any(|other| other.id == *id);
    let list = members.list();
    let name_of = |id: MemberId| {
        let member = list.iter().find(|member| member.id == id);
        member.map_or_else(|| id.to_string(), |member| member.name.clone())
    };
    let majority = members
        .voters
        .iter()
        .all(|set| set.iter().filter(|id| left(id)).count() > set.len() / 2);
    if majority {
        let names: BTreeSet<&str> = survivors.iter().map(|other| other.name.as_str()).collect();
        let names: Vec<_> = names.into_iter().collect();
        return Err(refused(format!(
            "{} and {} are a majority of the voters: nothing is lost. Start their pods",
            me.name,
            names.join(", ")
        )));
    }
    let voters: BTreeSet<MemberId> = members.voters.iter().flatten().copied().collect();
    let missing: BTreeSet<String> = voters
        .iter()
        .filter(|id| !left(id))
        .map(|id| name_of(*id))
        .filter(|name| !lost.contains(name))
        .collect();
    if !missing.is_empty() {
        let missing: Vec<_> = missing.into_iter().collect();
        return Err(refused(format!(
            "nothing was said of the volumes of {}. Inspect each that is left and pass its report with --survivor; \
             for one that is gone for good say --lost {}",
            missing.join(", "),
            missing.first().map_or("NAME", String::as_str)
        )));
    }
    let known: BTreeSet<&str> = list.iter().map(|member| member.name.as_str()).collect();
    if let Some(unknown) = lost.iter().find(|name| !known.contains(name.as_str())) {
        return Err(refused(format!(
            "there is no member {unknown:?} that could be lost; there are {}",
            known.into_iter().collect::<Vec<_>>().join(", ")
        )));
    }
    if let Some(both) = survivors
        .iter()
        .find(|other| lost.contains(&other.name) && voters.contains(&other.id))
    {
        return Err(refused(format!(
            "{} is said to be lost, and its report is here",
            both.name
        )));
    }
    Ok(())
}

/// What there is to know of a volume, for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Survivor {
            name,
            id,
            cluster,
            incarnation,
            last,
        } = &self.survivor;
        writeln!(f, "pod          {name}")?;
        writeln!(f, "node         {id}")?;
        writeln!(f, "cluster      {cluster}, incarnation {incarnation}")?;
        writeln!(
            f,
            "log          ends at {last} (term.index), known to be committed up to {}",
            self.committed
        )?;
        writeln!(f, "voted        up to term {}", self.vote_term)?;
        writeln!(
            f,
            "state        applied up to {}: revision {}, {} keys",
            self.applied, self.revision, self.keys
        )?;
        for member in self.members.list() {
            let role = match member.role {
                MemberRole::Voter => "voter",
                MemberRole::Learner => "learner",
            };
            writeln!(f, "member       {} {} {role}", member.name, member.id)?;
        }
        if let Some(incarnation) = self.unfinished {
            writeln!(
                f,
                "recovery     to incarnation {incarnation} has begun and not ended: run it again"
            )?;
        }
        if self.restoring {
            writeln!(
                f,
                "restoring    a backup was being restored: what is here is half of it"
            )?;
        }
        for aside in &self.aside {
            let of = aside.incarnation.map_or_else(
                || "an unreadable node".into(),
                |incarnation| format!("incarnation {incarnation}"),
            );
            writeln!(f, "put aside    {} of {of}", aside.path.display())?;
        }
        write!(f, "survivor     {}", self.survivor)
    }
}

/// What it costs, for who has to decide.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Survivor {
            name,
            cluster,
            last,
            ..
        } = &self.chosen;
        let lost: Vec<_> = self.lost.iter().map(String::as_str).collect();
        writeln!(
            f,
            "This makes {name} the only voter of cluster {cluster}, in incarnation {}.",
            self.incarnation
        )?;
        writeln!(
            f,
            "Said to be lost for good: {}.",
            if lost.is_empty() {
                "nobody".into()
            } else {
                lost.join(", ")
            }
        )?;
        for survivor in &self.survivors {
            writeln!(
                f,
                "{} is left too; its log ends at {}. Its pod puts that aside and joins anew.",
                survivor.name, survivor.last
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "KEPT  everything in this log, up to {last}. It was known to be committed up to {}; what is behind may \
             never have been acknowledged, and is kept all the same.",
            self.committed
        )?;
        writeln!(
            f,
            "LOST  every write that was acknowledged and is not in this log. Nobody can say which, or how many."
        )?;
        writeln!(
            f,
            "      All history: the revision rises by 2^32, and watchers must begin anew from what is there."
        )?;
        writeln!(
            f,
            "      All sessions: the outcome of writes that were under way stays unknown."
        )?;
        write!(
            f,
            "ENDS  whoever of the old cluster still runs or comes back. If a majority of it is alive after all, start \
             that instead: it has lost nothing."
        )
    }
}

#[cfg(test)]
mod tests;
