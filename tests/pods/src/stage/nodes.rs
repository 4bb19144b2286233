//! What the nodes say of themselves, and what their volumes say: who is a member, who leads, and of which cluster.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use podkv_api::{ClusterId, Member, MemberRole, NodeStatus, Store as _};
use podkv_client::Client;
use podkv_node::identity::{DataFolder, Phase};
use podkv_tls::TlsOptions;
use tokio::time::{Instant, sleep};

use super::{Running, Stage};
use crate::{Result, planted};

const CLIENT_PORT: u16 = 2379;
const ADMIN_PORT: u16 = 2381;
/// Between two looks at what no event tells of.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A node that is asked how it is answers at once or not at all.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// More than any scenario starts.
const MAX_PODS: u32 = 32;

/// One node, as it answered.
#[derive(Clone, Debug)]
pub struct NodeView {
    pub ordinal: u32,
    pub status: NodeStatus,
}

/// Whom a volume belongs to.
#[derive(Clone, Debug)]
pub struct Identity {
    pub place: String,
    pub phase: Phase,
}

/// Waits until `look` finds something.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(state) if Instant::now() >= deadline => {
                return Err(format!("{what}: not within {patience:?}; {state}").into());
            }
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}

impl Stage {
    /// A client that stays on the node at this address.
    pub fn client_at(&self, ip: IpAddr) -> Result<Client> {
        let mut builder = Client::builder()
            .endpoints([SocketAddr::new(ip, CLIENT_PORT).to_string()])
            .fixed(true)
            .deadline(ASK_TIMEOUT)
            .attempt_timeout(ASK_TIMEOUT);
        if let Some(tls) = self.tls() {
            // Its address is in no certificate.
            let server_name = Some("localhost".into());
            builder = builder.tls(TlsOptions { server_name, ..tls });
        }
        Ok(builder.build()?)
    }

    /// What a client needs where the StatefulSet says that nodes speak TLS alone.
    pub fn tls(&self) -> Option<TlsOptions> {
        let object = self.world.stateful_set_object();
        let env = object
            .pointer("/spec/template/spec/containers/0/env")?
            .as_array()?;
        let mode = env
            .iter()
            .find(|variable| variable["name"] == "PODKV_TLS")?;
        (mode["value"] == "require").then(|| self.client_tls())
    }

    /// A client trusts the CA of the pods' secret.
    pub fn client_tls(&self) -> TlsOptions {
        let folder = super::secrets::mount_folder(self.folder(), "podkv-tls");
        TlsOptions {
            ca: folder.join("ca.crt"),
            cert: None,
            key: None,
            server_name: None,
        }
    }

    /// The page that Prometheus reads.
    pub async fn metrics(&self, ip: IpAddr) -> Result<String> {
        Ok(super::probe::page(SocketAddr::new(ip, ADMIN_PORT), "/metrics").await?)
    }

    /// What the node says, if it answers.
    pub async fn status(&self, ordinal: u32) -> Result<NodeView> {
        let pod = self.pod(ordinal)?;
        let client = self.client_at(pod.ip)?;
        let status = client.status().await;
        client.close().await;
        Ok(NodeView {
            ordinal,
            status: status?,
        })
    }

    /// All that answer.
    pub async fn statuses(&self) -> Vec<NodeView> {
        let ordinals = self.running().into_iter().map(|(ordinal, _)| ordinal);
        let asked = futures_util::future::join_all(ordinals.map(|ordinal| self.status(ordinal)));
        asked.await.into_iter().flatten().collect()
    }

    /// The committed members, as somebody who leads or follows says.
    pub async fn members(&self) -> Result<Vec<Member>> {
        let client = self.client()?;
        let members = client.members().await;
        client.close().await;
        Ok(members?)
    }

    /// The ordinal of the pod that leads: of those that say so the one with the highest term.
    pub async fn leader(&self) -> Option<u32> {
        let views = self.statuses().await;
        views
            .iter()
            .filter(|view| view.status.leader == Some(view.status.header.member))
            .max_by_key(|view| view.status.header.term)
            .map(|view| view.ordinal)
    }

    pub async fn wait_leader(&self) -> Result<u32> {
        until("a leader", crate::PATIENCE, async || {
            self.leader()
                .await
                .ok_or_else(|| "nobody leads".to_string())
        })
        .await
    }

    /// Every pod that should run is a member of one cluster in its role, and there are no other members.
    pub async fn wait_whole(&self) -> Result<ClusterId> {
        let stateful_set = self.world.stateful_set()?;
        let expected: BTreeSet<String> = (0..stateful_set.spec.replicas)
            .map(|ordinal| format!("{}-{ordinal}", stateful_set.metadata.name))
            .collect();
        let voters = voters_of(expected.len());
        until("a whole cluster", crate::PATIENCE, async || {
            let members = self.members().await.map_err(|error| error.to_string())?;
            let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
            let distinct: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
            let voting = members
                .iter()
                .filter(|member| member.role == MemberRole::Voter)
                .count();
            if distinct != expected || names.len() != expected.len() || voting != voters {
                return Err(format!("the members are {members:?}"));
            }
            let views = self.statuses().await;
            let clusters: BTreeSet<u64> = views
                .iter()
                .map(|view| view.status.header.cluster.0)
                .collect();
            let ids: BTreeSet<u64> = members.iter().map(|member| member.id.0).collect();
            let answering: BTreeSet<u64> = views
                .iter()
                .map(|view| view.status.header.member.0)
                .collect();
            if ids != answering {
                return Err(format!(
                    "members {ids:x?}, and these answer: {answering:x?}"
                ));
            }
            match clusters.len() {
                1 => Ok(views[0].status.header.cluster),
                _ => Err(format!("the nodes speak of the clusters {clusters:x?}")),
            }
        })
        .await
    }

    /// Whom every volume belongs to that any pod of this rehearsal ever had, as far as it belongs to somebody.
    pub fn identities(&self) -> Result<Vec<Identity>> {
        let mut volumes = Vec::new();
        for place in ["volumes", "lost"] {
            for entry in fs::read_dir(self.folder().join(place))? {
                volumes.push(entry?.path());
            }
        }
        let pods: Vec<String> = (0..MAX_PODS)
            .map(|ordinal| self.pod_name(ordinal))
            .collect::<Result<_>>()?;
        let mut found = Vec::new();
        for volume in volumes {
            let node = volume.join("podkv");
            found.extend(read_identity(&node, &pods)?);
            let Ok(inner) = fs::read_dir(&node) else {
                continue;
            };
            // What was put aside when an id had ended.
            for entry in inner {
                found.extend(read_identity(&entry?.path(), &pods)?);
            }
        }
        Ok(found)
    }

    /// The clusters that any volume was ever a member of.
    pub fn clusters_ever(&self) -> Result<BTreeSet<u64>> {
        let clusters = self
            .identities()?
            .into_iter()
            .filter_map(|identity| match identity.phase {
                Phase::Member { cluster, .. } | Phase::Retired { cluster, .. } => Some(cluster.0),
                Phase::Virgin | Phase::Reserved(_) => None,
            });
        Ok(clusters.collect())
    }

    /// Waits until the pod has complained of this: a warning, an error, or what it says when it does not start.
    pub async fn wait_said(&self, pod: &Running, what: &str) -> Result<()> {
        let start = format!("--- kubelet: pod {} starts", pod.uid);
        let told = format!("{} says {what:?}", pod.name);
        until(&told, crate::PATIENCE, async || {
            let log = self.log_of(pod);
            let own = log.split(&start).nth(1).unwrap_or("").to_string();
            let said = own.lines().any(|line| {
                let complaint = ["WARN", "ERROR"].iter().any(|level| line.contains(level));
                (complaint || line.starts_with("podkv")) && line.contains(what)
            });
            said.then_some(()).ok_or(own)
        })
        .await
    }

    /// What the pods of this name have written so far.
    pub fn log_of(&self, pod: &Running) -> String {
        fs::read_to_string(self.kubelet.log(&pod.name)).unwrap_or_default()
    }
}

/// The largest odd number up to five; of two, both.
fn voters_of(pods: usize) -> usize {
    match pods {
        0..=2 => pods,
        3..=4 => 3,
        _ => 5,
    }
}

/// Reads a copy: to open an identity counts a start. It opens under its own pod's name alone.
fn read_identity(node: &Path, pods: &[String]) -> Result<Option<Identity>> {
    let scratch = tempfile::tempdir()?;
    let copy = scratch.path().join("podkv");
    fs::create_dir(&copy)?;
    // A volume on which nothing was started has none; and a pod that starts may replace it at this moment.
    if fs::copy(node.join("MARKER"), copy.join("MARKER")).is_err() {
        return Ok(None);
    }
    let folder = Arc::new(DataFolder::open(scratch.path())?);
    // Where the bug is planted, a pod may have gone under another name.
    let names = pods
        .iter()
        .flat_map(|pod| [pod.clone(), planted::alone(pod)]);
    let opened = names
        .map(|pod| podkv_node::identity::Identity::open(folder.markers(), &pod))
        .find_map(Result::ok);
    let identity = opened.ok_or_else(|| format!("{} is no pod's volume", node.display()))?;
    Ok(Some(Identity {
        place: node.display().to_string(),
        phase: identity.phase(),
    }))
}
