//! Many keys: how fast they come in, what they take, what a limited range costs, how soon a restarted cluster serves.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use podkv_benches::Result;
use podkv_benches::servers::Cluster;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::request_op::Request;

use crate::load::{Api, Call, Load, key, run as run_load};
use crate::rows::ms;

/// etcd's own limit of operations in a transaction.
const BATCH: u64 = 128;
const FILLERS: usize = 32;
/// As in the figures that this is compared with.
const LIMIT: i64 = 500;

/// Writes keys in transactions, over all nodes.
pub async fn fill(cluster: &Cluster, keys: u64, value_bytes: usize) -> Result<()> {
    let mut kvs = Vec::new();
    for node in 0..cluster.addresses().len() {
        kvs.push(KvClient::new(cluster.connect(node).await?));
    }
    let value = bytes::Bytes::from(vec![b'v'; value_bytes]);
    let batches = (0..keys).step_by(BATCH as usize).enumerate();
    stream::iter(batches)
        .map(|(index, first)| {
            let put = |number| pb::RequestOp {
                request: Some(Request::RequestPut(pb::PutRequest {
                    key: key(number),
                    value: value.clone(),
                    ..Default::default()
                })),
            };
            let batch = pb::TxnRequest {
                success: (first..(first + BATCH).min(keys)).map(put).collect(),
                ..Default::default()
            };
            let mut kv = kvs[index % kvs.len()].clone();
            async move {
                match kv.txn(batch).await {
                    // The server that does nothing keeps nothing.
                    Err(status) if status.code() != tonic::Code::Unimplemented => Err(status),
                    _ => Ok(()),
                }
            }
        })
        .buffer_unordered(FILLERS)
        .try_for_each(async |()| Ok(()))
        .await?;
    Ok(())
}

pub async fn run(
    cluster: &mut Cluster,
    keys: u64,
    value_bytes: usize,
    measured: Duration,
) -> Result<Vec<(&'static str, f64)>> {
    const MB: f64 = 1e6;
    let begun = Instant::now();
    fill(cluster, keys, value_bytes).await?;
    let filled = begun.elapsed();
    let most = |bytes: Vec<u64>| bytes.into_iter().max().unwrap_or_default() as f64 / MB;
    let (memory, disk) = (most(cluster.memory()?), most(cluster.disk()?));
    let ranges = Load {
        call: Call::Range { limit: LIMIT },
        api: Api::Etcd,
        clients: 4,
        connections: 3,
        keys,
        value_bytes,
        warm_up: measured / 4,
        measured,
    };
    let ranges = run_load(&ranges, cluster, &cluster.addresses()).await?;
    cluster.kill_all().await?;
    let restarted = cluster.start_all().await?;
    let times = ranges.times.percentiles();
    Ok(vec![
        ("fill keys/s", keys as f64 / filled.as_secs_f64()),
        ("memory of a node MB", memory),
        ("disk of a node MB", disk),
        ("ranges/s", ranges.per_second()),
        ("range p50 ms", ms(times.p50)),
        ("range p99 ms", ms(times.p99)),
        ("restart ms", ms(restarted)),
    ])
}
