//! What was seen from inside a pod, or from any machine that reaches a node. Plain data: nothing here asks anybody.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podkv_api::{Member, NodeStatus};

/// Everything that was asked, and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub settings: Settings,
    pub size: SizeSeen,
    /// `None` outside of a StatefulSet's pod.
    pub service: Option<ServiceSeen>,
    /// The pods that there should be, but this one.
    pub peers: Vec<PeerSeen>,
    pub tls: TlsSeen,
    /// This container's own node; `None` if there is none.
    pub own: Option<OwnNode>,
    /// The committed members, as the first node that answered knows them.
    pub members: Result<Vec<Member>, String>,
    pub nodes: Vec<NodeSeen>,
}

/// The settings that `podkv serve` would have here.
#[derive(Clone, Debug)]
pub(crate) enum Settings {
    /// No setting of a node is in this environment.
    Absent,
    Bad(String),
    Good {
        name: String,
        in_memory: bool,
    },
}

/// How many pods there should be, asked of the API server as the node does it.
#[derive(Clone, Debug)]
pub(crate) enum SizeSeen {
    /// The settings name no StatefulSet.
    NotAsked,
    Read {
        start: u32,
        replicas: u32,
    },
    BeingDeleted,
    /// 403, and what is missing.
    Forbidden(String),
    /// 401.
    Unauthenticated(String),
    /// 404, or no ServiceAccount.
    Misnamed(String),
    Failed(String),
}

/// What DNS says of a name.
#[derive(Clone, Debug)]
pub(crate) enum Lookup<T> {
    Found(T),
    /// The server says that there is none.
    NoSuchName,
    /// Nothing is known.
    Failed(String),
}

/// The headless service in DNS.
#[derive(Clone, Debug)]
pub(crate) struct ServiceSeen {
    /// `_grpc-peer._tcp.podkv-headless.state.svc.cluster.local.`
    pub name: String,
    /// How many targets.
    pub srv: Lookup<usize>,
    pub cluster_domain: String,
    /// `kubernetes.default.svc.<domain>`, which every cluster has.
    pub domain_is_right: Lookup<()>,
}

/// One of the other pods.
#[derive(Clone, Debug)]
pub(crate) struct PeerSeen {
    pub pod: String,
    /// `host:port` for peers.
    pub address: String,
    pub addresses: Lookup<Vec<IpAddr>>,
    pub port: PortSeen,
}

/// What dialling a peer's port came to.
#[derive(Clone, Debug)]
pub(crate) enum PortSeen {
    /// There was no address to dial.
    NotDialled,
    Open,
    /// Somebody is there and nobody listens.
    Refused,
    /// Nothing came back.
    Silent,
    Failed(String),
    /// It is open, and TLS on it does not come about.
    Tls(String),
}

/// This container's certificate.
#[derive(Clone, Debug)]
pub(crate) enum TlsSeen {
    Off,
    Bad(String),
    Good {
        /// Plain text is taken, too.
        allows_plain: bool,
        expires_in_seconds: i64,
    },
}

/// What the admin port of this container's node says.
#[derive(Clone, Debug)]
pub(crate) struct OwnNode {
    /// The answer of `/readyz`: whether it is, and why not.
    pub ready: Result<(bool, String), String>,
    /// `/metrics`: each sample by its name and labels.
    pub metrics: BTreeMap<String, f64>,
}

/// A member, or an endpoint that was given.
#[derive(Clone, Debug)]
pub(crate) struct NodeSeen {
    pub address: String,
    pub status: Result<NodeStatus, String>,
}

impl OwnNode {
    /// The samples of a page of metrics. Lines that are none are passed over.
    pub fn parse(page: &str) -> BTreeMap<String, f64> {
        page.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect()
    }

    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.get(name).copied()
    }

    /// An upper bound of what this share of a histogram took, in seconds; `None` of an empty one.
    pub fn quantile(&self, histogram: &str, share: f64) -> Option<f64> {
        let prefix = format!("{histogram}_bucket{{le=\"");
        let mut buckets: Vec<(f64, f64)> = self
            .metrics
            .iter()
            .filter_map(|(name, count)| {
                let bound = name.strip_prefix(&prefix)?.strip_suffix("\"}")?;
                let bound = match bound {
                    "+Inf" => f64::INFINITY,
                    bound => bound.parse().ok()?,
                };
                Some((bound, *count))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (_, total) = *buckets.last().filter(|(_, total)| *total > 0.0)?;
        let enough = buckets.iter().find(|(_, count)| *count >= total * share);
        enough.map(|(bound, _)| *bound)
    }
}
