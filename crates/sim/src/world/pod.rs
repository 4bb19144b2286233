//! A pod: the node and the port for clients, as `podkv serve` has them, on a simulated network and disk.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use podkv_api::{DesiredSize, Error, Reason, Result};
use podkv_node::config::{NodeConfig, StorageConfig};
use podkv_node::discovery::{Discovery, Ordinals, Suggestion};
use podkv_node::storage::{Storage, Volume};
use podkv_node::{Node, SizeSource};
use podkv_server::Server;
use tokio::sync::{mpsc, oneshot};

use super::network::Link;

const PEER_PORT: u16 = 2380;
const CLIENT_PORT: u16 = 2379;
/// A pod that is scaled away waits for so long for the membership to be without it.
const LEAVE_PATIENCE: Duration = Duration::from_secs(30);
/// The most pods that there ever are.
pub const MOST_PODS: u32 = 5;

pub fn name(ordinal: u32) -> String {
    format!("podkv-{ordinal}")
}

pub fn client_address(ordinal: u32) -> String {
    format!("{}:{CLIENT_PORT}", name(ordinal))
}

/// What a running pod can be told from outside.
pub enum Order {
    /// SIGTERM.
    Terminate,
    TransferLeadership,
    /// Build a snapshot, and purge the log.
    Purge,
    /// The node's own digest of its data as of a revision.
    Digest(u64, oneshot::Sender<Result<u64>>),
}

/// How a pod's process ended, if by itself.
pub type Ended = Result<(), Error>;

/// The StatefulSet, as everybody who asks is told.
#[derive(Clone)]
pub struct StatefulSet(Arc<Mutex<DesiredSize>>);

impl StatefulSet {
    pub fn new(replicas: u32) -> Self {
        Self(Arc::new(Mutex::new(DesiredSize {
            source: "11111111-2222-3333-4444-555555555555".into(),
            generation: 1,
            start: 0,
            replicas,
        })))
    }

    pub fn scale(&self, replicas: u32) {
        let mut size = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        size.replicas = replicas;
        size.generation += 1;
    }

    pub fn replicas(&self) -> u32 {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replicas
    }
}

impl SizeSource for StatefulSet {
    fn read(&self) -> BoxFuture<'_, Result<Option<DesiredSize>>> {
        let size = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            Ok(Some(size))
        })
    }
}

/// As DNS: it knows the pods that there should be.
impl Discovery for StatefulSet {
    fn suggest(&self, _: Ordinals) -> BoxFuture<'_, Result<Vec<Suggestion>>> {
        let suggestion = |ordinal| Suggestion {
            name: Some(name(ordinal)),
            peer_address: format!("{}:{PEER_PORT}", name(ordinal)),
        };
        let all = (0..self.replicas()).map(suggestion).collect();
        Box::pin(std::future::ready(Ok(all)))
    }
}

/// Where the world finds the node of a pod.
#[derive(Clone, Default)]
pub struct Slot(Arc<Mutex<Option<Node>>>);

impl Slot {
    pub fn get(&self) -> Option<Node> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The process is gone.
    pub fn clear(&self) {
        self.set(None);
    }

    fn set(&self, node: Option<Node>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = node;
    }
}

/// What a pod is started with.
pub struct Pod {
    pub ordinal: u32,
    pub link: Link,
    pub storage: Storage,
    pub set: StatefulSet,
    pub slot: Slot,
    /// Settings that differ between runs.
    pub configure: Arc<dyn Fn(&mut NodeConfig) + Send + Sync>,
}

impl Pod {
    /// Runs until it is told to end, or cannot go on.
    pub async fn run(self, mut orders: mpsc::UnboundedReceiver<Order>) -> Ended {
        let name = name(self.ordinal);
        let mut config = NodeConfig::new(&name, StorageConfig::Memory);
        config.peer_listen = format!("{name}:{PEER_PORT}");
        config.peer_address = config.peer_listen.clone();
        config.client_address = client_address(self.ordinal);
        (self.configure)(&mut config);
        let node = Node::builder(config)
            .transport(Arc::new(self.link.clone()))
            .discovery(Arc::new(self.set.clone()))
            .size_source(Arc::new(self.set))
            .volume(Volume::Stores(self.storage))
            .start()
            .await?;
        let address = client_address(self.ordinal);
        let server = Server::builder(node.clone())
            .listen_over(&self.link, &address)
            .await?;
        self.slot.set(Some(node.clone()));
        let ended = serve(&node, &mut orders).await;
        self.slot.set(None);
        if ended.is_ok() {
            server.drain().await;
        }
        node.shutdown().await;
        ended
    }
}

async fn serve(node: &Node, orders: &mut mpsc::UnboundedReceiver<Order>) -> Ended {
    loop {
        let order = tokio::select! {
            biased;
            error = node.failed() => return Err(error),
            order = orders.recv() => order,
        };
        match order {
            None => return Err(Error::new(Reason::Internal, "the world has ended")),
            Some(Order::Terminate) => {
                tokio::select! {
                    biased;
                    error = node.failed() => return Err(error),
                    () = leave(node) => return Ok(()),
                }
            }
            Some(Order::TransferLeadership) => {
                let node = node.clone();
                // It may fail: then nothing was handed over.
                node.clone()
                    .spawn(async move { drop(node.transfer_leadership(None).await) });
            }
            Some(Order::Purge) => {
                let node = node.clone();
                node.clone()
                    .spawn(async move { drop(node.purge_log().await) });
            }
            Some(Order::Digest(revision, answer)) => {
                let node = node.clone();
                node.clone().spawn(async move {
                    let digest = node.data_digest(revision).await;
                    let first = |digest: podkv_node::DataDigest| {
                        digest
                            .sha256
                            .first_chunk::<8>()
                            .map_or(0, |bytes| u64::from_le_bytes(*bytes))
                    };
                    // Whoever asked may have gone.
                    let _ = answer.send(digest.map(first));
                });
            }
        }
    }
}

/// As `podkv serve` does on SIGTERM.
async fn leave(node: &Node) {
    if let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(2), async {
        Ok::<_, Error>(node.beyond_size(Duration::from_secs(2)).await)
    })
    .await
    .unwrap_or(Ok(None))
    {
        // Still a member then, as far as it knows: the leader removes it later.
        let _ = tokio::time::timeout(LEAVE_PATIENCE, node.leave()).await;
    }
}
