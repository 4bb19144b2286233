//! What makes a node the node of a pod: its name, its peers, how many there should be, and how it leaves.
//!
//! Nothing differs between the pods of a StatefulSet but their names, so nothing is set for each of them:
//!
//! ```no_run
//! # async fn example() -> podkv_api::Result<()> {
//! use podkv_node::config::StorageConfig;
//! use podkv_pod::{Pod, PodSettings};
//!
//! let pod = Pod::find(PodSettings::new("shop-headless", "shop"))?;
//! let storage = StorageConfig::Disk { data_dir: "/var/lib/shop".into() };
//! let node = pod.builder(pod.config(storage))?.start().await?;
//! // … until SIGTERM. A pod that is scaled away votes until the others have taken it out.
//! podkv_pod::leave(&node, std::time::Duration::from_secs(90)).await;
//! node.drain().await;
//! node.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! It takes what [`crate::Surroundings`] and Kubernetes' environment say, and a Role that may `get` the StatefulSet.

#[cfg(feature = "kubernetes")]
mod kubernetes;
mod surroundings;

use std::sync::Arc;
use std::time::Duration;

use podkv_api::{Error, Reason, Result};
use podkv_node::config::{NodeConfig, StorageConfig};
use podkv_node::discovery::{OrdinalDiscovery, SrvDiscovery};
use podkv_node::dns::{Dns, DnsSettings};
use podkv_node::{Node, NodeBuilder};

#[cfg(feature = "kubernetes")]
pub use self::kubernetes::StatefulSetSource;
pub use self::surroundings::{PodNetwork, Surroundings, is_domain, is_label, search_domain};

/// The port for peers, by convention.
pub const PEER_PORT: u16 = 2380;
/// Where a kubelet puts the pod's token and the API server's CA.
pub const ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// To learn whether this pod is being scaled away. It is unready only afterwards, so this must be short.
pub const SIZE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a pod cannot find out about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSettings {
    /// The headless service that names the pods, with a port named `grpc-peer`.
    pub headless_service: String,
    /// The StatefulSet whose `replicas` are followed; its pods are called after it.
    pub statefulset: String,
    pub peer_port: u16,
}

impl PodSettings {
    pub fn new(headless_service: impl Into<String>, statefulset: impl Into<String>) -> Self {
        Self {
            headless_service: headless_service.into(),
            statefulset: statefulset.into(),
            peer_port: PEER_PORT,
        }
    }
}

/// A pod of a StatefulSet, as it finds itself.
#[derive(Clone, Debug)]
pub struct Pod {
    name: String,
    network: PodNetwork,
    peer_port: u16,
    cache_bytes: u64,
    #[cfg(feature = "kubernetes")]
    statefulset: StatefulSetSource,
}

#[cfg(feature = "kubernetes")]
impl Pod {
    /// Looks around: host name, `/etc/resolv.conf`, Kubernetes' environment.
    ///
    /// # Errors
    /// [`Reason::Configuration`] if this is no pod of that StatefulSet.
    pub fn find(settings: PodSettings) -> Result<Self> {
        Self::from(settings, &Surroundings::read(), |name| {
            std::env::var(name).ok()
        })
    }

    fn from(
        settings: PodSettings,
        surroundings: &Surroundings,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let wrong = |text: String| Error::new(Reason::Configuration, text);
        let name = surroundings.pod_name().to_owned();
        let ordinal = name
            .strip_prefix(&settings.statefulset)
            .and_then(|rest| rest.strip_prefix('-'));
        if ordinal.is_none_or(|ordinal| ordinal.parse::<u32>().is_err()) {
            let set = &settings.statefulset;
            return Err(wrong(format!(
                "the host name is {name:?}, and the pods of the StatefulSet {set} are called {set}-0, {set}-1, …"
            )));
        }
        let (namespace, cluster_domain) =
            search_domain(&surroundings.resolv_conf).ok_or_else(|| {
                wrong(
                    "/etc/resolv.conf has no search list of a pod (<namespace>.svc.<domain>)"
                        .into(),
                )
            })?;
        let of_kubernetes = |name: &str| {
            variable(name).ok_or_else(|| {
                wrong(format!(
                    "{name} is not set: Kubernetes sets it in every container; is this one?"
                ))
            })
        };
        let port = of_kubernetes("KUBERNETES_SERVICE_PORT")?;
        let statefulset = StatefulSetSource {
            host: of_kubernetes("KUBERNETES_SERVICE_HOST")?,
            port: port.parse().map_err(|_| {
                wrong(format!(
                    "KUBERNETES_SERVICE_PORT is {port:?}, which is no port"
                ))
            })?,
            account_dir: ACCOUNT_DIR.into(),
            namespace: namespace.clone(),
            name: settings.statefulset,
        };
        Ok(Self {
            name,
            network: PodNetwork {
                headless_service: settings.headless_service,
                namespace,
                cluster_domain,
            },
            peer_port: settings.peer_port,
            cache_bytes: surroundings.cache_bytes(),
            statefulset,
        })
    }

    /// `flags-0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The settings of this pod's node, to be changed as you like. It has no port for clients.
    pub fn config(&self, storage: StorageConfig) -> NodeConfig {
        let mut config = NodeConfig::new(self.name.clone(), storage);
        config.peer_listen = format!("[::]:{}", self.peer_port);
        config.peer_address = self.network.address(&self.name, self.peer_port);
        config.client_address = String::new();
        config.cache_bytes = usize::try_from(self.cache_bytes).unwrap_or(usize::MAX);
        config
    }

    /// A node that finds its peers through DNS, and follows the StatefulSet's `replicas`.
    pub fn builder(&self, config: NodeConfig) -> Result<NodeBuilder> {
        let discovery = discovery(&self.network, &self.name, self.peer_port)?;
        Ok(Node::builder(config)
            .discovery(Arc::new(discovery))
            .size_source(Arc::new(self.statefulset.clone())))
    }
}

/// Finds the pods of the StatefulSet that `pod` belongs to, behind their headless service.
///
/// # Errors
/// [`Reason::Configuration`] if the system's resolver cannot be read.
pub fn discovery(network: &PodNetwork, pod: &str, peer_port: u16) -> Result<SrvDiscovery> {
    let (base, _) = pod.rsplit_once('-').unwrap_or_default();
    let ordinals = OrdinalDiscovery {
        base: base.into(),
        domain: network.domain(),
        port: peer_port,
    };
    Ok(SrvDiscovery::new(
        Dns::from_system(&DnsSettings::default())?,
        ordinals,
    ))
}

/// To be called on SIGTERM, before the node drains. A pod that is scaled away is one of several that end at once: if
/// they all went now, they could take the majority with them. It votes on until the membership is without it, or
/// for `patience`, which must end before the pod's `terminationGracePeriodSeconds` do. Returns at once in a pod that is
/// only restarted.
pub async fn leave(node: &Node, patience: Duration) {
    let Some(size) = node.beyond_size(SIZE_TIMEOUT).await else {
        return;
    };
    let (start, replicas) = (size.start, size.replicas);
    tracing::info!(
        start,
        replicas,
        ?patience,
        "beyond the desired size: leaving"
    );
    match tokio::time::timeout(patience, node.leave()).await {
        Ok(()) => tracing::info!("the membership is without this node"),
        Err(_elapsed) => tracing::warn!(
            ?patience,
            "still a member, as far as this node knows; the leader removes it later"
        ),
    }
}

#[cfg(all(test, feature = "kubernetes"))]
mod tests {
    use super::*;

    fn surroundings(host_name: &str, resolv_conf: &str) -> Surroundings {
        Surroundings {
            host_name: host_name.into(),
            resolv_conf: resolv_conf.into(),
            memory_limit: Some(1 << 30),
        }
    }

    fn find(host_name: &str, resolv_conf: &str, port: Option<&str>) -> Result<Pod> {
        let settings = PodSettings::new("flags-headless", "flags");
        Pod::from(
            settings,
            &surroundings(host_name, resolv_conf),
            |name| match name {
                "KUBERNETES_SERVICE_HOST" => Some("10.96.0.1".into()),
                "KUBERNETES_SERVICE_PORT" => port.map(Into::into),
                _ => None,
            },
        )
    }

    const RESOLV_CONF: &str = "search prod.svc.cluster.local svc.cluster.local cluster.local";

    #[test]
    fn a_pod_finds_itself() {
        let pod = find("flags-2", RESOLV_CONF, Some("443")).unwrap();
        let config = pod.config(StorageConfig::Memory);
        assert_eq!(config.name, "flags-2");
        assert_eq!(
            config.peer_address,
            "flags-2.flags-headless.prod.svc.cluster.local.:2380"
        );
        assert_eq!(config.cache_bytes, 256 << 20);
        assert_eq!(pod.statefulset.namespace, "prod");
    }

    #[test]
    fn what_is_no_pod_of_the_set_is_told_why() {
        for (host_name, resolv_conf, port, expected) in [
            ("laptop", RESOLV_CONF, Some("443"), "are called flags-0"),
            ("flags", RESOLV_CONF, Some("443"), "are called flags-0"),
            ("flags-x", RESOLV_CONF, Some("443"), "are called flags-0"),
            ("flagship-0", RESOLV_CONF, Some("443"), "are called flags-0"),
            ("flags-0", "search fritz.box", Some("443"), "resolv.conf"),
            (
                "flags-0",
                RESOLV_CONF,
                None,
                "KUBERNETES_SERVICE_PORT is not set",
            ),
            ("flags-0", RESOLV_CONF, Some("https"), "no port"),
        ] {
            let error = find(host_name, resolv_conf, port).unwrap_err();
            assert_eq!(error.reason(), Reason::Configuration);
            assert!(error.text().contains(expected), "{error}");
        }
    }
}
