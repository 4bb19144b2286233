//! Reads by the leader's lease, while nodes are cut off, hand over, and start again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use podkv_api::{Put, Store as _};
use podkv_node::testing::{TestCluster, cluster_with};
use podkv_node::{Node, NodeConfig};
use tokio::task::JoinSet;

const KEY: &str = "counter";

async fn with_leases(size: usize) -> TestCluster {
    cluster_with(size, |config| config.lease_reads = true).await
}

fn others(of: usize) -> [usize; 2] {
    [(of + 1) % 3, (of + 2) % 3]
}

/// Until one read of the leader is answered by its lease; returns who that is.
async fn reads_by_lease(cluster: &TestCluster) -> usize {
    loop {
        // It may be another one the next time.
        let leader = cluster.leader().await;
        let node = cluster.node(leader);
        let before = node.stats().reads_by_lease_total;
        let _ = node.get(KEY).await;
        if node.stats().reads_by_lease_total > before {
            return leader;
        }
    }
}

/// Until that node leads.
async fn make_leader(cluster: &TestCluster, index: usize) -> Node {
    let node = cluster.node(index);
    while !node.is_leader() {
        let leader = cluster.node(cluster.leader().await);
        // It may have lost its place meanwhile.
        let _ = leader.transfer_leadership(Some(node.id())).await;
    }
    node
}

/// Readers that check each answer: it must not be older than what was acknowledged before the question.
struct Readers {
    /// Acknowledged to its writer.
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Readers {
    fn new() -> Self {
        Self {
            written: Arc::default(),
            stop: Arc::default(),
            tasks: JoinSet::new(),
        }
    }

    fn read_from(&mut self, node: Node) {
        let (written, stop) = (self.written.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let at_least = written.load(Ordering::SeqCst);
                // Cut off, or stopped: then it has no answer, and that is fine.
                if let Ok(found) = node.get(KEY).await {
                    let found = found.map_or(0, |kv| kv.version);
                    assert!(found >= at_least, "{found} after {at_least}");
                }
                tokio::task::yield_now().await;
            }
        });
    }

    async fn write(&self, node: &Node, count: u64) {
        for _ in 0..count {
            let put = node.put(Put::new(KEY, "value")).await.unwrap();
            let written = self.written.fetch_add(1, Ordering::SeqCst) + 1;
            assert!(put.header.revision > written);
        }
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(reader) = self.tasks.join_next().await {
            reader.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_asks_nobody_and_followers_ask_only_it() {
    let cluster = with_leases(3).await;
    let leader = cluster.leader().await;
    let node = cluster.node(leader);
    node.put(Put::new(KEY, "value")).await.unwrap();
    let leader = reads_by_lease(&cluster).await;
    let node = cluster.node(leader);
    let follower = cluster.node(others(leader)[0]);
    let before = node.stats().reads_by_lease_total;
    while node.stats().reads_by_lease_total == before {
        assert!(follower.get(KEY).await.unwrap().is_some());
    }
    assert_eq!(follower.stats().reads_by_lease_total, 0);
    assert!(node.status().await.unwrap().lease_reads);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_reads_by_its_lease() {
    let cluster = with_leases(1).await;
    let node = cluster.node(0);
    node.put(Put::new(KEY, "value")).await.unwrap();
    let before = node.stats();
    for _ in 0..100 {
        assert!(node.get(KEY).await.unwrap().is_some());
    }
    let after = node.stats();
    assert_eq!(
        after.reads_by_lease_total - before.reads_by_lease_total,
        100
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_answers_nothing_from_the_past() {
    let cluster = with_leases(3).await;
    let mut readers = Readers::new();
    for index in 0..3 {
        // Several, so that one waits for its turn while another has its view.
        for _ in 0..3 {
            readers.read_from(cluster.node(index));
        }
    }
    for _ in 0..5 {
        let leader = cluster.leader().await;
        readers.write(&cluster.node(leader), 5).await;
        let leader = reads_by_lease(&cluster).await;
        let name = |index| format!("podkv-{index}:2380");
        for other in others(leader) {
            cluster.network().cut_both(&name(leader), &name(other));
        }
        let successor = async {
            loop {
                for other in others(leader) {
                    if cluster.node(other).is_leader() {
                        return other;
                    }
                }
                tokio::task::yield_now().await;
            }
        };
        let successor = successor.await;
        readers.write(&cluster.node(successor), 20).await;
        cluster.network().heal_all();
    }
    readers.end().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hands_over_answers_nothing_from_the_past() {
    let cluster = with_leases(3).await;
    let mut readers = Readers::new();
    for index in 0..3 {
        for _ in 0..3 {
            readers.read_from(cluster.node(index));
        }
    }
    for _ in 0..10 {
        let leader = reads_by_lease(&cluster).await;
        // It may fail, as long as nobody reads what is old.
        let _ = cluster.node(leader).transfer_leadership(None).await;
        let leader = cluster.leader().await;
        readers.write(&cluster.node(leader), 20).await;
    }
    readers.end().await;
    cluster.shutdown().await;
}

/// Who has promised and starts again is asked at once, by a candidate whose own time-out is over.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_again_keep_their_promises() {
    let mut cluster = with_leases(3).await;
    for _ in 0..4 {
        let leader = reads_by_lease(&cluster).await;
        let mut readers = Readers::new();
        readers.written.store(
            cluster
                .node(leader)
                .get(KEY)
                .await
                .unwrap()
                .map_or(0, |kv| kv.version),
            Ordering::SeqCst,
        );
        for _ in 0..3 {
            readers.read_from(cluster.node(leader));
        }
        let name = |index| format!("podkv-{index}:2380");
        for other in others(leader) {
            cluster.network().cut_both(&name(leader), &name(other));
        }
        // Both have promised a moment ago, and openraft knows nothing of it after this.
        for other in others(leader) {
            cluster.kill(other).await;
        }
        for other in others(leader) {
            cluster.boot(other).await.unwrap();
        }
        let [one, two] = others(leader);
        while !cluster.node(one).is_leader() && !cluster.node(two).is_leader() {
            tokio::task::yield_now().await;
        }
        let successor = if cluster.node(one).is_leader() {
            one
        } else {
            two
        };
        readers.write(&cluster.node(successor), 20).await;
        cluster.network().heal_all();
        readers.end().await;
        for index in 0..3 {
            cluster.wait_ready(index).await.unwrap();
        }
    }
    cluster.shutdown().await;
}

/// A majority must have promised: of those with the setting off nobody has.
#[tokio::test(flavor = "multi_thread")]
async fn settings_may_be_mixed() {
    let only_first = |config: &mut NodeConfig| config.lease_reads = config.name == "podkv-0";
    let cluster = cluster_with(3, only_first).await;
    let first = make_leader(&cluster, 0).await;
    first.put(Put::new(KEY, "value")).await.unwrap();
    for _ in 0..100 {
        first.get(KEY).await.unwrap();
    }
    for index in 0..3 {
        assert_eq!(cluster.node(index).stats().reads_by_lease_total, 0);
    }
    cluster.shutdown().await;

    let but_last = |config: &mut NodeConfig| config.lease_reads = config.name != "podkv-2";
    let cluster = cluster_with(3, but_last).await;
    make_leader(&cluster, 0).await;
    tokio::time::timeout(Duration::from_secs(60), reads_by_lease(&cluster))
        .await
        .expect("its own promise and another one are a majority");
    let last = make_leader(&cluster, 2).await;
    for _ in 0..100 {
        last.get(KEY).await.unwrap();
    }
    assert_eq!(last.stats().reads_by_lease_total, 0, "its setting is off");
    cluster.shutdown().await;
}
