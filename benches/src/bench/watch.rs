//! Fan-out: many watchers of one prefix, and writers that write to it as fast as they can.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use podkv_benches::Result;
use podkv_benches::servers::{Cluster, cpu_of};
use podkv_benches::times::Times;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::watch_client::WatchClient;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::load::{Loaded, key};

#[derive(Clone, Copy, Debug)]
pub struct FanOut {
    pub watchers: usize,
    pub writers: usize,
    pub connections: usize,
    pub value_bytes: usize,
    pub warm_up: Duration,
    pub measured: Duration,
}

/// Events count as calls; the time of one is that from before its put to its arrival.
pub async fn run(fan_out: FanOut, cluster: &Cluster) -> Result<Loaded> {
    let nodes = cluster.addresses().len();
    let watch = Clock {
        begun: Instant::now(),
        phase: Arc::new(AtomicU8::new(WARMS_UP)),
        stop: CancellationToken::new(),
    };
    let mut channels = Vec::new();
    for connection in 0..fan_out.connections {
        channels.push(cluster.connect(connection % nodes).await?);
    }
    let channel = |index: usize| channels[index % channels.len()].clone();
    let mut watchers = JoinSet::new();
    for watcher in 0..fan_out.watchers {
        let (requests, events) = subscribe(channel(watcher)).await?;
        watchers.spawn(watch.clone().count(requests, events));
    }
    let mut writers = JoinSet::new();
    for writer in 0..fan_out.writers {
        let kv = KvClient::new(channel(writer));
        writers.spawn(watch.clone().write(kv, writer as u64, fan_out.value_bytes));
    }
    tokio::time::sleep(fan_out.warm_up).await;
    let before = (cluster.cpu()?, cpu_of("self")?);
    let begun = Instant::now();
    watch.phase.store(MEASURES, Relaxed);
    tokio::time::sleep(fan_out.measured).await;
    watch.phase.store(ENDS, Relaxed);
    let measured = begun.elapsed();
    let after = (cluster.cpu()?, cpu_of("self")?);
    watch.stop.cancel();
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    let mut times = Times::new();
    while let Some(counted) = watchers.join_next().await {
        times.add(&counted??);
    }
    Ok(Loaded {
        times,
        measured,
        servers_cpu: after.0.saturating_sub(before.0),
        own_cpu: after.1.saturating_sub(before.1),
    })
}

const WARMS_UP: u8 = 0;
const MEASURES: u8 = 1;
const ENDS: u8 = 2;

/// The requests' side of a stream: the watch lasts as long as it is kept.
type Requests = tokio::sync::mpsc::Sender<pb::WatchRequest>;

async fn subscribe(channel: Channel) -> Result<(Requests, Streaming<pb::WatchResponse>)> {
    let (requests, asked) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: "key/".into(),
        range_end: "key0".into(),
        ..Default::default()
    };
    let request = pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
    };
    requests.send(request).await?;
    let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut events = WatchClient::new(channel).watch(asked).await?.into_inner();
    match events.message().await? {
        Some(response) if response.created => Ok((requests, events)),
        other => Err(format!("a watch was answered by {other:?}").into()),
    }
}

/// The generator is one process, so writers and watchers have one clock.
#[derive(Clone)]
struct Clock {
    begun: Instant,
    phase: Arc<AtomicU8>,
    stop: CancellationToken,
}

impl Clock {
    /// When a value was written stands in its first bytes.
    async fn write(self, mut kv: KvClient<Channel>, writer: u64, value_bytes: usize) -> Result<()> {
        while !self.stop.is_cancelled() {
            let mut value = u64::try_from(self.begun.elapsed().as_micros())?
                .to_be_bytes()
                .to_vec();
            value.resize(value_bytes.max(value.len()), b'v');
            let put = pb::PutRequest {
                key: key(writer),
                value: value.into(),
                ..Default::default()
            };
            kv.put(put).await?;
        }
        Ok(())
    }

    async fn count(
        self,
        _requests: Requests,
        mut events: Streaming<pb::WatchResponse>,
    ) -> Result<Times> {
        let mut times = Times::new();
        while let Some(response) = self.stop.run_until_cancelled(events.message()).await {
            let response = response?.ok_or("a watch ended")?;
            if response.canceled {
                return Err(format!("a watch was canceled: {}", response.cancel_reason).into());
            }
            if self.phase.load(Relaxed) != MEASURES {
                continue;
            }
            let now = self.begun.elapsed();
            for event in response.events {
                let value = event.kv.unwrap_or_default().value;
                times.record(now.saturating_sub(written_at(&value)));
            }
        }
        Ok(times)
    }
}

fn written_at(value: &Bytes) -> Duration {
    let micros = value
        .first_chunk()
        .map_or(0, |first| u64::from_be_bytes(*first));
    Duration::from_micros(micros)
}
