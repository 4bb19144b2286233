//! The servers that are measured: clusters of real processes on loopback, each with folders and ports of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use crate::Result;

/// How long a cluster may take until it serves.
const START: Duration = Duration::from_secs(120);

/// Beyond what is measured: a pause must not be an error.
const QUOTA_BYTES: &str = "8589934592";

/// What runs.
#[derive(Clone, Debug)]
pub enum Program {
    Etcd(PathBuf),
    /// With settings of `podkv serve` beside those that a cluster needs.
    Podkv(PathBuf, Vec<String>),
    /// Answers at once and keeps nothing: what gRPC itself costs. One process, whatever the size of the cluster.
    Nothing,
}

/// A running cluster. Killed when dropped.
pub struct Cluster {
    nodes: Vec<Node>,
}

struct Node {
    program: Program,
    arguments: Vec<String>,
    /// For clients, `host:port`.
    address: String,
    folder: PathBuf,
    process: Option<Child>,
}

impl Cluster {
    /// Starts `size` nodes with folders below `folder`, and waits until they serve.
    pub async fn start(program: &Program, size: usize, folder: &Path) -> Result<Self> {
        let nodes = match program {
            Program::Etcd(_) => etcd(program, size, folder)?,
            Program::Podkv(_, extra) => podkv(program, extra, size, folder)?,
            Program::Nothing => nothing()?,
        };
        let mut cluster = Self { nodes };
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// Starts every node that does not run. Returns when each of them serves, with the time that it took.
    pub async fn start_all(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        for node in &mut self.nodes {
            if node.process.is_none() {
                node.process = Some(node.spawn()?);
            }
        }
        for node in &mut self.nodes {
            tokio::time::timeout(START, node.serves()).await??;
        }
        Ok(begun.elapsed())
    }

    /// Where clients connect, node by node.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// A connection to a node.
    pub async fn connect(&self, node: usize) -> Result<Channel> {
        let node = self.nodes.get(node).ok_or("there is no such node")?;
        Ok(node.endpoint()?.connect().await?)
    }

    /// Which node leads; the first of a cluster without Raft.
    pub async fn leader(&self) -> Result<usize> {
        if matches!(self.nodes.first(), Some(node) if matches!(node.program, Program::Nothing)) {
            return Ok(0);
        }
        for (index, node) in self.nodes.iter().enumerate() {
            if node.process.is_none() {
                continue;
            }
            let mut maintenance = MaintenanceClient::new(self.connect(index).await?);
            let status = maintenance.status(pb::StatusRequest {}).await?.into_inner();
            let own = status.header.unwrap_or_default().member_id;
            if own == status.leader {
                return Ok(index);
            }
        }
        Err("no node leads".into())
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self, node: usize) -> Result<()> {
        let node = self.nodes.get_mut(node).ok_or("there is no such node")?;
        if let Some(mut process) = node.process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    pub async fn kill_all(&mut self) -> Result<()> {
        for node in 0..self.nodes.len() {
            self.kill(node).await?;
        }
        Ok(())
    }

    /// Processor time that all nodes have used so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.pids().map(|pid| cpu_of(&pid.to_string())).sum()
    }

    /// Memory of each node, in bytes.
    pub fn memory(&self) -> Result<Vec<u64>> {
        self.pids().map(memory_of).collect()
    }

    /// What the folder of each node takes on disk, in bytes.
    pub fn disk(&self) -> Result<Vec<u64>> {
        self.nodes
            .iter()
            .map(|node| disk_of(&node.folder))
            .collect()
    }

    fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        let processes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        processes.filter_map(Child::id)
    }
}

impl Node {
    fn new(program: &Program, address: String, folder: PathBuf, arguments: Vec<String>) -> Self {
        Self {
            program: program.clone(),
            arguments,
            address,
            folder,
            process: None,
        }
    }

    fn spawn(&self) -> Result<Child> {
        let binary = match &self.program {
            Program::Etcd(binary) | Program::Podkv(binary, _) => binary.clone(),
            Program::Nothing => std::env::current_exe()?,
        };
        let process = Command::new(&binary)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        process.map_err(|error| format!("{}: {error}", binary.display()).into())
    }

    fn endpoint(&self) -> Result<Endpoint> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))?;
        Ok(endpoint.tcp_nodelay(true))
    }

    /// Waits for the first answer to a linearizable read.
    async fn serves(&mut self) -> Result<()> {
        let endpoint = self.endpoint()?;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.try_wait()?
            {
                return Err(format!("{:?} ended: {status}", self.program).into());
            }
            if let Ok(channel) = endpoint.connect().await {
                let first = pb::RangeRequest {
                    key: "first".into(),
                    ..Default::default()
                };
                if KvClient::new(channel).range(first).await.is_ok() {
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn etcd(program: &Program, size: usize, folder: &Path) -> Result<Vec<Node>> {
    let addresses = free_addresses(2 * size)?;
    let (clients, peers) = addresses.split_at(size);
    let url = |address: &String| format!("http://{address}");
    let all = peers.iter().enumerate();
    let all: Vec<_> = all
        .map(|(index, peer)| format!("etcd-{index}={}", url(peer)))
        .collect();
    let nodes = clients.iter().zip(peers).enumerate();
    let nodes = nodes.map(|(index, (client, peer))| {
        let name = format!("etcd-{index}");
        let folder = folder.join(&name);
        let arguments = [
            ("--name", name),
            ("--data-dir", folder.display().to_string()),
            ("--listen-client-urls", url(client)),
            ("--advertise-client-urls", url(client)),
            ("--listen-peer-urls", url(peer)),
            ("--initial-advertise-peer-urls", url(peer)),
            ("--initial-cluster", all.join(",")),
            ("--quota-backend-bytes", QUOTA_BYTES.to_owned()),
            ("--logger", "zap".to_owned()),
            ("--log-level", "error".to_owned()),
        ];
        let arguments = arguments.map(|(name, value)| format!("{name}={value}"));
        Node::new(program, client.clone(), folder, arguments.into())
    });
    Ok(nodes.collect())
}

fn podkv(program: &Program, extra: &[String], size: usize, folder: &Path) -> Result<Vec<Node>> {
    let addresses = free_addresses(3 * size)?;
    let (clients, others) = addresses.split_at(size);
    let (peers, admins) = others.split_at(size);
    let all = peers.iter().enumerate();
    let all: Vec<_> = all
        .map(|(index, peer)| format!("podkv-{index}={peer}"))
        .collect();
    let nodes = clients.iter().zip(peers).zip(admins).enumerate();
    nodes
        .map(|(index, ((client, peer), admin))| {
            let name = format!("podkv-{index}");
            let folder = folder.join(&name);
            std::fs::create_dir_all(&folder)?;
            let mut arguments = vec![
                "serve".to_owned(),
                format!("--name={name}"),
                format!("--data-dir={}", folder.display()),
                format!("--client-listen={client}"),
                format!("--peer-listen={peer}"),
                format!("--admin-listen={admin}"),
                format!("--peers={}", all.join(",")),
            ];
            arguments.extend_from_slice(extra);
            Ok(Node::new(program, client.clone(), folder, arguments))
        })
        .collect()
}

fn nothing() -> Result<Vec<Node>> {
    let address = free_addresses(1)?.remove(0);
    let arguments = vec!["nothing".to_owned(), address.clone()];
    let folder = PathBuf::from("/nonexistent");
    Ok(vec![Node::new(
        &Program::Nothing,
        address,
        folder,
        arguments,
    )])
}

/// The podkv of this tree.
pub fn this_trees() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR");
    target
        .map_or_else(|| root.join("target"), PathBuf::from)
        .join("debug/podkv")
}

fn free_addresses(count: usize) -> Result<Vec<String>> {
    // All at once, so that no two are the same.
    let listeners = std::iter::repeat_with(|| TcpListener::bind("127.0.0.1:0")).take(count);
    let listeners = listeners.collect::<std::io::Result<Vec<_>>>()?;
    let addresses = listeners.iter().map(|listener| listener.local_addr());
    let addresses = addresses.collect::<std::io::Result<Vec<_>>>()?;
    Ok(addresses.iter().map(ToString::to_string).collect())
}

/// User and system time of a process, by the name of its folder in `/proc`.
pub fn cpu_of(process: &str) -> Result<Duration> {
    /// Of a second; Linux has it so on every machine that we know.
    const TICKS: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is the program's name, which may hold anything but the last parenthesis.
    let (_, fields) = stat.rsplit_once(')').ok_or("a stat without a name")?;
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks = times
        .map(str::parse::<u64>)
        .sum::<std::result::Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

fn memory_of(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib
        .ok_or("a status without memory")?
        .trim()
        .parse::<u64>()?
        << 10)
}

fn disk_of(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // What was there a moment ago may be gone: a store cleans up while it is looked at.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        bytes += match metadata.is_dir() {
            true => disk_of(&entry.path())?,
            false => blocks(&metadata),
        };
    }
    Ok(bytes)
}

/// What a file takes, not how far it reaches: etcd reserves its log in advance.
fn blocks(metadata: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    metadata.blocks() * 512
}
