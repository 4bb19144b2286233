//! What the API server knows: the StatefulSet, the pods, and from them the endpoints of each service.
//!
//! One place, changed by kubelet and controller, looked at by DNS, the API server and the virtual addresses. It
//! remembers what it knew some seconds ago, because others lag behind it: kube-proxy, and a DNS that lies.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::manifests::{Container, Manifests, Service, StatefulSet};
use crate::Result;

/// How far back somebody may ask.
const REMEMBERED: Duration = Duration::from_secs(60);

/// A pod as the API server knows it.
#[derive(Clone, Debug)]
pub struct Pod {
    pub uid: u64,
    pub name: String,
    pub ip: IpAddr,
    pub labels: BTreeMap<String, String>,
    /// The headless service under which its host name is known.
    pub subdomain: String,
    pub container: Arc<Container>,
    pub ready: bool,
    /// Since it last became ready.
    pub ready_since: Option<Instant>,
    pub terminating: bool,
}

/// An address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    /// The pod's host name, if this service is the one that names it.
    pub hostname: Option<String>,
    /// (name, number) of each port.
    pub ports: Vec<(String, u16)>,
}

type Pods = Arc<BTreeMap<u64, Pod>>;

struct State {
    stateful_set: Value,
    pods: Pods,
    /// What was true from when on; the newest last.
    history: Vec<(Instant, Pods)>,
}

/// Shared by everybody on the stage.
pub struct World {
    pub manifests: Manifests,
    pub services: Vec<Service>,
    pub namespace: String,
    pub cluster_domain: String,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl World {
    pub fn new(manifests: Manifests, replicas: u32, uid: u64) -> Result<Self> {
        let mut stateful_set = manifests.stateful_set()?;
        let namespace = StatefulSet::parse(&stateful_set)?.metadata.namespace;
        stateful_set["metadata"]["uid"] = json!(format!("00000000-0000-4000-8000-{uid:012x}"));
        stateful_set["metadata"]["generation"] = json!(1);
        if stateful_set["spec"].get("replicas").is_some() {
            stateful_set["spec"]["replicas"] = json!(replicas);
        }
        let pods = Pods::default();
        Ok(Self {
            services: manifests.services()?,
            manifests,
            namespace,
            cluster_domain: "cluster.local".into(),
            state: Mutex::new(State {
                stateful_set,
                history: vec![(Instant::now(), pods.clone())],
                pods,
            }),
            changed: watch::Sender::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever looks at the pods.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn stateful_set_object(&self) -> Value {
        let state = self.state();
        let mut object = state.stateful_set.clone();
        object["status"] = json!({
            "replicas": state.pods.len(),
            "readyReplicas": state.pods.values().filter(|pod| pod.ready).count(),
        });
        object
    }

    pub fn stateful_set(&self) -> Result<StatefulSet> {
        StatefulSet::parse(&self.state().stateful_set)
    }

    /// Changes the StatefulSet's spec, as `kubectl` would: each change is a new generation.
    pub fn edit_stateful_set(&self, edit: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        edit(&mut state.stateful_set);
        let generation = state.stateful_set["metadata"]["generation"].as_u64();
        state.stateful_set["metadata"]["generation"] = json!(generation.unwrap_or(0) + 1);
    }

    pub fn pods(&self) -> Vec<Pod> {
        self.state().pods.values().cloned().collect()
    }

    pub fn pod(&self, uid: u64) -> Option<Pod> {
        self.state().pods.get(&uid).cloned()
    }

    pub fn add(&self, pod: Pod) {
        self.change(|pods| {
            pods.insert(pod.uid, pod);
        });
    }

    pub fn remove(&self, uid: u64) {
        self.change(|pods| {
            pods.remove(&uid);
        });
    }

    pub fn set_ready(&self, uid: u64, ready: bool) {
        self.change(|pods| {
            if let Some(pod) = pods.get_mut(&uid)
                && pod.ready != ready
            {
                pod.ready = ready;
                pod.ready_since = ready.then(Instant::now);
            }
        });
    }

    pub fn set_terminating(&self, uid: u64) {
        self.change(|pods| {
            if let Some(pod) = pods.get_mut(&uid) {
                pod.terminating = true;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<u64, Pod>)) {
        {
            let mut state = self.state();
            let mut pods = (*state.pods).clone();
            change(&mut pods);
            let now = Instant::now();
            state.pods = Arc::new(pods);
            let pods = state.pods.clone();
            state.history.push((now, pods));
            // The last one that is older than all questions is still the answer to the oldest.
            let old = state
                .history
                .iter()
                .rposition(|(since, _)| now.duration_since(*since) > REMEMBERED);
            state.history.drain(..old.unwrap_or(0));
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// The pods as they were that long ago.
    fn pods_before(&self, age: Duration) -> Pods {
        let state = self.state();
        let now = Instant::now();
        let then = state
            .history
            .iter()
            .rev()
            .find(|(since, _)| now.duration_since(*since) >= age);
        then.map(|(_, pods)| pods.clone()).unwrap_or_default()
    }

    /// When somebody who lags behind by so much sees the next change; `None` if it has seen them all.
    pub fn next_change_seen(&self, lag: Duration) -> Option<Instant> {
        let now = Instant::now();
        let state = self.state();
        let mut seen = state.history.iter().map(|(since, _)| *since + lag);
        seen.find(|due| *due > now)
    }

    /// The endpoints of a service as they were that long ago. Unready and ending pods are left out, unless the
    /// service publishes them.
    pub fn endpoints(&self, service: &Service, age: Duration) -> Vec<Endpoint> {
        let selected = |pod: &&Pod| {
            let spec = &service.spec;
            let matches = !spec.selector.is_empty()
                && spec
                    .selector
                    .iter()
                    .all(|(key, value)| pod.labels.get(key) == Some(value));
            matches && (spec.publish_not_ready_addresses || (pod.ready && !pod.terminating))
        };
        let endpoint = |pod: &Pod| Endpoint {
            ip: pod.ip,
            hostname: (pod.subdomain == service.metadata.name).then(|| pod.name.clone()),
            ports: service
                .spec
                .ports
                .iter()
                .filter_map(|port| {
                    let target = match &port.target_port {
                        Some(target) => pod.container.port(target)?,
                        None => port.port,
                    };
                    Some((port.name.clone(), target))
                })
                .collect(),
        };
        let pods = self.pods_before(age);
        pods.values().filter(selected).map(endpoint).collect()
    }

    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services
            .iter()
            .find(|service| service.metadata.name == name)
    }
}
