//! The thread that applies.

use std::io;
use std::ops::ControlFlow;

use openraft::storage::{ApplyResponder, EntryResponder};
use podkv_core::{Applier, Effects, Outcome, View};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::types::{
    EntryPayload, LogEntry, StoredMembership, TypeConfig, members, position,
};
use super::recent::RecentView;
use super::{Reached, Shared, applied_key, membership_key, record};
use crate::storage::{StateStore, StateWrites};

/// Entries to apply as one batch, in the order of the log.
pub(super) struct Job {
    pub batch: Vec<EntryResponder<TypeConfig>>,
    pub done: oneshot::Sender<io::Result<()>>,
}

/// Never ends the thread: it ends when nobody can send a job any more.
pub(super) fn run(shared: &Shared, Job { batch, done }: Job) -> ControlFlow<()> {
    let result = apply(shared, batch);
    if let Err(error) = &result {
        shared.failure.note("entries cannot be applied", error);
        // Told as an error once, by whoever sees the node end: see `Node::failed`.
        tracing::debug!(%error, "entries cannot be applied; the node stops");
    }
    // openraft stops waiting only when it stops.
    let _ = done.send(result);
    ControlFlow::Continue(())
}

/// A proposer who waits, and what it is told.
type Answers = Vec<(ApplyResponder<TypeConfig>, Vec<Outcome>)>;

fn apply(shared: &Shared, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
    let began = Instant::now();
    let mut reached = shared.reached().clone();
    let mut recent = shared.recent();
    let (effects, answers) = {
        let view = shared.state.view();
        run_core(&RecentView::new(&*view, &mut recent), batch, &mut reached)?
    };
    let Effects {
        writes,
        events,
        restored,
        auth_changed,
        meta,
    } = effects;
    let writes = state_writes(writes, &shared.reached(), &reached);
    recent.committed(&writes);
    if let Err(error) = shared.state.commit(writes) {
        recent.clear();
        return Err(error.into());
    }
    drop(recent);
    shared.apply_latency.observe(began.elapsed());

    let applied = super::Applied {
        position: reached.position.unwrap_or_default(),
        revision: meta.revision,
        compacted_revision: meta.compacted_revision,
        clock_ms: meta.clock_ms,
    };
    *shared.reached() = reached;
    shared.applied.send_replace(applied.clone());
    for (responder, outcomes) in answers {
        responder.send(outcomes);
    }
    if auth_changed {
        shared.events.auth_changed();
    }
    match restored {
        // What was restored was no event: watchers find out as after a snapshot.
        true => shared.events.reset(applied),
        false => shared.events.publish(events, applied),
    }
    Ok(())
}

/// Runs the pure part over the batch.
fn run_core(
    view: &dyn View,
    batch: Vec<EntryResponder<TypeConfig>>,
    reached: &mut Reached,
) -> io::Result<(Effects, Answers)> {
    let mut applier = Applier::new(view).map_err(io::Error::other)?;
    let mut answers = Vec::new();
    for (entry, responder) in batch {
        let outcomes = run_entry(&mut applier, entry, reached)?;
        answers.extend(responder.map(|responder| (responder, outcomes)));
    }
    Ok((applier.finish(), answers))
}

/// Runs one entry, and notes that the state will have reached it.
fn run_entry(
    applier: &mut Applier<'_>,
    entry: LogEntry,
    reached: &mut Reached,
) -> io::Result<Vec<Outcome>> {
    let at = position(&entry.log_id);
    if reached
        .position
        .is_some_and(|reached| at.index <= reached.index)
    {
        let text = format!("entry {at} is in the state already");
        return Err(io::Error::other(text));
    }
    let outcomes = match entry.payload {
        EntryPayload::Blank => Vec::new(),
        EntryPayload::Normal(payload) => {
            let entry = payload.entry().map_err(io::Error::other)?;
            applier.apply(entry).map_err(io::Error::other)?
        }
        EntryPayload::Membership(membership) => {
            reached.members = members(&StoredMembership::new(Some(entry.log_id), membership));
            Vec::new()
        }
    };
    reached.position = Some(at);
    Ok(outcomes)
}

/// What one batch writes to the state: the data, how far it has come, and who belongs to the group then.
fn state_writes(writes: StateWrites, before: &Reached, reached: &Reached) -> StateWrites {
    let mut writes = writes;
    if let Some(at) = reached.position {
        writes.push((applied_key(), Some(record::encode_applied(at))));
    }
    if reached.members.position != before.members.position {
        writes.push((
            membership_key(),
            Some(record::encode_members(&reached.members)),
        ));
    }
    writes
}

/// Applies entries of a stopped node's log, as one batch. Nobody waits for an answer and nobody watches. Blocking.
pub(in crate::raft) fn apply_offline(
    state: &dyn StateStore,
    entries: Vec<LogEntry>,
) -> io::Result<()> {
    let view = state.view();
    let before = Reached::read(&*view).map_err(io::Error::other)?;
    let mut reached = before.clone();
    let mut applier = Applier::new(&*view).map_err(io::Error::other)?;
    for entry in entries {
        run_entry(&mut applier, entry, &mut reached)?;
    }
    let writes = applier.finish().writes;
    Ok(state.commit(state_writes(writes, &before, &reached))?)
}
