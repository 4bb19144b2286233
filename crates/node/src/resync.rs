//! A node whose log or state is damaged goes back to its cluster under a new id, and copies everything from its peers.
//!
//! Nothing on a volume is ever mended: a node that forgot a vote or an entry can split a cluster. So a damaged one stops,
//! and its id ends. A person asks for it, on the folder of a stopped node (`podkv resync`):
//!
//! ```text
//!   REJOIN is written     which cluster to go back to; see `identity/rejoin.rs`
//!   marker: retired       the old id never votes again
//!   all of it goes aside  renamed to retired-<id>, and kept until the new node holds everything
//!   next start            a new id, bound to that cluster: it waits for a member, and founds nothing
//!   the leader            replaces the old id by the new one: see `reconcile`
//! ```
//!
//! **What it can cost.** The others must be able to vote the old id out: a majority of the voters without this one. Where
//! that is not so (one voter, or two), or nobody can tell because the membership cannot be read, this volume may be the
//! last that holds what was acknowledged. Then a person has to say that it is to be done all the same.

use std::collections::BTreeSet;
use std::path::PathBuf;

use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason, Result};

use crate::identity::{Phase, Resident};
use crate::membership::Members;
use crate::raft;
use crate::storage::Volume;

/// The block cache of the state while its membership is read.
const CACHE_BYTES: usize = 8 << 20;

/// The volume of a node that is stopped, locked as long as this lives. Everything here blocks.
pub struct DamagedNode {
    resident: Resident,
    volume: Volume,
    stage: Stage,
}

enum Stage {
    /// A member, whose data is where it was.
    Member,
    /// It was interrupted: the id has ended.
    Begun,
    /// A node that has been bound to its cluster already, and is no member yet.
    Bound,
}

/// Who was put aside, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutAside {
    /// The pod's name; none if that is known to nobody before its next start.
    pub name: Option<String>,
    /// The id that has ended.
    pub id: MemberId,
    /// What the pod goes back to.
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    /// What lies aside on this volume.
    pub folders: Vec<PathBuf>,
    /// It was done before: this time nothing was changed.
    pub already: bool,
}

impl DamagedNode {
    /// Takes the volume and reads who it belongs to.
    ///
    /// # Errors
    /// [`Reason::DataFolder`] if it is in use, belongs to no member, or a recovery of it has begun; [`Reason::Corrupt`] if its
    /// marker cannot be read: then the pod needs an empty volume.
    pub fn open(volume: Volume) -> Result<Self> {
        let resident = Resident::read(volume.markers())?;
        if resident.recovery.is_some() {
            return Err(nothing_to_do(
                "a recovery of this volume has begun and not ended: run the same `podkv recover` again",
            ));
        }
        let bound = resident.rejoin()?;
        let is_from_here = bound
            .as_ref()
            .is_some_and(|rejoin| rejoin.from == resident.node_id());
        let stage = match resident.phase() {
            Phase::Member { .. } => Stage::Member,
            Phase::Retired { .. } if is_from_here => Stage::Begun,
            Phase::Virgin if bound.is_some() => Stage::Bound,
            Phase::Retired { .. } => {
                return Err(nothing_to_do(
                    "this node was removed from its cluster: start its pod, it puts its data aside by itself and joins \
                     anew",
                ));
            }
            phase @ (Phase::Virgin | Phase::Reserved(_)) => {
                return Err(nothing_to_do(&format!(
                    "this node is no member of a cluster (it is {phase}): there is nothing that it could get from others"
                )));
            }
        };
        Ok(Self {
            resident,
            volume,
            stage,
        })
    }

    /// Why this volume may be the last to hold what was acknowledged, as far as can be told from it alone; [`None`] if the
    /// others are a majority without it.
    pub fn danger(&self) -> Option<String> {
        if !matches!(self.stage, Stage::Member) {
            return None;
        }
        let me = self.resident.node_id();
        match self.members() {
            Ok(members) => danger(&members, me),
            Err(error) => Some(format!(
                "the membership cannot be read from this volume, so nobody can tell from here whether others hold what \
                 it holds ({})",
                error.text()
            )),
        }
    }

    /// The newest membership that can be read. The log may be damaged, or the state.
    fn members(&self) -> Result<Members> {
        let both = self
            .volume
            .open_existing_stores(CACHE_BYTES)
            .map_err(Error::from)
            .and_then(|storage| raft::newest_members(&storage));
        let damage = match both {
            Ok(members) => return known(members),
            Err(damage) => damage,
        };
        let state = self.volume.open_existing_state(CACHE_BYTES);
        if let Ok(members) = state
            .map_err(Error::from)
            .and_then(|state| raft::members_in_state(&*state))
            .and_then(known)
        {
            return Ok(members);
        }
        let log = self.volume.open_existing_log();
        let members = log
            .map_err(Error::from)
            .and_then(|log| raft::members_in_log(&*log))
            .and_then(known);
        members.map_err(|_| damage)
    }

    /// Does it. Repeated, it ends what was interrupted, and changes nothing once it is done.
    ///
    /// # Errors
    /// [`Reason::MembershipConflict`] if there is [`DamagedNode::danger`] and `lose_this_data` is false; a failed disk.
    pub fn put_aside(mut self, lose_this_data: bool) -> Result<PutAside> {
        if !lose_this_data && let Some(danger) = self.danger() {
            return Err(Error::new(Reason::MembershipConflict, danger));
        }
        self.resident.put_aside()?;
        let name = Some(self.resident.name().to_owned());
        report(&self.volume, name, matches!(self.stage, Stage::Bound))?.ok_or_else(|| {
            Error::internal("the data was put aside, and nothing says which cluster to go back to")
        })
    }
}

/// What was put aside on a volume that has no marker: between this and the next start of its pod. [`None`] if nothing was.
///
/// # Errors
/// The file cannot be read.
pub fn done_before(volume: &Volume) -> Result<Option<PutAside>> {
    if volume
        .markers()
        .load(crate::identity::IdentityFile::Marker)?
        .is_some()
    {
        return Ok(None);
    }
    report(volume, None, true)
}

fn report(volume: &Volume, name: Option<String>, already: bool) -> Result<Option<PutAside>> {
    let markers = volume.markers();
    let Some(rejoin) = crate::identity::Rejoin::load(&*markers)? else {
        return Ok(None);
    };
    Ok(Some(PutAside {
        name,
        id: rejoin.from,
        cluster: rejoin.cluster,
        incarnation: rejoin.incarnation,
        folders: markers
            .aside()?
            .into_iter()
            .map(|aside| aside.path)
            .collect(),
        already,
    }))
}

fn nothing_to_do(text: &str) -> Error {
    Error::new(Reason::DataFolder, format!("{text}. Nothing was changed"))
}

/// Before its first entry a member's log holds no membership: that is no membership of nobody.
fn known(members: Members) -> Result<Members> {
    if members.voters.iter().any(|set| !set.is_empty()) {
        return Ok(members);
    }
    let text = "there is none in what can be read of it";
    Err(Error::new(Reason::Corrupt, text))
}

/// Whether the others can go on without `me`, and hold what it holds.
fn danger(members: &Members, me: MemberId) -> Option<String> {
    let weak = members.voters.iter().find(|set| {
        let others = set.iter().filter(|id| **id != me).count();
        others <= set.len() / 2
    })?;
    let names = |ids: &BTreeSet<MemberId>| {
        let name = |id: &MemberId| match members.nodes.get(id) {
            Some(node) => node.name.clone(),
            None => id.to_string(),
        };
        let names: Vec<_> = ids.iter().filter(|id| **id != me).map(name).collect();
        names.join(", ")
    };
    Some(match weak.len() {
        1 => "this node is the only voter of its cluster: there is nobody to copy from. Restore a backup instead".into(),
        voters => format!(
            "the other voters ({}) are no majority of {voters} without this node: they cannot vote it out, and may not hold \
             all that it holds",
            names(weak)
        ),
    })
}

#[cfg(test)]
mod tests;
