//! Counts of past revisions, kept in memory for lists that are read in pages.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podkv_api::Revision;
use podkv_core::{KeepPastCounts, PastCounts, ViewError};

/// Lists that are read at a time, each at a revision of its own. One takes 4 MiB at most, and 100 KiB for a
/// million keys of 40 bytes; who needs a forgotten one walks the keys again.
const REVISIONS: usize = 8;

/// Shared by all reads of a node.
#[derive(Debug, Default)]
pub(crate) struct KeptPastCounts {
    /// The one that was used last is at the end.
    revisions: Mutex<Vec<Arc<Counted>>>,
}

#[derive(Debug)]
struct Counted {
    at: Revision,
    /// Locked while they are made: others who want the same wait for them.
    counts: Mutex<Option<Arc<PastCounts>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked left what it was: nothing is changed in steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(revisions: &mut Vec<Arc<Counted>>, at: Revision) -> Option<Arc<Counted>> {
    let place = revisions.iter().position(|counted| counted.at == at)?;
    let found = revisions.remove(place);
    revisions.push(found.clone());
    Some(found)
}

impl KeptPastCounts {
    fn find_or_add(&self, at: Revision) -> Arc<Counted> {
        let mut revisions = lock(&self.revisions);
        if let Some(found) = find(&mut revisions, at) {
            return found;
        }
        let added = Arc::new(Counted {
            at,
            counts: Mutex::default(),
        });
        if revisions.len() == REVISIONS {
            revisions.remove(0);
        }
        revisions.push(added.clone());
        added
    }
}

impl KeepPastCounts for KeptPastCounts {
    fn kept(&self, at: Revision) -> Option<Arc<PastCounts>> {
        let counted = find(&mut lock(&self.revisions), at)?;
        lock(&counted.counts).clone()
    }

    fn keep(
        &self,
        at: Revision,
        make: &mut dyn FnMut() -> Result<PastCounts, ViewError>,
    ) -> Result<Arc<PastCounts>, ViewError> {
        let counted = self.find_or_add(at);
        let mut counts = lock(&counted.counts);
        if let Some(counts) = &*counts {
            return Ok(counts.clone());
        }
        let made = Arc::new(make()?);
        *counts = Some(made.clone());
        Ok(made)
    }
}
