//! podkv nodes as child processes, for tests that kill them.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use podkv_api::{Error, NodeStatus, Store as _};
use podkv_client::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The podkv binary of this tree, built if it is not up to date.
///
/// # Panics
/// If it does not build.
pub fn podkv_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build(&["--bins"], None))
}

/// One that ends at places which the environment names; it has a folder of its own, beside what the others use.
///
/// # Panics
/// If it does not build.
pub fn binary_with_fail_points() -> PathBuf {
    build(
        &["--bin", "podkv", "--features", "podkv-server/fail-points"],
        Some("fail-points"),
    )
}

/// Builds with the features of the whole workspace, into a folder in the target folder if one is named.
fn build(what: &[&str], folder: Option<&str>) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // As `make build` does: for one package alone cargo would choose other features, and build anew.
    let mut build = Command::new(cargo);
    // What cargo tells this test of its own package would be news to build scripts that look at it, and
    // half the tree would be built anew.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            build.env_remove(name.as_ref());
        }
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let own = folder.map_or_else(|| target.clone(), |folder| target.join(folder));
    if folder.is_some() && std::env::var_os("CARGO_BUILD_BUILD_DIR").is_none() {
        // What is compiled already serves both.
        build.env("CARGO_BUILD_BUILD_DIR", &target);
    }
    let built = build
        .args(["build", "--quiet", "--locked", "--workspace"])
        .args(what)
        .arg("--target-dir")
        .arg(&own)
        .current_dir(root)
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the podkv binary does not build");
    own.join("debug/podkv")
}

/// Ports that nobody listens on. Each node takes three.
///
/// They lie below the range that outgoing connections take theirs from: between the moment when a port is
/// found free and the moment when a node listens on it, a connection of another test could take it.
pub fn free_ports(count: usize) -> Vec<u16> {
    const FIRST: u32 = 10_000;
    const LAST: u32 = 32_000;
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    // Two test programs at the same time begin at different places, and no test gets a port twice.
    let next = NEXT.get_or_init(|| AtomicU32::new(std::process::id().wrapping_mul(97)));
    std::iter::repeat_with(|| FIRST + next.fetch_add(1, Ordering::Relaxed) % (LAST - FIRST))
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .take(count)
        .collect()
}

/// Where one node listens and lives.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub name: String,
    pub data_dir: PathBuf,
    pub client: String,
    pub peer: String,
    pub admin: String,
    pub peers: String,
    pub extra: Vec<String>,
}

impl NodeSpec {
    pub fn command(&self) -> Command {
        let mut command = Command::new(podkv_binary());
        command
            .arg("serve")
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.data_dir.display()))
            .arg(format!("--client-listen={}", self.client))
            .arg(format!("--peer-listen={}", self.peer))
            .arg(format!("--admin-listen={}", self.admin))
            .arg(format!("--peers={}", self.peers))
            .args(&self.extra)
            // The environment of whoever runs the tests is not part of the test.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if !self.extra.iter().any(|arg| arg.starts_with("--timing")) {
            command.arg("--timing=fast");
        }
        command
    }
}

/// A running node. Killed when dropped.
pub struct NodeProcess {
    child: Child,
    /// What it wrote to standard error, for the message of a failed test.
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl NodeProcess {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the podkv binary starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = child.stderr.take().expect("standard error is piped");
        let sink = log.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                sink.lock().expect("no writer panics").push(line);
            }
        });
        Self {
            child,
            log,
            reader: Some(reader),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    /// SIGTERM, and waits for the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> Option<i32> {
        let code = self.child.wait().ok().and_then(|status| status.code());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        code
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("no writer panics").join("\n")
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Nodes as processes on loopback, each with a folder of its own.
pub struct ProcessCluster {
    pub specs: Vec<NodeSpec>,
    pub nodes: Vec<Option<NodeProcess>>,
    pub folder: tempfile::TempDir,
}

impl ProcessCluster {
    /// Starts `count` nodes and waits until all serve.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, &[]).await
    }

    /// With extra arguments for every node.
    pub async fn start_with(count: usize, extra: &[&str]) -> Self {
        let mut cluster = Self::prepare(count, extra);
        for index in 0..count {
            cluster.restart(index);
        }
        for index in 0..count {
            cluster.wait_ready(index).await;
        }
        cluster
    }

    /// Lays out nodes and starts none.
    pub fn prepare(count: usize, extra: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ports = free_ports(3 * count);
        let address =
            |index: usize, offset: usize| format!("127.0.0.1:{}", ports[3 * index + offset]);
        let peers: Vec<String> = (0..count)
            .map(|index| format!("podkv-{index}={}", address(index, 1)))
            .collect();
        let specs: Vec<NodeSpec> = (0..count)
            .map(|index| NodeSpec {
                name: format!("podkv-{index}"),
                data_dir: folder.path().join(format!("podkv-{index}")),
                client: address(index, 0),
                peer: address(index, 1),
                admin: address(index, 2),
                peers: peers.join(","),
                extra: extra.iter().map(ToString::to_string).collect(),
            })
            .collect();
        let nodes = specs.iter().map(|_| None).collect();
        Self {
            specs,
            nodes,
            folder,
        }
    }

    /// Starts a node that is not running.
    pub fn restart(&mut self, index: usize) {
        let spec = &self.specs[index];
        std::fs::create_dir_all(&spec.data_dir).expect("the data folder can be made");
        self.nodes[index] = Some(NodeProcess::start(spec.command()));
    }

    pub fn kill(&mut self, index: usize) {
        if let Some(mut node) = self.nodes[index].take() {
            node.kill();
        }
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.specs.iter().map(|spec| spec.client.clone()).collect()
    }

    /// A client that knows every node. Nothing need run yet: it connects as its calls need.
    pub fn client(&self) -> Client {
        Self::client_to(self.endpoints(), false)
    }

    /// A client that stays on one node.
    pub fn client_of(&self, index: usize) -> Client {
        Self::client_to(vec![self.specs[index].client.clone()], true)
    }

    fn client_to(endpoints: Vec<String>, fixed: bool) -> Client {
        Client::builder()
            .endpoints(endpoints)
            .fixed(fixed)
            .deadline(Duration::from_secs(5))
            .build()
            .expect("the settings are right")
    }

    pub async fn status(&self, index: usize) -> Result<NodeStatus, Error> {
        let client = self.client_of(index);
        let status = client.status().await;
        client.close().await;
        status
    }

    /// A figure from a node's `/metrics`; `None` while the page does not hold it.
    pub async fn metric(&self, index: usize, name: &str) -> Option<f64> {
        let page = self.page(index, "/metrics").await?;
        page.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .and_then(|value| value.parse().ok())
    }

    /// What a node answers on its port for administration, with the head.
    async fn page(&self, index: usize, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.specs[index].admin).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: podkv\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await.ok()?;
        Some(page)
    }

    async fn says_ready(&self, index: usize) -> bool {
        let page = self.page(index, "/readyz").await;
        page.is_some_and(|page| page.starts_with("HTTP/1.1 200"))
    }

    /// Waits until the node answers a linearizable read, and says that it is ready.
    ///
    /// # Panics
    /// If it does not within a minute, or ends; with the node's log.
    pub async fn wait_ready(&mut self, index: usize) {
        let name = self.specs[index].name.clone();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            // A new client each time, so that this asks about the node and not about a client's memory of it.
            let client = self.client_of(index);
            let answer = client.get("ready").await;
            client.close().await;
            if answer.is_ok() && self.says_ready(index).await {
                return;
            }
            let node = self.nodes[index].as_mut().expect("it was started");
            assert!(node.is_running(), "{name} ended; its log:\n{}", node.log());
            assert!(
                tokio::time::Instant::now() < deadline,
                "{name} is not ready: {answer:?}; its log:\n{}",
                node.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The index of the leader: among those that claim to lead, the one with the highest term.
    pub async fn leader(&self) -> Option<usize> {
        let mut best: Option<(u64, usize)> = None;
        for index in 0..self.specs.len() {
            if self.nodes[index].is_none() {
                continue;
            }
            if let Ok(status) = self.status(index).await
                && status.leader == Some(status.header.member)
                && best.is_none_or(|(term, _)| status.header.term > term)
            {
                best = Some((status.header.term, index));
            }
        }
        best.map(|(_, index)| index)
    }

    /// Waits until one node leads.
    ///
    /// # Panics
    /// If none does within a minute.
    pub async fn wait_leader(&self) -> usize {
        let found = async {
            loop {
                if let Some(index) = self.leader().await {
                    return index;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), found)
            .await
            .expect("a leader within a minute")
    }
}
