//! Promise: linearizable, and transactions strictly serializable.
//!
//! That means: there is *some* order of all calls that took effect, in which each sees exactly what those before it
//! left, and a call that was over before another began comes before it. In general the order must be searched for.
//! Here it is given. podkv says of every answer which revision it speaks of, so the order is
//!
//! ```text
//!   write of revision 7 · all reads at revision 7 · write of revision 8 · all reads at revision 8 · …
//! ```
//!
//! and what is left is to verify it, in O(n log n):
//!
//! - **Meaning.** Each call is run again on the state of a map, at its place, and must come to what its client was
//!   told, and to the events that the replicas tell for its revision: all of them, nothing else, in order. Writes of
//!   unknown outcome that were applied have a place too: `Evidence` finds it by their values.
//! - **Time.** A write comes after every revision that anybody knew of before it was invoked; a read at, or after.
//!
//! *Why this is sound:* if it passes, the order above is a witness as the definition asks for. Reads of one
//! revision may stand in any order among themselves, so in that of time: nothing else is to be shown for them.
//! Writes of unknown outcome that no replica holds are left out, as the definition allows. *Is it too strict?* It
//! can refuse a history for which another order exists, but then an answer named a revision that it does not speak
//! of, and that breaks a promise too. Because a lie of all answers together is thinkable, `linearizability` searches
//! without looking at revisions.
//!
//! Everything is checked at once, not key by key: a transaction over many keys is one place in one order.

use super::model::{State, advance, run};
use super::{Cause, Evidence, Findings};
use crate::history::{Action, Answer, Call, Event, Outcome, Revision};

pub const NAME: &str = "strict serializability";

struct Placed<'h> {
    revision: Revision,
    /// It made the revision.
    wrote: bool,
    call: &'h Call,
}

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut placed = place(evidence);
    placed.sort_by_key(|placed| (placed.revision, !placed.wrote));
    let mut state = State::new();
    let mut ahead = evidence.changes.iter().peekable();
    for Placed {
        revision,
        wrote,
        call,
    } in placed
    {
        findings.looked_at += 1;
        in_time(evidence, revision, wrote, call, &mut findings);
        let before = if wrote { revision - 1 } else { revision };
        while let Some(change) = ahead.next_if(|change| change.revision <= before) {
            advance(&mut state, &change.events);
        }
        let written = match (wrote, evidence.change(revision)) {
            (false, _) => &[][..],
            (true, Some(change)) => &change.events,
            (true, None) => {
                let what = format!(
                    "call {} was told revision {revision}, which is not there",
                    call.id
                );
                findings.violation(NAME, what);
                continue;
            }
        };
        in_meaning(&state, revision, call, written, &mut findings);
    }
    findings
}

/// Every call that took effect, with its place.
fn place<'h>(evidence: &Evidence<'h>) -> Vec<Placed<'h>> {
    let answered = evidence.history.calls.iter().filter_map(|call| {
        let is_run = matches!(call.action, Action::Run { .. });
        Some(Placed {
            revision: call.header().filter(|_| is_run)?.revision,
            wrote: call.wrote(),
            call,
        })
    });
    let found = evidence
        .changes
        .iter()
        .zip(&evidence.causes)
        .filter_map(|(change, cause)| {
            let Cause::Call(at) = cause else { return None };
            let call = &evidence.history.calls[*at];
            call.is_unknown().then_some(Placed {
                revision: change.revision,
                wrote: true,
                call,
            })
        });
    answered.chain(found).collect()
}

fn in_time(
    evidence: &Evidence<'_>,
    revision: Revision,
    wrote: bool,
    call: &Call,
    findings: &mut Findings,
) {
    // A local read may be of any past; it counts among those who knew of a revision.
    if call.is_local() {
        return;
    }
    let known = evidence.known_before(call.invoked);
    if revision < known || (wrote && revision == known) {
        let verb = if wrote { "wrote" } else { "read" };
        let what = format!(
            "call {} {verb} at revision {revision}, though revision {known} was known before it was invoked",
            call.id
        );
        findings.violation(NAME, what);
    }
}

fn in_meaning(
    state: &State<'_>,
    revision: Revision,
    call: &Call,
    written: &[Event],
    findings: &mut Findings,
) {
    let Action::Run {
        compare,
        then,
        or_else,
        ..
    } = &call.action
    else {
        return;
    };
    let expected = run(state, revision, compare, then, or_else);
    if let Outcome::Ok {
        answer: Answer::Ran { succeeded, results },
        ..
    } = &call.outcome
        && (*succeeded, results) != (expected.succeeded, &expected.results)
    {
        let what = format!(
            "call {} at revision {revision} was answered {succeeded} {results:?}; the state there says {} {:?}",
            call.id, expected.succeeded, expected.results
        );
        findings.violation(NAME, what);
    }
    if expected.events != written {
        let what = format!(
            "call {} at revision {revision} must write {:?}; the replicas tell {written:?}",
            call.id, expected.events
        );
        findings.violation(NAME, what);
    }
}
