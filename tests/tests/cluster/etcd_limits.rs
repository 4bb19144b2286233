//! What one client of the etcd API may cost a node: bounded memory, and nobody else notices.
//!
//! Memory is that of a real process. A bound is what the settings allow (`WatchSettings`, `ServerSettings`), twice
//! because what is encoded stands beside what is sent, and some room for the allocator; without the limit that it is
//! about, each test would be several times above it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt as _, TryStreamExt as _};
use h2::RecvStream;
use h2::client::{Builder, SendRequest};
use http::{Method, Request, Response};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_tests::etcd::{Etcd, PATIENCE, get, put};
use podkv_tests::process::ProcessCluster;
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::proxy::Proxy;

pub const MIB: u64 = 1 << 20;

/// What a node holds in memory, in bytes.
pub fn memory(cluster: &ProcessCluster, node: usize) -> u64 {
    of_memory(cluster, node, "VmRSS:")
}

fn of_memory(cluster: &ProcessCluster, node: usize, what: &str) -> u64 {
    let pid = cluster.nodes[node].as_ref().unwrap().pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib * 1024
}

#[track_caller]
fn assert_grew_less(cluster: &ProcessCluster, before: u64, bound: u64) {
    let now = memory(cluster, 0);
    eprintln!("memory: {} MiB before, {} MiB now", before / MIB, now / MIB);
    assert!(
        now < before + bound,
        "it grew from {} to {} MiB; at most {} more are allowed",
        before / MIB,
        now / MIB,
        bound / MIB
    );
}

/// Another client of the same node, which writes and watches all the while.
pub struct Bystander {
    stop: oneshot::Sender<()>,
    served: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Bystander {
    pub async fn start(cluster: &ProcessCluster) -> Self {
        let etcd = Etcd::connect(&cluster.specs[0].client).await;
        let mut watches = etcd.watch().await;
        watches.create("bystander", false, 0).await;
        assert!(watches.next().await.created);
        let (stop, mut stopped) = oneshot::channel();
        let (tell, told) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut served = 0_u64;
            while stopped.try_recv().is_err() {
                served += 1;
                let value = served.to_string();
                let written = etcd.kv().put(put("bystander", value.clone())).await;
                let revision = written.unwrap().into_inner().header.unwrap().revision;
                let event = watches.next().await;
                let kv = event.events[0].kv.as_ref().unwrap();
                assert_eq!(
                    (kv.mod_revision, &kv.value[..]),
                    (revision, value.as_bytes())
                );
                let read = etcd.kv().range(get("bystander")).await.unwrap();
                assert_eq!(read.into_inner().kvs[0].mod_revision, revision);
                tell.send_replace(served);
            }
        });
        Self {
            stop,
            served: told,
            task,
        }
    }

    /// It is served so many times more.
    async fn is_served(&self, more: u64) {
        let mut served = self.served.clone();
        let wanted = *served.borrow() + more;
        let reached = served.wait_for(|served| *served >= wanted);
        tokio::time::timeout(PATIENCE, reached)
            .await
            .unwrap()
            .unwrap();
    }

    /// It was served to the end, and still is.
    pub async fn was_served(self) {
        self.is_served(1).await;
        let _ = self.stop.send(());
        let ended = tokio::time::timeout(PATIENCE, self.task).await;
        ended.unwrap().unwrap();
    }
}

async fn node() -> ProcessCluster {
    ProcessCluster::start_with(1, &["--cache-bytes=32MiB"]).await
}

/// Waits until the node has so many open watches.
async fn wait_watches(cluster: &ProcessCluster, count: f64) {
    let reached = async {
        while cluster.metric(0, "podkv_watches").await != Some(count) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, reached).await;
    assert!(
        waited.is_ok(),
        "open watches: {:?}",
        cluster.metric(0, "podkv_watches").await
    );
}

/// A watch is its key, an empty queue, its place in the index, and who may read it: 1.8 KiB when this was written.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_watches_on_one_stream() {
    const WATCHES: usize = 100_000;
    let cluster = node().await;
    let bystander = Bystander::start(&cluster).await;
    let before = memory(&cluster, 0);
    let client = Etcd::connect(&cluster.specs[0].client).await;
    let mut watches = client.watch().await;
    let requests = watches.requests.clone().unwrap();
    let asking = tokio::spawn(async move {
        for number in 0..WATCHES {
            let create = pb::WatchCreateRequest {
                key: format!("watched/{number:06}").into(),
                ..Default::default()
            };
            let request = pb::WatchRequest {
                request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
            };
            requests.send(request).await.unwrap();
        }
    });
    for _ in 0..WATCHES {
        let created = watches.next().await;
        assert!(created.created && !created.canceled, "{created:?}");
        assert!((0..WATCHES as i64).contains(&created.watch_id));
    }
    asking.await.unwrap();
    assert_grew_less(&cluster, before, WATCHES as u64 * 2560);
    // Each is told of its own key, and one progress speaks for all.
    for number in [0, 77_777, 99_999] {
        let key = format!("watched/{number:06}");
        client.kv().put(put(key, "1")).await.unwrap();
        let event = watches.next().await;
        assert_eq!((event.watch_id, event.events.len()), (number, 1));
    }
    bystander.was_served().await;
    let progress = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
    watches.ask(progress).await;
    assert_eq!(watches.next().await.watch_id, -1);
    // The client is gone, and with it all that it had.
    drop((watches, client));
    wait_watches(&cluster, 0.0).await;
}

/// Those who do not read are served from history later, all of it. Meanwhile they hold what is in the sending buffers of
/// their streams (400 KiB and one response each), and share 32 MiB of events: less than 128 MiB of the 512 that were
/// written.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_their_watches() {
    const STREAMS: usize = 20;
    const VALUE: usize = 256 << 10;
    const WRITES: i64 = 1024;
    let cluster = node().await;
    let bystander = Bystander::start(&cluster).await;
    let writer = Etcd::connect(&cluster.specs[0].client).await;
    let write = async |count: i64| {
        let puts = futures_util::stream::iter(0..count).map(|number| {
            let mut kv = writer.kv();
            let key = format!("heap/{:02}", number % 16);
            async move { kv.put(put(key, vec![b'v'; VALUE])).await.unwrap() }
        });
        puts.buffer_unordered(16).collect::<Vec<_>>().await;
    };
    // What the writes themselves take, in caches and tables.
    write(WRITES).await;
    let mut stuck = Vec::new();
    for _ in 0..STREAMS {
        let client = Etcd::connect(&cluster.specs[0].client).await;
        let mut watches = client.watch().await;
        watches.create("heap/", true, 0).await;
        assert!(watches.next().await.created);
        stuck.push(watches);
    }
    let before = memory(&cluster, 0);
    write(WRITES).await;
    write(WRITES).await;
    assert_grew_less(&cluster, before, 128 * MIB);
    bystander.was_served().await;
    // One that reads on has missed nothing.
    let mut last = 0;
    for _ in 0..2 * WRITES {
        let response = stuck[0].next().await;
        assert!(!response.canceled, "{response:?}");
        for event in &response.events {
            let revision = event.kv.as_ref().unwrap().mod_revision;
            assert!(revision > last);
            last = revision;
        }
    }
    assert_eq!(
        cluster.metric(0, "podkv_watches").await,
        Some(STREAMS as f64)
    );
}

/// A client that reads no answer.
struct Deaf {
    send: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

impl Deaf {
    /// `window` is what a stream, and the connection, may have on their way.
    async fn connect(address: &str, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut builder = Builder::new();
        builder
            .initial_window_size(window)
            .initial_connection_window_size(window.max(65_535))
            .initial_max_send_streams(4096);
        let (send, connection) = builder.handshake(stream).await.unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { send, connection }
    }

    /// The heads of the answers to as many ranges at once, each of which has a second. Their bodies are not read.
    async fn calls(
        &mut self,
        request: &pb::RangeRequest,
        calls: usize,
    ) -> Vec<Response<RecvStream>> {
        let message = request.encode_to_vec();
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        let frame = Bytes::from(frame);
        let answers = FuturesUnordered::new();
        for _ in 0..calls {
            let request = Request::builder()
                .method(Method::POST)
                .uri("http://etcd/etcdserverpb.KV/Range")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("grpc-timeout", "1S")
                .body(())
                .unwrap();
            let mut send = self.send.clone().ready().await.unwrap();
            let (answer, mut body) = send.send_request(request, false).unwrap();
            body.send_data(frame.clone(), true).unwrap();
            answers.push(answer);
        }
        let all = answers.try_collect::<Vec<_>>();
        tokio::time::timeout(PATIENCE, all).await.unwrap().unwrap()
    }
}

/// How many were refused, because there was no room.
fn refused(answers: &[Response<RecvStream>]) -> usize {
    let status = |answer: &Response<RecvStream>| {
        let code = answer.headers().get("grpc-status");
        code.map(|code| Code::from_bytes(code.as_bytes()))
    };
    let refused = answers.iter().filter_map(status);
    refused
        .inspect(|code| assert_eq!(*code, Code::ResourceExhausted))
        .count()
}

/// The most that the node ever held.
#[track_caller]
pub fn assert_never_more(cluster: &ProcessCluster, node: usize, bound: u64) {
    let peak = of_memory(cluster, node, "VmHWM:");
    eprintln!("memory: never more than {} MiB", peak / MIB);
    assert!(
        peak < bound,
        "it had {} MiB; at most {} are allowed",
        peak / MIB,
        bound / MIB
    );
}

/// The unread answers of a connection have 128 MiB, and one more of up to 256 MiB; here 2000 calls ask for 1 MiB each, and
/// 200 for 16.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_its_answers() {
    const BOUND: u64 = 512 * MIB;
    let cluster = node().await;
    let bystander = Bystander::start(&cluster).await;
    let writer = Etcd::connect(&cluster.specs[0].client).await;
    for number in 0..15 {
        let put = put(format!("large/{number:02}"), vec![b'v'; MIB as usize]);
        writer.kv().put(put).await.unwrap();
    }
    let before = memory(&cluster, 0);
    let single = get("large/00");
    let all = pb::RangeRequest {
        range_end: "large0".into(),
        ..get("large/")
    };
    for (request, calls) in [(single, 2000), (all, 200)] {
        // It lets nothing through, by the rules of HTTP/2.
        let mut deaf = Deaf::connect(&cluster.specs[0].client, 0).await;
        let answers = deaf.calls(&request, calls).await;
        let refused = refused(&answers);
        eprintln!("no window: {refused} of {calls} refused");
        assert!(0 < refused && refused < calls);
        assert_never_more(&cluster, 0, before + BOUND);
        deaf.connection.abort();
        // Or it lets everything through, and does not read its socket.
        let proxy = Proxy::start(cluster.specs[0].client.clone()).await;
        let mut deaf = Deaf::connect(&proxy.address, (1 << 31) - 1).await;
        proxy.hold_answers();
        let (answers, ()) = tokio::join!(deaf.calls(&request, calls), async {
            bystander.is_served(50).await;
            assert_never_more(&cluster, 0, before + BOUND);
            proxy.let_answers_through();
        });
        let refused = self::refused(&answers);
        eprintln!("socket not read: {refused} of {calls} refused");
        assert!(refused < calls);
        deaf.connection.abort();
    }
    bystander.was_served().await;
    // Who reads is answered at once, also on a connection that was full.
    let found = writer.kv().range(get("large/00")).await.unwrap();
    assert_eq!(found.into_inner().kvs[0].value.len() as u64, MIB);
}

/// Requests that never end have 128 MiB for a connection, and HTTP/2's own 16 MiB; here 2000 have sent all but a byte of a
/// megabyte.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_end_its_requests() {
    const BOUND: u64 = 400 * MIB;
    const CALLS: usize = 2000;
    let cluster = node().await;
    let bystander = Bystander::start(&cluster).await;
    let before = memory(&cluster, 0);
    let deaf = Deaf::connect(&cluster.specs[0].client, (1 << 31) - 1).await;
    let mut frame = vec![0];
    frame.extend((MIB as u32).to_be_bytes());
    frame.resize(5 + MIB as usize - 1, b'x');
    let frame = Bytes::from(frame);
    let (mut calls, mut answers) = (Vec::new(), FuturesUnordered::new());
    for _ in 0..CALLS {
        let request = Request::builder()
            .method(Method::POST)
            .uri("http://etcd/etcdserverpb.KV/Put")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let mut send = deaf.send.clone().ready().await.unwrap();
        let (answer, mut body) = send.send_request(request, false).unwrap();
        body.send_data(frame.clone(), false).unwrap();
        calls.push(body);
        answers.push(answer);
    }
    // Those for which there is no room are told at once. To who sends on all the same, HTTP/2 ends the connection.
    let mut refused = 0;
    while refused < CALLS - 2 * 128 {
        let answer = tokio::time::timeout(PATIENCE, answers.next())
            .await
            .unwrap();
        match answer.unwrap() {
            Ok(answer) => refused += self::refused(&[answer]),
            Err(_) => break,
        }
    }
    eprintln!("{refused} of {CALLS} refused");
    assert!(refused > 0);
    assert_never_more(&cluster, 0, before + BOUND);
    // The client is gone: so is what it had begun.
    deaf.connection.abort();
    drop((calls, answers));
    bystander.was_served().await;
}
