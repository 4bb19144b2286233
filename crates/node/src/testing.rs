//! A whole cluster inside a test: no disk, no sockets, no C++.
//!
//! ```
//! use podkv_api::{Put, Store};
//!
//! # #[tokio::main]
//! # async fn main() -> podkv_api::Result<()> {
//! let mut cluster = podkv_node::testing::cluster(3).await;
//! let leader = cluster.leader().await;
//! cluster.node(leader).put(Put::new("a", "1")).await?;
//! cluster.kill_leader().await;
//! let survivor = cluster.leader().await;
//! assert_eq!(cluster.node(survivor).get("a").await?.unwrap().value, "1");
//! # Ok(())
//! # }
//! ```
//!
//! The nodes run the code that ships, on [`MemoryDisk`]s that outlive them and over pipes that can be cut.
//! [`TestCluster::kill`] ends a node as `kill -9` would: what it had not synced is gone.

use std::sync::Arc;
use std::time::Duration;

use podkv_api::{Error, Reason, Result, Store as _};

use crate::config::{MembershipTiming, NodeConfig, RaftTiming, StorageConfig};
use crate::discovery::{FixedDiscovery, Suggestion};
use crate::node::Node;
use crate::size::SizeSource;
use crate::storage::{Crash, MemoryDisk, Volume};
use crate::transport::memory::Hub;

/// Elections take a few hundred milliseconds; this is for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a state that has no event is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Nodes in this process.
pub struct TestCluster {
    network: Hub,
    slots: Vec<Slot>,
    configure: Arc<dyn Fn(&mut NodeConfig) + Send + Sync>,
    size_source: Option<Arc<dyn SizeSource>>,
}

struct Slot {
    name: String,
    address: String,
    disk: MemoryDisk,
    read_only: bool,
    node: Option<Node>,
}

impl Slot {
    fn new(index: usize) -> Self {
        Self::named(format!("podkv-{index}"))
    }

    fn named(name: String) -> Self {
        Self {
            address: format!("{name}:2380"),
            name,
            disk: MemoryDisk::new(),
            read_only: false,
            node: None,
        }
    }
}

/// Starts a cluster and waits until every node serves.
///
/// # Panics
/// If it is not up within half a minute.
pub async fn cluster(size: usize) -> TestCluster {
    cluster_with(size, |_| {}).await
}

/// Starts a cluster whose settings `configure` may change.
///
/// # Panics
/// If it is not up within half a minute.
pub async fn cluster_with(
    size: usize,
    configure: impl Fn(&mut NodeConfig) + Send + Sync + 'static,
) -> TestCluster {
    let mut cluster = TestCluster::new(size, Arc::new(configure));
    cluster.boot_all().await;
    cluster
}

/// Starts a cluster of which `source` says how many pods there should be: `size`, before it can be up.
///
/// # Panics
/// If it is not up within half a minute.
pub async fn cluster_following(size: usize, source: Arc<dyn SizeSource>) -> TestCluster {
    let mut cluster = TestCluster::new(size, Arc::new(|_| {}));
    cluster.size_source = Some(source);
    cluster.boot_all().await;
    cluster
}

impl TestCluster {
    fn new(size: usize, configure: Arc<dyn Fn(&mut NodeConfig) + Send + Sync>) -> Self {
        Self {
            network: Hub::new(),
            slots: (0..size).map(Slot::new).collect(),
            configure,
            size_source: None,
        }
    }

    async fn boot_all(&mut self) {
        for index in 0..self.size() {
            or_panic(self.boot(index).await);
        }
        for index in 0..self.size() {
            or_panic(self.wait_ready(index).await);
        }
    }

    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// A handle of a node.
    ///
    /// # Panics
    /// If the node is dead.
    pub fn node(&self, index: usize) -> Node {
        match &self.slots[index].node {
            Some(node) => node.clone(),
            // A test that asks a dead node is wrong, and this is test code.
            None => panic!(
                "{} is dead; restart({index}) brings it back",
                self.slots[index].name
            ),
        }
    }

    pub fn is_running(&self, index: usize) -> bool {
        self.slots[index].node.is_some()
    }

    /// The network between the nodes: links can be cut. A node's address is `podkv-N:2380`.
    pub fn network(&self) -> &Hub {
        &self.network
    }

    /// The index of the leader, waited for.
    ///
    /// # Panics
    /// If none leads within half a minute.
    pub async fn leader(&self) -> usize {
        let found = async {
            loop {
                let claims = self.slots.iter().enumerate().filter_map(|(index, slot)| {
                    let node = slot.node.as_ref()?;
                    node.is_leader().then(|| (node.header().term, index))
                });
                if let Some((_, index)) = claims.max() {
                    return index;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(index) => index,
            Err(_) => panic!("no leader within {PATIENCE:?}"),
        }
    }

    /// Ends a node as `kill -9` would.
    pub async fn kill(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if let Some(node) = slot.node.take() {
            self.network.kill(&slot.address);
            slot.disk.crash(Crash::Process);
            node.shutdown().await;
        }
    }

    /// Kills the leader and returns its index.
    pub async fn kill_leader(&mut self) -> usize {
        let leader = self.leader().await;
        self.kill(leader).await;
        leader
    }

    /// Starts a dead node on the disk that it left, and waits until it serves.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        self.kill(index).await;
        self.boot(index).await?;
        self.wait_ready(index).await
    }

    /// Ends a node, takes its volume away, and starts its pod again on an empty one: it joins under a new id.
    /// Returns once it can be called, which is before it belongs to the cluster.
    pub async fn lose_volume(&mut self, index: usize) -> Result<()> {
        self.kill(index).await;
        self.slots[index].disk = MemoryDisk::new();
        self.boot(index).await
    }

    /// Turns a bit in the values of a node's state that contain these bytes, as rot does. Returns in how many.
    pub fn rot(&self, index: usize, bytes: &[u8]) -> usize {
        self.slots[index].disk.rot(bytes)
    }

    /// The same in the entries of a node's log.
    pub fn rot_log(&self, index: usize, bytes: &[u8]) -> usize {
        self.slots[index].disk.rot_log(bytes)
    }

    /// A node's disk stops to answer: its log cannot be written, and nothing fails. [`TestCluster::resume_disk`] ends it,
    /// and so does [`TestCluster::kill`].
    pub fn stall_disk(&self, index: usize) {
        self.slots[index].disk.stall();
    }

    pub fn resume_disk(&self, index: usize) {
        self.slots[index].disk.resume();
    }

    /// A copy of a node's volume as it is now, for [`TestCluster::restore_volume`].
    pub fn copy_volume(&self, index: usize) -> MemoryDisk {
        self.slots[index].disk.copy()
    }

    /// Ends a node and puts its volume back to an earlier copy. [`TestCluster::boot`] starts it on that.
    pub async fn restore_volume(&mut self, index: usize, copy: MemoryDisk) {
        self.kill(index).await;
        self.slots[index].disk = copy;
    }

    /// Starts one more pod, with the next ordinal, and returns its index. It gets a vote once the desired
    /// size allows it: [`Node::resize`].
    pub async fn add_pod(&mut self) -> Result<usize> {
        let index = self.slots.len();
        self.slots.push(Slot::new(index));
        self.boot(index).await?;
        Ok(index)
    }

    /// Starts a read-only replica, `reader-0`, and returns its index.
    pub async fn add_read_only(&mut self) -> Result<usize> {
        let index = self.slots.len();
        let slot = Slot {
            read_only: true,
            ..Slot::named("reader-0".into())
        };
        self.slots.push(slot);
        self.boot(index).await?;
        Ok(index)
    }

    /// Starts a dead node without waiting for it.
    pub async fn boot(&mut self, index: usize) -> Result<()> {
        let suggestions = self
            .slots
            .iter()
            .map(|slot| Suggestion {
                name: Some(slot.name.clone()),
                peer_address: slot.address.clone(),
            })
            .collect();
        let slot = &self.slots[index];
        let mut config = NodeConfig::new(&slot.name, StorageConfig::Memory);
        config.peer_listen = slot.address.clone();
        config.peer_address = slot.address.clone();
        config.client_address = format!("{}:2379", slot.name);
        config.replicas = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        config.read_only = slot.read_only;
        config.timing = RaftTiming::fast();
        config.membership = MembershipTiming::fast();
        (self.configure)(&mut config);
        let mut builder = Node::builder(config)
            .transport(Arc::new(self.network.attach(&slot.address)))
            .discovery(Arc::new(FixedDiscovery::new(suggestions)))
            .volume(Volume::memory(&slot.disk));
        if let Some(source) = &self.size_source {
            builder = builder.size_source(source.clone());
        }
        let node = builder.start().await?;
        self.slots[index].node = Some(node);
        Ok(())
    }

    /// Waits until a node answers a linearizable read.
    pub async fn wait_ready(&self, index: usize) -> Result<()> {
        let node = self.node(index);
        let ready = async {
            while node.members().await.is_err() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.map_err(|_| {
            let text = format!(
                "{} does not serve within {PATIENCE:?}",
                self.slots[index].name
            );
            Error::new(Reason::NodeNotReady, text)
        })
    }

    /// Stops every node in order.
    pub async fn shutdown(mut self) {
        for slot in &mut self.slots {
            if let Some(node) = slot.node.take() {
                node.shutdown().await;
            }
        }
    }
}

fn or_panic(result: Result<()>) {
    if let Err(error) = result {
        panic!("the test cluster does not start: {error}");
    }
}
