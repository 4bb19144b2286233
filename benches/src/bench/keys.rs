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
pub async fn fill(cluster: &Cluster, keys: std::ops::Range<u64>, value_bytes: usize) -> Result<()> {
    let mut kvs = Vec::new();
    for node in 0..cluster.addresses().len() {
        kvs.push(KvClient::new(cluster.connect(node).await?));
    }
    let value = bytes::Bytes::from(vec![b'v'; value_bytes]);
    let batches = keys.clone().step_by(BATCH as usize).enumerate();
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
                success: (first..(first + BATCH).min(keys.end)).map(put).collect(),
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

const MB: f64 = 1e6;

pub async fn run(
    cluster: &mut Cluster,
    keys: u64,
    value_bytes: usize,
    measured: Duration,
) -> Result<Vec<(&'static str, f64)>> {
    let begun = Instant::now();
    fill(cluster, 0..keys, value_bytes).await?;
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

/// The rate of puts and of gets with few keys, and with many.
pub async fn scale(
    cluster: &mut Cluster,
    sizes: [u64; 2],
    value_bytes: usize,
    measured: Duration,
) -> Result<Vec<(&'static str, f64)>> {
    let get = Call::Get {
        serializable: false,
    };
    let mut rates = Vec::new();
    let mut filled = 0;
    for keys in sizes {
        fill(cluster, filled..keys, value_bytes).await?;
        filled = keys;
        for call in [Call::Put, get] {
            let load = Load {
                call,
                api: Api::Etcd,
                clients: 100,
                connections: 10,
                keys,
                value_bytes,
                warm_up: measured / 4,
                measured,
            };
            let loaded = run_load(&load, cluster, &cluster.addresses()).await?;
            rates.push(loaded.per_second());
        }
    }
    let [few_put, few_get, many_put, many_get] = rates[..] else {
        return Err("two calls of two sizes are four rates".into());
    };
    let memory = cluster.memory()?.into_iter().max().unwrap_or_default();
    let disk = cluster.disk()?.into_iter().max().unwrap_or_default();
    Ok(vec![
        ("put left %", 100.0 * many_put / few_put),
        ("get left %", 100.0 * many_get / few_get),
        ("few: put/s", few_put),
        ("few: get/s", few_get),
        ("many: put/s", many_put),
        ("many: get/s", many_get),
        ("memory of a node MB", memory as f64 / MB),
        ("disk of a node MB", disk as f64 / MB),
    ])
}
