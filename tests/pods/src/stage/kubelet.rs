//! The kubelet: runs pods, restarts their containers, probes them, and ends them as Kubernetes does.
//!
//! ```text
//!   start    network namespace and address ─► container (`sandbox.rs`) ─► probes (`probe.rs`)
//!   crash    the container ends ─► unready ─► started again after a back-off: the same pod, the same address
//!   delete   terminating ─► preStop sleep ─► SIGTERM ─► what is left of the grace ─► SIGKILL ─► gone, address and all
//!   lose     the machine is gone: SIGKILL and gone, nobody was told
//! ```
//!
//! Here is what a pod finds when it starts; what becomes of it then is in `life.rs`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::{mpsc, watch};

use super::life::PodTask;
use super::manifests::{Container, PodSpec, StatefulSet, admit};
use super::network::Network;
use super::sandbox::{ENTRYPOINT, Mount, Rights, Spec};
use super::world::{Pod, World};
use super::{HostNames, secrets};
use crate::Result;

const ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// As images have it.
const IMAGE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where an entry point of ours finds the image's own program.
pub const IMAGE_PROGRAM: &str = "/image/podkv";

/// What a pod is told.
#[derive(Debug)]
pub(super) enum Order {
    Delete,
    Lose,
    Signal(Signal),
}

/// A pod that runs, or did.
#[derive(Clone)]
pub struct Running {
    pub uid: u64,
    pub name: String,
    pub ip: IpAddr,
    orders: mpsc::Sender<Order>,
    gone: watch::Receiver<bool>,
}

impl Running {
    /// `kubectl delete pod`; returns when it is gone.
    pub async fn delete(&self) {
        let _ = self.orders.send(Order::Delete).await;
        self.wait_gone().await;
    }

    /// Its machine dies.
    pub async fn lose(&self) {
        let _ = self.orders.send(Order::Lose).await;
        self.wait_gone().await;
    }

    /// SIGKILL of the container's process: out of memory, say.
    pub async fn kill(&self) {
        self.signal(Signal::KILL).await;
    }

    pub async fn signal(&self, signal: Signal) {
        let _ = self.orders.send(Order::Signal(signal)).await;
    }

    pub async fn wait_gone(&self) {
        let mut gone = self.gone.clone();
        // An error is a task that has ended.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }
}

/// What a pod is told of itself.
pub(super) struct PodFacts<'a> {
    pub name: &'a str,
    pub host_name: &'a str,
    pub uid: u64,
    pub ip: IpAddr,
    pub annotations: &'a BTreeMap<String, String>,
    pub spec: &'a PodSpec,
}

/// What every container is told of the cluster.
#[derive(Clone, Debug)]
pub struct ClusterFacts {
    pub dns: IpAddr,
    pub api_server: IpAddr,
    /// Of the API server, PEM.
    pub ca: String,
    /// Of the pods' ServiceAccount; `None` if the manifests name none that exists.
    pub token: Option<String>,
    pub service_ips: BTreeMap<String, IpAddr>,
}

/// Takes the place of the image's program.
pub type Entrypoint = Option<(PathBuf, Vec<String>)>;

pub struct Kubelet {
    world: Arc<World>,
    network: Network,
    facts: ClusterFacts,
    host_names: HostNames,
    /// Holds `volumes`, `lost`, `logs`, `secrets`, `pods`.
    folder: PathBuf,
    binary: PathBuf,
    entrypoint: Mutex<Entrypoint>,
    next_uid: AtomicU64,
}

impl Kubelet {
    pub fn new(
        world: Arc<World>,
        network: Network,
        facts: ClusterFacts,
        host_names: HostNames,
        folder: PathBuf,
        binary: PathBuf,
    ) -> Result<Self> {
        for name in ["volumes", "lost", "logs", "secrets", "pods"] {
            fs::create_dir_all(folder.join(name))?;
        }
        Ok(Self {
            world,
            network,
            facts,
            host_names,
            folder,
            binary,
            entrypoint: Mutex::default(),
            next_uid: AtomicU64::new(1),
        })
    }

    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub(super) fn binary(&self) -> &Path {
        &self.binary
    }

    pub(super) fn take_uid(&self) -> u64 {
        self.next_uid.fetch_add(1, Ordering::Relaxed)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// From now on containers start this instead, with the program's own path and arguments behind it.
    pub fn set_entrypoint(&self, entrypoint: Entrypoint) {
        *self
            .entrypoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = entrypoint;
    }

    /// The volume of a claim: `data-podkv-0`.
    pub fn volume(&self, claim: &str) -> PathBuf {
        self.folder.join("volumes").join(claim)
    }

    pub fn log(&self, pod: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{pod}.log"))
    }

    /// A note between a pod's own lines.
    pub fn note(&self, pod: &str, text: &str) {
        if let Ok(mut log) = self.open_log(pod) {
            // A log that cannot be written shows in the pod's own lines.
            let _ = writeln!(log, "--- kubelet: {text}");
        }
    }

    pub(super) fn open_log(&self, pod: &str) -> Result<File> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log(pod))?;
        Ok(log)
    }

    /// Starts a pod of the StatefulSet.
    pub async fn start(self: &Arc<Self>, ordinal: u32) -> Result<Running> {
        let stateful_set = self.world.stateful_set()?;
        admit(&stateful_set.spec.template.spec)?;
        let name = format!("{}-{ordinal}", stateful_set.metadata.name);
        let container = stateful_set.spec.template.spec.containers.first();
        let container = Arc::new(container.ok_or("the pod has no container")?.clone());
        let attachment = self.network.attach().await?;
        let uid = self.take_uid();
        let spec = self.prepare(uid, &name, &stateful_set, &container, attachment.ip)?;
        self.world.add(Pod {
            uid,
            name: name.clone(),
            ip: attachment.ip,
            labels: stateful_set.spec.template.metadata.labels.clone(),
            subdomain: stateful_set.spec.service_name.clone(),
            container: container.clone(),
            ready: false,
            ready_since: None,
            terminating: false,
        });
        self.note(&name, &format!("pod {uid} starts at {}", attachment.ip));
        let (orders, received) = mpsc::channel(16);
        let (gone, was_gone) = watch::channel(false);
        let running = Running {
            uid,
            name: name.clone(),
            ip: attachment.ip,
            orders,
            gone: was_gone,
        };
        let spec_of_pod = &stateful_set.spec.template.spec;
        let pre_stop = container.lifecycle.as_ref();
        let pre_stop = pre_stop.and_then(|lifecycle| lifecycle.pre_stop.as_ref()?.sleep.as_ref());
        let task = PodTask {
            kubelet: self.clone(),
            uid,
            name,
            container: container.clone(),
            attachment,
            spec,
            grace: Duration::from_secs(spec_of_pod.termination_grace_period_seconds),
            pre_stop: Duration::from_secs(pre_stop.map_or(0, |sleep| sleep.seconds)),
            orders: received,
        };
        tokio::spawn(async move {
            task.run().await;
            gone.send_replace(true);
        });
        Ok(running)
    }

    /// Lays out all that the container finds, and writes it down for the runtime.
    fn prepare(
        &self,
        uid: u64,
        name: &str,
        stateful_set: &StatefulSet,
        container: &Container,
        ip: IpAddr,
    ) -> Result<PathBuf> {
        let pod = &stateful_set.spec.template.spec;
        let namespace = &self.world.namespace;
        let folder = self.folder.join("pods").join(format!("{name}.{uid}"));
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        let host_name = match self.host_names {
            HostNames::OfPods => name.to_string(),
            HostNames::OfMachines => format!("machine-{uid}"),
        };
        let subdomain = &stateful_set.spec.service_name;
        let domain = &self.world.cluster_domain;
        let full_name = format!("{name}.{subdomain}.{namespace}.svc.{domain}");
        let mut files = self.files(&host_name, ip, &format!("{full_name}\t{name}"));
        if let Some(token) = &self.facts.token {
            let account = Path::new(ACCOUNT_DIR);
            files.insert(account.join("token"), token.clone());
            files.insert(account.join("ca.crt"), self.facts.ca.clone());
            files.insert(account.join("namespace"), namespace.clone());
        }
        let entrypoint = self
            .entrypoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut mounts = self.mounts(name, stateful_set, container)?;
        let (binary, arguments) = match &*entrypoint {
            None => (self.binary.clone(), container.args.clone()),
            Some((binary, arguments)) => {
                // The image's own program beside it.
                let image = folder.join("image");
                fs::create_dir_all(&image)?;
                let copy = image.join("podkv");
                if fs::hard_link(&self.binary, &copy).is_err() {
                    fs::copy(&self.binary, &copy)?;
                }
                mounts.push(Mount {
                    source: image,
                    target: "/image".into(),
                    read_only: true,
                });
                (
                    binary.clone(),
                    [arguments.as_slice(), &container.args].concat(),
                )
            }
        };
        let facts = PodFacts {
            name,
            host_name: &host_name,
            uid,
            ip,
            annotations: &stateful_set.spec.template.metadata.annotations,
            spec: pod,
        };
        let spec = Spec {
            root,
            environment: self.environment(&facts, container)?,
            host_name,
            binary: Some(binary),
            command: [&[ENTRYPOINT.to_string()], &arguments[..]].concat(),
            files,
            mounts,
            rights: rights_of(pod, container),
        };
        let path = folder.join("spec.json");
        fs::write(&path, serde_json::to_vec_pretty(&spec)?)?;
        Ok(path)
    }

    /// Volumes of claims, which stay when the pod goes, and secrets.
    fn mounts(
        &self,
        name: &str,
        stateful_set: &StatefulSet,
        container: &Container,
    ) -> Result<Vec<Mount>> {
        let claims = &stateful_set.spec.volume_claim_templates;
        let pod = &stateful_set.spec.template.spec;
        let mut mounts = Vec::new();
        for mount in &container.volume_mounts {
            let claimed = claims.iter().any(|claim| claim.metadata.name == mount.name);
            let secret = pod
                .volumes
                .iter()
                .find(|volume| volume.name == mount.name)
                .and_then(|volume| volume.secret.as_ref());
            let source = if claimed {
                let volume = self.volume(&format!("{}-{name}", mount.name));
                fs::create_dir_all(&volume)?;
                if let Some(group) = pod.security_context.fs_group {
                    give_to_group(&volume, group)?;
                }
                volume
            } else if let Some(secret) = secret {
                secrets::mount_folder(&self.folder, &secret.secret_name)
            } else {
                return Err(format!("the volume {} is not in the manifest", mount.name).into());
            };
            mounts.push(Mount {
                source,
                target: mount.mount_path.clone().into(),
                read_only: mount.read_only,
            });
        }
        Ok(mounts)
    }

    /// What every container finds below `/etc`. `names` are the pod's own.
    pub(super) fn files(
        &self,
        host_name: &str,
        ip: IpAddr,
        names: &str,
    ) -> BTreeMap<PathBuf, String> {
        let (namespace, domain) = (&self.world.namespace, &self.world.cluster_domain);
        BTreeMap::from([
            (
                "/etc/resolv.conf".into(),
                resolv_conf(self.facts.dns, namespace, domain),
            ),
            (
                "/etc/hosts".into(),
                format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{ip}\t{names}\n"),
            ),
            ("/etc/hostname".into(), format!("{host_name}\n")),
            ("/etc/nsswitch.conf".into(), "hosts: files dns\n".into()),
        ])
    }

    /// The variables of the manifest, and those that Kubernetes adds.
    pub(super) fn environment(
        &self,
        pod: &PodFacts<'_>,
        container: &Container,
    ) -> Result<BTreeMap<String, String>> {
        let host = self.facts.api_server.to_string();
        let mut environment = BTreeMap::from([
            ("PATH".into(), IMAGE_PATH.into()),
            ("HOSTNAME".into(), pod.host_name.to_string()),
            ("KUBERNETES_SERVICE_HOST".into(), host.clone()),
            ("KUBERNETES_SERVICE_PORT".into(), "443".into()),
            ("KUBERNETES_SERVICE_PORT_HTTPS".into(), "443".into()),
            ("KUBERNETES_PORT".into(), format!("tcp://{host}:443")),
        ]);
        if pod.spec.enable_service_links {
            for (service, ip) in &self.facts.service_ips {
                let prefix = service.replace('-', "_").to_uppercase();
                environment.insert(format!("{prefix}_SERVICE_HOST"), ip.to_string());
                environment.insert(format!("{prefix}_SERVICE_PORT"), "2379".into());
                environment.insert(format!("{prefix}_PORT"), format!("tcp://{ip}:2379"));
            }
        }
        for variable in &container.env {
            let value = match &variable.value_from {
                None => variable.value.clone(),
                Some(source) => pod.field(&source.field_ref.field_path, &self.world.namespace)?,
            };
            environment.insert(variable.name.clone(), value);
        }
        Ok(environment)
    }
}

impl PodFacts<'_> {
    /// The downward API.
    fn field(&self, path: &str, namespace: &str) -> Result<String> {
        let annotation = path.strip_prefix("metadata.annotations['");
        if let Some(name) = annotation.and_then(|rest| rest.strip_suffix("']")) {
            let value = self.annotations.get(name);
            return value
                .cloned()
                .ok_or_else(|| format!("the pod has no {path}").into());
        }
        Ok(match path {
            "metadata.name" => self.name.to_string(),
            "metadata.namespace" => namespace.to_string(),
            "metadata.uid" => self.uid.to_string(),
            "status.podIP" => self.ip.to_string(),
            other => return Err(format!("fieldRef {other} is not known here").into()),
        })
    }
}

pub(super) fn rights_of(pod: &PodSpec, container: &Container) -> Rights {
    let (of_pod, of_container) = (&pod.security_context, &container.security_context);
    let dropped = &of_container.capabilities.drop;
    Rights {
        // As the image says, where the manifest does not.
        user: of_pod.run_as_user.unwrap_or(65532),
        group: of_pod.run_as_group.unwrap_or(65532),
        supplementary_groups: of_pod.fs_group.into_iter().collect(),
        read_only_root: of_container.read_only_root_filesystem,
        drop_capabilities: dropped.iter().any(|name| name == "ALL"),
        no_new_privileges: of_container.allow_privilege_escalation == Some(false),
    }
}

/// `/etc/resolv.conf` of a pod with the policy ClusterFirst.
pub fn resolv_conf(dns: IpAddr, namespace: &str, domain: &str) -> String {
    format!(
        "search {namespace}.svc.{domain} svc.{domain} {domain}\nnameserver {dns}\noptions ndots:5\n"
    )
}

/// As a kubelet does with `fsGroup`, for a volume whose root is not yet the group's.
pub(super) fn give_to_group(volume: &Path, group: u32) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    if fs::metadata(volume)?.gid() != group {
        std::os::unix::fs::chown(volume, None, Some(group))?;
        fs::set_permissions(volume, fs::Permissions::from_mode(0o2775))?;
    }
    Ok(())
}
