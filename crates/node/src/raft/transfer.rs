//! Snapshots that are on their way to peers.
//!
//! While one is, nothing is purged and no newer one is built: the peer will need the entries behind
//! this one, and a transfer that breaks goes on where it stopped only with the same checkpoint. A
//! transfer that makes no progress holds nothing up: a peer that is gone must not fill the disk with log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A transfer that moved within this time counts as going on: it covers the pause before a retry.
const GRACE: Duration = Duration::from_secs(30);

/// When a transfer last made progress.
#[derive(Default)]
pub(super) struct Transfers(Mutex<Option<Instant>>);

impl Transfers {
    /// Another piece is on its way to a peer.
    pub fn progress(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// True while a snapshot is being transferred.
    pub fn held(&self) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < GRACE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_while_there_is_progress() {
        let transfers = Transfers::default();
        assert!(!transfers.held());
        transfers.progress();
        tokio::time::advance(GRACE / 2).await;
        assert!(transfers.held());
        tokio::time::advance(GRACE).await;
        assert!(!transfers.held());
    }
}
