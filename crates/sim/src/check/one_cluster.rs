//! Promise: one cluster, never two. Whoever answers, answers for the same cluster and incarnation.

use super::{Evidence, Findings};
use crate::history::Header;

pub const NAME: &str = "one cluster";

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    let of_calls = evidence
        .history
        .calls
        .iter()
        .filter_map(|call| call.header());
    let of_sightings = evidence
        .history
        .sightings
        .iter()
        .map(|sighting| &sighting.header);
    let mut first: Option<&Header> = None;
    for header in of_calls.chain(of_sightings) {
        // A node that has not joined speaks for no cluster.
        if header.cluster == 0 {
            continue;
        }
        findings.looked_at += 1;
        let first = first.get_or_insert(header);
        if (first.cluster, first.incarnation) != (header.cluster, header.incarnation) {
            let what = format!(
                "{:x} answers for cluster {:x}.{}, and {:x} for {:x}.{}",
                header.member,
                header.cluster,
                header.incarnation,
                first.member,
                first.cluster,
                first.incarnation
            );
            findings.violation(NAME, what);
        }
    }
    findings
}
