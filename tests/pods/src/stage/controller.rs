//! The StatefulSet controller, with `podManagementPolicy: Parallel`: what `kubectl` asks for, done as it does it.
//!
//! - A size that grows starts all missing pods at once; one that shrinks ends all excess pods at once.
//! - A rolling update goes from the highest ordinal down, and waits for each pod to be ready for `minReadySeconds`.
//! - A pod that is deleted comes back under its name, at another address, with its volume.

use std::sync::PoisonError;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Running, Stage};
use crate::Result;

/// What becomes of a pod's volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeFate {
    Kept,
    /// The next pod gets an empty one. The old one is put aside, where the end of the rehearsal looks at it.
    Lost,
}

impl Stage {
    fn pods_lock(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<u32, Running>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pods that should run, by ordinal.
    pub fn running(&self) -> Vec<(u32, Running)> {
        let pods = self.pods_lock();
        pods.iter()
            .map(|(ordinal, pod)| (*ordinal, pod.clone()))
            .collect()
    }

    pub fn pod(&self, ordinal: u32) -> Result<Running> {
        let pod = self.pods_lock().get(&ordinal).cloned();
        pod.ok_or_else(|| format!("there is no pod {ordinal}").into())
    }

    /// Starts the pod of this ordinal.
    pub async fn start(&self, ordinal: u32) -> Result<Running> {
        let pod = self.kubelet.start(ordinal).await?;
        self.pods_lock().insert(ordinal, pod.clone());
        Ok(pod)
    }

    /// `kubectl apply`: every pod at once, as many as the StatefulSet says.
    pub async fn start_all(&self) -> Result<()> {
        let replicas = self.world.stateful_set()?.spec.replicas;
        try_join_all((0..replicas).map(|ordinal| self.start(ordinal))).await?;
        Ok(())
    }

    /// `kubectl scale`; returns when excess pods are gone and missing ones started.
    pub async fn scale(&self, replicas: u32) -> Result<()> {
        self.world
            .edit_stateful_set(|object| object["spec"]["replicas"] = json!(replicas));
        let excess: Vec<_> = self
            .pods_lock()
            .split_off(&replicas)
            .into_values()
            .collect();
        join_all(excess.iter().map(Running::delete)).await;
        let missing: Vec<u32> = {
            let pods = self.pods_lock();
            (0..replicas)
                .filter(|ordinal| !pods.contains_key(ordinal))
                .collect()
        };
        try_join_all(missing.into_iter().map(|ordinal| self.start(ordinal))).await?;
        Ok(())
    }

    /// Changes variables of the container and rolls, as `kubectl apply` and `rollout status` do.
    pub async fn roll_with(&self, edit: impl FnOnce(&mut Value)) -> Result<()> {
        self.world
            .edit_stateful_set(|object| edit(&mut object["spec"]["template"]));
        self.roll().await
    }

    /// `kubectl rollout restart`.
    pub async fn roll(&self) -> Result<()> {
        let ordinals: Vec<u32> = self.pods_lock().keys().rev().copied().collect();
        for ordinal in ordinals {
            self.pod(ordinal)?.delete().await;
            let pod = self.start(ordinal).await?;
            self.wait_available(&pod).await?;
        }
        Ok(())
    }

    /// The pod is deleted, as a drain does it, and comes back elsewhere.
    pub async fn delete(&self, ordinal: u32, volume: VolumeFate) -> Result<Running> {
        self.pod(ordinal)?.delete().await;
        self.come_back(ordinal, volume).await
    }

    /// Its machine dies, and the pod comes back elsewhere.
    pub async fn lose(&self, ordinal: u32, volume: VolumeFate) -> Result<Running> {
        self.pod(ordinal)?.lose().await;
        self.come_back(ordinal, volume).await
    }

    async fn come_back(&self, ordinal: u32, volume: VolumeFate) -> Result<Running> {
        if volume == VolumeFate::Lost {
            self.put_aside(ordinal)?;
        }
        self.start(ordinal).await
    }

    /// Every claim of this pod: the next pod finds it empty.
    pub fn put_aside(&self, ordinal: u32) -> Result<()> {
        let lost = self.folder().join("lost");
        for volume in self.volumes(ordinal)? {
            if volume.exists() {
                let number = std::fs::read_dir(&lost)?.count();
                let name = format!("{}-{number}", self.pod_name(ordinal)?);
                std::fs::rename(volume, lost.join(name))?;
            }
        }
        Ok(())
    }

    /// How long a container that answers nobody is left alone by its liveness probe; without one, for ever.
    pub fn liveness_patience(&self) -> Result<Duration> {
        let pod = self.world.stateful_set()?.spec.template.spec;
        let probe = pod
            .containers
            .first()
            .and_then(|container| container.liveness_probe.as_ref());
        let probe = probe.ok_or("the container has no liveness probe")?;
        let seconds = probe.period_seconds * u64::from(probe.failure_threshold);
        Ok(Duration::from_secs(probe.initial_delay_seconds + seconds))
    }

    pub fn pod_name(&self, ordinal: u32) -> Result<String> {
        Ok(format!(
            "{}-{ordinal}",
            self.world.stateful_set()?.metadata.name
        ))
    }

    /// The folders of this pod's claims.
    pub fn volumes(&self, ordinal: u32) -> Result<Vec<std::path::PathBuf>> {
        let name = self.pod_name(ordinal)?;
        let claims = self.world.stateful_set()?.spec.volume_claim_templates;
        let folders = claims.iter().map(|claim| {
            self.kubelet
                .volume(&format!("{}-{name}", claim.metadata.name))
        });
        Ok(folders.collect())
    }

    /// Ready, and for as long as the StatefulSet asks.
    pub async fn wait_available(&self, pod: &Running) -> Result<()> {
        let steady = Duration::from_secs(self.world.stateful_set()?.spec.min_ready_seconds);
        let available = async {
            let mut changes = self.world.changes();
            loop {
                changes.mark_unchanged();
                let Some(known) = self.world.pod(pod.uid) else {
                    return Err(format!("{} is gone", pod.name).into());
                };
                let due = known.ready_since.map(|since| since + steady);
                match due {
                    Some(due) if due <= Instant::now() => return Ok(()),
                    Some(due) => {
                        tokio::select! {
                            () = sleep_until(due) => {}
                            _ = changes.changed() => {}
                        }
                    }
                    None => {
                        let _ = changes.changed().await;
                    }
                }
            }
        };
        match timeout(crate::PATIENCE, available).await {
            Ok(result) => result,
            Err(_) => {
                Err(format!("{} was not ready within {:?}", pod.name, crate::PATIENCE).into())
            }
        }
    }

    /// Every pod that should run is ready.
    pub async fn wait_all_ready(&self) -> Result<()> {
        let ready = async {
            let mut changes = self.world.changes();
            loop {
                changes.mark_unchanged();
                let ready = |pod: &Running| self.world.pod(pod.uid).is_some_and(|pod| pod.ready);
                if self.running().iter().all(|(_, pod)| ready(pod)) {
                    return;
                }
                let _ = changes.changed().await;
            }
        };
        match timeout(crate::PATIENCE, ready).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let pods = self.world.pods();
                let unready = pods
                    .iter()
                    .filter(|pod| !pod.ready)
                    .map(|pod| pod.name.clone());
                let names: Vec<_> = unready.collect();
                Err(format!(
                    "not ready within {:?}: {}",
                    crate::PATIENCE,
                    names.join(", ")
                )
                .into())
            }
        }
    }

    /// Each virtual address of the nodes leads somewhere: endpoints lag behind readiness.
    pub async fn wait_virtual_addresses(&self) -> Result<()> {
        let labels = self.world.stateful_set()?.spec.template.metadata.labels;
        for (name, ip) in &self.service_ips {
            let service = self.world.service(name).ok_or("an unknown service")?;
            let mut selector = service.spec.selector.iter();
            if !selector.all(|(key, value)| labels.get(key) == Some(value)) {
                continue;
            }
            super::until(&format!("service {name}"), crate::PATIENCE, async || {
                let connected = tokio::net::TcpStream::connect((*ip, 2379)).await;
                connected.map(drop).map_err(|error| error.to_string())
            })
            .await?;
        }
        Ok(())
    }
}
