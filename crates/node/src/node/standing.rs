//! Finds out that this node id is no longer its cluster's, and ends it.
//!
//! A pod may come back after its id was removed: with a stale volume after scaling down and up, or late,
//! when another node has taken its place. It must not go on as if it were a member, and not take silence for
//! an answer either: only a leader that has made sure that it leads can say "removed". A volume that was rewound or
//! copied is noticed by any peer that has seen a later start of it; its id must never vote again.
//!
//! And the whole cluster may have been recovered from a lost majority without this node: see [`super::lookout`].
//!
//! Either way the id ends here, durably. Started again, the pod puts the old data aside and joins anew.

use std::sync::{Arc, Weak};
use std::time::Duration;

use podkv_api::{Error, Reason};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lookout::Lookout;
use super::{Inner, Node};
use crate::bootstrap::Bootstrap;
use crate::health::Health;

/// How often this is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// An election takes a second or two. A node that hears of no leader for longer asks around.
const SUSPICIOUS_AFTER: Duration = Duration::from_secs(5);

pub(super) async fn run(
    node: Weak<Inner>,
    bootstrap: Arc<Bootstrap>,
    lookout: Lookout,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(watch(node, bootstrap, lookout))
        .await;
}

async fn watch(node: Weak<Inner>, bootstrap: Arc<Bootstrap>, lookout: Lookout) {
    let mut leader_seen = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(node) = node.upgrade().map(Node) else {
            return;
        };
        if node.0.identity.membership().is_none() {
            continue;
        }
        if *node.0.peers.rewound().borrow() {
            let why = "a later start of it was seen: its volume was rewound, or is a copy";
            return node.retire(why).await;
        }
        let state = node.0.group.state().borrow().clone();
        // A leader of the past may well be there: whoever refuses this node may know better.
        if node.0.peers.take_fenced()
            && let Some(why) = lookout.look(&state.members).await.ended()
        {
            return node.retire(&why).await;
        }
        // Not whether a leader is known: the one of the last vote is, however long it has been silent.
        if node.0.group.confirm_within(SUSPICIOUS_AFTER).is_ok() {
            leader_seen = Instant::now();
        }
        let left_out = state.members_committed
            && !state.members.nodes.is_empty()
            && !state.members.contains(node.id());
        if !left_out && leader_seen.elapsed() < SUSPICIOUS_AFTER {
            continue;
        }
        match bootstrap.standing().await {
            Ok(true) => {}
            Ok(false) => return node.retire("it was removed from its cluster").await,
            Err(error) => {
                tracing::debug!(%error, "nobody can say whether this node is a member");
                if let Some(why) = lookout.look(&state.members).await.ended() {
                    return node.retire(&why).await;
                }
            }
        }
    }
}

impl Node {
    async fn retire(&self, why: &str) {
        let identity = self.0.identity.clone();
        let retired = identity.workers().spawn(move || identity.retire()).await;
        let error = match retired {
            Ok(Ok(())) => {
                let text = format!(
                    "node id {} has ended: {why}. Started again, this pod joins anew under another id",
                    self.id()
                );
                Error::new(Reason::Retired, text)
            }
            Ok(Err(error)) => error,
            Err(_) => Error::internal("retiring did not come to an end"),
        };
        self.0
            .health
            .send_replace(Health::not_ready(format!("stopped: {}", error.text())));
        self.0.failure.send_replace(Some(error));
    }
}
