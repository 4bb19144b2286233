//! One watch does not hold up another, not even of the same stream.

use futures_util::StreamExt as _;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;

use super::streams::Stream;
use super::{kv, put};
use crate::harness::Harness;

/// Writes in one revision each.
const HISTORY: usize = 10_000;

async fn with_history() -> Harness {
    let harness = Harness::start().await;
    let kv = kv(&harness);
    let writes = futures_util::stream::iter(0..HISTORY).map(|_| {
        let (mut kv, value) = (kv.clone(), vec![b'v'; 1024]);
        let put = pb::PutRequest {
            key: "old".into(),
            value: value.into(),
            ..Default::default()
        };
        async move { kv.put(put).await.unwrap() }
    });
    writes.buffer_unordered(64).collect::<Vec<_>>().await;
    harness
}

async fn from_the_start(stream: &Stream, key: &'static str) {
    let create = pb::WatchCreateRequest {
        key: key.into(),
        start_revision: 1,
        ..Default::default()
    };
    stream.ask(RequestUnion::CreateRequest(create)).await;
}

/// etcd serves those that are behind in rounds of their own, and a stream is one queue: here what is new is sent while what
/// is old still comes.
#[tokio::test]
async fn what_is_new_does_not_wait_for_what_is_old() {
    let harness = with_history().await;
    let mut stream = Stream::open(&harness).await;
    from_the_start(&stream, "old").await;
    stream.create("new", "").await;
    let (mut created, mut old) = (0, 0);
    while created < 2 {
        let response = stream.next().await;
        created += usize::from(response.created);
        old += response.events.len();
    }
    kv(&harness).put(put("new", "1")).await.unwrap();
    // What is on its way already is less than a megabyte.
    loop {
        let response = stream.next().await;
        if response.watch_id == 1 {
            break;
        }
        old += response.events.len();
        assert!(old < HISTORY / 2, "the new event waits for the old ones");
    }
    while old < HISTORY {
        old += stream.next().await.events.len();
    }
}

/// All of a hundred watches that are behind get on, none waits until another is done.
#[tokio::test]
async fn watches_that_are_behind_take_turns() {
    const WATCHES: usize = 100;
    let harness = with_history().await;
    let mut stream = Stream::open(&harness).await;
    for _ in 0..WATCHES {
        from_the_start(&stream, "old").await;
    }
    let mut seen = vec![0; WATCHES];
    while seen.contains(&0) {
        let response = stream.next().await;
        let at = usize::try_from(response.watch_id).unwrap();
        seen[at] += response.events.len();
    }
    let most = seen.iter().max().unwrap();
    assert!(
        *most < HISTORY,
        "one was done before another began: {seen:?}"
    );
}
