//! Promise: at most one leader a term; a node's term never goes back, restarts included.
//!
//! Where a term is, is the volume. So it goes back with a volume that was rewound, on that node, once: what its id said
//! before is then no measure any more. That such a node leads nothing is looked at all the same.

use std::collections::HashMap;

use super::{Evidence, Findings};
use crate::history::Nanos;

pub const NAME: &str = "one leader a term";

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut leaders: HashMap<u64, (u64, &str)> = HashMap::new();
    let mut terms: HashMap<u64, Known> = HashMap::new();
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
        let now = Known {
            term,
            asked: sighting.asked,
            seen: sighting.seen,
        };
        let known = terms.entry(sighting.header.member).or_insert(now);
        let was_rewound = evidence.history.rewound.iter().any(|rewound| {
            rewound.node == node && (known.asked..sighting.seen).contains(&rewound.at)
        });
        if term < known.term && known.seen < sighting.asked && !was_rewound {
            let what = format!(
                "{node} was in term {}, and is in term {term} afterwards",
                known.term
            );
            findings.violation(NAME, what);
        }
        if term > known.term || (term < known.term && was_rewound) {
            *known = now;
        }
    }
    findings
}

/// What a node last said that counts.
#[derive(Clone, Copy)]
struct Known {
    term: u64,
    asked: Nanos,
    seen: Nanos,
}
