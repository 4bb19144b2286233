//! The pods' network: a bridge, and for each pod a network namespace of its own with one address on it.
//!
//! ```text
//!   10.244.0.0/16, fd00:244::/64   pods; the stage itself is the first address
//!   10.96.0.0/16, fd00:96::/64     services; those of DNS and of the API server are on the stage's loopback,
//!                                  the others are nowhere and are translated (`service.rs`)
//! ```
//!
//! No address is given twice: a pod that is made anew is somewhere else, as on a cluster that is busy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::Result;

/// Which addresses the cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

const BRIDGE: &str = "pods";
/// The pods' first address: the stage.
const STAGE: u16 = 1;

/// A network namespace that is on the bridge.
#[derive(Debug)]
pub struct Attachment {
    /// Under `/run/netns`.
    pub namespace: String,
    pub ip: IpAddr,
}

pub struct Network {
    pub family: Family,
    next: AtomicU16,
}

impl Network {
    /// Lays the bridge, in the network namespace that this process is in.
    pub async fn create(family: Family) -> Result<Self> {
        let network = Self {
            family,
            next: AtomicU16::new(0x100),
        };
        let (stage, services) = match family {
            Family::V4 => (format!("{}/16", network.pod_ip(STAGE)), "10.96.0.0/16"),
            Family::V6 => (format!("{}/64", network.pod_ip(STAGE)), "fd00:96::/64"),
        };
        ip(
            &[],
            &[
                "link set lo up".into(),
                format!("link add {BRIDGE} type bridge"),
                format!("link set {BRIDGE} up"),
                format!("addr add {stage} dev {BRIDGE}{}", network.no_detection()),
                // What is sent there is translated before it leaves.
                format!("route add {services} dev {BRIDGE}"),
            ],
        )
        .await?;
        Ok(network)
    }

    fn pod_ip(&self, number: u16) -> IpAddr {
        match self.family {
            Family::V4 => {
                let [high, low] = number.to_be_bytes();
                Ipv4Addr::new(10, 244, high, low).into()
            }
            Family::V6 => Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, number).into(),
        }
    }

    /// The address of a service.
    pub fn service_ip(&self, number: u8) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::new(10, 96, 0, number).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into(),
        }
    }

    /// Without it an IPv6 address cannot be used for a second.
    fn no_detection(&self) -> &'static str {
        match self.family {
            Family::V4 => "",
            Family::V6 => " nodad",
        }
    }

    /// A service that is served by this very process.
    pub async fn serve_here(&self, ip_address: IpAddr) -> Result<()> {
        let command = format!("addr add {ip_address} dev lo{}", self.no_detection());
        ip(&[], &[command]).await
    }

    /// Makes a network namespace with an address of its own.
    pub async fn attach(&self) -> Result<Attachment> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("pod{number}");
        let address = self.pod_ip(number);
        let length = match self.family {
            Family::V4 => 16,
            Family::V6 => 64,
        };
        ip(
            &[],
            &[
                format!("netns add {namespace}"),
                format!("link add veth{number} type veth peer name eth0 netns {namespace}"),
                format!("link set veth{number} master {BRIDGE} up"),
            ],
        )
        .await?;
        ip(
            &["-n", &namespace],
            &[
                "link set lo up".into(),
                format!(
                    "addr add {address}/{length} dev eth0{}",
                    self.no_detection()
                ),
                "link set eth0 up".into(),
                format!("route add default via {}", self.pod_ip(STAGE)),
            ],
        )
        .await?;
        Ok(Attachment {
            namespace,
            ip: address,
        })
    }

    /// Its address answers no more, as when a node has taken it back: not even with a refusal.
    pub async fn detach(&self, attachment: &Attachment) -> Result<()> {
        let number = attachment.namespace.trim_start_matches("pod");
        ip(
            &[],
            &[
                format!("link del veth{number}"),
                format!("netns del {}", attachment.namespace),
            ],
        )
        .await
    }

    /// Cuts a pod off, or lets it back: nothing reaches it, and it does not know.
    pub async fn set_reachable(&self, attachment_ip: IpAddr, reachable: bool) -> Result<()> {
        let number = match attachment_ip {
            IpAddr::V4(ip) => u16::from_be_bytes([ip.octets()[2], ip.octets()[3]]),
            IpAddr::V6(ip) => ip.segments()[7],
        };
        let state = if reachable { "up" } else { "down" };
        ip(&[], &[format!("link set veth{number} {state}")]).await
    }
}

/// Several commands of `ip`, in one process.
async fn ip(options: &[&str], commands: &[String]) -> Result<()> {
    feed(
        "ip",
        &[options, &["-batch", "-"]].concat(),
        &commands.join("\n"),
    )
    .await
}

/// Runs a program with this input; what it complains of is the error.
pub(super) async fn feed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await?;
        stdin.write_all(b"\n").await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{program} {}: {complaint}; it was given:\n{input}",
        arguments.join(" ")
    )
    .into())
}
