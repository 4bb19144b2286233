//! What every replica holds at the end, each asked by itself.

use std::time::Duration;

use podkv_api::large::{Manifest, own_names};
use podkv_api::{KeyRange, Range, Revision, Store as _};
use podkv_proto::etcd::etcdserverpb::HashKvRequest;
use podkv_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use podkv_sim::history::Replica;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;

use crate::Result;
use crate::place::{NODES, Place};
use podkv_sim::clients::{at, everywhere};

/// Far above what catching up takes here; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);
/// At how many revisions digests are compared.
const DIGESTS: u64 = 5;

/// Asks all replicas. They must be whole, and nobody writes any more but the store's own expiry.
pub async fn all(place: &Place) -> Result<Vec<Replica>> {
    wait_collected(place).await?;
    let revision = newest(place).await?;
    let mut replicas = Vec::new();
    for node in 0..NODES {
        let told = timeout(PATIENCE, one(place, node, revision)).await;
        let told = told.map_err(|_| format!("podkv-{node} does not tell its history"))?;
        replicas.push(told?);
    }
    Ok(replicas)
}

/// Until nothing is left of large values but what keys name; that it is the right thing is for a checker to see.
async fn wait_collected(place: &Place) -> Result<()> {
    let client = everywhere(place.client_addresses()).build()?;
    let begun = Instant::now();
    let collected = loop {
        match uncollected(&client).await {
            Ok(0) => break Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => break Err(error.into()),
            Ok(left) if begun.elapsed() > PATIENCE => {
                break Err(format!("{left} records and chunks of large values stay").into());
            }
            _ => sleep(Duration::from_millis(100)).await,
        }
    };
    client.close().await;
    collected
}

/// How many names more there are than keys need.
async fn uncollected(client: &podkv_client::Client) -> podkv_api::Result<u64> {
    let values = Range::new(KeyRange::prefix("large/"));
    let mut needed = 0;
    for kv in client.range(values).await?.kvs {
        if let Some(manifest) = Manifest::decode(&kv.value)? {
            needed += 1 + u64::from(manifest.chunks());
        }
    }
    let own = Range::new(own_names()).count_only();
    Ok(client.range(own).await?.count.abs_diff(needed))
}

/// A revision that covers every acknowledged write.
async fn newest(place: &Place) -> Result<Revision> {
    let client = everywhere(place.client_addresses()).build()?;
    let begun = Instant::now();
    let revision = loop {
        match client.range(Range::new(KeyRange::key("none"))).await {
            Ok(read) => break read.header.revision,
            Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    };
    client.close().await;
    Ok(revision)
}

async fn one(place: &Place, node: usize, revision: Revision) -> Result<Replica> {
    let client = at(place.client_address(node)).build()?;
    let mut replica =
        podkv_sim::harvest::replica(&client, format!("podkv-{node}"), revision).await?;
    replica.digests = digests(&place.client_address(node), revision).await?;
    client.close().await;
    Ok(replica)
}

/// By etcd's `HashKV`, which podkv answers with a digest of its data as of a revision.
async fn digests(address: &str, revision: Revision) -> Result<Vec<(Revision, u64)>> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    let mut client = MaintenanceClient::new(channel);
    let mut digests = Vec::new();
    for nth in 1..=DIGESTS {
        let revision = (revision * nth / DIGESTS).max(1);
        let request = HashKvRequest {
            revision: i64::try_from(revision)?,
        };
        let answer = client.hash_kv(request).await?.into_inner();
        digests.push((revision, u64::from(answer.hash)));
    }
    Ok(digests)
}
