//! From settings to a running node.
//!
//! The order matters: identity before the stores (a node that lost its log must not begin a new one), the
//! peer service before founding (nodes find each other through it), Raft before its calls are served.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use podkv_api::{Error, Header, Limits, Reason, Result};
use podkv_core::{FEATURE_LEVEL, Meta, read_meta};
use podkv_tls::{OwnNames, Tls, TlsMode};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::large;
use super::lookout::Lookout;
use super::promise;
use super::readiness::{self, LEADERLESS};
use super::requests::Requests;
use super::scrub;
use super::{Inner, Node};
use crate::auth::{Passwords, Refusals};
use crate::config::{NodeConfig, StorageConfig};
use crate::discovery::{Discovery, FixedDiscovery};
use crate::duties::{LeaderDuties, LogKeeper};
use crate::health::Health;
use crate::identity::{Identity, Phase};
use crate::own_session::OwnSession;
use crate::peer::gate::Gate;
use crate::peer::header::PeerHeaders;
use crate::peer::pool::PeerPool;
use crate::peer::server::PeerServer;
use crate::peer::service::{PeerService, Slots};
use crate::peer::settings::PeerSettings;
use crate::query::Query;
use crate::raft::{self, Group, GroupParts, GroupState};
use crate::read::{ReadIndex, ReadIndexParts};
use crate::reconcile::Reconciler;
use crate::renew::Renewals;
use crate::size::SizeSource;
use crate::space::{Alarms, SpaceKeeper, SpaceLimits};
use crate::stall::StallWatch;
use crate::storage::{Storage, Volume, Workers};
use crate::transport::Transport;
use crate::transport::tcp::{TcpSettings, TcpTransport};
use crate::transport::tls::TlsTransport;
use crate::watch::{Tip, WatchHub, WatchSettings};
use crate::write::{Admission, RouterParts, Writer};

/// Room in an answer for what is not keys and values.
const ANSWER_OVERHEAD: usize = 512 << 10;

/// A node that is yet to be started. What a test needs to be another is injected here.
pub struct NodeBuilder {
    config: NodeConfig,
    transport: Option<Arc<dyn Transport>>,
    discovery: Option<Arc<dyn Discovery>>,
    size_source: Option<Arc<dyn SizeSource>>,
    volume: Option<Volume>,
    tls: Option<Tls>,
}

impl NodeBuilder {
    pub(super) fn new(config: NodeConfig) -> Self {
        Self {
            config,
            transport: None,
            discovery: None,
            size_source: None,
            volume: None,
            tls: None,
        }
    }

    /// How bytes reach other nodes; TCP by default.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = Some(transport);
        self
    }

    /// Where other nodes might be; nowhere by default.
    pub fn discovery(mut self, discovery: Arc<dyn Discovery>) -> Self {
        self.discovery = Some(discovery);
        self
    }

    /// Who says how many pods there should be, instead of the configuration and [`Node::resize`].
    pub fn size_source(mut self, source: Arc<dyn SizeSource>) -> Self {
        self.size_source = Some(source);
        self
    }

    /// The volume, already opened; by default what the configuration names.
    pub fn volume(mut self, volume: Volume) -> Self {
        self.volume = Some(volume);
        self
    }

    /// The TLS, already opened by [`open_tls`]; by default what the configuration names.
    pub fn tls(mut self, tls: Option<Tls>) -> Self {
        self.tls = tls;
        self
    }

    /// Opens the volume, starts to listen for peers, and begins to found, join or rejoin its cluster. Returns
    /// once the node can be called; it serves when [`Node::health`] says that it is ready.
    pub async fn start(self) -> Result<Node> {
        self.config.check()?;
        let transport = self
            .transport
            .unwrap_or_else(|| Arc::new(TcpTransport::for_peers(TcpSettings::default())));
        let tls = match self.tls {
            Some(tls) => Some(tls),
            None => open_tls(&self.config).await?,
        };
        let transport = match &tls {
            Some(tls) => Arc::new(TlsTransport::new(transport, tls.clone())),
            None => transport,
        };
        let discovery = self
            .discovery
            .unwrap_or_else(|| Arc::new(FixedDiscovery::default()));
        let (identity, storage) = open_volume(&self.config, self.volume).await?;

        let slots = Arc::<Slots>::default();
        let domain = tls.as_ref().and_then(Tls::domain);
        let gate = Gate::new(identity.clone()).with_domain(domain);
        let service = PeerService::new(gate.clone(), slots.clone());
        let peer_settings = PeerSettings::default();
        let listener = transport
            .listen(&self.config.peer_listen)
            .await
            .map_err(|error| {
                Error::new(
                    Reason::Configuration,
                    format!(
                        "cannot listen for peers on {}: {error}",
                        self.config.peer_listen
                    ),
                )
                .with_source(error)
            })?;
        let server = PeerServer::start(listener, service, &peer_settings);
        let peers = PeerPool::new(transport, PeerHeaders::new(identity.clone()), peer_settings);

        if let Err(error) = look_out(&identity, &storage, &peers).await {
            server.shutdown().await;
            return Err(error);
        }
        let parts = Parts {
            config: self.config,
            identity,
            storage,
            peers,
            size_source: self.size_source,
            tls,
        };
        let started = match parts.start().await {
            Ok(node) => {
                gate.bind_group(node.0.group.state());
                let peer_address = reachable(&node.0.config, server.local_address());
                node.join_cluster(&slots, gate, discovery, peer_address)
                    .map(|()| node)
            }
            Err(error) => Err(error),
        };
        match started {
            Ok(node) => {
                let stop = node.0.stop.clone();
                node.0.tasks.spawn(async move {
                    stop.cancelled().await;
                    server.shutdown().await;
                });
                Ok(node)
            }
            Err(error) => {
                server.shutdown().await;
                Err(error)
            }
        }
    }
}

/// Reads and checks the TLS files that the configuration names; `None` if TLS is off. For who wants to know before
/// anything else is opened.
///
/// # Errors
/// See [`Tls::open`].
pub async fn open_tls(config: &NodeConfig) -> Result<Option<Tls>> {
    let names = OwnNames {
        pod: config.name.clone(),
        peer_address: config.peer_address.clone(),
        client_address: config.client_address.clone(),
    };
    let config = config.tls.clone();
    if config.mode == TlsMode::Off {
        return Ok(None);
    }
    tokio::task::spawn_blocking(move || Tls::open(&config, &names))
        .await
        .unwrap_or_else(|_| {
            Err(Error::internal(
                "reading the TLS files did not come to an end",
            ))
        })
}

/// What peers are told to dial. A configured port 0 is replaced by the port that was taken.
fn reachable(config: &NodeConfig, local_address: &str) -> String {
    match (
        config.peer_address.rsplit_once(':'),
        local_address.rsplit_once(':'),
    ) {
        (Some((host, "0")), Some((_, port))) => format!("{host}:{port}"),
        _ => config.peer_address.clone(),
    }
}

/// Locks the volume, reads who it belongs to, opens the stores. All of it waits for the disk.
async fn open_volume(
    config: &NodeConfig,
    volume: Option<Volume>,
) -> Result<(Arc<Identity>, Storage)> {
    let (storage, name, cache_bytes) = (
        config.storage.clone(),
        config.name.clone(),
        config.cache_bytes,
    );
    let workers = volume
        .as_ref()
        .map_or_else(Workers::default, Volume::workers);
    let opening = workers.spawn(move || {
        let volume = match volume {
            Some(volume) => volume,
            None => Volume::open(&storage)?,
        };
        let mut identity = Identity::open(volume.markers(), &name)?;
        if let Phase::Retired { cluster, .. } = identity.phase() {
            let id = identity.node_id();
            tracing::warn!(%id, %cluster, "this node was removed from its cluster; its pod begins anew");
            volume.markers().set_aside(id).map_err(storage_failed)?;
            identity = Identity::open(volume.markers(), &name)?;
        }
        let storage = volume
            .open_stores(&identity, cache_bytes)
            .map_err(storage_failed)?;
        Ok((Arc::new(identity), storage))
    });
    opening
        .await
        .unwrap_or_else(|_| Err(Error::internal("opening the volume did not come to an end")))
}

/// Makes sure that the cluster was not recovered from a lost majority without this node. Before Raft is there: a
/// majority of the past that comes back must not elect anybody.
async fn look_out(identity: &Arc<Identity>, storage: &Storage, peers: &PeerPool) -> Result<()> {
    if identity.membership().is_none() {
        return Ok(());
    }
    let storage = storage.clone();
    let workers = storage.state.workers();
    let members = workers
        .spawn(move || raft::newest_members(&storage))
        .await
        .map_err(|_| Error::internal("reading the membership did not come to an end"))??;
    Lookout::new(identity.clone(), peers.clone())
        .before_start(&members)
        .await
}

pub(super) fn storage_failed(error: crate::storage::StorageError) -> Error {
    let reason = if error.corrupt {
        Reason::Corrupt
    } else {
        Reason::Internal
    };
    Error::new(reason, error.to_string()).with_source(error)
}

struct Parts {
    config: NodeConfig,
    identity: Arc<Identity>,
    storage: Storage,
    peers: PeerPool,
    size_source: Option<Arc<dyn SizeSource>>,
    tls: Option<Tls>,
}

impl Parts {
    async fn start(self) -> Result<Node> {
        let Self {
            config,
            identity,
            storage,
            peers,
            size_source,
            tls,
        } = self;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let group_state = Arc::<OnceLock<watch::Receiver<GroupState>>>::default();
        let watches = start_watches(&config, &identity, &storage, group_state.clone()).await?;
        let lease = promise::begin(&config, &storage).await?;
        let group = Group::start(GroupParts {
            node: identity.node_id(),
            timing: config.timing.clone(),
            lease,
            log: storage.log.clone(),
            state: storage.state.clone(),
            peers: peers.clone(),
            events: Arc::new(watches.clone()),
            log_cache_bytes: config.log_cache_bytes,
        })
        .await?;
        // Set once, here.
        let _ = group_state.set(group.state());

        let (clock_sender, clock) = watch::channel(None);
        let limits = Arc::new(config.limits.clone());
        let alarms = Alarms::default();
        let writer = Writer::start(
            RouterParts {
                group: group.clone(),
                peers: peers.clone(),
                me: identity.node_id(),
                clock: clock_sender,
                // By then a majority that is there would have followed another one.
                quorum_patience: 2 * config.timing.election_max,
                leaderless: LEADERLESS,
            },
            Admission::new(config.max_inflight_proposals, config.max_inflight_bytes),
            limits,
            alarms.clone(),
            &tasks,
            stop.clone(),
        );
        let read_index = ReadIndex::start(
            ReadIndexParts {
                group: group.clone(),
                peers: peers.clone(),
                me: identity.node_id(),
                // A lost answer costs one round, not the whole request.
                round_timeout: config.timing.election_max,
            },
            &tasks,
            stop.clone(),
        );
        let lease_renewals =
            Renewals::start(writer.clone(), config.request_timeout, &tasks, stop.clone());
        let session_renewals =
            Renewals::start(writer.clone(), config.request_timeout, &tasks, stop.clone());
        let (health, _) = watch::channel(Health::starting());
        let workers = storage.state.workers();
        let recovered = watch_recovery(&group, &tasks, &stop);
        let max_answer_bytes = config
            .limits
            .max_request_bytes
            .max(Limits::DEFAULT_MAX_REQUEST_BYTES)
            + ANSWER_OVERHEAD;
        let node = Node(Arc::new(Inner {
            query: Query::new(storage.state.clone(), max_answer_bytes),
            config,
            identity,
            storage,
            group,
            peers,
            tls,
            writer,
            alarms,
            stalls: Arc::default(),
            read_index,
            watches,
            lease_renewals,
            session_renewals,
            own_session: OwnSession::default(),
            opening_session: tokio::sync::Mutex::default(),
            clock,
            health,
            failure: watch::channel(None).0,
            membership_waits: watch::channel(None).0,
            size_source,
            size_waits: watch::channel(None).0,
            recovered,
            requests: Requests::default(),
            passwords: Passwords::new(workers),
            refusals: Refusals::default(),
            backups: Arc::new(tokio::sync::Semaphore::new(1)),
            tasks,
            stop,
        }));
        node.spawn_duties();
        promise::settle(&node, lease);
        // A member that starts again has lost nothing, and must not read as if it had.
        let reason = match node.0.identity.membership() {
            Some(_) => "catching up",
            None => "not a member of a cluster yet",
        };
        node.0.health.send_replace(Health::not_ready(reason));
        Ok(node)
    }
}

/// The hub needs headers, and headers need the group, which needs the hub: so the term comes late.
async fn start_watches(
    config: &NodeConfig,
    identity: &Arc<Identity>,
    storage: &Storage,
    group_state: Arc<OnceLock<watch::Receiver<GroupState>>>,
) -> Result<WatchHub> {
    let meta = read_state(storage).await?;
    let identity = identity.clone();
    let header = move || {
        let (cluster, incarnation) = identity.membership().unwrap_or_default();
        let term = group_state.get().map_or(0, |state| state.borrow().term);
        // The hub fills in the revision that each message speaks of.
        Header {
            cluster,
            incarnation,
            member: identity.node_id(),
            term,
            revision: 0,
        }
    };
    let tip = Tip {
        revision: meta.revision,
        compacted_revision: meta.compacted_revision,
    };
    let settings = WatchSettings {
        buffer_bytes: config.watch_buffer_bytes,
        max_key_bytes: config.limits.max_key_bytes,
        ..WatchSettings::default()
    };
    Ok(WatchHub::start(
        storage.state.clone(),
        tip,
        Arc::new(header),
        settings,
    ))
}

/// What the state says of itself. One that a newer release wrote is refused.
async fn read_state(storage: &Storage) -> Result<Meta> {
    let state = storage.state.clone();
    let workers = state.workers();
    let meta = workers
        .spawn(move || read_meta(&*state.view()))
        .await
        .map_err(|_| Error::internal("reading the state did not come to an end"))?
        .map_err(|error| {
            Error::new(Reason::Corrupt, "the state cannot be read").with_source(error)
        })?;
    if meta.feature_level > FEATURE_LEVEL {
        let text = format!(
            "the data is at feature level {}, and this release understands {FEATURE_LEVEL} at most: \
             run the release that the other nodes run",
            meta.feature_level
        );
        return Err(Error::new(Reason::DataFolder, text));
    }
    Ok(meta)
}

/// Turns true once the node belongs to a cluster and the log that survived the last stop is applied again.
fn watch_recovery(
    group: &Group,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> watch::Receiver<bool> {
    let (done, recovered) = watch::channel(false);
    let (group, stop) = (group.clone(), stop.clone());
    tasks.spawn(async move {
        let waiting = async {
            let mut state = group.state();
            let joined = state.wait_for(|state| !state.members.nodes.is_empty());
            if joined.await.is_err() {
                return;
            }
            while let Err(error) = group.wait_recovered().await {
                tracing::debug!(%error, "not recovered yet");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            done.send_replace(true);
        };
        stop.run_until_cancelled(waiting).await;
    });
    recovered
}

impl Node {
    fn spawn_duties(&self) {
        let inner = &self.0;
        let leader = LeaderDuties {
            writer: inner.writer.clone(),
            state: inner.storage.state.clone(),
            clock: inner.clock.clone(),
            group: inner.group.clone(),
            me: self.id(),
            timeout: inner.config.request_timeout,
            replicas: match inner.size_source {
                Some(_) => None,
                None => Some(inner.config.replicas),
            },
        };
        inner.tasks.spawn(leader.run(inner.stop.clone()));
        let reconciler = Reconciler {
            me: self.id(),
            group: inner.group.clone(),
            state: inner.storage.state.clone(),
            max_voters: inner.config.max_voters,
            timing: inner.config.membership.clone(),
            waiting: inner.membership_waits.clone(),
        };
        inner.tasks.spawn(reconciler.run(inner.stop.clone()));
        let keeper = LogKeeper {
            group: inner.group.clone(),
            snapshot_log_bytes: inner.config.snapshot_log_bytes,
            snapshot_interval: inner.config.snapshot_interval,
            keep_bytes: inner.config.log_keep_bytes,
        };
        inner.tasks.spawn(keeper.run(inner.stop.clone()));
        let views = inner.query.clone();
        inner.tasks.spawn(views.take_back_views(inner.stop.clone()));
        inner
            .tasks
            .spawn(readiness::run(Arc::downgrade(inner), inner.stop.clone()));
        inner.tasks.spawn(large::run(
            Arc::downgrade(inner),
            inner.config.collect_large_every,
            inner.stop.clone(),
        ));
        let space = SpaceKeeper {
            me: self.id(),
            limits: SpaceLimits {
                quota_bytes: inner.config.quota_bytes,
                headroom_bytes: inner.config.headroom_bytes,
            },
            data_dir: match &inner.config.storage {
                StorageConfig::Disk { data_dir } => Some(data_dir.clone()),
                StorageConfig::Memory => None,
            },
            state: inner.storage.state.clone(),
            group: inner.group.clone(),
            writer: inner.writer.clone(),
            alarms: inner.alarms.clone(),
            timeout: inner.config.request_timeout,
        };
        inner.tasks.spawn(space.run(inner.stop.clone()));
        let stalls = StallWatch {
            me: self.id(),
            group: inner.group.clone(),
            writer: inner.writer.clone(),
            stalls: inner.stalls.clone(),
            timeout: inner.config.stall_timeout,
            volume: match &inner.config.storage {
                StorageConfig::Disk { data_dir } => data_dir.display().to_string(),
                StorageConfig::Memory => "memory".into(),
            },
        };
        inner.tasks.spawn(stalls.run(inner.stop.clone()));
        if !inner.config.scrub_interval.is_zero() {
            inner
                .tasks
                .spawn(scrub::run(Arc::downgrade(inner), inner.stop.clone()));
        }
        if let Some(tls) = inner.tls.clone() {
            inner.tasks.spawn(tls.watch(inner.stop.clone()));
        }
    }
}
