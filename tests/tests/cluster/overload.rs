//! More than a node can do: it does what it can, refuses the rest at once and says when to come back, keeps its place
//! in the cluster, and is as it was when that is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use h2::client::{Builder, SendRequest};
use http::{Method, Request};
use podkv_api::{Error, Put, Reason, Store as _};
use podkv_proto::convert::error::{Call, from_status};
use podkv_tests::etcd::{Etcd, PATIENCE, put};
use podkv_tests::process::ProcessCluster;
use rustix::process::{Resource, getrlimit};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::etcd_limits::{Bystander, MIB, assert_never_more, memory};

/// What came of many calls.
#[derive(Debug, Default)]
struct Tally {
    done: AtomicU64,
    /// For certain, at once, with advice.
    refused: AtomicU64,
    /// No answer in time.
    late: AtomicU64,
}

impl Tally {
    /// Counts an answer. Returns how long to wait before the next call.
    fn count(&self, answer: Result<(), Status>) -> Duration {
        let Err(status) = answer else {
            self.done.fetch_add(1, Relaxed);
            return Duration::ZERO;
        };
        let error = from_status(&status, Call::Write);
        match error.reason() {
            Reason::Overloaded => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                assert!(!error.outcome_unknown(), "{error:?}");
                self.refused.fetch_add(1, Relaxed);
                error.retry_after().expect("advice when to come back")
            }
            Reason::DeadlineExceeded => {
                self.late.fetch_add(1, Relaxed);
                Duration::ZERO
            }
            _ => panic!("neither done nor refused: {status:?}"),
        }
    }
}

/// Not done within the time that the caller gave it.
fn is_late(error: &Error) -> bool {
    matches!(
        error.reason(),
        Reason::DeadlineExceeded | Reason::Overloaded
    )
}

/// Somebody who writes one thing after the other, and comes back when told to.
struct Modest {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<Duration>>,
}

impl Modest {
    fn start(cluster: &ProcessCluster) -> Self {
        let client = cluster.client();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut took = Vec::new();
            while !stopped.load(Relaxed) {
                let begun = Instant::now();
                let written: Result<_, Error> = client.put(Put::new("modest", "1")).await;
                match written {
                    Ok(_) => took.push(begun.elapsed()),
                    // Bad luck among so many, and the truth.
                    Err(error) => assert!(is_late(&error), "{error:?}"),
                }
            }
            client.close().await;
            took
        });
        Self { stop, task }
    }

    /// How long its calls took, sorted.
    async fn stop(self) -> Vec<Duration> {
        self.stop.store(true, Relaxed);
        let mut took = self.task.await.unwrap();
        took.sort();
        took
    }
}

async fn terms(cluster: &ProcessCluster) -> Vec<u64> {
    let statuses = (0..cluster.specs.len()).map(|index| cluster.status(index));
    let statuses = join_all(statuses).await;
    statuses
        .into_iter()
        .map(|status| status.unwrap().header.term)
        .collect()
}

/// Writes on many connections at once, each with many calls under way, for a while.
async fn flood(
    cluster: &ProcessCluster,
    (connections, calls): (usize, usize),
    value: usize,
    time: Duration,
) -> Arc<Tally> {
    let tally = Arc::new(Tally::default());
    let value = Bytes::from(vec![b'v'; value]);
    let until = Instant::now() + time;
    let mut callers = Vec::new();
    for connection in 0..connections {
        let etcd = Etcd::connect(&cluster.specs[connection % cluster.specs.len()].client).await;
        for call in 0..calls {
            let (mut kv, tally, value) = (etcd.kv(), tally.clone(), value.clone());
            callers.push(tokio::spawn(async move {
                let key = format!("flood/{connection}/{}", call % 8);
                while Instant::now() < until {
                    let mut request = tonic::Request::new(put(key.clone(), value.clone()));
                    request.set_timeout(PATIENCE);
                    let answer = kv.put(request).await.map(|_| ());
                    tokio::time::sleep(tally.count(answer)).await;
                }
            }));
        }
    }
    for caller in callers {
        caller.await.unwrap();
    }
    tally
}

async fn nobody_else_is_hurt(shape: (usize, usize), value: usize, bound: u64) {
    let settings = ["--cache-bytes=32MiB", "--timing=network"];
    let cluster = ProcessCluster::start_with(3, &settings).await;
    cluster.wait_leader().await;
    let before = terms(&cluster).await;
    let bearable = async || {
        let tally = flood(&cluster, (3, 20), 64, Duration::from_secs(2)).await;
        tally.done.load(Relaxed) / 2
    };
    let speed_before = bearable().await;
    let modest = Modest::start(&cluster);
    let tally = flood(&cluster, shape, value, Duration::from_secs(8)).await;
    let took = modest.stop().await;
    eprintln!(
        "60 callers: {speed_before}/s before, {}/s after",
        bearable().await
    );
    eprintln!(
        "{shape:?} calls of {value} bytes: {tally:?}; beside them {} writes, p50 {:?}, longest {:?}",
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert!(tally.done.load(Relaxed) > 0);
    assert!(tally.refused.load(Relaxed) > 0, "no flood at all");
    assert_eq!(tally.late.load(Relaxed), 0, "taken, and not done in time");
    // No heartbeat was lost in it.
    assert_eq!(terms(&cluster).await, before);
    for node in 0..3 {
        assert_never_more(&cluster, node, bound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_writes_is_refused_in_part_and_hurts_nobody_else() {
    nobody_else_is_hurt((30, 1000), 64, 1024 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_the_largest_values_is_refused_in_part_and_hurts_nobody_else() {
    nobody_else_is_hurt((12, 20), 3 * MIB as usize / 2 - 1024, 1024 * MIB).await;
}

/// A connection with one call on it, which stays.
async fn connect(address: &str) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut send, connection) = Builder::new().handshake(stream).await.unwrap();
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://podkv/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    send = send.ready().await.unwrap();
    let (answer, mut body) = send.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    (send, connection)
}

/// A connection is its buffers and its task.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections() {
    // Both ends of each are files here and there; some are left for the rest.
    let limit = getrlimit(Resource::Nofile);
    let files = limit
        .current
        .unwrap_or(u64::MAX)
        .min(limit.maximum.unwrap_or(u64::MAX));
    let count = 10_000.min(files.saturating_sub(1000));
    let cluster = ProcessCluster::start_with(1, &["--cache-bytes=32MiB"]).await;
    let bystander = Bystander::start(&cluster).await;
    let before = memory(&cluster, 0);
    let address = &cluster.specs[0].client;
    let opened = futures_util::stream::iter(0..count).map(|_| connect(address));
    let opened = opened.buffer_unordered(64).collect::<Vec<_>>();
    let connections = tokio::time::timeout(PATIENCE, opened).await.unwrap();
    let now = memory(&cluster, 0);
    eprintln!(
        "{count} connections: {} KiB each",
        (now - before) / count / 1024
    );
    assert!(now - before < count * 64 * 1024);
    bystander.was_served().await;
    for (_, connection) in connections {
        connection.abort();
    }
    let client = cluster.client();
    client.put(Put::new("after", "1")).await.unwrap();
    client.close().await;
}
