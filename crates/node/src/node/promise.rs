//! What this node promises to leaders, before it is started and after: see `raft/leader_lease.rs`.

use std::time::Duration;

use podkv_api::{Error, Result};

use super::Node;
use crate::config::NodeConfig;
use crate::identity::promise;
use crate::raft::LeaseTerms;
use crate::storage::Storage;

/// What this node promises, on its disk before it does, and what it may have promised before.
pub(super) async fn begin(config: &NodeConfig, storage: &Storage) -> Result<LeaseTerms> {
    let promise = match config.lease_reads {
        true => config.timing.election_max,
        false => Duration::ZERO,
    };
    let markers = storage.markers.clone();
    let begin = move || promise::begin(&*markers, promise);
    let begun = storage.markers.workers().spawn(begin).await;
    let promised_before =
        begun.map_err(|_| Error::internal("noting the promise did not come to an end"))??;
    if !promised_before.is_zero() {
        tracing::info!(
            ?promised_before,
            "may have promised its vote before this start: keeps it to itself meanwhile"
        );
    }
    Ok(LeaseTerms {
        reads: config.lease_reads,
        promise,
        promised_before,
    })
}

/// When earlier promises are over that were longer, the next start need not wait for them.
pub(super) fn settle(node: &Node, terms: LeaseTerms) {
    if terms.promised_before <= terms.promise {
        return;
    }
    let (markers, stop) = (node.0.storage.markers.clone(), node.0.stop.clone());
    node.0.tasks.spawn(async move {
        let over = tokio::time::sleep(terms.promised_before);
        if stop.run_until_cancelled(over).await.is_none() {
            return;
        }
        let workers = markers.workers();
        let settle = move || promise::settle(&*markers, terms.promise);
        if let Ok(Err(error)) = workers.spawn(settle).await {
            tracing::warn!(%error, "the next start will keep promises that are over");
        }
    });
}
