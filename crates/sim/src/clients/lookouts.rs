//! Asks one node, over and over, who leads and in which term.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::history::Sighting;
use podkv_api::Store as _;
use tokio::time::{sleep, timeout};

use super::Caller;
use crate::recorder::header;

const EVERY: Duration = Duration::from_millis(60);
/// A node that is paused or cut off says nothing.
const PATIENCE: Duration = Duration::from_millis(400);
const NOBODY: usize = usize::MAX;

/// Which node led when a lookout last saw one lead; `NOBODY` if none did.
#[derive(Clone)]
pub struct LastLeader(Arc<AtomicUsize>);

impl Default for LastLeader {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(NOBODY)))
    }
}

impl LastLeader {
    pub fn get(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|node| *node != NOBODY)
    }
}

pub async fn run(caller: Caller, node: usize, last: LastLeader) {
    loop {
        let asked = caller.recorder.now();
        if let Ok(Ok(status)) = timeout(PATIENCE, caller.client.status()).await {
            let seen = caller.recorder.now();
            if status.leader == Some(status.header.member) {
                last.0.store(node, Ordering::Relaxed);
            }
            caller.recorder.sighting(Sighting {
                asked,
                seen,
                node: status.name,
                header: header(&status.header),
                leader: status.leader.map(|leader| leader.0),
            });
        }
        sleep(EVERY).await;
    }
}
