//! TLS on both ports of real nodes on loopback: a cluster of three that is moved from off to require under load,
//! certificates that change under open streams, and everybody who is not let in.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use podkv_api::{KeyRange, Put, Store as _, Watch, WatchMessage};
use podkv_client::{Client, TlsOptions};
use podkv_node::config::{ClientAuth, NodeConfig, RaftTiming, StorageConfig, TlsConfig, TlsMode};
use podkv_node::discovery::{FixedDiscovery, Suggestion};
use podkv_node::storage::{MemoryDisk, Volume};
use podkv_node::{Node, open_tls};
use podkv_server::Server;
use podkv_tls::testing::{Leaf, TestCa, config};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{PATIENCE, soon};

const LOOK: Duration = Duration::from_millis(20);

struct Pod {
    name: String,
    peer: String,
    client: String,
    disk: MemoryDisk,
    running: Option<(Node, Server)>,
}

/// Pods on loopback that outlive their nodes, with one CA.
struct Pods {
    ca: TestCa,
    folder: tempfile::TempDir,
    pods: Vec<Pod>,
    client_auth: ClientAuth,
}

/// Everything is on loopback, and so is in every certificate.
fn leaf(name: &str) -> Leaf {
    Leaf::new(&[name, "127.0.0.1"])
}

impl Pods {
    /// Lays them out and starts none.
    async fn new(count: usize) -> Self {
        let (ca, folder) = (TestCa::new(), tempfile::tempdir().unwrap());
        let mut pods = Vec::new();
        for index in 0..count {
            let name = format!("podkv-{index}");
            ca.install(&folder.path().join(&name), &leaf(&name));
            pods.push(Pod {
                name,
                peer: free_address().await,
                client: free_address().await,
                disk: MemoryDisk::new(),
                running: None,
            });
        }
        Self {
            ca,
            folder,
            pods,
            client_auth: ClientAuth::None,
        }
    }

    async fn started(count: usize, mode: TlsMode) -> Self {
        let mut pods = Self::new(count).await;
        for index in 0..count {
            pods.start(index, mode).await;
        }
        for index in 0..count {
            pods.wait_ready(index).await;
        }
        pods
    }

    fn config(&self, index: usize, mode: TlsMode) -> NodeConfig {
        let pod = &self.pods[index];
        let mut settings = NodeConfig::new(&pod.name, StorageConfig::Memory);
        settings.peer_listen.clone_from(&pod.peer);
        settings.peer_address.clone_from(&pod.peer);
        settings.client_address.clone_from(&pod.client);
        settings.replicas = u32::try_from(self.pods.len()).unwrap();
        settings.timing = RaftTiming::fast();
        settings.tls = TlsConfig {
            client_auth: self.client_auth,
            reload_interval: LOOK,
            ..config(&self.folder.path().join(&pod.name), mode)
        };
        settings
    }

    async fn start(&mut self, index: usize, mode: TlsMode) {
        let suggestions = self.pods.iter().map(|pod| Suggestion {
            name: Some(pod.name.clone()),
            peer_address: pod.peer.clone(),
        });
        let node = Node::builder(self.config(index, mode))
            .discovery(Arc::new(FixedDiscovery::new(suggestions.collect())))
            .volume(Volume::memory(&self.pods[index].disk))
            .start()
            .await
            .unwrap();
        let server = Server::builder(node.clone());
        let server = server.listen(&self.pods[index].client).await.unwrap();
        self.pods[index].running = Some((node, server));
    }

    fn node(&self, index: usize) -> &Node {
        &self.pods[index].running.as_ref().unwrap().0
    }

    async fn wait_ready(&self, index: usize) {
        let mut health = self.node(index).health();
        soon(health.wait_for(|health| health.ready)).await.unwrap();
    }

    /// As a rolling restart does it: drain, stop, start, wait until it is ready.
    async fn restart(&mut self, index: usize, mode: TlsMode) {
        let (node, server) = self.pods[index].running.take().unwrap();
        server.drain().await;
        node.shutdown().await;
        self.start(index, mode).await;
        self.wait_ready(index).await;
    }

    fn options(&self) -> TlsOptions {
        TlsOptions {
            ca: self.folder.path().join("podkv-0/ca.crt"),
            ..TlsOptions::default()
        }
    }

    fn client(&self, tls: Option<TlsOptions>) -> Client {
        let builder = Client::builder().endpoints(self.pods.iter().map(|pod| &pod.client));
        let builder = match tls {
            Some(tls) => builder.tls(tls),
            None => builder,
        };
        // A failure must not take long to show; what must succeed has patience in its loop.
        builder.build().unwrap()
    }

    async fn stop(self) {
        for pod in self.pods {
            if let Some((node, server)) = pod.running {
                server.drain().await;
                node.shutdown().await;
            }
        }
    }
}

/// An address that nobody listens on, and that is not taken for outgoing connections.
async fn free_address() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let offset = u64::from(std::process::id()) * 61 + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.0.0.1:{}", 10_000 + offset % 20_000);
        if TcpListener::bind(&address).await.is_ok() {
            return address;
        }
    }
}

/// What a call says that cannot succeed.
async fn refusal(client: Client) -> String {
    let error = client.get("a").await.unwrap_err();
    client.close().await;
    error.to_string()
}

/// Writes one key after the other until it is told to stop; each must be acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u64>,
}

impl Writer {
    fn start(client: Client, first: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut number = first;
            while !stopped.load(Ordering::Relaxed) {
                let put = Put::new(format!("k{number}"), number.to_string());
                client.put(put).await.unwrap();
                number += 1;
            }
            client.close().await;
            number
        });
        Self { stop, task }
    }

    /// The first number that it has not written.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        soon(self.task).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_are_moved_from_off_to_require_under_a_writer() {
    let mut pods = Pods::started(3, TlsMode::Off).await;
    let writer = Writer::start(pods.client(None), 0);
    for index in 0..3 {
        pods.restart(index, TlsMode::Allow).await;
    }
    let next = writer.stop().await;
    assert!(next > 0);
    // Every node takes both now: the clients move.
    let writer = Writer::start(pods.client(Some(pods.options())), next);
    for index in 0..3 {
        pods.restart(index, TlsMode::Require).await;
    }
    let written = writer.stop().await;
    assert!(written > next);

    let client = pods.client(Some(pods.options()));
    for number in 0..written {
        let kv = client.get(format!("k{number}")).await.unwrap();
        assert_eq!(kv.unwrap().value, number.to_string());
    }
    client.close().await;
    let plain = pods.client(None);
    plain.get("k0").await.unwrap_err();
    plain.close().await;
    pods.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_let_in_disturbs_nobody_and_hears_about_the_certificate() {
    let mut pods = Pods::new(1).await;
    pods.client_auth = ClientAuth::Require;
    pods.start(0, TlsMode::Require).await;
    pods.wait_ready(0).await;
    let folder = pods.folder.path().to_path_buf();
    let with_pair = |ca: &Path, pair: &str| TlsOptions {
        ca: ca.to_path_buf(),
        cert: Some(folder.join(pair).join("tls.crt")),
        key: Some(folder.join(pair).join("tls.key")),
        server_name: None,
    };
    let (ca, stranger) = (pods.options().ca, TestCa::new());
    pods.ca.install(&folder.join("client"), &Leaf::new(&[]));
    stranger.install(&folder.join("stranger"), &Leaf::new(&[]));
    let welcome = pods.client(Some(with_pair(&ca, "client")));
    welcome.put(Put::new("a", "1")).await.unwrap();

    // Garbage of several kinds, on both ports: the connection ends, nothing else does.
    for address in [&pods.pods[0].client, &pods.pods[0].peer] {
        for bytes in [
            &b"\0\0\0\0\0\0\0\0"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            &[0x16; 600],
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();
            // An end, or a reset.
            let _ = soon(stream.read_to_end(&mut answer)).await;
        }
    }

    let wrong_ca = pods.client(Some(with_pair(&folder.join("stranger/ca.crt"), "client")));
    let no_pair = pods.client(Some(pods.options()));
    let foreign_pair = pods.client(Some(with_pair(&ca, "stranger")));
    let wrong_name = pods.client(Some(TlsOptions {
        server_name: Some("podkv-7".into()),
        ..with_pair(&ca, "client")
    }));
    let (wrong_ca, no_pair, foreign_pair, wrong_name) = tokio::join!(
        refusal(wrong_ca),
        refusal(no_pair),
        refusal(foreign_pair),
        refusal(wrong_name)
    );
    for (said, expected) in [
        (wrong_ca, "UnknownIssuer"),
        (no_pair, "asks for a certificate"),
        (foreign_pair, "UnknownCA"),
        (wrong_name, "podkv-7"),
    ] {
        assert!(
            said.contains("certificate") && said.contains(expected),
            "{said}"
        );
    }
    assert_eq!(welcome.get("a").await.unwrap().unwrap().value, "1");
    welcome.close().await;
    pods.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_changes_under_an_open_stream() {
    let pods = Pods::started(1, TlsMode::Require).await;
    let client = pods.client(Some(pods.options()));
    let mut events = client.watch(Watch::new(KeyRange::all())).await.unwrap();
    // The stream is open once it has said something.
    client.put(Put::new("before", "1")).await.unwrap();
    wait_for_event(&mut events, "before").await;

    let renewed = TlsOptions {
        server_name: Some("renewed".into()),
        ..pods.options()
    };
    let folder = pods.folder.path().join("podkv-0");
    pods.ca
        .install(&folder, &Leaf::new(&["podkv-0", "127.0.0.1", "renewed"]));
    let seen = async {
        loop {
            let newcomer = pods.client(Some(renewed.clone()));
            let answer = tokio::time::timeout(LOOK * 10, newcomer.get("before")).await;
            newcomer.close().await;
            if matches!(answer, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .expect("new connections see the new one");
    assert!(
        pods.node(0)
            .tls()
            .unwrap()
            .certificate()
            .names()
            .contains(&"renewed".to_string())
    );

    client.put(Put::new("after", "1")).await.unwrap();
    wait_for_event(&mut events, "after").await;
    client.close().await;
    pods.stop().await;
}

async fn wait_for_event(events: &mut podkv_api::WatchStream, key: &str) {
    let found = async {
        while let Some(message) = events.next().await {
            if let WatchMessage::Events { events, .. } = message.unwrap()
                && events.iter().any(|event| event.kv.key == key)
            {
                return;
            }
        }
        panic!("the watch ended");
    };
    soon(found).await;
}

#[tokio::test]
async fn a_certificate_of_another_pod_is_refused_before_anything_is_opened() {
    let pods = Pods::new(2).await;
    let mut config = pods.config(0, TlsMode::Allow);
    config.tls.cert = pods.folder.path().join("podkv-1/tls.crt");
    config.tls.key = pods.folder.path().join("podkv-1/tls.key");
    let error = open_tls(&config).await.unwrap_err();
    let said = error.text();
    assert!(
        said.contains("podkv-1/tls.crt") && said.contains("podkv-0"),
        "{said}"
    );
    assert!(Node::builder(config).start().await.is_err());
}
