//! The end of a server: streams are told, calls are finished, nothing hangs.

use std::time::Duration;

use podkv_api::Reason;
use podkv_proto::v1;
use podkv_proto::v1::lease_client::LeaseClient;
use podkv_proto::v1::pipe_operation::Operation;
use podkv_proto::v1::watch_client::WatchClient;
use podkv_server::{ApiSettings, Server, ServerSettings};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{Harness, error, prefix, put, soon};

#[tokio::test]
async fn streams_end_and_say_why() {
    let harness = Harness::start().await;
    let channel = harness.channel.clone();
    let watch = v1::WatchRequest {
        range: prefix(""),
        ..Default::default()
    };
    let mut watch = WatchClient::new(channel.clone())
        .watch(watch)
        .await
        .unwrap()
        .into_inner();
    soon(watch.message()).await.unwrap().unwrap();
    let (_alive, requests) = mpsc::channel::<v1::LeaseKeepAliveRequest>(1);
    let keep_alive = LeaseClient::new(channel)
        .keep_alive(ReceiverStream::new(requests))
        .await;
    let mut keep_alive = keep_alive.unwrap().into_inner();

    let (kept, server) = (harness.cluster, harness.server);
    let draining = tokio::spawn(server.drain());
    let status = soon(watch.message()).await.unwrap_err();
    assert_eq!(error(&status).reason(), Reason::NodeNotReady);
    let status = soon(keep_alive.message()).await.unwrap_err();
    assert_eq!(error(&status).reason(), Reason::NodeNotReady);
    assert!(soon(draining).await.unwrap(), "nothing had to be cut");
    kept.shutdown().await;
}

#[tokio::test]
async fn a_pipe_is_told_to_go_away_and_still_answers() {
    let harness = Harness::start().await;
    let (requests, receiver) = mpsc::channel(16);
    let pipe = harness
        .kv()
        .pipe(ReceiverStream::new(receiver))
        .await
        .unwrap();
    let mut answers = pipe.into_inner();
    assert!(soon(answers.message()).await.unwrap().unwrap().credits > 0);

    let cluster = harness.cluster;
    let draining = tokio::spawn(harness.server.drain());
    assert!(soon(answers.message()).await.unwrap().unwrap().go_away);
    // The client had this one on its way.
    let operation = Some(Operation::Put(put("a", "1")));
    let operations = vec![v1::PipeOperation {
        id: 1,
        deadline_ms: 0,
        operation,
    }];
    requests.send(v1::PipeRequest { operations }).await.unwrap();
    let answer = soon(answers.message()).await.unwrap().unwrap();
    assert!(matches!(
        answer.results[0].result,
        Some(v1::pipe_result::Result::Put(_))
    ));
    // It moves on: its end of the stream ends ours.
    drop(requests);
    assert!(soon(answers.message()).await.unwrap().is_none());
    assert!(soon(draining).await.unwrap());
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_pipe_whose_client_stays_is_ended() {
    let api = ApiSettings {
        pipe_farewell: Duration::from_millis(50),
        ..ApiSettings::default()
    };
    let harness = Harness::with(api, |_| {}).await;
    let (_requests, receiver) = mpsc::channel::<v1::PipeRequest>(16);
    let pipe = harness
        .kv()
        .pipe(ReceiverStream::new(receiver))
        .await
        .unwrap();
    let mut answers = pipe.into_inner();
    soon(answers.message()).await.unwrap().unwrap();
    let cluster = harness.cluster;
    let draining = tokio::spawn(harness.server.drain());
    assert!(soon(answers.message()).await.unwrap().unwrap().go_away);
    let status = soon(answers.message()).await.unwrap_err();
    assert_eq!(error(&status).reason(), Reason::NodeNotReady);
    assert!(soon(draining).await.unwrap());
    cluster.shutdown().await;
}

#[tokio::test]
async fn what_does_not_end_is_cut() {
    let cluster = podkv_node::testing::cluster(1).await;
    let settings = ServerSettings {
        drain_grace: Duration::from_millis(50),
        ..ServerSettings::default()
    };
    let server = Server::builder(cluster.node(0)).settings(settings);
    let server = server.listen("127.0.0.1:0").await.unwrap();
    let channel = crate::harness::connect(&server).await;
    let (_requests, receiver) = mpsc::channel::<v1::PipeRequest>(16);
    let mut kv = v1::kv_client::KvClient::new(channel);
    let mut answers = kv
        .pipe(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    soon(answers.message()).await.unwrap().unwrap();
    // The pipe's farewell is longer than the grace.
    assert!(!soon(server.drain()).await);
    let ended = async { while let Ok(Some(_)) = answers.message().await {} };
    soon(ended).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_drained_port_is_free_and_a_taken_one_is_named() {
    let harness = Harness::start().await;
    let address = harness.server.local_address().to_owned();
    let node = harness.cluster.node(0);
    let taken = Server::builder(node.clone())
        .listen(&address)
        .await
        .err()
        .unwrap();
    assert_eq!(taken.reason(), Reason::Configuration);
    assert!(
        taken.text().contains(&address) && taken.text().contains("another process"),
        "{taken}"
    );
    drop(harness.channel);
    assert!(soon(harness.server.drain()).await);
    Server::builder(node).listen(&address).await.unwrap();
}
