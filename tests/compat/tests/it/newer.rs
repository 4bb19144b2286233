//! Where etcd 3.4.23 is wrong, and later ones are right: podkv alone.

use podkv_compat::link::{Link, WatchStream};
use podkv_compat::run::PATIENCE;
use podkv_compat::servers::Podkv;
use podkv_compat::step::{Response, Step};
use podkv_compat::streams::Seen;
use podkv_proto::etcd::etcdserverpb::WatchResponse;
use podkv_proto::etcd::mvccpb::event::EventType;

/// Makes a step of a script's text, on node `turn`.
async fn ask(link: &Link, turn: usize, step: &str) -> Response {
    match step.parse() {
        Ok(Step::Call(request)) => link.call(turn, request).await.unwrap(),
        other => panic!("{step}: {other:?}"),
    }
}

async fn send(stream: &WatchStream, step: &str) {
    match step.parse() {
        Ok(Step::Watch { request, .. }) => stream.send(request).await,
        other => panic!("{step}: {other:?}"),
    }
}

/// What came until one is as `last` says.
async fn responses(stream: &WatchStream, last: fn(&WatchResponse) -> bool) -> Vec<WatchResponse> {
    let enough = |seen: &Vec<_>| {
        let mut responses = seen.iter().filter_map(Seen::response);
        responses.any(last)
    };
    assert!(stream.wait(PATIENCE, enough).await);
    let seen = stream.seen.borrow();
    seen.iter()
        .filter_map(|seen| seen.response().cloned())
        .collect()
}

fn revisions(responses: &[WatchResponse]) -> Vec<i64> {
    let events = responses.iter().flat_map(|response| &response.events);
    events
        .map(|event| event.kv.as_ref().unwrap().mod_revision)
        .collect()
}

/// etcd 3.4.25 and 3.5.8: an answer says that everything up to its revision was reported.
#[tokio::test(flavor = "multi_thread")]
async fn progress_never_outruns_events() {
    let podkv = Podkv::start().await;
    let link = podkv.link().await;
    for number in 0..200 {
        ask(&link, number, &format!("put key:\"a\" value:\"{number}\"")).await;
    }
    for turn in 0..3 {
        let stream = link.watch(turn);
        // Not waited for: the request comes while the watch is far behind.
        send(
            &stream,
            "watch 1 create_request:{key:\"a\" start_revision:1}",
        )
        .await;
        send(&stream, "watch 1 progress_request:{}").await;
        let is_progress = |response: &WatchResponse| response.watch_id == -1;
        let responses = responses(&stream, is_progress).await;
        let position = responses.iter().position(is_progress).unwrap();
        let promised = responses[position].header.unwrap().revision;
        assert!(promised > 1);
        let before = revisions(&responses[..position]);
        assert_eq!(before, (2..=promised).collect::<Vec<_>>());
    }
}

/// etcd 3.5.17 and 3.6: who watches from the compacted revision on is told what was deleted there.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_at_the_compacted_revision_is_reported() {
    let podkv = Podkv::start().await;
    let link = podkv.link().await;
    ask(&link, 0, "put key:\"a\" value:\"1\"").await;
    ask(&link, 1, "delete key:\"a\"").await;
    ask(&link, 2, "compact revision:3 physical:true").await;
    ask(&link, 0, "put key:\"a\" value:\"2\"").await;
    let stream = link.watch(1);
    link.settle(1).await;
    send(
        &stream,
        "watch 1 create_request:{key:\"a\" start_revision:3}",
    )
    .await;
    let responses = responses(&stream, |response| {
        let mut events = response.events.iter();
        events.any(|event| event.r#type() == EventType::Put)
    })
    .await;
    assert_eq!(revisions(&responses), [3, 4]);
}

/// A watch from now, on a node that may lag, misses nothing that was acknowledged before it and nothing after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_begins_after_what_was_acknowledged() {
    let podkv = Podkv::start().await;
    let link = podkv.link().await;
    for number in 0..50 {
        let Response::Put(put) = ask(&link, number, "put key:\"a\"").await else {
            panic!("a put is answered as one");
        };
        let stream = link.watch(number + 1);
        send(&stream, "watch 1 create_request:{key:\"a\"}").await;
        let responses = responses(&stream, |response| response.created).await;
        assert_eq!(
            responses[0].header.unwrap().revision,
            put.header.unwrap().revision
        );
    }
}
