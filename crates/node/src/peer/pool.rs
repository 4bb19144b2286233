//! Kept channels to other nodes.
//!
//! One connection per member and *lane*, so that what must be quick never queues behind what is big:
//! a heartbeat behind 4 MiB of snapshot on one TCP connection would arrive after the election.
//!
//! ```text
//!   PeerPool ── member ──┬── Control     votes, founding, admin, read index
//!                        ├── Append      log entries, pipelined
//!                        ├── Heartbeat   one small message at a time
//!                        ├── Snapshot    files
//!                        └── Forward     proposals to the leader
//! ```
//!
//! A channel is dialed when it is first needed, and dialed again — with the name resolved afresh — when its
//! connection is gone, its user says [`PeerLane::broken`], or the member's address changed.
//!
//! Each begins with a greeting. It tells this node which start of which node is at the other end: a vote or
//! an append of a volume that was rewound or copied never counts. And it tells the other end the same of this one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper_util::rt::TokioIo;
use podkv_api::{Error, MemberId, Reason};
use podkv_proto::convert::{Call, from_status};
use podkv_proto::peer as wire;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::connection::{Alive, Connection};
use super::header::PeerHeaders;
use super::settings::PeerSettings;
use crate::membership::PeerAddress;
use crate::transport::Transport;

/// The gRPC client of a peer, with its limits set.
pub(crate) type PeerClient = wire::peer_client::PeerClient<Channel>;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Control,
    Append,
    Heartbeat,
    Snapshot,
    Forward,
}

const LANES: usize = 5;

/// Why there is no channel to a peer. All of these may pass: try again later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("peer address {address:?} is not host:port")]
    Address {
        address: String,
        source: tonic::transport::Error,
    },
    #[error("could not connect to peer at {address}{}", because(source))]
    Dial {
        address: String,
        source: tonic::transport::Error,
    },
    #[error("peer at {address} did not answer within {after:?}")]
    Timeout {
        address: String,
        after: std::time::Duration,
    },
    /// It refused this node, or is not who was meant.
    #[error("peer at {address}: {source}")]
    Greeting { address: String, source: Error },
}

/// What TLS has to say about it, if anything: the rest is in the source.
fn because(source: &tonic::transport::Error) -> String {
    podkv_tls::explain(source).map_or_else(String::new, |why| format!(": {why}"))
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        Error::new(Reason::Unreachable, error.to_string()).with_source(error)
    }
}

/// The kept channels of a node. Clones share them.
#[derive(Clone)]
pub(crate) struct PeerPool {
    shared: Arc<Shared>,
}

struct Shared {
    transport: Arc<dyn Transport>,
    headers: PeerHeaders,
    settings: PeerSettings,
    members: Mutex<BTreeMap<MemberId, Arc<Target>>>,
    /// A peer has seen a later start of this node, or another one under the same number: this volume was
    /// rewound, or is a copy.
    rewound: watch::Sender<bool>,
    /// A peer has refused this node as one of another incarnation: the cluster may have been recovered without it.
    fenced: AtomicBool,
    /// Numbers the channels, so that one who reports a broken channel cannot drop its successor.
    next_channel: AtomicU64,
}

struct Target {
    id: MemberId,
    address: Mutex<String>,
    lanes: [Slot; LANES],
    /// The last dial failed: said once, and once more when it is over.
    unreachable: AtomicBool,
}

#[derive(Default)]
struct Slot {
    kept: Mutex<Option<Kept>>,
    /// One dials, the others wait for it.
    dialing: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Kept {
    number: u64,
    alive: Alive,
    address: String,
    client: PeerClient,
}

impl PeerPool {
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        headers: PeerHeaders,
        settings: PeerSettings,
    ) -> Self {
        let shared = Shared {
            transport,
            headers,
            settings,
            members: Mutex::default(),
            rewound: watch::Sender::new(false),
            fenced: AtomicBool::new(false),
            next_channel: AtomicU64::new(1),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The way to a member. Dials nothing yet. `address` replaces the one from before on every lane:
    /// membership knows best, and the newest membership calls last.
    pub(crate) fn client(&self, target: MemberId, address: &PeerAddress, lane: Lane) -> PeerLane {
        let target = lock(&self.shared.members)
            .entry(target)
            .or_insert_with(|| {
                let address = Mutex::new(address.peer_address.clone());
                Arc::new(Target {
                    id: target,
                    address,
                    lanes: Default::default(),
                    unreachable: AtomicBool::new(false),
                })
            })
            .clone();
        lock(&target.address).clone_from(&address.peer_address);
        PeerLane {
            shared: self.shared.clone(),
            target,
            lane,
            used: AtomicU64::new(0),
        }
    }

    /// Forgets everybody else. Calls that are under way go on.
    pub(crate) fn retain(&self, members: &BTreeSet<MemberId>) {
        lock(&self.shared.members).retain(|id, _| members.contains(id));
    }

    /// A channel of one's own to an address whose node is not known yet, to say hello. Not kept.
    pub(crate) async fn dial(&self, address: &str) -> Result<PeerClient, PeerError> {
        self.shared.dial(address, Alive::default()).await
    }

    /// Turns true when a peer refuses this node because its volume was rewound or copied.
    pub(crate) fn rewound(&self) -> watch::Receiver<bool> {
        self.shared.rewound.subscribe()
    }

    /// Whether a peer has refused this node as one of another incarnation since this was asked last.
    pub(crate) fn take_fenced(&self) -> bool {
        self.shared.fenced.swap(false, Ordering::Relaxed)
    }

    /// What a call to `target` carries; [`MemberId`] 0 where it is not known yet.
    pub(crate) fn header(&self, target: MemberId) -> wire::PeerHeader {
        self.shared.headers.to(target)
    }
}

impl Shared {
    /// Dials, and makes sure of who is there.
    async fn meet(
        &self,
        target: MemberId,
        address: &str,
        alive: Alive,
    ) -> Result<PeerClient, PeerError> {
        let mut client = self.dial(address, alive).await?;
        let request = wire::GreetRequest {
            header: Some(self.headers.to(target)),
        };
        let after = self.settings.dial_timeout;
        let greeted = timeout(after, client.greet(request)).await;
        let greeted = greeted.map_err(|_| PeerError::Timeout {
            address: address.into(),
            after,
        })?;
        let failed = |source| PeerError::Greeting {
            address: address.into(),
            source,
        };
        let answer = greeted.map_err(|status| {
            let refusal = from_status(&status, Call::Read);
            match refusal.reason() {
                Reason::RewoundVolume => drop(self.rewound.send_replace(true)),
                Reason::WrongIncarnation => self.fenced.store(true, Ordering::Relaxed),
                _ => {}
            }
            failed(refusal)
        })?;
        let header = answer.into_inner().header;
        let found = self.headers.gate().check_answer(header.as_ref()).await;
        match found.map_err(failed)? {
            id if id == target => Ok(client),
            id => Err(failed(Error::new(
                Reason::WrongTarget,
                format!("{id} answers there, not {target}"),
            ))),
        }
    }

    async fn dial(&self, address: &str, alive: Alive) -> Result<PeerClient, PeerError> {
        let settings = &self.settings;
        // The authority is for proxies and logs on the way; the connector knows where to go.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|source| PeerError::Address {
                address: address.into(),
                source,
            })?
            .connect_timeout(settings.dial_timeout)
            .initial_stream_window_size(settings.stream_window_bytes)
            .initial_connection_window_size(settings.connection_window_bytes)
            .http2_keep_alive_interval(settings.keepalive_interval)
            .keep_alive_timeout(settings.keepalive_timeout)
            .keep_alive_while_idle(true);
        let transport = self.transport.clone();
        let place = address.to_string();
        let once = Arc::new(AtomicBool::new(true));
        let connector = service_fn(move |_: Uri| {
            let (transport, place) = (transport.clone(), place.clone());
            let (alive, once) = (alive.clone(), once.clone());
            async move {
                // The channel asks again when its connection was lost: nobody would be greeted.
                if !once.swap(false, Ordering::Relaxed) {
                    return Err(io::Error::from(io::ErrorKind::NotConnected));
                }
                let stream = transport.dial(&place).await?;
                Ok(TokioIo::new(Connection::new(stream, alive)))
            }
        });
        let after = settings.dial_timeout;
        let channel = timeout(after, endpoint.connect_with_connector(connector))
            .await
            .map_err(|_| PeerError::Timeout {
                address: address.into(),
                after,
            })?
            .map_err(|source| PeerError::Dial {
                address: address.into(),
                source,
            })?;
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(settings.max_message_bytes)
            .max_encoding_message_size(settings.max_message_bytes))
    }
}

impl Target {
    /// A peer that is away is dialed several times a second; its operator wants to know it once.
    fn report(&self, address: &str, failure: Option<&PeerError>) {
        let was_unreachable = self.unreachable.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(error) if !was_unreachable => {
                tracing::warn!(peer = %self.id, address, %error, "a peer cannot be reached");
            }
            None if was_unreachable => {
                tracing::info!(peer = %self.id, address, "the peer can be reached again");
            }
            _ => {}
        }
    }
}

/// The way to one member, for one purpose.
pub(crate) struct PeerLane {
    shared: Arc<Shared>,
    target: Arc<Target>,
    lane: Lane,
    /// The number of the channel that this handle got last; 0 is none.
    used: AtomicU64,
}

impl Clone for PeerLane {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            target: self.target.clone(),
            lane: self.lane,
            used: AtomicU64::new(self.used.load(Ordering::Relaxed)),
        }
    }
}

impl PeerLane {
    /// The kept channel, or a new one. Cancel-safe. Fails within [`PeerSettings::dial_timeout`] of its
    /// turn; of several that wait, one dials.
    pub(crate) async fn get(&self) -> Result<PeerClient, PeerError> {
        if let Some(client) = self.kept() {
            return Ok(client);
        }
        let slot = self.slot();
        let _turn = slot.dialing.lock().await;
        if let Some(client) = self.kept() {
            return Ok(client);
        }
        let address = lock(&self.target.address).clone();
        let alive = Alive::default();
        let met = self
            .shared
            .meet(self.target.id, &address, alive.clone())
            .await;
        self.target.report(&address, met.as_ref().err());
        let client = met?;
        let number = self.shared.next_channel.fetch_add(1, Ordering::Relaxed);
        *lock(&slot.kept) = Some(Kept {
            number,
            alive,
            address,
            client: client.clone(),
        });
        self.used.store(number, Ordering::Relaxed);
        Ok(client)
    }

    /// What every call, and the first message of every stream, carries. Built afresh each time:
    /// the node may have become a member since.
    pub(crate) fn header(&self) -> wire::PeerHeader {
        self.shared.headers.to(self.target.id)
    }

    /// Forgets the channel that this handle got last, so that the next [`get`](Self::get) dials afresh. Has no
    /// effect on a newer channel.
    pub(crate) fn broken(&self) {
        let used = self.used.load(Ordering::Relaxed);
        lock(&self.slot().kept).take_if(|kept| kept.number == used);
    }

    /// The kept channel, if its connection is there and leads to where the member is now.
    fn kept(&self) -> Option<PeerClient> {
        let mut slot = lock(&self.slot().kept);
        let address = lock(&self.target.address);
        let kept = slot.as_ref()?;
        if kept.address != *address || !kept.alive.is_alive() {
            *slot = None;
            return None;
        }
        self.used.store(kept.number, Ordering::Relaxed);
        Some(kept.client.clone())
    }

    fn slot(&self) -> &Slot {
        &self.target.lanes[self.lane as usize]
    }
}

/// These locks guard single assignments: a panic cannot leave one half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
