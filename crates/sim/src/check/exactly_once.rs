//! Promise: a write in a session is applied at most once, whatever the client, the network or leadership does in
//! between; and a write that was refused for certain is not applied at all.
//!
//! A value is written by one call alone, so a second application shows as the same value at a second revision. A
//! delete has no value: every delete that the replicas tell needs a call, a lease or a TTL of its own.

use super::{Cause, Evidence, Findings};

pub const NAME: &str = "exactly once";

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    for (change, cause) in evidence.changes.iter().zip(&evidence.causes) {
        findings.looked_at += 1;
        if let Cause::Unexplained(why) = cause {
            findings.violation(NAME, format!("revision {}: {why}", change.revision));
        }
    }
    findings
}
