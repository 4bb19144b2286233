//! Promise 7, of the files in which a node keeps who it is and whom it has seen: if they cannot be written, the node ends, and
//! says so. Nothing would be promised by it any more, and whoever asked it would only be told "later".

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use podkv_api::{Bytes, Error, Incarnation, MemberId, Reason};
use podkv_node::config::{RaftTiming, StorageConfig};
use podkv_node::discovery::{FixedDiscovery, Suggestion};
use podkv_node::identity::{Aside, IdentityFile, MarkerStore};
use podkv_node::storage::{MemoryDisk, Storage, StorageError, Volume};
use podkv_node::transport::memory::Hub;
use podkv_node::{Node, NodeConfig};

/// Far more than anything takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files on a disk that is full from some save of one of them on.
struct FullFrom {
    files: Arc<dyn MarkerStore>,
    file: IdentityFile,
    /// Saves of it that succeed still.
    left: AtomicUsize,
}

impl MarkerStore for FullFrom {
    fn load(&self, file: IdentityFile) -> Result<Option<Bytes>, StorageError> {
        self.files.load(file)
    }
    fn save(&self, file: IdentityFile, bytes: &[u8]) -> Result<(), StorageError> {
        let take = |left: usize| left.checked_sub(1);
        let (set, fetch) = (Ordering::SeqCst, Ordering::SeqCst);
        if file == self.file && self.left.fetch_update(set, fetch, take).is_err() {
            let what = format!("writing {}", self.describe(file));
            let full = std::io::ErrorKind::StorageFull.into();
            return Err(StorageError::io(what, full));
        }
        self.files.save(file, bytes)
    }
    fn remove(&self, file: IdentityFile) -> Result<(), StorageError> {
        self.files.remove(file)
    }
    fn holds_data(&self) -> Result<bool, StorageError> {
        self.files.holds_data()
    }
    fn set_aside(&self, retired: MemberId) -> Result<(), StorageError> {
        self.files.set_aside(retired)
    }
    fn aside(&self) -> Result<Vec<Aside>, StorageError> {
        self.files.aside()
    }
    fn remove_aside(&self, since: Incarnation) -> Result<(), StorageError> {
        self.files.remove_aside(since)
    }
    fn describe(&self, file: IdentityFile) -> String {
        self.files.describe(file)
    }
}

/// Pod `index` of two that found a cluster.
async fn start(network: &Hub, index: usize, volume: Volume) -> Node {
    let (name, address) = (format!("podkv-{index}"), format!("podkv-{index}:2380"));
    let others = (0..2).map(|index| Suggestion {
        name: Some(format!("podkv-{index}")),
        peer_address: format!("podkv-{index}:2380"),
    });
    let mut config = NodeConfig::new(&name, StorageConfig::Memory);
    config.peer_listen.clone_from(&address);
    config.peer_address.clone_from(&address);
    config.client_address = format!("{name}:2379");
    config.replicas = 2;
    config.timing = RaftTiming::fast();
    Node::builder(config)
        .transport(Arc::new(network.attach(&address)))
        .discovery(Arc::new(FixedDiscovery::new(others.collect())))
        .volume(volume)
        .start()
        .await
        .unwrap()
}

/// What the second of two founders ends with, whose disk is full after `saves` of that file.
async fn ends_with(file: IdentityFile, saves: usize) -> Error {
    let network = Hub::new();
    let stores = MemoryDisk::new().attach().open_stores();
    let markers = FullFrom {
        files: stores.markers.clone(),
        file,
        left: AtomicUsize::new(saves),
    };
    let stores = Storage {
        markers: Arc::new(markers),
        ..stores
    };
    let full = start(&network, 1, Volume::Stores(stores)).await;
    let first = start(&network, 0, Volume::memory(&MemoryDisk::new())).await;
    let error = tokio::time::timeout(PATIENCE, full.failed())
        .await
        .expect("it ends");
    let mut health = full.health();
    let told = health.wait_for(|health| !health.ready && health.reason.contains(error.text()));
    tokio::time::timeout(PATIENCE, told)
        .await
        .expect("it says so")
        .unwrap();
    full.shutdown().await;
    first.shutdown().await;
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_remember_a_peer_ends() {
    let error = ends_with(IdentityFile::Peers, 0).await;
    assert_eq!(error.reason(), Reason::Internal);
    assert!(error.text().contains("writing peers"), "{error}");
}

/// The first save counts the start. The second would be the promise to found a cluster.
#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_keep_a_promise_ends() {
    let error = ends_with(IdentityFile::Marker, 1).await;
    assert_eq!(error.reason(), Reason::Internal);
    assert!(error.text().contains("writing MARKER"), "{error}");
}
