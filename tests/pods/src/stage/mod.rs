//! The stage: a cluster for one StatefulSet, in namespaces of its own.
//!
//! ```text
//!   stage (network, mount and process namespaces)
//!   ├─ world       what the API server knows                      world.rs, manifests.rs
//!   ├─ API server  10.96.0.1:443     ─┐
//!   ├─ DNS         10.96.0.10:53      ├─ tell it to the pods      api_server.rs, dns.rs
//!   ├─ services    10.96.0.20, …     ─┘  and to clients           service.rs
//!   ├─ kubelet     pods, containers, probes                       kubelet.rs, life.rs, probe.rs, sandbox.rs, …
//!   ├─ controller  scale, rolling update, delete                  controller.rs
//!   ├─ Deployments pods of programs that are no nodes              application.rs
//!   └─ bridge ── a network namespace for each pod                 network.rs
//! ```
//!
//! Everything that is not podkv is ours; everything that is podkv is what ships.

pub mod api_server;
mod application;
mod controller;
pub mod dns;
mod kubelet;
mod life;
mod manifests;
mod network;
mod nodes;
mod probe;
pub mod sandbox;
pub mod secrets;
mod service;
mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::mount::{MountFlags, mount, mount_bind};
use tokio::task::JoinSet;

use api_server::{Account, ApiServer};
pub use application::Application;
pub use controller::VolumeFate;
use dns::Dns;
pub use kubelet::{ClusterFacts, Entrypoint, IMAGE_PROGRAM, Kubelet, Running};
pub use manifests::{Manifests, StatefulSet};
pub use network::Family;
use network::Network;
pub use nodes::{Identity, NodeView, until};
pub use world::{Pod, World};

use crate::Result;

const API_SERVER: u8 = 1;
const DNS: u8 = 10;
const FIRST_SERVICE: u8 = 20;

/// How a stage is set.
#[derive(Clone, Debug)]
pub struct Setting {
    pub manifests: Manifests,
    pub binary: PathBuf,
    /// Where volumes and logs go.
    pub folder: PathBuf,
    pub seed: u64,
    pub replicas: u32,
    pub family: Family,
    /// How far the endpoints of the virtual addresses lag behind.
    pub endpoint_lag: Duration,
    pub host_names: HostNames,
}

/// What a container finds as its host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostNames {
    OfPods,
    /// As with `hostNetwork`.
    OfMachines,
}

pub struct Stage {
    pub world: Arc<World>,
    pub kubelet: Arc<Kubelet>,
    pub dns: Arc<Dns>,
    pub api_server: Arc<ApiServer>,
    pub binary: PathBuf,
    pub service_ips: BTreeMap<String, IpAddr>,
    /// The pods that should run, by ordinal; those that were left running on a dead machine are not among them.
    pods: Mutex<BTreeMap<u32, Running>>,
    /// DNS, API server, virtual addresses.
    _tasks: JoinSet<()>,
}

impl Stage {
    /// Sets the stage; no pod runs yet. The process must be in namespaces of its own: see [`crate::namespaces`].
    pub async fn set(setting: Setting) -> Result<Self> {
        std::fs::create_dir_all(&setting.folder)?;
        hide_host_files()?;
        let world = Arc::new(World::new(
            setting.manifests,
            setting.replicas,
            setting.seed,
        )?);
        let network = Network::create(setting.family).await?;
        let (api_ip, dns_ip) = (network.service_ip(API_SERVER), network.service_ip(DNS));
        network.serve_here(api_ip).await?;
        network.serve_here(dns_ip).await?;
        let service_ips: BTreeMap<_, _> = world
            .services
            .iter()
            .filter(|service| !service.is_headless())
            .zip(FIRST_SERVICE..)
            .map(|(service, number)| (service.metadata.name.clone(), network.service_ip(number)))
            .collect();
        let mut tasks = JoinSet::new();
        let account = account(&world, setting.seed)?;
        let token = account.as_ref().map(|account| account.token.clone());
        let api_server = ApiServer::serve(world.clone(), account, api_ip, &mut tasks).await?;
        let dns = Dns::serve(
            world.clone(),
            service_ips.clone(),
            dns_ip,
            setting.seed,
            &mut tasks,
        )
        .await?;
        service::serve(
            world.clone(),
            service_ips.clone(),
            setting.endpoint_lag,
            &mut tasks,
        )
        .await?;
        resolve_as_a_pod(&world, dns_ip, &setting.folder)?;
        let facts = ClusterFacts {
            dns: dns_ip,
            api_server: api_ip,
            ca: api_server.ca.clone(),
            token,
            service_ips: service_ips.clone(),
        };
        let kubelet = Arc::new(Kubelet::new(
            world.clone(),
            network,
            facts,
            setting.host_names,
            setting.folder,
            setting.binary.clone(),
        )?);
        Ok(Self {
            world,
            kubelet,
            dns,
            api_server,
            binary: setting.binary,
            service_ips,
            pods: Mutex::default(),
            _tasks: tasks,
        })
    }

    pub fn folder(&self) -> &Path {
        self.kubelet.folder()
    }

    /// `podkv.podkv.svc.cluster.local`, without a trailing dot.
    pub fn service_name(&self, service: &str) -> String {
        format!(
            "{service}.{}.svc.{}",
            self.world.namespace, self.world.cluster_domain
        )
    }
}

/// The pods' ServiceAccount, if the manifests name one that exists, and its token is mounted.
fn account(world: &World, seed: u64) -> Result<Option<Account>> {
    let pod = world.stateful_set()?.spec.template.spec;
    let Some(account) = world.manifests.service_account(&pod.service_account_name)? else {
        return Ok(None);
    };
    let mounted = pod
        .automount_service_account_token
        .or(account.automount_service_account_token)
        .unwrap_or(true);
    Ok(mounted.then(|| Account {
        name: account.metadata.name,
        token: format!("token-of-a-rehearsal-{seed:x}"),
    }))
}

/// Network namespaces are named below `/run`; the host should not see them.
fn hide_host_files() -> Result<()> {
    mount("stage", "/run", "tmpfs", MountFlags::empty(), None)?;
    std::fs::create_dir_all("/run/netns")?;
    Ok(())
}

/// Clients of the stage resolve names as a pod of another workload would.
fn resolve_as_a_pod(world: &World, dns: IpAddr, folder: &Path) -> Result<()> {
    let file = folder.join("resolv.conf");
    std::fs::write(
        &file,
        kubelet::resolv_conf(dns, &world.namespace, &world.cluster_domain),
    )?;
    let target = Path::new("/etc/resolv.conf");
    // It may be a link into `/run`, which is empty here.
    if let Ok(link) = std::fs::read_link(target) {
        let to = Path::new("/etc").join(link);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if !to.exists() {
            std::fs::write(to, "")?;
        }
    }
    Ok(mount_bind(&file, target)?)
}
