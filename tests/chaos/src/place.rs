//! Where the nodes live: their addresses, their disks, and what can be done to both.
//!
//! ```text
//!   with namespaces:   this process 10.77.0.1 ── bridge ── node0 10.77.0.10   each node in a network namespace,
//!                                                     ├── node1 10.77.0.11   each on a file system of its own,
//!                                                     └── node2 10.77.0.12   in an image that is mounted
//!   without:           127.0.0.1, three folders; no partitions, no disk that is full
//! ```
//!
//! Rules between nodes do not touch clients: a leader that is cut off from its peers goes on hearing from them, which
//! is how stale reads are made.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use podkv_tests::process::free_ports;
use rustix::mount::{MountFlags, mount};

use crate::Result;

pub const NODES: usize = 3;
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const ADMIN_PORT: u16 = 2381;
/// A node with its log, two states and a snapshot in transfer needs a tenth of it.
const DISK_BYTES: u64 = 512 << 20;

/// How bytes flow between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing to or from the other nodes.
    Peers,
    /// Nothing from one other node; what is sent to it arrives.
    From(usize),
    /// Nothing to or from anybody.
    All,
}

pub struct Place {
    folder: PathBuf,
    namespaces: bool,
    ports: Vec<u16>,
}

impl Place {
    /// Lays it out. `namespaces`: this process is in namespaces of its own.
    pub fn create(folder: &Path, namespaces: bool) -> Result<Self> {
        let place = Self {
            folder: folder.to_path_buf(),
            namespaces,
            ports: if namespaces {
                Vec::new()
            } else {
                free_ports(3 * NODES)
            },
        };
        if namespaces {
            place.lay_network()?;
        }
        for node in 0..NODES {
            std::fs::create_dir_all(place.disk(node))?;
            if namespaces {
                place.mount_disk(node)?;
            }
        }
        Ok(place)
    }

    pub fn has_namespaces(&self) -> bool {
        self.namespaces
    }

    /// Where a node's volume is.
    pub fn disk(&self, node: usize) -> PathBuf {
        self.folder.join(format!("disk-{node}"))
    }

    pub fn data(&self, node: usize) -> PathBuf {
        self.disk(node).join("data")
    }

    fn address(&self, node: usize, port: u16) -> String {
        if self.namespaces {
            return format!("10.77.0.{}:{port}", 10 + node);
        }
        let port = self.ports[3 * node + usize::from(port - CLIENT_PORT)];
        format!("127.0.0.1:{port}")
    }

    pub fn client_address(&self, node: usize) -> String {
        self.address(node, CLIENT_PORT)
    }

    pub fn client_addresses(&self) -> Vec<String> {
        (0..NODES).map(|node| self.client_address(node)).collect()
    }

    /// The command that runs a node, below the program that `prefix` names.
    pub fn command(&self, binary: &Path, node: usize, prefix: &[String]) -> Command {
        let peers: Vec<_> = (0..NODES)
            .map(|node| format!("podkv-{node}={}", self.address(node, PEER_PORT)))
            .collect();
        let mut command = if self.namespaces {
            // It becomes the program, so its process id is the node's.
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &format!("node{node}")]);
            command.args(prefix).arg(binary);
            command
        } else if let Some((program, arguments)) = prefix.split_first() {
            let mut command = Command::new(program);
            command.args(arguments).arg(binary);
            command
        } else {
            Command::new(binary)
        };
        command
            .arg("serve")
            .arg(format!("--name=podkv-{node}"))
            .arg(format!("--data-dir={}", self.data(node).display()))
            .arg(format!(
                "--client-listen={}",
                self.address(node, CLIENT_PORT)
            ))
            .arg(format!("--peer-listen={}", self.address(node, PEER_PORT)))
            .arg(format!("--admin-listen={}", self.address(node, ADMIN_PORT)))
            .arg(format!("--peers={}", peers.join(",")))
            .arg("--timing=fast")
            // Snapshots, purges and installs many times a minute.
            .args(["--snapshot-log-bytes=2MiB", "--log-keep-bytes=256KiB"])
            .arg("--cache-bytes=32MiB")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    fn lay_network(&self) -> Result<()> {
        // `ip` names network namespaces there, and the machine's are not ours.
        mount("chaos", "/run", "tmpfs", MountFlags::empty(), None)?;
        let mut commands = vec![
            "link set lo up".to_string(),
            "link add nodes type bridge".into(),
            "link set nodes up".into(),
            "addr add 10.77.0.1/24 dev nodes".into(),
        ];
        for node in 0..NODES {
            commands.extend([
                format!("netns add node{node}"),
                format!("link add veth{node} type veth peer name eth0 netns node{node}"),
                format!("link set veth{node} master nodes up"),
            ]);
        }
        feed("ip", &["-batch", "-"], &commands.join("\n"))?;
        for node in 0..NODES {
            let commands = format!(
                "link set lo up\naddr add 10.77.0.{}/24 dev eth0\nlink set eth0 up",
                10 + node
            );
            feed(
                "ip",
                &["-n", &format!("node{node}"), "-batch", "-"],
                &commands,
            )?;
        }
        Ok(())
    }

    fn mount_disk(&self, node: usize) -> Result<()> {
        let image = self.folder.join(format!("disk-{node}.img"));
        std::fs::File::create(&image)?.set_len(DISK_BYTES)?;
        feed(
            "mkfs.ext4",
            &["-q", "-F", "-m", "0", &image.display().to_string()],
            "",
        )?;
        let (image, disk) = (image.display().to_string(), self.disk(node));
        feed(
            "mount",
            &["-o", "loop", &image, &disk.display().to_string()],
            "",
        )
    }

    /// Cuts a node off.
    pub fn cut(&self, node: usize, cut: Cut) -> Result<()> {
        let others: Vec<_> = match cut {
            Cut::All => {
                return feed("ip", &["link", "set", &format!("veth{node}"), "down"], "");
            }
            Cut::Peers => (0..NODES).filter(|other| *other != node).collect(),
            Cut::From(other) => vec![other],
        };
        let others: Vec<_> = others
            .into_iter()
            .map(|other| format!("10.77.0.{}", 10 + other))
            .collect();
        let others = others.join(", ");
        let mut rules = format!(
            "add table ip cut\n\
             add chain ip cut in {{ type filter hook input priority 0; }}\n\
             add rule ip cut in ip saddr {{ {others} }} drop\n"
        );
        if cut == Cut::Peers {
            rules += &format!(
                "add chain ip cut out {{ type filter hook output priority 0; }}\n\
                 add rule ip cut out ip daddr {{ {others} }} drop\n"
            );
        }
        let namespace = format!("node{node}");
        feed(
            "ip",
            &["netns", "exec", &namespace, "nft", "-f", "-"],
            &rules,
        )
    }

    /// Lets a node back.
    pub fn heal(&self, node: usize) -> Result<()> {
        let namespace = format!("node{node}");
        feed("ip", &["link", "set", &format!("veth{node}"), "up"], "")?;
        feed(
            "ip",
            &["netns", "exec", &namespace, "nft", "-f", "-"],
            "flush ruleset",
        )
    }

    fn ballast(&self, node: usize) -> PathBuf {
        self.disk(node).join("ballast")
    }

    /// Takes all space of a node's disk; returns how much that was.
    pub fn fill(&self, node: usize) -> Result<u64> {
        let mut ballast = std::fs::File::create(self.ballast(node))?;
        let piece = vec![0_u8; 1 << 20];
        let mut taken = 0;
        // By smaller and smaller pieces, until not a byte is left.
        let mut size = piece.len();
        while size > 0 {
            match ballast.write(&piece[..size]) {
                Ok(0) => size /= 2,
                Ok(written) => taken += written as u64,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => size /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(taken)
    }

    /// Gives it back.
    pub fn free(&self, node: usize) -> Result<()> {
        match std::fs::remove_file(self.ballast(node)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Runs a program with this input; what it complains of is the error.
fn feed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    // Who wants no input may be gone before it could be given.
    if let Some(mut stdin) = child.stdin.take().filter(|_| !input.is_empty()) {
        stdin.write_all(input.as_bytes())?;
        stdin.write_all(b"\n")?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let arguments = arguments.join(" ");
    Err(format!("{program} {arguments}: {complaint}; it was given:\n{input}").into())
}
