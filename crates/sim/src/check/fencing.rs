//! Promise: a lock is held by one at a time, its fencing tokens never go back, and a write under a fence takes effect
//! only while that lock is held.
//!
//! - Who had a lock before another asked for it has the smaller token.
//! - Two who both surely held it do not overlap. `confirmed` is the last moment of which the holder knew; what is
//!   after it is not claimed.
//! - In the order of revisions, the tokens of the fenced writes that took effect never go back.

use std::collections::HashMap;

use super::{Cause, Evidence, Findings};
use crate::history::{Hold, Revision};

pub const NAME: &str = "locks";

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut locks: HashMap<&str, Vec<&Hold>> = HashMap::new();
    for hold in &evidence.history.holds {
        findings.looked_at += 1;
        locks.entry(&hold.lock).or_default().push(hold);
    }
    for (lock, mut holds) in locks {
        tokens(lock, &mut holds, &mut findings);
        overlaps(lock, &mut holds, &mut findings);
    }
    fenced_writes(evidence, &mut findings);
    findings
}

fn tokens(lock: &str, holds: &mut [&Hold], findings: &mut Findings) {
    let mut by_acquired: Vec<&Hold> = holds.to_vec();
    by_acquired.sort_by_key(|hold| hold.acquired);
    holds.sort_by_key(|hold| hold.asked);
    let mut greatest: Revision = 0;
    let mut earlier = by_acquired.into_iter().peekable();
    for hold in holds.iter() {
        while let Some(before) = earlier.next_if(|before| before.acquired < hold.asked) {
            greatest = greatest.max(before.token);
        }
        if hold.token <= greatest {
            let what = format!(
                "lock {lock:?}: token {} for who asked after token {greatest} was held",
                hold.token
            );
            findings.violation(NAME, what);
        }
    }
}

fn overlaps(lock: &str, holds: &mut [&Hold], findings: &mut Findings) {
    holds.sort_by_key(|hold| hold.acquired);
    let mut longest: Option<&Hold> = None;
    for hold in holds.iter() {
        if let Some(before) = longest
            && hold.acquired < before.confirmed
            && hold.acquired <= hold.confirmed
        {
            let what = format!(
                "lock {lock:?}: token {} was surely held until {} ns, and token {} from {} ns on",
                before.token, before.confirmed, hold.token, hold.acquired
            );
            findings.violation(NAME, what);
        }
        if longest.is_none_or(|before| before.confirmed < hold.confirmed) {
            longest = Some(hold);
        }
    }
}

fn fenced_writes(evidence: &Evidence<'_>, findings: &mut Findings) {
    let mut greatest: HashMap<&str, Revision> = HashMap::new();
    for (change, cause) in evidence.changes.iter().zip(&evidence.causes) {
        let Cause::Call(at) = cause else { continue };
        let Some(fence) = &evidence.history.calls[*at].fence else {
            continue;
        };
        findings.looked_at += 1;
        let known = greatest.entry(&fence.lock).or_insert(fence.token);
        if fence.token < *known {
            let what = format!(
                "lock {:?}: revision {} was written under token {}, after token {known}",
                fence.lock, change.revision, fence.token
            );
            findings.violation(NAME, what);
        }
        *known = fence.token.max(*known);
    }
}
