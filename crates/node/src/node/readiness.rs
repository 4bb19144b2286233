//! Watches the node and says when it is ready.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Inner, Node};
use crate::health::Health;
use crate::identity::IdentityFile;

/// An election takes about a second. A node that misses its leader for longer should get no traffic.
pub(super) const LEADERLESS: Duration = Duration::from_secs(10);
/// How often readiness is looked at. Probes come every few seconds.
const LOOK: Duration = Duration::from_millis(200);

/// Waits until the node has caught up with what was committed at this start, then watches its leader.
pub(super) async fn run(node: Weak<Inner>, stop: CancellationToken) {
    stop.run_until_cancelled(watch(node)).await;
}

async fn watch(node: Weak<Inner>) {
    let mut caught_up = false;
    let mut cleared = false;
    let mut leader_seen = Instant::now();
    loop {
        let Some(node) = node.upgrade().map(Node) else {
            return;
        };
        if !caught_up {
            // A read index is a commit index learned since this start.
            caught_up = node.0.read_index.linearizable(LOOK).await.is_ok();
        }
        // A learner knows the leader of its last vote for ever; what counts is what it hears.
        if node.0.group.confirm_within(LEADERLESS).is_ok() {
            leader_seen = Instant::now();
        }
        let state = node.0.group.state().borrow().clone();
        let health = if let Some(error) = node.failure() {
            Health::not_ready(format!("stopped: {}", error.text()))
        } else if node.0.identity.membership().is_none() {
            // Founding says there what it waits for.
            node.0.health.borrow().clone()
        } else if !state.members.contains(node.id()) {
            Health::not_ready("not in the committed membership")
        } else if node.disk_hangs() {
            // The same text for as long as it lasts: health is told when it changes.
            Health::not_ready("the disk does not answer: the log cannot be written")
        } else if !caught_up {
            Health::not_ready("catching up")
        } else if leader_seen.elapsed() > LEADERLESS {
            Health::not_ready(format!("no leader for {LEADERLESS:?}"))
        } else {
            Health::ready()
        };
        if health.ready && !cleared {
            cleared = true;
            node.remove_aside().await;
        }
        node.0.health.send_if_modified(|now| {
            let change = !now.draining && *now != health;
            if change {
                *now = health;
            }
            change
        });
        drop(node);
        tokio::time::sleep(LOOK).await;
    }
}

impl Node {
    fn disk_hangs(&self) -> bool {
        let hangs = self.0.group.log_writing_for();
        hangs.is_some_and(|hangs| hangs >= self.0.config.stall_timeout)
    }

    /// This node holds everything: what its retired predecessor left is of no use to anybody, unless a recovery
    /// lies in between.
    async fn remove_aside(&self) {
        let markers = self.0.storage.markers.clone();
        let (_, incarnation) = self.cluster();
        let removed = markers
            .workers()
            .spawn(move || {
                markers.remove_aside(incarnation)?;
                // Last: from now on this node's own data counts as whole.
                markers.remove(IdentityFile::Rejoin)
            })
            .await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "the data of a retired node stays for now");
        }
    }
}
