//! The stores that programs run on: a real etcd, and three nodes of podkv.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use podkv_node::testing::{TestCluster, cluster_with};
use podkv_server::Server;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::link::Link;
use crate::step::Request;

/// An etcd of its own process, which ends when this is dropped.
pub struct Etcd {
    process: Child,
    folder: TempDir,
    pub address: String,
}

impl Etcd {
    /// # Panics
    /// If there is no `etcd` to be run, or it does not come up.
    pub async fn start() -> Self {
        let mut folder = tempfile::tempdir().unwrap();
        // Another process may take the ports between here and there: then etcd ends, and the next try has others.
        for _ in 0..5 {
            let (client, peer) = (free_address(), free_address());
            let process = spawn(folder.path().join(&client), &client, &peer);
            let mut etcd = Self {
                process,
                folder,
                address: client,
            };
            if etcd.is_up().await {
                return etcd;
            }
            folder = {
                let _ = etcd.process.kill().await;
                etcd.folder
            };
        }
        panic!("etcd does not come up: is Debian's etcd-server installed?");
    }

    async fn is_up(&mut self) -> bool {
        for _ in 0..600 {
            if matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)) {
                return false;
            }
            if tokio::net::TcpStream::connect(&self.address).await.is_ok() {
                // It listens; the first answer waits until it leads.
                let link = self.link().await;
                let status = Request::Status(podkv_proto::etcd::etcdserverpb::StatusRequest {});
                return link.call(0, status).await.is_ok();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    pub async fn link(&self) -> Link {
        Link::dial("etcd", std::slice::from_ref(&self.address)).await
    }

    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn spawn(data: PathBuf, client: &str, peer: &str) -> Child {
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    Command::new("etcd")
        .arg("--data-dir")
        .arg(data)
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--logger", "zap", "--log-level", "error"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("etcd (Debian's etcd-server): {error}"))
}

/// Three nodes in this process, on memory storage, each with its port for clients.
pub struct Podkv {
    // Before the nodes: a server holds one.
    servers: Vec<Server>,
    cluster: TestCluster,
}

impl Podkv {
    pub async fn start() -> Self {
        // As etcd's, whose clients come in clear here.
        let cluster = cluster_with(3, |config| config.auth_without_tls = true).await;
        let mut servers = Vec::new();
        for index in 0..3 {
            let server = Server::builder(cluster.node(index)).listen("127.0.0.1:0");
            servers.push(server.await.unwrap());
        }
        Self { servers, cluster }
    }

    pub fn addresses(&self) -> Vec<String> {
        let addresses = self
            .servers
            .iter()
            .map(|server| server.local_address().to_owned());
        addresses.collect()
    }

    /// Where the leader is now.
    pub async fn leader_address(&self) -> String {
        let leader = self.cluster.leader().await;
        self.servers[leader].local_address().to_owned()
    }

    pub async fn link(&self) -> Link {
        Link::dial("podkv", &self.addresses()).await
    }
}
