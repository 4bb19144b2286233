//! How a node gets into its cluster: the bootstrap, and what it asks of the node.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use podkv_api::{Error, MemberId, Reason, Result};
use tokio::sync::watch;

use super::admin::Change;
use super::lookout::Lookout;
use super::{Inner, Node};
use crate::bootstrap::decide::Me;
use crate::bootstrap::founders::{Founding, PodName};
use crate::bootstrap::{Bootstrap, BootstrapParts, BootstrapSettings, FoundingHost, Settled};
use crate::discovery::Discovery;
use crate::health::Health;
use crate::membership::PeerAddress;
use crate::peer::gate::Gate;
use crate::peer::pool::PeerPool;
use crate::peer::service::Slots;
use crate::raft::GroupState;

/// Between two attempts to add a founder that does not vote.
const RETRY: Duration = Duration::from_millis(200);

/// Weak, because the bootstrap that holds it is owned by the node.
struct Host(Weak<Inner>);

impl Host {
    fn node(&self) -> Result<Node> {
        let stopping = || {
            Error::new(
                Reason::NodeNotReady,
                "the node is stopping: ask another one",
            )
        };
        self.0.upgrade().map(Node).ok_or_else(stopping)
    }
}

impl FoundingHost for Host {
    fn initialize(&self, founding: Founding) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let node = self.node()?;
            // A founder asks for this at each of its starts. Learners that were removed since stay removed.
            if node.0.group.is_initialized().await? {
                return Ok(());
            }
            node.0.group.initialize(founding.voters).await?;
            let adding = node.clone();
            let stop = node.0.stop.clone();
            node.0.tasks.spawn(async move {
                stop.run_until_cancelled(add_learners(adding, founding.learners))
                    .await;
            });
            Ok(())
        })
    }

    fn add_learner(&self, id: MemberId, address: PeerAddress) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let node = self.node()?;
            node.add_once(id, address).await
        })
    }

    fn leader(&self) -> Option<MemberId> {
        self.node().ok()?.leader()
    }

    fn heard_from(&self, id: MemberId) {
        let Ok(node) = self.node() else { return };
        let (group, stop) = (node.0.group.clone(), node.0.stop.clone());
        node.0.tasks.spawn(async move {
            // It only cuts a wait short.
            let _ = stop.run_until_cancelled(group.peer_is_back(id)).await;
        });
    }
}

/// The founders that do not vote join once there is a leader. Each attempt is made at whoever leads then.
async fn add_learners(node: Node, learners: std::collections::BTreeMap<MemberId, PeerAddress>) {
    for (id, address) in learners {
        while let Err(error) = node.add_once(id, address.clone()).await {
            tracing::debug!(%id, %error, "a founder is not added yet");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// While the node belongs to no cluster, its health says what it waits for.
async fn tell_why(mut waiting: watch::Receiver<Option<String>>, health: watch::Sender<Health>) {
    while waiting.changed().await.is_ok() {
        let Some(why) = waiting.borrow_and_update().clone() else {
            return;
        };
        let not_ready = Health::not_ready(format!("not a member of a cluster yet; waiting: {why}"));
        health.send_if_modified(|now| {
            let change = !now.draining && *now != not_ready;
            if change {
                *now = not_ready;
            }
            change
        });
    }
}

/// Forgets the channels to nodes that are no longer members.
async fn keep_pool(mut group: watch::Receiver<GroupState>, peers: PeerPool) {
    let mut kept = BTreeSet::new();
    while group.changed().await.is_ok() {
        let members: BTreeSet<_> = {
            let state = group.borrow_and_update();
            // A change that may yet be rolled back proves nothing about who is gone.
            if !state.members_committed || state.members.nodes.is_empty() {
                continue;
            }
            state.members.nodes.keys().copied().collect()
        };
        if members != kept {
            peers.retain(&members);
            kept = members;
        }
    }
}

impl Node {
    async fn add_once(&self, id: MemberId, address: PeerAddress) -> Result<()> {
        let state = self.0.group.state().borrow().clone();
        if state.members_committed && state.members.contains(id) {
            return Ok(());
        }
        self.change(Change::AddLearner(id, address)).await.map(drop)
    }

    /// Plugs this node into its peer service, and founds, joins or rejoins its cluster in the background.
    pub(super) fn join_cluster(
        &self,
        slots: &Slots,
        gate: Gate,
        discovery: Arc<dyn Discovery>,
        peer_address: String,
    ) -> Result<()> {
        let inner = &self.0;
        let config = &inner.config;
        let expected = self.follow_size();
        let known_now = expected.borrow().clone();
        let bootstrap = Bootstrap::new(BootstrapParts {
            me: Me {
                name: PodName::parse(&config.name)?,
                id: self.id(),
                peer_address,
                client_address: config.client_address.clone(),
                expected: known_now,
                max_voters: config.max_voters,
                read_only: config.read_only,
            },
            expected,
            identity: inner.identity.clone(),
            gate,
            peers: inner.peers.clone(),
            discovery,
            settings: BootstrapSettings::default(),
        });
        slots.bind_raft(Arc::new(inner.group.clone()));
        slots.bind_node(Arc::new(super::calls::Calls(Arc::downgrade(inner))));
        slots.bind_founding(bootstrap.clone(), bootstrap.clone());
        bootstrap.bind(Arc::new(Host(Arc::downgrade(inner))));
        let (stop, health, failure) = (
            inner.stop.clone(),
            inner.health.clone(),
            inner.failure.clone(),
        );
        let why = tell_why(bootstrap.waiting(), health.clone());
        inner
            .tasks
            .spawn(inner.stop.clone().run_until_cancelled_owned(why).map(drop));
        inner.tasks.spawn(super::standing::run(
            Arc::downgrade(inner),
            bootstrap.clone(),
            Lookout::new(inner.identity.clone(), inner.peers.clone()),
            inner.stop.clone(),
        ));
        let pool = keep_pool(inner.group.state(), inner.peers.clone());
        inner
            .tasks
            .spawn(inner.stop.clone().run_until_cancelled_owned(pool).map(drop));
        inner.tasks.spawn(async move {
            match bootstrap.run(&stop).await {
                Ok(Settled::Member {
                    cluster,
                    incarnation,
                }) => {
                    tracing::info!(%cluster, %incarnation, "member of the cluster");
                }
                Ok(Settled::Retired) => {
                    // A retired node's data is put aside before it starts: see `standing`.
                    health
                        .send_replace(Health::not_ready("this node was removed from its cluster"));
                }
                Ok(Settled::Stopped) => {}
                Err(error) => {
                    tracing::error!(%error, "the node cannot go on");
                    health.send_replace(Health::not_ready(format!("stopped: {}", error.text())));
                    failure.send_replace(Some(error));
                }
            }
        });
        Ok(())
    }
}
