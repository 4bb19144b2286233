//! Promise: acknowledged means durable. Every write whose answer a client has is in the history of **every**
//! replica, at the revision that the answer named.
//!
//! What it counts as lost is what a person would: the key does not have that value at that revision.

use super::{Evidence, Findings};
use crate::history::{Action, Answer, Call, Event, Outcome, Replica, Revision, Step};

pub const NAME: &str = "no acknowledged write lost";

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    for call in &evidence.history.calls {
        let Some(header) = call.header() else {
            continue;
        };
        if !call.wrote() {
            continue;
        }
        findings.looked_at += 1;
        for replica in &evidence.history.replicas {
            if let Some(lost) = missing(replica, header.revision, call) {
                let what = format!(
                    "{} has lost call {} of revision {}: {lost}",
                    replica.node, call.id, header.revision
                );
                findings.violation(NAME, what);
            }
        }
    }
    findings
}

fn missing(replica: &Replica, revision: Revision, call: &Call) -> Option<String> {
    let found = replica
        .changes
        .binary_search_by_key(&revision, |change| change.revision);
    let Ok(at) = found else {
        return Some(format!(
            "it has no such revision, and ends at {}",
            replica.revision
        ));
    };
    let (
        Action::Run { then, or_else, .. },
        Outcome::Ok {
            answer: Answer::Ran { succeeded, .. },
            ..
        },
    ) = (&call.action, &call.outcome)
    else {
        return None;
    };
    let branch = if *succeeded { then } else { or_else };
    let events = &replica.changes[at].events;
    branch.iter().find_map(|step| {
        let Step::Put { key, value, .. } = step else {
            return None;
        };
        let is_there = events
            .iter()
            .any(|event| matches!(event, Event::Put(kv) if kv.key == *key && kv.value == *value));
        (!is_there).then(|| format!("{key:?} = {value:?} is not there"))
    })
}
