//! Replicas that differ are found, told, and left alone.

use podkv_api::{Alarm, AlarmKind, Consistency, Put, Range, Reason, Store as _};
use podkv_node::testing::cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_other_data_is_found_and_left_alone() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await;
    let node = cluster.node(leader);
    node.put(Put::new("key", "good")).await.unwrap();
    let found = node.scrub().await.unwrap();
    assert_eq!(
        (found.equal.len(), found.different.len()),
        (3, 0),
        "{found:?}"
    );
    assert_eq!(node.status().await.unwrap().alarms, []);

    let rotten = (leader + 1) % 3;
    assert!(cluster.rot(rotten, b"good") > 0);
    let refused = cluster.node(rotten).scrub().await.unwrap_err();
    assert_eq!(refused.reason(), Reason::NotLeader);
    let id = cluster.node(rotten).id();
    assert_eq!(node.scrub().await.unwrap().different, [id]);
    let alarm = Alarm {
        member: id,
        kind: AlarmKind::Corrupt,
    };
    let (_, alarms) = cluster
        .node(rotten)
        .alarms(Consistency::Linearizable)
        .await
        .unwrap();
    assert_eq!(alarms, [alarm]);
    let local = Range {
        consistency: Consistency::Local,
        ..Range::new(podkv_api::KeyRange::key("key"))
    };
    let kv = cluster
        .node(rotten)
        .range(local)
        .await
        .unwrap()
        .kvs
        .remove(0);
    assert_ne!(
        kv.value, "good",
        "nothing was repaired behind anybody's back"
    );

    // What the alarm says to do, and it goes with the member.
    cluster.lose_volume(rotten).await.unwrap();
    cluster.wait_ready(rotten).await.unwrap();
    let new = cluster.node(rotten);
    while !new.status().await.unwrap().alarms.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(new.get("key").await.unwrap().unwrap().value, "good");
    cluster.shutdown().await;
}
