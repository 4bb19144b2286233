//! Promise: all replicas hold the same. What they tell of every revision is equal, what they hold at the end follows
//! from it, and their own digests are equal at equal revisions.

use std::collections::HashMap;

use super::{Evidence, Findings};
use crate::history::Replica;

pub const NAME: &str = "equal replicas";

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut digests: HashMap<u64, (u64, &str)> = HashMap::new();
    for replica in &evidence.history.replicas {
        findings.looked_at += 1;
        changes(evidence, replica, &mut findings);
        keys(evidence, replica, &mut findings);
        for (revision, digest) in &replica.digests {
            findings.looked_at += 1;
            let (first, by) = *digests.entry(*revision).or_insert((*digest, &replica.node));
            if first != *digest {
                let what = format!(
                    "the digest of revision {revision} is {digest:x} on {}, and {first:x} on {by}",
                    replica.node
                );
                findings.violation(NAME, what);
            }
        }
    }
    findings
}

fn changes(evidence: &Evidence<'_>, replica: &Replica, findings: &mut Findings) {
    let ours = replica.changes.iter();
    let differs = ours
        .zip(evidence.changes)
        .find(|(ours, theirs)| ours != theirs);
    if let Some((ours, theirs)) = differs {
        let what = format!("{} tells {ours:?}; another tells {theirs:?}", replica.node);
        findings.violation(NAME, what);
    }
    let last = replica.changes.last().map_or(1, |change| change.revision);
    if last != replica.revision {
        let what = format!(
            "{} is at revision {}, and its history ends at {last}",
            replica.node, replica.revision
        );
        findings.violation(NAME, what);
    }
}

fn keys(evidence: &Evidence<'_>, replica: &Replica, findings: &mut Findings) {
    let expected = evidence
        .keys
        .keys()
        .filter_map(|key| evidence.at(key, replica.revision));
    let mut held = replica.keys.iter();
    for kv in expected {
        let found = held.next();
        if found != Some(kv) {
            let what = format!("{} holds {found:?}; its history says {kv:?}", replica.node);
            findings.violation(NAME, what);
            return;
        }
    }
    if let Some(more) = held.next() {
        let what = format!("{} holds {more:?}, which nobody wrote", replica.node);
        findings.violation(NAME, what);
    }
}
