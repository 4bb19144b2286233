//! The stores of a stopped node: what they hold, and how a recovery moves them on.
//!
//! ```text
//!   log     … ─ committed here ─ … ─ base │ base+1  membership: this node alone │ base+2  raise the revision │
//!                 └───── all of it is applied ─────┘  └──────────── one batch, with the vote ────────────────┘
//! ```
//!
//! The last entries of a log may not be committed: nobody is left who could say. Some of them may have been
//! acknowledged by the leader that is lost, so all are kept. One that was never acknowledged may become
//! visible by that, which is what its sender was told: the outcome is unknown.
//!
//! Everything here blocks, and every step can be repeated.

use std::collections::{BTreeMap, BTreeSet};

use podkv_api::{Error, MemberId, Reason, Revision};
use podkv_core::{Command, Entry, Meta, REVISION_RAISE, read_meta, restoring};

use super::log::{Ends, read_disk};
use super::machine::{Reached, apply_offline};
use super::record;
use super::types::{
    EntryPayload, LogEntry, Payload, StoredMembership, Vote, log_id, members, position,
};
use crate::membership::{LogPosition, Members, PeerAddress};
use crate::storage::{LogStore, LogWrite, StateStore, Storage};

/// Read and applied at once.
const BATCH_BYTES: usize = 4 << 20;

/// What the stores hold.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// The highest term that this node has voted in, or heard of.
    pub vote_term: u64,
    /// The end of the log. What counts when survivors are compared: the first term, then the index.
    pub last: LogPosition,
    /// As far as this node knew when it last wrote.
    pub committed: LogPosition,
    pub applied: LogPosition,
    /// The newest membership in the log, committed or not.
    pub members: Members,
    /// Of the state, at `applied`.
    pub meta: Meta,
    /// A backup is being restored into the state.
    pub restoring: bool,
}

/// Reads what the stores hold. Every entry of the log is read and checked: what a recovery begins with must be whole.
pub(crate) fn look(storage: &Storage) -> Result<Held, Error> {
    let ends = Ends::read(&*storage.log)?;
    let view = storage.state.view();
    let reached = Reached::read(&*view).map_err(unreadable)?;
    let mut newest = reached.members;
    let applied = reached.position.unwrap_or_default();
    for_each_entry(&*storage.log, ends.first, ends.last, |entry| {
        if let EntryPayload::Normal(payload) = &entry.payload {
            payload.entry().map_err(|error| {
                let text = format!(
                    "entry {} of the log is damaged: {error}",
                    position(&entry.log_id)
                );
                Error::new(Reason::Corrupt, text).with_source(error)
            })?;
        }
        keep_newer(&mut newest, entry);
        Ok(())
    })?;
    Ok(Held {
        vote_term: ends.vote.as_ref().map_or(0, |vote| vote.leader_id.term),
        // A snapshot may have been installed just before the node stopped: the state is ahead of the log then.
        last: ends.last.unwrap_or_default().max(applied),
        committed: ends.committed.unwrap_or_default().max(applied),
        applied,
        members: newest,
        meta: read_meta(&*view).map_err(unreadable)?,
        restoring: restoring(&*view).map_err(unreadable)?,
    })
}

/// The newest membership that a node holds, committed or not; none before the first. The state may be as old as its
/// last flush, so the log behind it is read too.
pub(crate) fn newest_members(storage: &Storage) -> Result<Members, Error> {
    let ends = Ends::read(&*storage.log)?;
    let reached = Reached::read(&*storage.state.view()).map_err(unreadable)?;
    let mut newest = reached.members;
    let behind = reached.position.map_or(0, |applied| applied.index + 1);
    for_each_entry(&*storage.log, ends.first.max(behind), ends.last, |entry| {
        keep_newer(&mut newest, entry);
        Ok(())
    })?;
    Ok(newest)
}

/// The newest membership in the log alone, for a volume whose state cannot be read. None if it was purged: only the state
/// has it then.
pub(crate) fn members_in_log(log: &dyn LogStore) -> Result<Members, Error> {
    let ends = Ends::read(log)?;
    let mut newest = Members::default();
    for_each_entry(log, ends.first, ends.last, |entry| {
        keep_newer(&mut newest, entry);
        Ok(())
    })?;
    Ok(newest)
}

/// The membership in the state alone, for a volume whose log cannot be read.
pub(crate) fn members_in_state(state: &dyn StateStore) -> Result<Members, Error> {
    Ok(Reached::read(&*state.view()).map_err(unreadable)?.members)
}

fn keep_newer(newest: &mut Members, entry: LogEntry) {
    if let EntryPayload::Membership(membership) = entry.payload
        && newest
            .position
            .is_none_or(|at| at.index < entry.log_id.index)
    {
        *newest = members(&StoredMembership::new(Some(entry.log_id), membership));
    }
}

fn unreadable(error: podkv_core::ViewError) -> Error {
    let text = format!("the state cannot be read: {error}");
    Error::new(Reason::Corrupt, text).with_source(error)
}

/// Calls `each` for every entry from `first` to `last`.
fn for_each_entry(
    log: &dyn LogStore,
    first: u64,
    last: Option<LogPosition>,
    mut each: impl FnMut(LogEntry) -> Result<(), Error>,
) -> Result<(), Error> {
    let end = last.map_or(first, |last| last.index + 1);
    let mut next = first;
    while next < end {
        let entries = read_disk(log, next, end, BATCH_BYTES)?;
        // At least one, or it is an error.
        next += entries.len() as u64;
        entries.into_iter().try_for_each(&mut each)?;
    }
    Ok(())
}

/// Applies everything up to `base`, committed or not, and makes it durable.
///
/// Only for a volume on which no node starts any more before the recovery has ended: the state must never be ahead of
/// what a majority holds.
pub(crate) fn apply_all(storage: &Storage, base: LogPosition) -> Result<(), Error> {
    let reached = Reached::read(&*storage.state.view()).map_err(unreadable)?;
    let mut next = match reached.position {
        Some(applied) => applied.index + 1,
        None => Ends::read(&*storage.log)?.first,
    };
    while next <= base.index {
        let entries = read_disk(&*storage.log, next, base.index + 1, BATCH_BYTES)?;
        next += entries.len() as u64;
        apply_offline(&*storage.state, entries).map_err(|error| {
            let text = format!("the log cannot be applied to the state: {error}");
            Error::new(Reason::Corrupt, text).with_source(error)
        })?;
    }
    Ok(storage.state.flush()?)
}

/// Appends what makes this node the only voter and raises the revision, in one synced batch. The state must
/// have been applied up to `base`. Returns the revision that the cluster will be at.
///
/// Does nothing if that was done before.
pub(crate) fn append_recovery(
    storage: &Storage,
    base: LogPosition,
    term: u64,
    me: (MemberId, PeerAddress),
) -> Result<Revision, Error> {
    let meta = read_meta(&*storage.state.view()).map_err(unreadable)?;
    let revision = meta.revision.saturating_add(REVISION_RAISE);
    let last = Ends::read(&*storage.log)?.last.unwrap_or_default();
    let at = |offset: u64| LogPosition {
        term,
        index: base.index + offset,
    };
    if last == at(2) {
        return Ok(revision);
    }
    let mut writes = Vec::new();
    if last < base {
        // The state came with a snapshot, and the log had not followed yet.
        writes.push(LogWrite::Purge {
            upto: base.index,
            record: record::encode_log_state(base),
        });
    } else if last > base {
        return Err(Error::internal(format!(
            "the log ends at {last}, and the recovery began at {base}"
        )));
    }
    let alone = Members {
        position: None,
        voters: vec![BTreeSet::from([me.0])],
        nodes: BTreeMap::from([me.clone()]),
    };
    let membership = record::membership(&alone).map_err(|error| {
        Error::internal("a membership of one node cannot be made").with_source(error)
    })?;
    let raise = Entry {
        clock_ms: meta.clock_ms,
        proposals: vec![Command::RaiseRevision { revision }.into()],
    };
    for (at, payload) in [
        (at(1), EntryPayload::Membership(membership)),
        (at(2), EntryPayload::Normal(Payload::new(raise))),
    ] {
        let entry = LogEntry {
            log_id: log_id(at),
            payload,
        };
        writes.push(LogWrite::Append {
            index: at.index,
            record: record::encode_entry(&entry),
        });
    }
    // As the leader of that term, which it would have been with itself as the only voter.
    writes.push(LogWrite::Vote(record::encode_vote(&Vote::new_committed(
        term, me.0.0,
    ))));
    storage.log.write(&writes)?;
    Ok(revision)
}

/// Logs for tests.
#[cfg(test)]
pub(crate) mod testing {
    use podkv_api::Put;
    use podkv_core::Proposal;

    use super::*;

    pub fn entry(term: u64, index: u64, payload: EntryPayload) -> LogWrite {
        let entry = LogEntry {
            log_id: log_id(LogPosition { term, index }),
            payload,
        };
        LogWrite::Append {
            index,
            record: record::encode_entry(&entry),
        }
    }

    pub fn put(term: u64, index: u64) -> LogWrite {
        let command = Command::Put(Put::new(format!("k{index}"), "v"));
        let entry_of = Entry {
            clock_ms: index,
            proposals: vec![Proposal::from(command)],
        };
        entry(term, index, EntryPayload::Normal(Payload::new(entry_of)))
    }

    pub fn three_voters() -> EntryPayload {
        let ids = [1, 2, 3].map(MemberId);
        let members = Members {
            position: None,
            voters: vec![BTreeSet::from(ids)],
            nodes: ids.map(|id| (id, PeerAddress::default())).into(),
        };
        EntryPayload::Membership(record::membership(&members).unwrap())
    }

    /// A log of a membership and `puts` entries behind it, each of one put to a key of its own.
    pub fn fill_log(storage: &Storage, members: &Members, puts: u64) {
        let members = EntryPayload::Membership(record::membership(members).unwrap());
        let mut writes = vec![entry(1, 0, members)];
        writes.extend((1..=puts).map(|index| put(1, index)));
        storage.log.write(&writes).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{entry, put, three_voters};
    use super::*;
    use crate::storage::{MemoryDisk, Volume};

    fn storage(writes: &[LogWrite]) -> Storage {
        let storage = Volume::memory(&MemoryDisk::new())
            .open_existing_stores(0)
            .unwrap();
        storage.log.write(writes).unwrap();
        storage
    }

    #[test]
    fn the_whole_log_is_applied_and_two_entries_follow() {
        let vote = LogWrite::Vote(record::encode_vote(&Vote::new(4, 2)));
        let storage = storage(&[entry(1, 0, three_voters()), put(1, 1), put(3, 2), vote]);
        let held = look(&storage).unwrap();
        let base = LogPosition { term: 3, index: 2 };
        assert_eq!((held.last, held.vote_term), (base, 4));
        assert_eq!(held.members.nodes.len(), 3);
        assert_eq!(held.applied, LogPosition::default());

        let me = (MemberId(1), PeerAddress::default());
        for _ in 0..2 {
            // The second time it finds everything done.
            apply_all(&storage, base).unwrap();
            let revision = append_recovery(&storage, base, 5, me.clone()).unwrap();
            assert_eq!(revision, 3 + REVISION_RAISE, "two puts on an empty store");
        }
        let held = look(&storage).unwrap();
        assert_eq!(held.last, LogPosition { term: 5, index: 4 });
        assert_eq!(held.applied, base);
        assert_eq!(held.vote_term, 5);
        assert_eq!(held.members.voters, [BTreeSet::from([MemberId(1)])]);
        assert_eq!(held.members.nodes.len(), 1);
    }

    #[test]
    fn members_are_known_from_the_log_where_the_state_is_older() {
        let storage = storage(&[entry(1, 0, three_voters()), put(1, 1)]);
        assert_eq!(newest_members(&storage).unwrap().nodes.len(), 3);
        apply_all(&storage, LogPosition { term: 1, index: 1 }).unwrap();
        assert_eq!(newest_members(&storage).unwrap().nodes.len(), 3);
    }

    #[test]
    fn a_damaged_entry_is_found_before_anything_is_done() {
        let LogWrite::Append { index, record } = put(1, 1) else {
            unreachable!("it is an append")
        };
        let mut damaged = record.to_vec();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        let storage = storage(&[
            entry(1, 0, three_voters()),
            LogWrite::Append {
                index,
                record: damaged.into(),
            },
            put(1, 2),
        ]);
        let error = look(&storage).unwrap_err();
        assert_eq!(error.reason(), Reason::Corrupt);
    }

    #[test]
    fn a_state_that_came_with_a_snapshot_may_be_ahead_of_the_log() {
        let storage = storage(&[entry(1, 0, three_voters()), put(1, 1)]);
        let ahead = LogPosition { term: 2, index: 70 };
        let key = super::super::machine::applied_key();
        let writes = vec![(key, Some(record::encode_applied(ahead)))];
        storage.state.commit(writes).unwrap();
        let held = look(&storage).unwrap();
        assert_eq!(held.last, ahead);
        apply_all(&storage, ahead).unwrap();
        let me = (MemberId(1), PeerAddress::default());
        append_recovery(&storage, ahead, 3, me).unwrap();
        let held = look(&storage).unwrap();
        assert_eq!(held.last, LogPosition { term: 3, index: 72 });
    }
}
