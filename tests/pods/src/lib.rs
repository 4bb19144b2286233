//! The rehearsal of Kubernetes: real `podkv serve` processes as pods, started from the rendered manifests.
//!
//! ```text
//!   make rehearse ─► runner ─► one process a run, in namespaces of its own ─► stage ─► scenario ─► check
//! ```
//!
//! Read in this order: [`stage`] (what Kubernetes is here), [`load`] (who writes meanwhile), [`check`] (what must
//! hold at the end), then a file of [`scenarios`], each of which is one promise. [`runner`] gives each run its seed
//! and prints its line.
//!
//! Time is real here. Periods of probes, preStop and grace are those of the manifests, so some scenarios take
//! minutes; what a run does and when is drawn from its seed.
//!
//! It needs root on Linux, `ip`, `nft`, `nsenter`, `unshare`, `setpriv`, and what renders the manifests. Nothing
//! leaves the namespaces but a folder with logs and volumes, and that goes when the run was good.

pub mod check;
pub mod load;
pub mod namespaces;
pub mod planted;
mod removals;
pub mod runner;
pub mod scenarios;
pub mod stage;

use std::time::Duration;

/// Says what went wrong, for a person.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// What does not come true by then, never does. Far above what anything here takes: no scenario measures by it.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Tells whoever waits how far a run is: a line of its output. The one that is JSON is its report.
pub fn say(progress: impl std::fmt::Display) {
    println!("{progress}");
}

/// An invariant of a scenario.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(otherwise().into())
    }
}
