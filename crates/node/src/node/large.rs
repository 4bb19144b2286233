//! The leader collects what large values have left behind: see `podkv_api::recipes::large`.

use std::sync::Weak;
use std::time::Duration;

use podkv_api::recipes::large::{Collected, collect};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Inner, Node};

/// Runs a round after each `every`, while this node leads.
pub(super) async fn run(node: Weak<Inner>, every: Duration, stop: CancellationToken) {
    stop.run_until_cancelled(collect_for_ever(node, every))
        .await;
}

async fn collect_for_ever(node: Weak<Inner>, every: Duration) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(node) = node.upgrade().map(Node) else {
            return;
        };
        let leads = node.0.group.state().borrow().leader == Some(node.id());
        if !leads {
            continue;
        }
        match collect(&node).await {
            Ok(Collected {
                values: 0,
                chunks: 0,
            }) => {}
            Ok(Collected { values, chunks }) => {
                tracing::info!(values, chunks, "what large values had left was collected");
            }
            // Leadership moved, a backup is restored, too much is in flight: it comes round again.
            Err(error) => tracing::debug!(%error, "large values were not collected to the end"),
        }
    }
}
