//! What must hold at the end of every scenario.
//!
//! - Every replica, read by itself, has every acknowledged write, once, and nothing that nobody wrote.
//! - All volumes that any pod ever had belong to one cluster.
//! - The members are the pods that run, each in its role, and no dead ones.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use podkv_api::{Consistency, KeyRange, Range, Store as _};
use serde::{Deserialize, Serialize};

use crate::load::Ledger;
use crate::stage::{Stage, until};
use crate::{PATIENCE, Result, ensure};

/// The line of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub acknowledged: usize,
    pub failed: usize,
    pub longest_pause: Duration,
    /// What only this scenario has to tell.
    pub notes: String,
}

impl Report {
    pub fn of(ledger: &Ledger, notes: impl Into<String>) -> Self {
        Self {
            acknowledged: ledger.acknowledged.len(),
            failed: ledger.failed.len(),
            longest_pause: ledger.longest_pause,
            notes: notes.into(),
        }
    }
}

impl Stage {
    /// Checks all of it, once the cluster is whole again.
    pub async fn check(&self, ledger: &Ledger) -> Result<()> {
        self.wait_whole().await?;
        self.check_replicas(ledger).await?;
        self.check_one_cluster()
    }

    pub fn check_one_cluster(&self) -> Result<()> {
        let clusters = self.clusters_ever()?;
        ensure(!clusters.is_empty(), || {
            "no volume belongs to a cluster: none was founded".into()
        })?;
        ensure(clusters.len() == 1, || {
            let identities = self.identities().unwrap_or_default();
            format!(
                "{} CLUSTERS among the volumes: {clusters:x?}; {identities:#?}",
                clusters.len()
            )
        })
    }

    /// Every replica that runs, read by itself.
    pub async fn check_replicas(&self, ledger: &Ledger) -> Result<()> {
        let client = self.client()?;
        // A linearizable read: what is below it is all there is.
        let revision = until("a linearizable read", PATIENCE, async || {
            let range = Range::new(KeyRange::key("none"));
            let read = client.range(range).await;
            read.map(|read| read.header.revision)
                .map_err(|error| error.to_string())
        })
        .await;
        client.close().await;
        let revision = revision?;
        for (ordinal, pod) in self.running() {
            let node = self.client_at(pod.ip)?;
            until("a replica catches up", PATIENCE, async || {
                let status = node.status().await.map_err(|error| error.to_string())?;
                let at = status.header.revision;
                (at >= revision)
                    .then_some(())
                    .ok_or(format!("podkv-{ordinal} is at {at} of {revision}"))
            })
            .await?;
            let held = held_by(&node).await;
            node.close().await;
            compare(&format!("podkv-{ordinal}"), &held?, ledger)?;
        }
        Ok(())
    }
}

/// Key, value and version of all that a node holds.
async fn held_by(node: &podkv_client::Client) -> Result<BTreeMap<String, (String, u64)>> {
    let request = Range::new(KeyRange::all()).consistency(Consistency::Local);
    let mut chunks = node.range_stream(request).await?;
    let mut held = BTreeMap::new();
    while let Some(chunk) = chunks.next().await {
        for kv in chunk?.kvs {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            held.insert(text(&kv.key), (text(&kv.value), kv.version));
        }
    }
    Ok(held)
}

fn compare(node: &str, held: &BTreeMap<String, (String, u64)>, ledger: &Ledger) -> Result<()> {
    let lost: Vec<_> = ledger
        .acknowledged
        .iter()
        .filter(|(key, value)| held.get(*key).map(|(held, _)| held) != Some(*value))
        .map(|(key, _)| key)
        .collect();
    ensure(lost.is_empty(), || {
        format!(
            "{node} LOST {} acknowledged writes: {:?}",
            lost.len(),
            &lost[..lost.len().min(5)]
        )
    })?;
    let twice: Vec<_> = held
        .iter()
        .filter(|(_, (_, version))| *version != 1)
        .collect();
    ensure(twice.is_empty(), || {
        format!(
            "{node} has applied writes twice: {:?}",
            &twice[..twice.len().min(5)]
        )
    })?;
    let unknown: BTreeMap<_, _> = ledger
        .failed
        .iter()
        .map(|failed| (&failed.key, &failed.value))
        .collect();
    let invented = held.iter().find(|(key, (value, _))| {
        !ledger.acknowledged.contains_key(*key) && unknown.get(key) != Some(&value)
    });
    ensure(invented.is_none(), || {
        format!("{node} holds what nobody wrote: {invented:?}")
    })
}
