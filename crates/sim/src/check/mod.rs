//! The checkers: one promise a file, each a pure function of a history.
//!
//! ```text
//!   History ─► Evidence (the revisions in order, and whose each is) ─► one checker a promise ─► Report
//! ```
//!
//! podkv numbers its states: every answer carries the revision that it speaks of. That turns the check of
//! linearizability, for which a search is needed in general, into holding one given order against time and
//! meaning: see [`strict_serializability`]. Whether those numbers are true is asked separately, by a search that
//! does not look at them: [`linearizability`].
//!
//! A checker never decides by what a replica says alone. The replicas' histories are a claim like any other; it is
//! held against the answers that clients got.

pub mod data_model;
pub mod durability;
mod evidence;
pub mod exactly_once;
pub mod fencing;
pub mod large_values;
pub mod leadership;
pub mod leases;
pub mod linearizability;
pub mod local_reads;
mod model;
pub mod one_cluster;
pub mod replicas;
pub mod strict_serializability;
pub mod watch;

#[cfg(test)]
mod planted_tests;

pub use evidence::{Cause, Evidence};

use crate::history::{History, Outcome};

/// A promise that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The checker's name.
    pub promise: &'static str,
    pub what: String,
}

/// What a checker found, and how much it looked at. Looking at nothing is no success: whoever prints a report
/// prints the figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub violations: Vec<Violation>,
    pub looked_at: u64,
}

/// More of the same say nothing more.
const MOST_VIOLATIONS: usize = 20;

impl Findings {
    fn violation(&mut self, promise: &'static str, what: impl Into<String>) {
        if self.violations.len() < MOST_VIOLATIONS {
            let what = what.into();
            self.violations.push(Violation { promise, what });
        }
    }
}

type Checker = fn(&Evidence<'_>) -> Findings;

/// Every checker with its name, and what it counts.
pub const CHECKERS: &[(&str, &str, Checker)] = &[
    (data_model::NAME, "revisions", data_model::check),
    (durability::NAME, "acknowledged writes", durability::check),
    (
        strict_serializability::NAME,
        "calls in the order of revisions",
        strict_serializability::check,
    ),
    (
        linearizability::NAME,
        "operations of single keys, by search",
        linearizability::check,
    ),
    (
        exactly_once::NAME,
        "revisions explained",
        exactly_once::check,
    ),
    (watch::NAME, "events", watch::check),
    (leases::NAME, "ends of leases and TTLs", leases::check),
    (fencing::NAME, "holds and fenced writes", fencing::check),
    (
        large_values::NAME,
        "calls for large values, and their uploads",
        large_values::check,
    ),
    (leadership::NAME, "sightings", leadership::check),
    (replicas::NAME, "replicas and digests", replicas::check),
    (local_reads::NAME, "local reads", local_reads::check),
    (one_cluster::NAME, "headers", one_cluster::check),
];

/// What all checkers found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub violations: Vec<Violation>,
    /// For each checker: its name, how much it looked at, and what that counts.
    pub looked_at: Vec<(&'static str, u64, &'static str)>,
    pub acknowledged: u64,
    pub unknown: u64,
    pub refused: u64,
}

/// Runs every checker.
pub fn all(history: &History) -> Report {
    let mut report = Report::default();
    for call in &history.calls {
        match call.outcome {
            Outcome::Ok { .. } => report.acknowledged += 1,
            Outcome::Unknown { .. } => report.unknown += 1,
            Outcome::Refused { .. } => report.refused += 1,
        }
    }
    let evidence = match Evidence::of(history) {
        Ok(evidence) => evidence,
        Err(violation) => {
            report.violations.push(violation);
            return report;
        }
    };
    for (name, counts, checker) in CHECKERS {
        let findings = checker(&evidence);
        report.violations.extend(findings.violations);
        report.looked_at.push((name, findings.looked_at, counts));
    }
    report
}
