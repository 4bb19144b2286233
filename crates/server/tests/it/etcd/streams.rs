//! Watches and leases of etcd clients.

use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use podkv_proto::etcd::etcdserverpb::watch_client::WatchClient;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{kv, put};
use crate::harness::{Harness, soon};

struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Stream {
    async fn open(harness: &Harness) -> Self {
        let (requests, receiver) = mpsc::channel(64);
        let mut client = WatchClient::new(harness.channel.clone());
        let responses = client.watch(ReceiverStream::new(receiver)).await.unwrap();
        Self {
            requests,
            responses: responses.into_inner(),
        }
    }

    async fn ask(&self, request: RequestUnion) {
        let request = pb::WatchRequest {
            request_union: Some(request),
        };
        self.requests.send(request).await.unwrap();
    }

    async fn create(&self, key: &'static str, range_end: &'static str) {
        let create = pb::WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            ..Default::default()
        };
        self.ask(RequestUnion::CreateRequest(create)).await;
    }

    async fn next(&mut self) -> pb::WatchResponse {
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
