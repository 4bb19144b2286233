//! Pods of a Deployment: programs that are no nodes, each with what the manifest puts beside it.
//!
//! ```text
//!   network and process namespace, held by a process that does nothing (Kubernetes' "pause")
//!   ├─ init containers   one after the other, each to its end; one with `restartPolicy: Always`, a sidecar, stays
//!   └─ containers        emptyDir volumes are folders that all of the pod's containers mount
//! ```
//!
//! A container is what `sandbox.rs` makes of the manifest, as a node's is. It is not started again: here one that ends, or
//! that its liveness probe would end, is a failure, and the readiness probe says when the pod has started.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::kubelet::{Kubelet, PodFacts, give_to_group, rights_of};
use super::manifests::{Container, Deployment, PodSpec, admit};
use super::sandbox::{ENTRYPOINT, Mount, Spec};
use super::{probe, until};
use crate::{PATIENCE, Result, ensure};

/// Images whose program is podkv.
const OUR_IMAGE: &str = "podkv:";
/// What images of other programs have below `/etc` that these read: the host's stand for it.
const FILES_OF_IMAGES: [&str; 1] = ["/etc/nginx/mime.types"];

/// A pod whose containers run. Dropping it kills it.
pub struct Application {
    pub name: String,
    pub ip: IpAddr,
    folder: PathBuf,
    /// With it, process 1 of the pod, everything in the pod ends.
    _pause: Child,
    /// Each runs as long as its container does, and says how that ended.
    containers: JoinSet<String>,
    /// Container, and process of the machine.
    processes: Vec<(String, u32)>,
}

impl Application {
    /// Starts one pod; returns when it is ready.
    pub async fn start(kubelet: &Kubelet, deployment: &Deployment, number: u32) -> Result<Self> {
        let template = &deployment.spec.template;
        let pod = &template.spec;
        admit(pod)?;
        ensure(pod.share_process_namespace, || {
            "a pod whose containers do not see each other's processes is not played".into()
        })?;
        let name = format!("{}-{number}", deployment.metadata.name);
        let uid = kubelet.take_uid();
        let folder = kubelet.folder().join("pods").join(format!("{name}.{uid}"));
        make_volumes(&folder, pod)?;
        let attachment = kubelet.network().attach().await?;
        let network = format!("--net=/run/netns/{}", attachment.namespace);
        let pause = Command::new("nsenter")
            .arg(&network)
            .args(["--", "unshare", "--uts", "--pid", "--ipc"])
            .args(["--fork", "--kill-child=KILL", "--", "sleep", "infinity"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let first = child_of(&pause).await?;
        let mut started = Self {
            ip: attachment.ip,
            folder,
            _pause: pause,
            containers: JoinSet::new(),
            processes: Vec::new(),
            name,
        };
        let facts = PodFacts {
            name: &started.name.clone(),
            host_name: &started.name.clone(),
            uid,
            ip: started.ip,
            annotations: &template.metadata.annotations,
            spec: pod,
        };
        for container in pod.init_containers.iter().chain(&pod.containers) {
            let child = started.run(kubelet, &facts, container, first).await?;
            let is_first_step = pod
                .init_containers
                .iter()
                .any(|init| init.name == container.name && container.restart_policy != "Always");
            if is_first_step {
                started.to_its_end(child, container).await?;
            } else {
                started.watch(child, container).await?;
            }
        }
        started.wait_ready(pod).await?;
        Ok(started)
    }

    /// The folder behind a volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.folder.join("volumes").join(name)
    }

    /// Everything that the container has written to its log.
    pub fn log(&self, container: &str) -> String {
        fs::read_to_string(self.log_file(container)).unwrap_or_default()
    }

    /// What the container's process holds in memory beside the pages of files, in KiB.
    pub fn memory_kib(&self, container: &str) -> Option<u64> {
        let (_, process) = self.processes.iter().find(|(name, _)| name == container)?;
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    }

    /// Every container has run ever since, and was alive.
    pub fn check(&mut self) -> Result<()> {
        let ended = self.containers.try_join_next().transpose()?;
        ensure(ended.is_none(), || {
            format!("{}: {}", self.name, ended.unwrap_or_default())
        })
    }

    fn log_file(&self, container: &str) -> PathBuf {
        self.folder.join(format!("{container}.log"))
    }

    async fn run(
        &self,
        kubelet: &Kubelet,
        pod: &PodFacts<'_>,
        container: &Container,
        first: u32,
    ) -> Result<Child> {
        let folder = self.folder.join(&container.name);
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        let mut files = kubelet.files(pod.host_name, pod.ip, pod.name);
        let is_ours = container.image.starts_with(OUR_IMAGE);
        if !is_ours {
            for file in FILES_OF_IMAGES {
                files.insert(file.into(), fs::read_to_string(file)?);
            }
        }
        let environment = kubelet.environment(pod, container)?;
        let expand = |text: &String| {
            let variables = environment.iter();
            variables.fold(text.clone(), |text, (name, value)| {
                text.replace(&format!("$({name})"), value)
            })
        };
        let program = match (container.command.as_slice(), is_ours) {
            ([], true) => vec![ENTRYPOINT.to_string()],
            ([], false) => {
                return Err(format!("what {} starts is not known", container.image).into());
            }
            (command, _) => command.to_vec(),
        };
        let command = program.iter().chain(&container.args).map(expand).collect();
        let spec = Spec {
            root,
            host_name: pod.host_name.into(),
            binary: is_ours.then(|| kubelet.binary().to_path_buf()),
            command,
            environment,
            files,
            mounts: self.mounts(pod.spec, container)?,
            rights: rights_of(pod.spec, container),
        };
        let path = folder.join("spec.json");
        fs::write(&path, serde_json::to_vec_pretty(&spec)?)?;
        let log = fs::File::create(self.log_file(&container.name))?;
        let child = Command::new("nsenter")
            .arg(format!("--target={first}"))
            .args(["--net", "--uts", "--pid", "--ipc"])
            .args(["--", "unshare", "--mount", "--"])
            .arg(std::env::current_exe()?)
            .arg("sandbox")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        Ok(child)
    }

    fn mounts(&self, pod: &PodSpec, container: &Container) -> Result<Vec<Mount>> {
        let mounts = container.volume_mounts.iter().map(|mount| {
            let is_here = pod
                .volumes
                .iter()
                .any(|volume| volume.name == mount.name && volume.empty_dir.is_some());
            ensure(is_here, || {
                format!("{} is no emptyDir of the pod", mount.name)
            })?;
            Ok(Mount {
                source: self.volume(&mount.name),
                target: mount.mount_path.clone().into(),
                read_only: mount.read_only,
            })
        });
        mounts.collect()
    }

    async fn to_its_end(&self, mut child: Child, container: &Container) -> Result<()> {
        let status = timeout(PATIENCE, child.wait()).await;
        let status = status.map_err(|_| format!("{} does not end", container.name))??;
        ensure(status.success(), || {
            let log = self.log(&container.name);
            format!("{} of {}: {status}: {log}", container.name, self.name)
        })
    }

    async fn watch(&mut self, mut child: Child, container: &Container) -> Result<()> {
        let process = child_of(&child).await?;
        self.processes.push((container.name.clone(), process));
        let (container, ip) = (container.clone(), self.ip);
        self.containers.spawn(async move {
            let name = &container.name;
            tokio::select! {
                status = child.wait() => format!("{name} ended: {status:?}"),
                () = probe::until_dead(ip, &container) => format!("{name} is not alive, says its probe"),
            }
        });
        Ok(())
    }

    async fn wait_ready(&mut self, pod: &PodSpec) -> Result<()> {
        for container in &pod.containers {
            let Some(readiness) = &container.readiness_probe else {
                continue;
            };
            let what = format!("{} of {} is ready", container.name, self.name);
            until(&what, PATIENCE, async || {
                self.check().map_err(|error| error.to_string())?;
                let is_ready = probe::succeeds(readiness, self.ip, container).await;
                is_ready
                    .then_some(())
                    .ok_or_else(|| self.log(&container.name))
            })
            .await?;
        }
        Ok(())
    }
}

fn make_volumes(folder: &Path, pod: &PodSpec) -> Result<()> {
    for volume in &pod.volumes {
        let path = folder.join("volumes").join(&volume.name);
        fs::create_dir_all(&path)?;
        if let Some(group) = pod.security_context.fs_group {
            give_to_group(&path, group)?;
        }
    }
    Ok(())
}

/// What `unshare --fork` or `nsenter` waits for.
async fn child_of(outer: &Child) -> Result<u32> {
    let outer = outer.id().ok_or("it has ended already")?;
    let path = format!("/proc/{outer}/task/{outer}/children");
    until("a process starts", PATIENCE, async || {
        let children = fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let first = children.split_whitespace().next();
        let process = first.and_then(|process| process.parse().ok());
        process.ok_or_else(|| "it has none yet".to_string())
    })
    .await
}
