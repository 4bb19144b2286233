//! A cluster of scripted nodes: the v1 services over a tiny store, with faults on demand.
//!
//! Clients reach the nodes over pipes in memory ([`Network`]): with time paused, bytes on a real socket
//! would race the clock, because the runtime takes "the kernel is about to deliver" for "idle". What
//! sockets add (names, refused connections) is tested on loopback, in `endpoints`.
//!
//! All nodes share one [`World`], as replicas share one state. What a node does wrong stands in its
//! [`Faults`].

mod kv;
mod others;
mod watch;
mod world;

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::Stream;
use podkv_api::{Error, Reason};
use podkv_client::{Client, Connection, Dialer, Dialing};
use podkv_proto::v1;
use podkv_proto::v1::pipe_operation::Operation;
use podkv_proto::v1::pipe_result::Result as Answer;
use podkv_proto::v1::{
    cluster_server, kv_server, lease_server, session_server, snapshot_server, watch_server,
};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::Status;

pub use self::world::World;
use self::world::{answer_header, stamp};

const CLUSTER: u64 = 0xc1;

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Forge = Box<dyn Fn(&mut v1::Header) + Send>;

/// What one node does wrong. The default is nothing.
#[derive(Default)]
pub struct Faults {
    /// Of the next writes: apply it, then break the stream instead of answering.
    pub lose_answers: usize,
    /// … and forget every session then.
    pub forget_sessions: bool,
    /// Of the next writes: break the stream without applying.
    pub lose_requests: usize,
    /// Refuse that many operations with this error, before they reach the store.
    pub refuse: Option<(Error, usize)>,
    /// Never answer operations.
    pub silent: bool,
    /// Answer each operation twice.
    pub duplicate: bool,
    /// Say go away with the first answer, and take nothing more.
    pub go_away: bool,
    /// Credits that are given; 0 is 1024.
    pub credits: u32,
    /// Alters each header.
    pub forge: Option<Forge>,
    /// After that many messages the next watch streams break.
    pub watch_breaks: VecDeque<usize>,
    /// After that many messages the next range streams break.
    pub range_breaks: VecDeque<usize>,
    /// Ranges of more keys do not fit into one message of the operation stream.
    pub pipe_range_limit: Option<usize>,
    /// Break the keep-alive stream at the next request.
    pub break_keep_alive: usize,
    /// A status without podkv's detail, for the next unary calls after they were applied.
    pub lose_unary: usize,
    /// Flip a bit in snapshots.
    pub damage_snapshot: bool,
    /// After that many responses the next restores break.
    pub restore_breaks: VecDeque<usize>,
    /// Restores are refused with this error.
    pub refuse_restore: Option<Error>,
}

/// One node's services.
#[derive(Clone)]
pub struct Node {
    pub place: usize,
    pub address: String,
    world: Arc<World>,
    faults: Arc<Mutex<Faults>>,
    addresses: Arc<Mutex<Vec<String>>>,
}

impl Node {
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap()
    }

    pub fn id(&self) -> u64 {
        self.place as u64 + 1
    }

    fn header(&self, revision: u64) -> Option<v1::Header> {
        let term = self.world.state().term;
        let mut header = v1::Header {
            cluster_id: CLUSTER,
            incarnation: 1,
            member_id: self.id(),
            term,
            revision,
        };
        if let Some(forge) = &self.faults().forge {
            forge(&mut header);
        }
        Some(header)
    }

    fn latest(&self) -> Option<v1::Header> {
        self.header(self.world.revision())
    }

    /// An operation's result; `None` breaks the stream.
    fn run(&self, operation: &Operation) -> Option<Answer> {
        let is_write = stamp(operation).is_some();
        {
            let mut state = self.world.state();
            state.seen.operations += 1;
            if is_write {
                state.seen.writes_at[self.place] += 1;
            } else {
                state.seen.reads_at[self.place] += 1;
            }
        }
        {
            let mut faults = self.faults();
            if let Some((error, left)) = &mut faults.refuse
                && *left > 0
            {
                *left -= 1;
                return Some(Answer::Error((&*error).into()));
            }
            if is_write && faults.lose_requests > 0 {
                faults.lose_requests -= 1;
                return None;
            }
        }
        let result = self.world.apply(operation);
        if is_write {
            let mut faults = self.faults();
            if faults.lose_answers > 0 {
                faults.lose_answers -= 1;
                if faults.forget_sessions {
                    self.world.expire_sessions();
                }
                return None;
            }
        }
        let limit = self.faults().pipe_range_limit;
        match result {
            Err(error) => Some(Answer::Error((&error).into())),
            Ok(Answer::Range(range)) if limit.is_some_and(|limit| range.kvs.len() > limit) => {
                let error = Error::new(Reason::RequestTooLarge, "the range outgrew a message");
                Some(Answer::Error((&error).into()))
            }
            Ok(mut answer) => {
                let header = answer_header(&mut answer);
                let revision = header.as_ref().unwrap().revision;
                *header = self.header(revision);
                Some(answer)
            }
        }
    }

    /// After a unary call was applied: whether its answer is lost on the way.
    fn lose_unary(&self) -> Result<(), Status> {
        let mut faults = self.faults();
        if faults.lose_unary > 0 {
            faults.lose_unary -= 1;
            return Err(broken());
        }
        Ok(())
    }
}

fn broken() -> Status {
    Status::unavailable("the connection was lost")
}

/// Pipes to the nodes, by address. Nobody listens anywhere else.
#[derive(Clone, Default)]
pub struct Network(Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Accepted>>>>);

type Accepted = std::io::Result<DuplexStream>;

impl Network {
    fn listen(&self, address: &str) -> mpsc::UnboundedReceiver<Accepted> {
        let (dialled, accepted) = mpsc::unbounded_channel();
        self.0.lock().unwrap().insert(address.to_owned(), dialled);
        accepted
    }
}

impl Dialer for Network {
    fn dial(&self, address: &str) -> Dialing {
        let listener = self.0.lock().unwrap().get(address).cloned();
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            listener
                .and_then(|listener| listener.send(Ok(theirs)).ok())
                .ok_or(std::io::ErrorKind::ConnectionRefused)?;
            Ok(Box::new(ours) as Box<dyn Connection>)
        })
    }
}

/// A running cluster of `n` nodes; node 0 leads.
pub struct Cluster {
    pub world: Arc<World>,
    pub nodes: Vec<Node>,
    pub network: Network,
    /// What the nodes say are the members' addresses.
    pub announced: Arc<Mutex<Vec<String>>>,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl Cluster {
    /// Nodes that are reached over pipes, as `podkv-N:2379`.
    pub async fn start(n: usize) -> Self {
        Self::start_on(n, Network::default()).await
    }

    /// The same, on a network where others are already. Their names must differ.
    pub async fn start_on(n: usize, network: Network) -> Self {
        let first = network.0.lock().unwrap().len();
        let addresses = (first..first + n).map(|place| format!("podkv-{place}:2379"));
        let mut cluster = Self::describe(addresses.collect(), network);
        for node in cluster.nodes.clone() {
            let incoming = UnboundedReceiverStream::new(cluster.network.listen(&node.address));
            let serving = router(node).serve_with_incoming(incoming);
            cluster
                .servers
                .push(tokio::spawn(async { serving.await.unwrap() }));
        }
        cluster
    }

    /// Nodes on loopback.
    pub async fn start_on_tcp(n: usize) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..n {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses = listeners
            .iter()
            .map(|one| one.local_addr().unwrap().to_string());
        let mut cluster = Self::describe(addresses.collect(), Network::default());
        for (node, listener) in cluster.nodes.clone().into_iter().zip(listeners) {
            let serving = router(node).serve_with_incoming(TcpListenerStream::new(listener));
            cluster
                .servers
                .push(tokio::spawn(async { serving.await.unwrap() }));
        }
        cluster
    }

    fn describe(addresses: Vec<String>, network: Network) -> Self {
        let world = Arc::new(World::new(addresses.len()));
        let announced = Arc::new(Mutex::new(addresses.clone()));
        let node = |(place, address)| Node {
            place,
            address,
            world: world.clone(),
            faults: Arc::default(),
            addresses: announced.clone(),
        };
        let nodes = addresses.into_iter().enumerate().map(node).collect();
        Self {
            world: world.clone(),
            nodes,
            network,
            announced: announced.clone(),
            servers: Vec::new(),
        }
    }

    /// A client of all nodes.
    pub async fn client(&self) -> Client {
        self.builder(self.addresses()).connect().await.unwrap()
    }

    /// A client to be, on this network.
    pub fn builder(&self, endpoints: Vec<String>) -> podkv_client::Builder {
        Client::builder()
            .endpoints(endpoints)
            .dialer(Arc::new(self.network.clone()))
    }

    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// The same faults on every node.
    pub fn each(&self, set: impl Fn(&mut Faults)) {
        for node in &self.nodes {
            set(&mut node.faults());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}

fn router(node: Node) -> tonic::transport::server::Router {
    tonic::transport::Server::builder()
        .add_service(kv_server::KvServer::new(node.clone()))
        .add_service(watch_server::WatchServer::new(node.clone()))
        .add_service(lease_server::LeaseServer::new(node.clone()))
        .add_service(session_server::SessionServer::new(node.clone()))
        .add_service(cluster_server::ClusterServer::new(node.clone()))
        .add_service(snapshot_server::SnapshotServer::new(node))
}

/// Addresses at which nobody listens.
pub fn dead_addresses(n: usize) -> Vec<String> {
    (0..n).map(|place| format!("nobody-{place}:2379")).collect()
}
