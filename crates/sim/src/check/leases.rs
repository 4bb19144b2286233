//! Promise: a lease, or a TTL, never expires early; a lease that ended takes all its keys with it, at once, and does
//! not come back; a lease that was revoked is gone.
//!
//! *Early* is judged by the clients' clock, in the direction in which it cannot be wrong. A renewal took effect after
//! it was invoked, so the lease had to live until `invoked + ttl`. An end was there when somebody first knew of its
//! revision, at the latest. If that is before, it was early. The cluster clock may go slower than ours, for it stands
//! still without a leader; never faster.

use std::collections::HashMap;

use super::{Cause, Evidence, Findings};
use crate::history::{Action, Answer, Call, Event, Nanos, Outcome, Revision, Step};

pub const NAME: &str = "leases";

const NANOS_PER_MS: u64 = 1_000_000;

/// One lease, as clients know it.
#[derive(Default)]
struct Lease {
    granted: bool,
    /// The store had to keep it until then.
    alive_until: Nanos,
    /// When a revocation was sent: from then on it may end at any time.
    revoked: Option<Nanos>,
    /// When the answer to one came.
    surely_revoked: Option<Nanos>,
    ended: Option<Revision>,
}

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut leases = known(evidence);
    ends(evidence, &mut leases, &mut findings);
    refusals(evidence, &leases, &mut findings);
    revocations(evidence, &leases, &mut findings);
    ttls(evidence, &mut findings);
    findings
}

fn known(evidence: &Evidence<'_>) -> HashMap<i64, Lease> {
    let mut leases: HashMap<i64, Lease> = HashMap::new();
    for call in &evidence.history.calls {
        match (&call.action, &call.outcome) {
            (
                Action::Grant { lease, .. },
                Outcome::Ok {
                    answer: Answer::Granted { ttl_ms },
                    ..
                },
            ) => {
                let lease = leases.entry(*lease).or_default();
                lease.granted = true;
                lease.alive_until = lease.alive_until.max(after(call.invoked, *ttl_ms));
            }
            (
                Action::KeepAlive { lease },
                Outcome::Ok {
                    answer: Answer::KeptAlive { ttl_ms, .. },
                    ..
                },
            ) => {
                let lease = leases.entry(*lease).or_default();
                lease.alive_until = lease.alive_until.max(after(call.invoked, *ttl_ms));
            }
            (Action::Revoke { lease }, outcome) if !matches!(outcome, Outcome::Refused { .. }) => {
                let lease = leases.entry(*lease).or_default();
                let first = lease.revoked.unwrap_or(Nanos::MAX).min(call.invoked);
                lease.revoked = Some(first);
                if call.is_ok() {
                    let first = lease.surely_revoked.unwrap_or(Nanos::MAX);
                    lease.surely_revoked = Some(first.min(call.returned));
                }
            }
            _ => {}
        }
    }
    leases
}

fn after(moment: Nanos, ms: u64) -> Nanos {
    moment.saturating_add(ms.saturating_mul(NANOS_PER_MS))
}

fn ends(evidence: &Evidence<'_>, leases: &mut HashMap<i64, Lease>, findings: &mut Findings) {
    let mut attached: HashMap<&str, i64> = HashMap::new();
    for (change, cause) in evidence.changes.iter().zip(&evidence.causes) {
        let revision = change.revision;
        for event in &change.events {
            attached.remove(event.key());
            if let Event::Put(kv) = event
                && let Some(id) = kv.lease
                && !evidence.history.setup.is_foreign(&kv.key)
            {
                attached.insert(&kv.key, id);
                let lease = leases.entry(id).or_default();
                if let Some(ended) = lease.ended {
                    let what = format!(
                        "{:?} is attached to lease {id:x} at {revision}, which ended at {ended}",
                        kv.key
                    );
                    findings.violation(NAME, what);
                }
            }
        }
        let Cause::Lease(id) = cause else { continue };
        findings.looked_at += 1;
        if let Some((key, _)) = attached.iter().find(|(_, of)| *of == id) {
            let what = format!("lease {id:x} ended at {revision} and left {key:?}");
            findings.violation(NAME, what);
        }
        let lease = leases.entry(*id).or_default();
        lease.ended = Some(revision);
        let Some(known) = evidence.first_known(revision) else {
            continue;
        };
        let may_be_revoked = lease.revoked.is_some_and(|revoked| revoked <= known);
        if !may_be_revoked && known < lease.alive_until {
            let early = (lease.alive_until - known) / NANOS_PER_MS;
            let what =
                format!("lease {id:x} ended at revision {revision}, at least {early} ms early");
            findings.violation(NAME, what);
        }
    }
}

/// "No such lease" is an end, too.
fn refusals(evidence: &Evidence<'_>, leases: &HashMap<i64, Lease>, findings: &mut Findings) {
    for call in &evidence.history.calls {
        let Outcome::Refused { reason } = &call.outcome else {
            continue;
        };
        if reason != "LeaseNotFound" {
            continue;
        }
        for id in named(call) {
            let Some(lease) = leases.get(&id).filter(|lease| lease.granted) else {
                continue;
            };
            let may_be_revoked = lease
                .revoked
                .is_some_and(|revoked| revoked <= call.returned);
            if !may_be_revoked && call.returned < lease.alive_until {
                let early = (lease.alive_until - call.returned) / NANOS_PER_MS;
                let what = format!(
                    "call {} was told that lease {id:x} is gone, at least {early} ms early",
                    call.id
                );
                findings.violation(NAME, what);
            }
        }
    }
}

fn named(call: &Call) -> Vec<i64> {
    match &call.action {
        Action::KeepAlive { lease } => vec![*lease],
        Action::Run { .. } => call
            .steps()
            .filter_map(|step| match step {
                Step::Put { lease, .. } => *lease,
                Step::Delete { .. } | Step::Get { .. } | Step::Scan { .. } => None,
            })
            .collect(),
        // A revocation that is sent twice is no sign.
        Action::Grant { .. } | Action::Revoke { .. } => Vec::new(),
    }
}

/// What was acknowledged as revoked is gone for every read that was invoked afterwards.
fn revocations(evidence: &Evidence<'_>, leases: &HashMap<i64, Lease>, findings: &mut Findings) {
    let revoked: HashMap<i64, Nanos> = leases
        .iter()
        .filter_map(|(id, lease)| Some((*id, lease.surely_revoked?)))
        .collect();
    for call in evidence
        .history
        .calls
        .iter()
        .filter(|call| !call.is_local())
    {
        let Outcome::Ok {
            answer: Answer::Ran { results, .. },
            ..
        } = &call.outcome
        else {
            continue;
        };
        for result in results {
            let crate::history::StepResult::Read(kvs) = result else {
                continue;
            };
            for kv in kvs {
                let gone = kv.lease.and_then(|id| revoked.get(&id));
                if gone.is_some_and(|gone| *gone < call.invoked) {
                    let what = format!(
                        "call {} read {:?} of a lease whose revocation was acknowledged before",
                        call.id, kv.key
                    );
                    findings.violation(NAME, what);
                }
            }
        }
    }
}

/// Keys with deadlines of their own.
fn ttls(evidence: &Evidence<'_>, findings: &mut Findings) {
    let mut alive_until: HashMap<&str, Nanos> = HashMap::new();
    for (change, cause) in evidence.changes.iter().zip(&evidence.causes) {
        match cause {
            Cause::Call(at) => {
                let call = &evidence.history.calls[*at];
                for step in call.steps() {
                    if let Step::Put { key, ttl_ms, .. } = step {
                        let until = ttl_ms.map_or(0, |ttl_ms| after(call.invoked, ttl_ms));
                        alive_until.insert(key, until);
                    }
                }
            }
            Cause::Ttl => {
                findings.looked_at += 1;
                let Some(known) = evidence.first_known(change.revision) else {
                    continue;
                };
                for event in &change.events {
                    let until = alive_until.get(event.key()).copied().unwrap_or(0);
                    if known < until {
                        let early = (until - known) / NANOS_PER_MS;
                        let what = format!(
                            "{:?} expired at revision {}, at least {early} ms early",
                            event.key(),
                            change.revision
                        );
                        findings.violation(NAME, what);
                    }
                }
            }
            Cause::Lease(_) | Cause::Foreign | Cause::Unexplained(_) => {}
        }
    }
}
