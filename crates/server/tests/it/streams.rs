//! Range, watch, keep-alive, snapshot, health, reflection.

use futures_util::{Stream, StreamExt};
use podkv_api::{Error, Reason, WatchMessage};
use podkv_proto::convert::watch::Assembler;
use podkv_proto::v1;
use podkv_proto::v1::lease_client::LeaseClient;
use podkv_proto::v1::snapshot_client::SnapshotClient;
use podkv_proto::v1::watch_client::WatchClient;
use sha2::{Digest, Sha256};
use tonic::Streaming;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::harness::{Harness, prefix, put, refused, soon};

#[tokio::test]
async fn a_range_comes_in_chunks_of_one_revision() {
    let harness = Harness::start().await;
    let mut kv = harness.kv();
    for key in ["a", "b", "c", "d"] {
        kv.put(put(key, vec![7; 1 << 20])).await.unwrap();
    }
    let request = v1::RangeRequest {
        range: prefix(""),
        ..Default::default()
    };
    // The default decode limit is kept: chunks are smaller than that.
    let mut plain = v1::kv_client::KvClient::new(harness.channel.clone());
    let mut chunks = plain.range(request).await.unwrap().into_inner();
    let mut keys = Vec::new();
    let mut revisions = Vec::new();
    let mut count = 0;
    while let Some(chunk) = soon(chunks.message()).await.unwrap() {
        keys.extend(chunk.kvs.into_iter().map(|kv| kv.key));
        revisions.push(chunk.header.unwrap().revision);
        count = chunk.count;
    }
    assert_eq!(keys, ["a", "b", "c", "d"]);
    assert_eq!(count, 4);
    assert!(revisions.len() > 1, "one chunk");
    assert!(revisions.iter().all(|revision| *revision == revisions[0]));
    let future = v1::RangeRequest {
        range: prefix(""),
        revision: 1 << 40,
        ..Default::default()
    };
    let result = async { plain.range(future).await?.into_inner().message().await };
    refused(soon(result).await, Reason::FutureRevision);
}

struct Watch {
    responses: Streaming<v1::WatchResponse>,
    assembler: Assembler,
}

impl Watch {
    async fn open(harness: &Harness, request: v1::WatchRequest) -> Self {
        let mut client = WatchClient::new(harness.channel.clone());
        let responses = client.watch(request).await.unwrap().into_inner();
        Self {
            responses,
            assembler: Assembler::default(),
        }
    }

    /// The next message, and of how many fragments it was made.
    async fn next(&mut self) -> (WatchMessage, usize) {
        let mut fragments = 0;
        loop {
            let response = soon(self.responses.message())
                .await
                .unwrap()
                .expect("the watch ended");
            fragments += 1;
            if let Some(message) = self.assembler.push(response).unwrap() {
                return (message, fragments);
            }
        }
    }
}

#[tokio::test]
async fn a_watch_reports_whole_revisions_in_order() {
    let harness = Harness::start().await;
    let request = v1::WatchRequest {
        range: prefix("k"),
        prev_kv: true,
        ..Default::default()
    };
    let mut watch = Watch::open(&harness, request).await;
    let WatchMessage::Created { start_revision, .. } = watch.next().await.0 else {
        panic!("not created first");
    };
    let mut kv = harness.kv();
    kv.put(put("k1", "1")).await.unwrap();
    kv.put(put("other", "1")).await.unwrap();
    kv.put(put("k1", "2")).await.unwrap();
    let delete = v1::DeleteRequest {
        range: prefix("k"),
        ..Default::default()
    };
    kv.delete(delete).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let WatchMessage::Events {
            revision, events, ..
        } = watch.next().await.0
        else {
            panic!()
        };
        assert_eq!(events.len(), 1);
        let before = events[0].prev_kv.as_ref().map(|kv| kv.value.clone());
        seen.push((revision - start_revision, before));
    }
    assert_eq!(
        seen,
        [(0, None), (2, Some("1".into())), (3, Some("2".into()))]
    );
}

#[tokio::test]
async fn a_large_revision_crosses_in_fragments() {
    let harness = Harness::start().await;
    let mut kv = harness.kv();
    let keys: Vec<&'static str> = vec!["k0", "k1", "k2", "k3"];
    for key in &keys {
        kv.put(put(key, vec![7; 1 << 20])).await.unwrap();
    }
    let request = v1::WatchRequest {
        range: prefix("k"),
        prev_kv: true,
        ..Default::default()
    };
    let mut watch = Watch::open(&harness, request).await;
    watch.next().await;
    let delete = v1::DeleteRequest {
        range: prefix("k"),
        ..Default::default()
    };
    kv.delete(delete).await.unwrap();
    // Four previous values of 1 MiB: more than the 4 MiB that this client accepts in one message.
    let (message, fragments) = watch.next().await;
    let WatchMessage::Events { events, .. } = message else {
        panic!("{message:?}")
    };
    assert_eq!(events.len(), keys.len());
    assert!(fragments > 1);
}

#[tokio::test]
async fn list_then_watch_is_one_stream() {
    let harness = Harness::start().await;
    let mut kv = harness.kv();
    kv.put(put("k1", "1")).await.unwrap();
    let request = v1::WatchRequest {
        range: prefix("k"),
        list: true,
        ..Default::default()
    };
    let mut watch = Watch::open(&harness, request).await;
    assert!(matches!(watch.next().await.0, WatchMessage::Created { .. }));
    let WatchMessage::List { kvs, revision, .. } = watch.next().await.0 else {
        panic!()
    };
    assert_eq!(kvs.len(), 1);
    assert!(
        matches!(watch.next().await.0, WatchMessage::Listed { revision: r, .. } if r == revision)
    );
    kv.put(put("k2", "1")).await.unwrap();
    let WatchMessage::Events { revision: next, .. } = watch.next().await.0 else {
        panic!()
    };
    assert_eq!(next, revision + 1);
}

#[tokio::test]
async fn a_watch_from_a_compacted_revision() {
    let harness = Harness::start().await;
    let mut kv = harness.kv();
    kv.put(put("k", "1")).await.unwrap();
    let last = kv
        .put(put("k", "2"))
        .await
        .unwrap()
        .into_inner()
        .header
        .unwrap()
        .revision;
    kv.compact(v1::CompactRequest {
        revision: last,
        session: None,
    })
    .await
    .unwrap();
    let request = v1::WatchRequest {
        range: prefix("k"),
        start_revision: last - 1,
        ..Default::default()
    };
    let mut client = WatchClient::new(harness.channel.clone());
    let ended = async {
        let mut responses = client.watch(request).await?.into_inner();
        while responses.message().await?.is_some() {}
        Ok(())
    };
    assert_eq!(
        refused(soon(ended).await, Reason::Compacted).revision(),
        last
    );
}

#[tokio::test]
async fn keep_alives_are_answered_one_by_one_in_order() {
    let harness = Harness::start().await;
    let mut leases = LeaseClient::new(harness.channel.clone());
    let grant = v1::LeaseGrantRequest {
        ttl_ms: 60_000,
        id: 7,
        session: None,
    };
    leases.grant(grant).await.unwrap();
    let ids = [7, 8, 0, 7];
    let requests = futures_util::stream::iter(ids.map(|id| v1::LeaseKeepAliveRequest { id }));
    let answers = leases.keep_alive(requests).await.unwrap().into_inner();
    let answers: Vec<_> = soon(collect(answers)).await;
    assert_eq!(
        answers.iter().map(|answer| answer.id).collect::<Vec<_>>(),
        ids
    );
    let reasons: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.into_result().map(|status| status.granted_ttl_ms))
        .map(|result| result.map_err(|error: Error| error.reason()))
        .collect();
    let expected = [
        Ok(60_000),
        Err(Reason::LeaseNotFound),
        Err(Reason::InvalidArgument),
        Ok(60_000),
    ];
    assert_eq!(reasons, expected);
}

async fn collect<T>(stream: impl Stream<Item = Result<T, tonic::Status>>) -> Vec<T> {
    stream.map(|item| item.unwrap()).collect().await
}

#[tokio::test]
async fn a_snapshot_is_whole_and_its_sum_is_right() {
    let harness = Harness::start().await;
    harness.kv().put(put("a", vec![7; 1 << 20])).await.unwrap();
    let mut client = SnapshotClient::new(harness.channel.clone());
    let save = client
        .save(v1::SnapshotSaveRequest {})
        .await
        .unwrap()
        .into_inner();
    let chunks = soon(collect(save)).await;
    let (first, last) = (chunks.first().unwrap(), chunks.last().unwrap());
    assert!(first.header.unwrap().revision > 1);
    let mut sum = Sha256::new();
    let mut bytes = 0;
    for chunk in &chunks {
        sum.update(&chunk.data);
        bytes += chunk.data.len() as u64;
    }
    assert!(bytes > 1 << 20);
    assert_eq!(bytes, first.total_bytes);
    assert_eq!(last.sha256, sum.finalize().as_slice());
}

#[tokio::test]
async fn grpc_health_follows_the_node() {
    let harness = Harness::start().await;
    let mut health = harness.node().health();
    soon(health.wait_for(|health| health.ready)).await.unwrap();
    let mut client = HealthClient::new(harness.channel.clone());
    let ask = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    for service in ["", "podkv.v1.KV", "podkv.v1.Watch"] {
        let answer = client.check(ask(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let unknown = client.check(ask("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);

    let mut changes = client.watch(ask("")).await.unwrap().into_inner();
    let mut next = async || soon(changes.message()).await.unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::Serving);
    harness.node().drain().await;
    assert_eq!(next().await, ServingStatus::NotServing);
}

#[tokio::test]
async fn reflection_names_the_services_for_clients_alone() {
    let harness = Harness::start().await;
    let mut client = ServerReflectionClient::new(harness.channel.clone());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = client
        .server_reflection_info(futures_util::stream::iter([request]))
        .await;
    let answer = soon(answers.unwrap().into_inner().message())
        .await
        .unwrap()
        .unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for expected in ["podkv.v1.KV", "podkv.v1.Snapshot", "grpc.health.v1.Health"] {
        assert!(names.contains(&expected), "{expected} not in {names:?}");
    }
    assert!(
        !names.iter().any(|name| name.starts_with("podkv.peer")),
        "{names:?}"
    );
}
