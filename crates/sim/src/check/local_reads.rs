//! Promise: a local read is whole: a state that was there, all of it at one revision. One node's local reads never go
//! back, not even over its restart: it serves none before it has applied again what it had.
//!
//! That the state is right for its revision is checked with all other reads, in `strict_serializability`.

use std::collections::HashMap;

use super::{Evidence, Findings};

pub const NAME: &str = "local reads";

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    // Of each node, its local reads by return, and by invocation.
    let mut nodes: HashMap<u64, Vec<(u64, u64, u64, u64)>> = HashMap::new();
    for call in evidence.history.calls.iter().filter(|call| call.is_local()) {
        if let Some(header) = call.header() {
            findings.looked_at += 1;
            nodes.entry(header.member).or_default().push((
                call.invoked,
                call.returned,
                header.revision,
                call.id,
            ));
        }
    }
    for (member, mut reads) in nodes {
        let mut by_return = reads.clone();
        by_return.sort_by_key(|(_, returned, ..)| *returned);
        reads.sort_unstable();
        let mut earlier = by_return.into_iter().peekable();
        let mut known = 0;
        for (invoked, _, revision, id) in reads {
            while let Some((_, _, seen, _)) = earlier.next_if(|before| before.1 < invoked) {
                known = known.max(seen);
            }
            if revision < known {
                let what = format!(
                    "call {id} read revision {revision} of {member:x}, which had served {known} before"
                );
                findings.violation(NAME, what);
            }
        }
    }
    findings
}
