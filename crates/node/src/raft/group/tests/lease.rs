//! What is promised to a leader, asked of real groups.

use tokio::time::Instant;

use super::*;

/// Asks as a candidate of another term that holds everything.
fn candidate(cluster: &Cluster, node: usize, transfer: bool) -> wire::VoteRequest {
    let state = cluster.group(node).state().borrow().clone();
    wire::VoteRequest {
        header: None,
        vote: Some(wire::VoteState {
            term: state.term + 10,
            node_id: cluster.ids[(node + 1) % 3].0,
            committed: false,
        }),
        last_log_id: Some(wire::LogId {
            term: state.term + 5,
            index: 1 << 20,
        }),
        leadership_transfer: transfer,
    }
}

async fn founded() -> Cluster {
    let mut cluster = Cluster::founded(3, 3).await;
    cluster.lease_reads = true;
    for node in 0..3 {
        cluster.kill(node).await;
    }
    for node in 0..3 {
        cluster.start(node).await;
    }
    cluster
}

async fn has_lease(cluster: &Cluster, node: usize) {
    let held = async {
        while cluster.group(node).lease_index().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.expect("a lease");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_names_what_is_committed() {
    let mut cluster = founded().await;
    let last = cluster.write(5).await;
    let leader = cluster.leader().await;
    has_lease(&cluster, leader).await;
    assert!(cluster.group(leader).lease_index().unwrap() >= last);
    let read = cluster.group(leader).lease_read(Instant::now() + PATIENCE);
    let read = read.await.expect("a read");
    assert!(cluster.running[&leader].group.applied().borrow().position >= last);
    let follower = cluster.group((leader + 1) % 3);
    assert_eq!(follower.lease_index(), None);
    // From when a transfer begins; the new leader begins anew.
    let to = cluster.group(leader).transfer_leadership(None).await;
    assert!(!read.holds());
    assert_eq!(cluster.group(leader).lease_index(), None);
    if let Ok(to) = to {
        has_lease(&cluster, cluster.node_of(to)).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_starts_again_keeps_its_promise() {
    let mut cluster = founded().await;
    cluster.write(5).await;
    let leader = cluster.leader().await;
    has_lease(&cluster, leader).await;
    // Nobody else is there to remind openraft of a leader.
    for node in 0..3 {
        cluster.kill(node).await;
    }
    let follower = (leader + 1) % 3;
    let before = Instant::now();
    cluster.start(follower).await;
    let group = cluster.group(follower);
    let asked = candidate(&cluster, follower, false);
    assert!(!group.pre_vote(asked.clone()).await.unwrap().granted);
    let answer = group.vote(asked.clone()).await.unwrap();
    assert!(!answer.granted && answer.last_log_id.is_some());
    while !group.vote(asked.clone()).await.unwrap().granted {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(before.elapsed() >= timing().election_max);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_starts_again_serves_a_transfer() {
    let mut cluster = founded().await;
    cluster.write(5).await;
    for node in 0..3 {
        cluster.kill(node).await;
    }
    cluster.start(0).await;
    let asked = candidate(&cluster, 0, true);
    assert!(cluster.group(0).vote(asked).await.unwrap().granted);
    cluster.stop().await;
}
