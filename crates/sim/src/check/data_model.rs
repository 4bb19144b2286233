//! Promise: the cluster-wide revision grows by one with each write that changes anything, and a key's create
//! revision, mod revision and version follow from its writes.
//!
//! The other checkers lean on it: they take metadata from these events.

use std::collections::{HashMap, HashSet};

use super::{Evidence, Findings};
use crate::history::{Event, KeyValue};

pub const NAME: &str = "data model";

/// An empty store is at revision 1.
const FIRST: u64 = 2;

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut live: HashMap<&str, &KeyValue> = HashMap::new();
    for (expected, change) in (FIRST..).zip(evidence.changes) {
        findings.looked_at += 1;
        let revision = change.revision;
        if revision != expected {
            findings.violation(
                NAME,
                format!("revision {revision} follows {}", expected - 1),
            );
            return findings;
        }
        if change.events.is_empty() {
            findings.violation(NAME, format!("revision {revision} changes nothing"));
        }
        let mut seen = HashSet::new();
        for event in &change.events {
            if !seen.insert(event.key()) {
                let key = event.key();
                findings.violation(NAME, format!("revision {revision} writes {key:?} twice"));
            }
            let before = live.get(event.key()).copied();
            match event {
                Event::Put(kv) => {
                    let expected = (
                        before.map_or(revision, |before| before.created),
                        revision,
                        before.map_or(0, |before| before.version) + 1,
                    );
                    if (kv.created, kv.modified, kv.version) != expected {
                        let what = format!(
                            "revision {revision}: {kv:?} follows {before:?}; expected created, modified, version {expected:?}"
                        );
                        findings.violation(NAME, what);
                    }
                    live.insert(&kv.key, kv);
                }
                Event::Delete { key } => {
                    if live.remove(key.as_str()).is_none() {
                        let what =
                            format!("revision {revision} deletes {key:?}, which is not there");
                        findings.violation(NAME, what);
                    }
                }
            }
        }
    }
    findings
}
