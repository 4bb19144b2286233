//! etcd's API where no other etcd can be asked: what is podkv's own about it. What both have is compared in
//! `tests/compat`.

mod fair;
mod garbage;
mod gateway;
mod learners;
mod recipes;
mod space;
mod streams;

use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::harness::Harness;

fn kv(harness: &Harness) -> KvClient<Channel> {
    KvClient::new(harness.channel.clone())
}

fn put(key: &'static str, value: &'static str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

fn get(key: &'static str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

/// A write with the metadata that makes it apply once.
fn stamped<T>(message: T, session: u128, sequence: u64) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("podkv-session", format!("{session:x}").parse().unwrap());
    metadata.insert("podkv-sequence", sequence.into());
    metadata.insert("podkv-acknowledged-below", 1.into());
    request
}

#[tokio::test]
async fn a_stamped_write_of_an_etcd_client_applies_once() {
    let harness = Harness::start().await;
    let mut kv = kv(&harness);
    let session = podkv_api::SessionId(0xfeed);
    let ttl = std::time::Duration::from_secs(60);
    harness
        .node()
        .trusted()
        .session_open(session, ttl)
        .await
        .unwrap();
    let first = kv.put(stamped(put("a", "1"), session.0, 1)).await.unwrap();
    let again = kv.put(stamped(put("a", "1"), session.0, 1)).await.unwrap();
    assert_eq!(
        first.into_inner().header.unwrap().revision,
        again.into_inner().header.unwrap().revision
    );
    let found = kv.range(get("a")).await.unwrap().into_inner();
    assert_eq!(found.kvs[0].version, 1);
    let other = kv.put(stamped(put("a", "2"), session.0, 1)).await;
    assert_eq!(other.unwrap_err().code(), Code::InvalidArgument);
    let unknown = kv.put(stamped(put("a", "2"), 1, 1)).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    let mut half = Request::new(put("a", "3"));
    half.metadata_mut()
        .insert("podkv-session", "feed".parse().unwrap());
    assert_eq!(
        kv.put(half).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn an_outcome_that_is_unknown_is_never_unavailable() {
    let harness = Harness::stuck(Default::default()).await;
    let mut request = Request::new(put("a", "1"));
    request.set_timeout(std::time::Duration::from_secs(1));
    let error = kv(&harness).put(request).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
}

#[tokio::test]
async fn a_client_that_wants_a_leader_is_told_at_once_that_there_is_none() {
    let mut harness = Harness::stuck(Default::default()).await;
    let leader = harness.cluster.leader().await;
    // Started anew and alone, it knows of none.
    harness.cluster.kill(leader).await;
    harness.cluster.boot(leader).await.unwrap();
    let server = podkv_server::Server::builder(harness.cluster.node(leader));
    let server = server.listen("127.0.0.1:0").await.unwrap();
    let mut kv = KvClient::new(crate::harness::connect(&server).await);
    let mut request = Request::new(get("a"));
    request
        .metadata_mut()
        .insert("hasleader", "true".parse().unwrap());
    let error = kv.range(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(error.message(), "etcdserver: no leader");
}

#[tokio::test]
async fn a_page_of_a_long_range_counts_without_reading_it() {
    let harness = Harness::start().await;
    let mut kv = kv(&harness);
    for number in 0..300 {
        let put = pb::PutRequest {
            key: format!("k{number:03}").into(),
            value: "v".into(),
            ..Default::default()
        };
        kv.put(put).await.unwrap();
    }
    let page = pb::RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        limit: 10,
        ..Default::default()
    };
    let found = kv.range(page.clone()).await.unwrap().into_inner();
    assert_eq!((found.kvs.len(), found.more, found.count), (10, true, 300));
    // The same in parts: merged, they are the whole.
    let whole = pb::RangeRequest { limit: 0, ..page };
    let mut parts = kv.range_stream(whole).await.unwrap().into_inner();
    let (mut kvs, mut count, mut headers) = (0, 0, 0);
    while let Some(part) = parts.message().await.unwrap() {
        let part = part.range_response.unwrap();
        kvs += part.kvs.len();
        count += part.count;
        headers += usize::from(part.header.is_some());
    }
    assert_eq!((kvs, count, headers), (300, 300, 1));
}
