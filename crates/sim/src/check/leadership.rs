//! Promise: at most one leader a term; a node's term never goes back, restarts included.

use std::collections::HashMap;

use super::{Evidence, Findings};
use crate::history::Nanos;

pub const NAME: &str = "one leader a term";

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut leaders: HashMap<u64, (u64, &str)> = HashMap::new();
    let mut terms: HashMap<u64, (u64, Nanos)> = HashMap::new();
    let mut sightings: Vec<_> = evidence.history.sightings.iter().collect();
    sightings.sort_by_key(|sighting| sighting.seen);
    for sighting in sightings {
        findings.looked_at += 1;
        let (term, node) = (sighting.header.term, sighting.node.as_str());
        if let Some(leader) = sighting.leader {
            let (first, by) = *leaders.entry(term).or_insert((leader, node));
            if first != leader {
                let what = format!(
                    "in term {term}, {by} says that {first:x} leads, and {node} says {leader:x}"
                );
                findings.violation(NAME, what);
            }
        }
        let (known, seen) = terms
            .entry(sighting.header.member)
            .or_insert((term, sighting.seen));
        if term < *known && *seen < sighting.asked {
            let what = format!("{node} was in term {known}, and is in term {term} afterwards");
            findings.violation(NAME, what);
        }
        if term > *known {
            (*known, *seen) = (term, sighting.seen);
        }
    }
    findings
}
