//! A prefix as it was: what differs is written, what is the same stays, and what cannot be done is refused.

use podkv_api::{KeyRange, Limits, Put, Range, Reason, Store as _};
use podkv_files::Error;
use podkv_files::rollback::{compare, rollback};
use podkv_node::Node;

async fn put(store: &Node, key: &str, value: &str) -> u64 {
    let put = Put::new(key.to_owned(), value.to_owned());
    store.put(put).await.unwrap().header.revision
}

async fn holds(store: &Node, expected: &[(&str, &str)]) {
    let kvs = store
        .range(Range::new(KeyRange::prefix("app")))
        .await
        .unwrap()
        .kvs;
    let found: Vec<(String, String)> = kvs
        .iter()
        .map(|kv| {
            (
                kv.key.escape_ascii().to_string(),
                kv.value.escape_ascii().to_string(),
            )
        })
        .collect();
    let expected: Vec<(String, String)> = expected
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_as_it_was() {
    let cluster = podkv_node::testing::cluster(1).await;
    let store = &cluster.node(0);
    put(store, "app/same", "s").await;
    put(store, "app/changed", "old").await;
    put(store, "apple", "not below it").await;
    let then = put(store, "app/gone", "g").await;
    put(store, "app/changed", "new").await;
    put(store, "app/added", "a").await;
    put(store, "apple", "changed").await;
    store
        .delete(podkv_api::Delete::new(KeyRange::key("app/gone")))
        .await
        .unwrap();
    let same = store.get("app/same").await.unwrap();

    let planned = compare(store, "app", then).await.unwrap();
    let (done, revision) = rollback(store, "app", then, &Limits::default())
        .await
        .unwrap();
    assert_eq!(done, planned);
    assert_eq!(
        (done.puts().count(), done.deletes().count(), done.unchanged),
        (2, 1, 1)
    );
    holds(
        store,
        &[
            ("app/changed", "old"),
            ("app/gone", "g"),
            ("app/same", "s"),
            ("apple", "changed"),
        ],
    )
    .await;
    assert_eq!(store.get("app/same").await.unwrap(), same, "left alone");
    let written = store.get("app/gone").await.unwrap().unwrap();
    assert_eq!(Some(written.mod_revision), revision, "one transaction");
    let (_, again) = rollback(store, "app", then, &Limits::default())
        .await
        .unwrap();
    assert_eq!(again, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let cluster = podkv_node::testing::cluster(1).await;
    let store = &cluster.node(0);
    let then = put(store, "app/a", "old").await;
    put(store, "app/a", "new").await;
    let now = put(store, "app/b", "new").await;
    let refused = async |to, limits: &Limits| rollback(store, "app", to, limits).await.unwrap_err();
    let reason = |error: Error| match error {
        Error::Store(error) => error.reason(),
        other => panic!("{other}"),
    };
    let few = Limits {
        max_txn_ops: 1,
        ..Limits::default()
    };
    assert!(matches!(refused(then, &few).await, Error::Refused(_)));
    assert_eq!(
        reason(refused(now + 1, &Limits::default()).await),
        Reason::FutureRevision
    );
    assert_eq!(
        reason(refused(0, &Limits::default()).await),
        Reason::InvalidArgument
    );
    store.compact(now).await.unwrap();
    assert_eq!(
        reason(refused(then, &Limits::default()).await),
        Reason::Compacted
    );
    holds(store, &[("app/a", "new"), ("app/b", "new")]).await;
}
