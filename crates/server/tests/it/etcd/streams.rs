//! Watches and leases of etcd clients.

use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use podkv_proto::etcd::etcdserverpb::watch_client::WatchClient;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{kv, put};
use crate::harness::{Harness, soon};

pub(super) struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Stream {
    pub(super) async fn open(harness: &Harness) -> Self {
        let (requests, receiver) = mpsc::channel(64);
        let mut client = WatchClient::new(harness.channel.clone());
        let responses = client.watch(ReceiverStream::new(receiver)).await.unwrap();
        Self {
            requests,
            responses: responses.into_inner(),
        }
    }

    pub(super) async fn ask(&self, request: RequestUnion) {
        let request = pb::WatchRequest {
            request_union: Some(request),
        };
        self.requests.send(request).await.unwrap();
    }

    pub(super) async fn create(&self, key: &'static str, range_end: &'static str) {
        let create = pb::WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            ..Default::default()
        };
        self.ask(RequestUnion::CreateRequest(create)).await;
    }

    pub(super) async fn next(&mut self) -> pb::WatchResponse {
        soon(self.responses.message()).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn many_watches_share_a_stream_and_progress_speaks_for_all() {
    let harness = Harness::start().await;
    let mut stream = Stream::open(&harness).await;
    for key in ["a", "b", "c"] {
        stream.create(key, "").await;
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        let created = stream.next().await;
        assert!(created.created && !created.canceled);
        ids.push(created.watch_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2]);
    let mut kv = kv(&harness);
    kv.put(put("b", "1")).await.unwrap();
    let event = stream.next().await;
    assert_eq!((event.watch_id, event.events.len()), (1, 1));
    kv.put(put("z", "1")).await.unwrap();
    stream
        .ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
        .await;
    let progress = stream.next().await;
    assert_eq!(progress.watch_id, -1);
    assert_eq!(progress.header.unwrap().revision, 3);
    assert!(progress.events.is_empty());
    // Cancelled, it says no more; its number is free again.
    stream
        .ask(RequestUnion::CancelRequest(pb::WatchCancelRequest {
            watch_id: 1,
        }))
        .await;
    let canceled = stream.next().await;
    assert!(canceled.canceled && canceled.watch_id == 1);
    kv.put(put("b", "2")).await.unwrap();
    kv.put(put("c", "2")).await.unwrap();
    assert_eq!(stream.next().await.watch_id, 2);
}

#[tokio::test]
async fn a_stream_ends_when_its_client_has_closed_it_and_its_watches_are_gone() {
    let harness = Harness::start().await;
    let mut stream = Stream::open(&harness).await;
    stream.create("a", "").await;
    assert!(stream.next().await.created);
    stream
        .ask(RequestUnion::CancelRequest(pb::WatchCancelRequest {
            watch_id: 0,
        }))
        .await;
    let Stream {
        requests,
        mut responses,
    } = stream;
    drop(requests);
    assert!(soon(responses.message()).await.unwrap().unwrap().canceled);
    assert!(soon(responses.message()).await.unwrap().is_none());
}

/// Clients tell by the order of the answers which watch is which.
#[tokio::test]
async fn watches_are_created_in_the_order_in_which_they_were_asked_for() {
    let harness = Harness::start().await;
    let mut stream = Stream::open(&harness).await;
    let requests = stream.requests.clone();
    let asking = tokio::spawn(async move {
        for number in 0..5000 {
            // Each tenth has no key that could be watched.
            let is_empty = number % 10 == 9;
            let create = pb::WatchCreateRequest {
                key: if is_empty { "b" } else { "a" }.into(),
                range_end: if is_empty {
                    "a".into()
                } else {
                    Default::default()
                },
                watch_id: 1 + number,
                ..Default::default()
            };
            let cancel = RequestUnion::CancelRequest(pb::WatchCancelRequest {
                watch_id: 1 + number,
            });
            for request in [RequestUnion::CreateRequest(create), cancel] {
                let request = pb::WatchRequest {
                    request_union: Some(request),
                };
                requests.send(request).await.unwrap();
            }
        }
    });
    let (mut created, mut canceled) = (0, 0);
    while created < 5000 || canceled < 4500 {
        let response = stream.next().await;
        if response.created {
            created += 1;
            let expected = if created % 10 == 0 { -1 } else { created };
            assert_eq!(response.watch_id, expected);
            assert_eq!(response.canceled, expected == -1);
        } else {
            assert!(response.canceled && response.watch_id <= created);
            canceled += 1;
        }
    }
    asking.await.unwrap();
}

/// Waits until the node has so many open watches.
async fn wait_watches(harness: &Harness, count: usize) {
    let reached = async {
        while harness.node().stats().watches != count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    soon(reached).await;
}

#[tokio::test]
async fn a_client_that_has_nothing_more_to_ask_still_listens() {
    let harness = Harness::start().await;
    let stream = Stream::open(&harness).await;
    stream.create("a", "").await;
    let Stream {
        requests,
        mut responses,
    } = stream;
    drop(requests);
    assert!(soon(responses.message()).await.unwrap().unwrap().created);
    let mut kv = kv(&harness);
    for _ in 0..2 {
        kv.put(put("a", "1")).await.unwrap();
        let event = soon(responses.message()).await.unwrap().unwrap();
        assert_eq!(event.events.len(), 1);
    }
    drop(responses);
    wait_watches(&harness, 0).await;
}

#[tokio::test]
async fn keep_alives_that_were_sent_are_answered_after_the_last() {
    let harness = Harness::start().await;
    let mut leases = LeaseClient::new(harness.channel.clone());
    let grant = pb::LeaseGrantRequest { ttl: 60, id: 5 };
    leases.lease_grant(grant).await.unwrap();
    let asked = tokio_stream::iter(vec![pb::LeaseKeepAliveRequest { id: 5 }; 1000]);
    let mut kept = leases.lease_keep_alive(asked).await.unwrap().into_inner();
    for _ in 0..1000 {
        assert_eq!(soon(kept.message()).await.unwrap().unwrap().ttl, 60);
    }
    assert!(soon(kept.message()).await.unwrap().is_none(), "a plain end");
}

/// Its machine lost power: nobody says so. A ping that is not answered does.
#[tokio::test]
async fn a_client_that_vanishes_leaves_nothing() {
    let harness = Harness::start().await;
    let settings = podkv_server::ServerSettings {
        keep_alive_interval: std::time::Duration::from_millis(100),
        keep_alive_timeout: std::time::Duration::from_millis(500),
        ..Default::default()
    };
    let server = podkv_server::Server::builder(harness.node()).settings(settings);
    let server = server.listen("127.0.0.1:0").await.unwrap();
    let stream = tokio::net::TcpStream::connect(server.local_address()).await;
    let (send, connection) = h2::client::handshake(stream.unwrap()).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    #[expect(
        clippy::async_yields_async,
        reason = "it is kept, and not awaited any more"
    )]
    let speaking = tokio::spawn(async move {
        let mut connection = Box::pin(connection);
        tokio::select! {
            _ = &mut connection => {}
            _ = stopped => {}
        }
        connection
    });
    let request = http::Request::post("http://etcd/etcdserverpb.Watch/Watch")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (response, mut body) = send
        .ready()
        .await
        .unwrap()
        .send_request(request, false)
        .unwrap();
    let create = pb::WatchCreateRequest {
        key: "a".into(),
        ..Default::default()
    };
    let create = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let message = create.encode_to_vec();
    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
    frame.extend(message);
    body.send_data(frame.into(), false).unwrap();
    soon(response).await.unwrap();
    wait_watches(&harness, 1).await;
    // From here on its socket is open, and nobody reads it.
    drop(stop);
    let silent = speaking.await.unwrap();
    wait_watches(&harness, 0).await;
    drop(silent);
}

#[tokio::test]
async fn watches_and_keep_alives_are_told_of_a_drain() {
    let harness = Harness::start().await;
    let mut stream = Stream::open(&harness).await;
    stream.create("a", "").await;
    assert!(stream.next().await.created);
    let mut leases = LeaseClient::new(harness.channel.clone());
    let (ask, asked) = mpsc::channel(1);
    let mut kept = leases
        .lease_keep_alive(ReceiverStream::new(asked))
        .await
        .unwrap()
        .into_inner();
    ask.send(pb::LeaseKeepAliveRequest { id: 5 }).await.unwrap();
    assert_eq!(soon(kept.message()).await.unwrap().unwrap().ttl, 0);
    let drained = tokio::spawn(harness.server.drain());
    let error = soon(stream.responses.message()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(
        soon(kept.message()).await.unwrap_err().code(),
        Code::Unavailable
    );
    drop((stream, kept, ask, leases));
    drop(harness.channel);
    assert!(soon(drained).await.unwrap());
}
