//! `podkv doctor`: what is wrong, and what to do about it.
//!
//! ```text
//!   gather   asks: settings, API server, DNS, ports, certificates, probes, every member ──► Observed   plain data
//!   judge    Observed ──► Findings                                                                    pure
//!
//!   kubectl  asks the API server with the user's own rights ──► objects as JSON                        plain data
//!   kube     objects ──► Findings                                                                     pure
//! ```
//!
//! Two places to ask from, because each sees what the other cannot: in a node's container (`podkv doctor`), where names
//! are resolved and peers are dialled as the node does it; and from a person's machine (`podkv doctor --kube`), where
//! Kubernetes tells why a pod is not even there. Neither changes anything, and neither needs rights beyond those that
//! who runs it has already.
//!
//! `kubectl` is run instead of speaking to the API server: it knows every way in which people log in.
//!
//! A finding says one thing: what is so, and what to do. What could not be found out is a finding too, never silence.

pub(crate) mod gather;
mod judge;
#[cfg(feature = "kubernetes")]
pub(crate) mod kube;
#[cfg(all(test, feature = "kubernetes"))]
mod kube_tests;
#[cfg(feature = "kubernetes")]
pub(crate) mod kubectl;
mod observed;
#[cfg(test)]
mod tests;

use std::fmt;

use serde_json::{Value, json};

pub(crate) use self::judge::judge;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Ok,
    /// It works; look at it before it does not.
    Warning,
    /// Something does not work.
    Problem,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One thing that is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub level: Level,
    /// What was looked at: a word that scripts can rely on.
    pub check: &'static str,
    pub what: String,
    /// Empty where there is nothing to do.
    pub todo: String,
}

impl Finding {
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, check, what, "")
    }

    pub fn warning(check: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self::new(Level::Warning, check, what, todo)
    }

    pub fn problem(check: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self::new(Level::Problem, check, what, todo)
    }

    pub fn new(
        level: Level,
        check: &'static str,
        what: impl Into<String>,
        todo: impl Into<String>,
    ) -> Self {
        Self {
            level,
            check,
            what: what.into(),
            todo: todo.into(),
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "level": self.level.name(),
            "check": self.check,
            "what": self.what,
            "todo": self.todo,
        })
    }
}

/// One line of what, one of what to do.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "WARNING",
            Level::Problem => "PROBLEM",
        };
        write!(f, "{level:<8} {:<11} {}", self.check, self.what)?;
        if !self.todo.is_empty() {
            write!(f, "\n{:<20} -> {}", "", self.todo)?;
        }
        Ok(())
    }
}

/// The worst of them; [`Level::Ok`] of none.
pub(crate) fn worst(findings: &[Finding]) -> Level {
    let levels = findings.iter().map(|finding| finding.level);
    levels.max().unwrap_or(Level::Ok)
}
