//! How long writes stop: when the leader is killed, and when it hands over.

use std::time::{Duration, Instant};

use podkv_benches::Result;
use podkv_benches::servers::Cluster;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::load::key;

/// A call that is not answered by then is sent again, to another node.
const ATTEMPT: Duration = Duration::from_millis(100);
/// Writes before, and after.
const AROUND: Duration = Duration::from_secs(1);

/// From the SIGKILL of the leader to the next write that is acknowledged, to a client that knows all nodes and asks
/// the ones that are left in turn.
pub async fn kill(cluster: &mut Cluster) -> Result<Duration> {
    let leader = cluster.leader().await?;
    let mut kvs = Vec::new();
    for node in 0..cluster.addresses().len() {
        if node != leader {
            kvs.push(KvClient::new(cluster.connect(node).await?));
        }
    }
    for kv in &mut kvs {
        put(kv).await?;
    }
    cluster.kill(leader).await?;
    let killed = Instant::now();
    // Each attempt may have been applied; that the next one is acknowledged is what counts.
    for turn in 0.. {
        let turn = turn % kvs.len();
        let Some(kv) = kvs.get_mut(turn) else { break };
        if let Ok(Ok(())) = tokio::time::timeout(ATTEMPT, put(kv)).await {
            break;
        }
    }
    let pause = killed.elapsed();
    cluster.start_all().await?;
    Ok(pause)
}

/// The longest time without an acknowledgement on any connection while leadership moves, under writes to all nodes.
pub async fn hand_over(cluster: &Cluster) -> Result<Duration> {
    let leader = cluster.leader().await?;
    let nodes = cluster.addresses().len();
    let (acknowledged, mut told) = tokio::sync::mpsc::channel(1024);
    let stop = CancellationToken::new();
    let mut writers = JoinSet::new();
    for node in 0..nodes {
        let mut kv = KvClient::new(cluster.connect(node).await?);
        let (acknowledged, stop) = (acknowledged.clone(), stop.clone());
        writers.spawn(async move {
            while !stop.is_cancelled() {
                // A write that fails is part of the pause.
                if put(&mut kv).await.is_ok() {
                    let _ = acknowledged.send(Instant::now()).await;
                }
            }
        });
    }
    drop(acknowledged);
    let longest = tokio::spawn(async move {
        let mut last = None;
        let mut longest = Duration::ZERO;
        while let Some(at) = told.recv().await {
            if let Some(last) = last {
                longest = longest.max(at.saturating_duration_since(last));
            }
            last = Some(at);
        }
        longest
    });
    tokio::time::sleep(AROUND).await;
    let target = cluster.connect((leader + 1) % nodes).await?;
    let status = MaintenanceClient::new(target)
        .status(pb::StatusRequest {})
        .await?;
    let target = status.into_inner().header.unwrap_or_default().member_id;
    let request = pb::MoveLeaderRequest { target_id: target };
    let mut maintenance = MaintenanceClient::new(cluster.connect(leader).await?);
    maintenance.move_leader(request).await?;
    tokio::time::sleep(AROUND).await;
    stop.cancel();
    writers.join_all().await;
    Ok(longest.await?)
}

async fn put(kv: &mut KvClient<Channel>) -> Result<()> {
    let put = pb::PutRequest {
        key: key(0),
        value: vec![b'v'; 256].into(),
        ..Default::default()
    };
    kv.put(put).await?;
    Ok(())
}
