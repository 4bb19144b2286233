//! Nobody has to think about membership: lost volumes heal, and the size is followed.

use std::collections::BTreeMap;
use std::time::Duration;

use podkv_api::{Consistency, KeyRange, MemberRole, Put, Range, Reason, Store as _};
use podkv_node::testing::{TestCluster, cluster};

/// Far more than any of this takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the leader's members are exactly these pods with these roles, each as the node that runs now.
async fn members_become(cluster: &TestCluster, expected: &[(&str, MemberRole)]) {
    let by_name: BTreeMap<_, _> = expected.iter().copied().collect();
    let become_so = async {
        loop {
            let leader = cluster.leader().await;
            let members = cluster.node(leader).members_known();
            let found: BTreeMap<_, _> = members
                .iter()
                .map(|member| (member.name.as_str(), member.role))
                .collect();
            let runs = |(index, (name, _)): (usize, &(&str, MemberRole))| {
                let id = cluster.node(index).id();
                members
                    .iter()
                    .any(|member| member.name == **name && member.id == id)
            };
            if found == by_name
                && members.len() == expected.len()
                && expected.iter().enumerate().all(runs)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, become_so).await.is_err() {
        let leader = cluster.leader().await;
        let node = cluster.node(leader);
        panic!(
            "expected {expected:?}; found {:?}, waiting: {:?}",
            node.members_known(),
            node.membership_waits()
        );
    }
}

const VOTERS: [(&str, MemberRole); 3] = [
    ("podkv-0", MemberRole::Voter),
    ("podkv-1", MemberRole::Voter),
    ("podkv-2", MemberRole::Voter),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_volume_heals_at_each_ordinal_and_leaves_no_dead_member() {
    let mut cluster = cluster(3).await;
    let writer = cluster.leader().await;
    cluster.node(writer).put(Put::new("a", "1")).await.unwrap();
    // The leader first: whichever it is.
    for index in [writer, (writer + 1) % 3, (writer + 2) % 3] {
        let old = cluster.node(index).id();
        cluster.lose_volume(index).await.unwrap();
        members_become(&cluster, &VOTERS).await;
        cluster.wait_ready(index).await.unwrap();
        let node = cluster.node(index);
        assert_ne!(node.id(), old, "an id is never used again");
        let local = Range::new(KeyRange::key("a")).consistency(Consistency::Local);
        assert_eq!(node.range(local).await.unwrap().kvs[0].value, "1");
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_is_followed_up_and_down() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await;
    // The leader says the founders' number by itself; a person says another.
    cluster.node(leader).resize(0, 5).await.unwrap();
    for _ in 0..2 {
        cluster.add_pod().await.unwrap();
    }
    let mut five = VOTERS.to_vec();
    five.extend([
        ("podkv-3", MemberRole::Voter),
        ("podkv-4", MemberRole::Voter),
    ]);
    members_become(&cluster, &five).await;

    // The leader leaves, too, if it is beyond the size.
    let leader = cluster.leader().await;
    let beyond = cluster.node(4).id();
    if leader != 4 {
        cluster
            .node(leader)
            .transfer_leadership(Some(beyond))
            .await
            .unwrap();
    }
    cluster.node(0).resize(0, 3).await.unwrap();
    members_become(&cluster, &VOTERS).await;
    cluster.node(0).put(Put::new("after", "1")).await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_beyond_the_size_is_not_taken_in() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await;
    cluster.node(leader).resize(0, 3).await.unwrap();
    let newcomer = cluster.add_pod().await.unwrap();
    let mut health = cluster.node(newcomer).health();
    let told = health.wait_for(|health| health.reason.contains("beyond the desired size"));
    tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    assert_eq!(cluster.node(leader).members_known().len(), 3);
    cluster.shutdown().await;
}

/// 4 -> 3 -> 4: the pod comes back with the volume that it had.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_volume_that_comes_back_joins_anew() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await;
    cluster.node(leader).resize(0, 4).await.unwrap();
    let fourth = cluster.add_pod().await.unwrap();
    let mut four = VOTERS.to_vec();
    four.push(("podkv-3", MemberRole::Learner));
    members_become(&cluster, &four).await;
    let old = cluster.node(fourth).id();
    cluster.kill(fourth).await;
    cluster.node(0).resize(0, 3).await.unwrap();
    members_become(&cluster, &VOTERS).await;
    cluster.node(0).resize(0, 4).await.unwrap();

    cluster.boot(fourth).await.unwrap();
    let ended = cluster.node(fourth);
    let error = tokio::time::timeout(PATIENCE, ended.failed())
        .await
        .unwrap();
    assert_eq!(error.reason(), Reason::Retired, "{error}");
    drop(ended);
    // As a kubelet would.
    cluster.restart(fourth).await.unwrap();
    assert_ne!(cluster.node(fourth).id(), old);
    members_become(&cluster, &four).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewound_volume_never_votes_again_and_its_pod_joins_anew() {
    let mut cluster = cluster(3).await;
    let rewound = (cluster.leader().await + 1) % 3;
    let earlier = cluster.copy_volume(rewound);
    cluster.restart(rewound).await.unwrap();
    cluster.restart(rewound).await.unwrap();
    let old = cluster.node(rewound).id();
    cluster.restore_volume(rewound, earlier).await;
    // It finds out before Raft starts if a peer answers in time, else when it is greeted.
    let error = match cluster.boot(rewound).await {
        Err(error) => error,
        Ok(()) => {
            let ended = cluster.node(rewound);
            tokio::time::timeout(PATIENCE, ended.failed())
                .await
                .unwrap()
        }
    };
    assert_eq!(error.reason(), Reason::Retired, "{error}");
    cluster.restart(rewound).await.unwrap();
    assert_ne!(cluster.node(rewound).id(), old);
    members_become(&cluster, &VOTERS).await;
    cluster.shutdown().await;
}

/// It judges the rewound one by its answer. That is no word on itself (seed 60861 of the simulation).
#[tokio::test(flavor = "multi_thread")]
async fn who_meets_a_rewound_peer_at_its_start_goes_on() {
    let mut cluster = cluster(3).await;
    let [rewound, first, second] = [1, 2, 0];
    let earlier = cluster.copy_volume(rewound);
    cluster.restart(rewound).await.unwrap();
    let ids = [first, second].map(|index| cluster.node(index).id());
    // Nobody is there to tell the rewound one.
    cluster.kill(first).await;
    cluster.kill(second).await;
    cluster.restore_volume(rewound, earlier).await;
    cluster.boot(rewound).await.unwrap();
    for index in [first, second] {
        cluster.boot(index).await.unwrap();
    }
    for index in [first, second] {
        cluster.wait_ready(index).await.unwrap();
    }
    assert_eq!([first, second].map(|index| cluster.node(index).id()), ids);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_replica_holds_everything_never_votes_and_leaves_by_itself() {
    let mut cluster = cluster(3).await;
    cluster.node(0).put(Put::new("a", "1")).await.unwrap();
    let reader = cluster.add_read_only().await.unwrap();
    let with_reader = [&VOTERS[..], &[("reader-0", MemberRole::Learner)]].concat();
    members_become(&cluster, &with_reader).await;
    cluster.wait_ready(reader).await.unwrap();
    let local = Range::new(KeyRange::key("a")).consistency(Consistency::Local);
    assert_eq!(cluster.node(reader).range(local).await.unwrap().count, 1);
    // There is room for two more voters, and it is none of those.
    cluster.node(0).resize(0, 5).await.unwrap();
    let more = cluster.add_pod().await.unwrap();
    cluster.wait_ready(more).await.unwrap();
    cluster.node(reader).put(Put::new("b", "2")).await.unwrap();
    assert_eq!(
        cluster.node(reader).status().await.unwrap().role,
        Some(MemberRole::Learner)
    );
    let leaving = cluster.node(reader);
    tokio::time::timeout(PATIENCE, leaving.leave())
        .await
        .expect("it is taken out");
    let leader = cluster.leader().await;
    let members = cluster.node(leader).members_known();
    assert!(members.iter().all(|member| member.name != "reader-0"));
    cluster.shutdown().await;
}
