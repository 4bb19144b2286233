//! The size that a StatefulSet says: it founds, it is followed, and what cannot be read changes nothing.

use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use podkv_api::{DesiredSize, Error, MemberRole, Put, Reason, Result, Store as _};
use podkv_node::config::{MembershipTiming, RaftTiming, StorageConfig};
use podkv_node::testing::{TestCluster, cluster, cluster_following};
use podkv_node::transport::memory::Hub;
use podkv_node::{Node, NodeConfig, SizeSource};

/// Far more than any of this takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says what it is told to say.
struct Source(Mutex<Result<Option<DesiredSize>>>);

impl Source {
    fn new(says: Result<Option<DesiredSize>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(says)))
    }

    fn say(&self, says: Result<Option<DesiredSize>>) {
        *self.0.lock().unwrap() = says;
    }
}

impl SizeSource for Source {
    fn read(&self) -> BoxFuture<'_, Result<Option<DesiredSize>>> {
        Box::pin(ready(self.0.lock().unwrap().clone()))
    }
}

fn size(source: &str, generation: u64, replicas: u32) -> DesiredSize {
    DesiredSize {
        source: source.into(),
        generation,
        start: 0,
        replicas,
    }
}

fn forbidden() -> Error {
    Error::new(Reason::PermissionDenied, "its Role forbids that")
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "{what}"
    );
}

/// The leader's desired size.
async fn known(cluster: &TestCluster) -> Option<DesiredSize> {
    let leader = cluster.leader().await;
    cluster.node(leader).status().await.ok()?.desired_size
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_founds_a_cluster_before_the_size_is_known() {
    let source = Source::new(Err(forbidden()));
    let hub = Hub::new();
    let mut config = NodeConfig::new("podkv-0", StorageConfig::Memory);
    config.peer_listen = "podkv-0:2380".into();
    config.timing = RaftTiming::fast();
    config.membership = MembershipTiming::fast();
    let node = Node::builder(config)
        .transport(Arc::new(hub.attach("podkv-0:2380")))
        .size_source(source.clone())
        .start()
        .await
        .unwrap();
    let mut health = node.health();
    for (says, reason) in [
        (Err(forbidden()), "replicas unknown: its Role forbids that"),
        (
            Ok(None),
            "replicas unknown: the StatefulSet is being deleted",
        ),
        (
            Ok(Some(size("a", 1, 0))),
            "replicas unknown: the StatefulSet is scaled to 0",
        ),
        (Ok(Some(size("a", 2, 1000))), "1000 replicas are expected"),
    ] {
        source.say(says);
        let told = health.wait_for(|health| health.reason.contains(reason));
        tokio::time::timeout(PATIENCE, told)
            .await
            .unwrap_or_else(|_| panic!("{reason}; found {:?}", node.health().borrow()))
            .unwrap();
    }
    source.say(Ok(Some(size("a", 3, 1))));
    let ready = health.wait_for(|health| health.ready);
    tokio::time::timeout(PATIENCE, ready)
        .await
        .unwrap()
        .unwrap();
    until("the size is written down", async || {
        node.status().await.unwrap().desired_size == Some(size("a", 3, 1))
    })
    .await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_follows_the_source_and_nothing_else() {
    let source = Source::new(Ok(Some(size("a", 1, 3))));
    let cluster = cluster_following(3, source.clone()).await;
    until("the first word", async || {
        known(&cluster).await == Some(size("a", 1, 3))
    })
    .await;

    // What cannot be read changes nothing, and the leader says so.
    source.say(Err(forbidden()));
    until("the leader complains", async || {
        let leader = cluster.leader().await;
        let waits = cluster.node(leader).size_waits().unwrap_or_default();
        waits.contains("forbids")
    })
    .await;
    let leader = cluster.leader().await;
    cluster.node(leader).put(Put::new("a", "1")).await.unwrap();
    assert_eq!(known(&cluster).await, Some(size("a", 1, 3)));

    // An old read, and another StatefulSet that wants something else.
    source.say(Ok(Some(size("a", 0, 1))));
    until("the complaint is over", async || {
        let leader = cluster.leader().await;
        cluster.node(leader).size_waits().is_none()
    })
    .await;
    source.say(Ok(Some(size("b", 9, 1))));
    until("the leader complains", async || {
        let leader = cluster.leader().await;
        let waits = cluster.node(leader).size_waits().unwrap_or_default();
        waits.contains("another StatefulSet (a)")
    })
    .await;
    assert_eq!(known(&cluster).await, Some(size("a", 1, 3)));

    // One that begins where the old one ended takes over, and is followed from then on.
    let followed = async |says: DesiredSize| {
        source.say(Ok(Some(says.clone())));
        until("it is followed", async || {
            known(&cluster).await == Some(says.clone())
        })
        .await;
    };
    followed(size("b", 10, 3)).await;
    followed(size("b", 11, 200)).await;
    // More than can be.
    source.say(Ok(Some(size("b", 12, 1000))));
    until("the leader complains", async || {
        let leader = cluster.leader().await;
        let waits = cluster.node(leader).size_waits().unwrap_or_default();
        waits.contains("at most 256")
    })
    .await;
    assert_eq!(known(&cluster).await, Some(size("b", 11, 200)));
    followed(size("b", 13, 3)).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_are_scaled_away_vote_until_the_membership_is_without_them() {
    let cluster = cluster(3).await;
    assert_eq!(cluster.node(2).beyond_size(PATIENCE).await, None);
    cluster.node(0).resize(0, 1).await.unwrap();
    until("podkv-1 knows", async || {
        cluster.node(1).beyond_size(PATIENCE).await.is_some()
    })
    .await;
    until("podkv-2 knows", async || {
        cluster.node(2).beyond_size(PATIENCE).await.is_some()
    })
    .await;
    assert_eq!(cluster.node(0).beyond_size(PATIENCE).await, None);

    let (one, two) = (cluster.node(1), cluster.node(2));
    let leaving = async { tokio::join!(one.leave(), two.leave()) };
    tokio::time::timeout(PATIENCE, leaving)
        .await
        .expect("both learn that they are out");
    for node in [&one, &two] {
        let health = node.health().borrow().clone();
        assert!(!health.ready && health.draining, "{health:?}");
    }
    let members = cluster.node(0).members_known();
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].role, MemberRole::Voter);
    cluster.node(0).put(Put::new("after", "1")).await.unwrap();

    // 0 is suspension: nobody leaves.
    cluster.node(0).resize(0, 0).await.unwrap();
    assert_eq!(cluster.node(0).beyond_size(PATIENCE).await, None);
    cluster.shutdown().await;
}
