//! A cluster of scripted nodes: the v1 services over a tiny store, with faults on demand.
//!
//! Clients reach the nodes over pipes in memory ([`Network`]): with time paused, bytes on a real socket
//! would race the clock, because the runtime takes "the kernel is about to deliver" for "idle". What
//! sockets add (names, refused connections) is tested on loopback, in `endpoints`.
//!
//! All nodes share one [`World`], as replicas share one state. What a node does wrong stands in its
//! [`Faults`].

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::Stream;
use podkv_api::{Error, KeyRange, KeyValue, Reason, Watch, WatchMessage};
use podkv_proto::convert::{self, to_status};
use podkv_client::{Client, Connection, Dialer, Dialing};
use podkv_proto::v1;
use podkv_proto::v1::pipe_operation::Operation;
use podkv_proto::v1::pipe_result::Result as Answer;
use podkv_proto::v1::{
    cluster_server, kv_server, lease_server, session_server, snapshot_server, watch_server,
};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

pub const CLUSTER: u64 = 0xc1;

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
/// Changes of one revision: key and value, `None` for a delete.
type Changes = Vec<(Bytes, Option<Bytes>)>;
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
    /// Hold answers until told otherwise.
    pub hold: bool,
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
}

/// What all nodes did, in order.
#[derive(Default)]
pub struct Seen {
    /// Stamps of writes, as they arrived.
    pub stamps: Vec<v1::SessionStamp>,
    pub operations: usize,
    pub most_unanswered: usize,
    pub most_in_a_message: usize,
    pub pipes: usize,
    pub keep_alives: Vec<i64>,
    pub opens: Vec<Bytes>,
    pub closes: usize,
    pub session_keep_alives: usize,
    pub watches: Vec<v1::WatchRequest>,
    pub lists: Vec<v1::RangeRequest>,
    /// By node.
    pub writes_at: Vec<usize>,
    pub reads_at: Vec<usize>,
    pub statuses: usize,
}

struct SessionState {
    results: HashMap<u64, Answer>,
    acknowledged_below: u64,
}

pub struct State {
    /// By revision; revision 1 is the empty store.
    history: Vec<Changes>,
    compacted: u64,
    sessions: HashMap<Bytes, SessionState>,
    pub leases: HashSet<i64>,
    pub leader: usize,
    pub term: u64,
    pub window: u32,
    pub seen: Seen,
}

pub struct World {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
    pub held: watch::Sender<bool>,
}

impl World {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn revision(&self) -> u64 {
        self.state().history.len() as u64
    }

    /// A write from elsewhere.
    pub fn write(&self, changes: &[(&str, Option<&str>)]) -> u64 {
        let changes = changes.iter().map(|(key, value)| {
            let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
            (Bytes::copy_from_slice(key.as_bytes()), value)
        });
        let revision = self.state().commit(changes.collect());
        self.revision.send_replace(revision);
        revision
    }

    pub fn compact(&self, revision: u64) {
        self.state().compacted = revision;
    }

    /// Forgets every session, as after their TTL.
    pub fn expire_sessions(&self) {
        self.state().sessions.clear();
    }

    /// The latest value.
    pub fn value(&self, key: &str) -> Option<KeyValue> {
        let state = self.state();
        let revision = state.history.len() as u64;
        let kvs = state.at(revision, &KeyRange::key(key.to_owned()));
        kvs.into_iter().next()
    }

    /// How many keys that begin with `prefix` a revision changed.
    pub fn changes(&self, revision: u64, prefix: &str) -> usize {
        let state = self.state();
        let changes = &state.history[revision as usize - 1];
        let matching = changes.iter().filter(|(key, _)| key.starts_with(prefix.as_bytes()));
        matching.count()
    }

    fn apply(&self, operation: &Operation) -> Result<Answer, Error> {
        let result = self.state().apply(operation);
        self.revision.send_replace(self.revision());
        result
    }
}

impl State {
    fn commit(&mut self, changes: Changes) -> u64 {
        self.history.push(changes);
        self.history.len() as u64
    }

    /// The keys of a range as of a revision.
    fn at(&self, revision: u64, range: &KeyRange) -> Vec<KeyValue> {
        let mut keys: BTreeMap<Bytes, KeyValue> = BTreeMap::new();
        for (place, changes) in self.history.iter().enumerate().take(revision as usize) {
            for (key, value) in changes {
                let now = place as u64 + 1;
                match value {
                    None => drop(keys.remove(key)),
                    Some(value) => {
                        let kv = keys.entry(key.clone()).or_insert_with(|| KeyValue {
                            key: key.clone(),
                            value: Bytes::new(),
                            create_revision: now,
                            mod_revision: now,
                            version: 0,
                            lease: None,
                            expires_at_ms: None,
                        });
                        kv.value = value.clone();
                        kv.mod_revision = now;
                        kv.version += 1;
                    }
                }
            }
        }
        keys.retain(|key, _| range.contains(key));
        keys.into_values().collect()
    }

    fn check(&self, revision: u64) -> Result<u64, Error> {
        let latest = self.history.len() as u64;
        if revision > latest {
            return Err(Error::new(Reason::FutureRevision, "future"));
        }
        if revision != 0 && revision < self.compacted {
            return Err(Error::compacted(self.compacted));
        }
        Ok(if revision == 0 { latest } else { revision })
    }

    fn apply(&mut self, operation: &Operation) -> Result<Answer, Error> {
        let Some(stamp) = stamp(operation) else {
            return self.read(operation);
        };
        self.seen.stamps.push(stamp.clone());
        let session = self
            .sessions
            .get_mut(&stamp.session_id)
            .ok_or_else(|| Error::new(Reason::SessionNotFound, "no such session"))?;
        session.acknowledged_below = session.acknowledged_below.max(stamp.acknowledged_below);
        let below = session.acknowledged_below;
        session.results.retain(|sequence, _| *sequence >= below);
        if stamp.sequence < below || stamp.sequence - below >= u64::from(self.window) {
            return Err(Error::new(Reason::SessionSequence, "out of the window"));
        }
        if let Some(first) = session.results.get(&stamp.sequence) {
            return Ok(first.clone());
        }
        let answer = self.execute(operation)?;
        if let Some(session) = self.sessions.get_mut(&stamp.session_id) {
            session.results.insert(stamp.sequence, answer.clone());
        }
        Ok(answer)
    }

    fn execute(&mut self, operation: &Operation) -> Result<Answer, Error> {
        match operation {
            Operation::Put(put) => {
                if put.lease != 0 && !self.leases.contains(&put.lease) {
                    return Err(Error::new(Reason::LeaseNotFound, "no such lease"));
                }
                let revision = self.commit(vec![(put.key.clone(), Some(put.value.clone()))]);
                Ok(Answer::Put(v1::PutResponse {
                    header: header_at(revision),
                    prev_kv: None,
                }))
            }
            Operation::Delete(delete) => {
                let range = convert::key_range(delete.range.clone())?;
                let keys = self.at(self.history.len() as u64, &range);
                let changes: Changes = keys.into_iter().map(|kv| (kv.key, None)).collect();
                let deleted = changes.len() as u64;
                let revision = self.commit(changes);
                Ok(Answer::Delete(v1::DeleteResponse {
                    header: header_at(revision),
                    deleted,
                    prev_kvs: Vec::new(),
                }))
            }
            Operation::Txn(txn) => {
                let puts = txn.then.iter().filter_map(|operation| match &operation.operation {
                    Some(v1::operation::Operation::Put(put)) => {
                        Some((put.key.clone(), Some(put.value.clone())))
                    }
                    _ => None,
                });
                let revision = self.commit(puts.collect());
                Ok(Answer::Txn(v1::TxnResponse {
                    header: header_at(revision),
                    succeeded: true,
                    responses: Vec::new(),
                }))
            }
            Operation::Get(_) | Operation::Range(_) => self.read(operation),
        }
    }

    fn read(&self, operation: &Operation) -> Result<Answer, Error> {
        let latest = self.history.len() as u64;
        match operation {
            Operation::Get(get) => {
                let revision = self.check(get.revision)?;
                let kvs = self.at(revision, &KeyRange::key(get.key.clone()));
                Ok(Answer::Get(v1::GetResponse {
                    header: header_at(latest),
                    kv: kvs.into_iter().next().map(Into::into),
                }))
            }
            Operation::Range(request) => self.range(request).map(Answer::Range),
            Operation::Txn(_) => Ok(Answer::Txn(v1::TxnResponse {
                header: header_at(latest),
                succeeded: true,
                responses: Vec::new(),
            })),
            _ => Err(Error::new(Reason::InvalidArgument, "a write without a stamp")),
        }
    }

    fn range(&self, request: &v1::RangeRequest) -> Result<v1::RangeResponse, Error> {
        let revision = self.check(request.revision)?;
        let mut kvs = self.at(revision, &convert::key_range(request.range.clone())?);
        if request.reverse {
            kvs.reverse();
        }
        let count = kvs.len() as u64;
        let limit = if request.limit == 0 { u64::MAX } else { request.limit };
        kvs.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let more = count > kvs.len() as u64 && !request.count_only;
        if request.count_only {
            kvs.clear();
        }
        Ok(v1::RangeResponse {
            header: header_at(self.history.len() as u64),
            kvs: kvs.into_iter().map(Into::into).collect(),
            count,
            more,
        })
    }
}

fn stamp(operation: &Operation) -> Option<v1::SessionStamp> {
    match operation {
        Operation::Put(put) => put.session.clone(),
        Operation::Delete(delete) => delete.session.clone(),
        Operation::Txn(txn) => txn.session.clone(),
        Operation::Get(_) | Operation::Range(_) => None,
    }
}

fn header_at(revision: u64) -> Option<v1::Header> {
    Some(v1::Header {
        revision,
        ..v1::Header::default()
    })
}

fn answer_header(answer: &mut Answer) -> &mut Option<v1::Header> {
    match answer {
        Answer::Put(put) => &mut put.header,
        Answer::Delete(delete) => &mut delete.header,
        Answer::Txn(txn) => &mut txn.header,
        Answer::Get(get) => &mut get.header,
        Answer::Range(range) => &mut range.header,
        Answer::Error(_) => unreachable!("errors have no header"),
    }
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

#[tonic::async_trait]
impl kv_server::Kv for Node {
    type RangeStream = Boxed<v1::RangeResponse>;
    type PipeStream = Boxed<v1::PipeResponse>;

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Err(Status::unimplemented("the client uses the operation stream"))
    }
    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        // For what is too large for the operation stream.
        let request = request.into_inner();
        if request.value.len() > 1 << 20 {
            let error = Error::new(Reason::RequestTooLarge, "too large");
            return Err(to_status(&error));
        }
        match self.run(&Operation::Put(request)) {
            Some(Answer::Put(put)) => Ok(Response::new(put)),
            Some(other) => panic!("{other:?}"),
            None => Err(broken()),
        }
    }
    async fn delete(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        Err(Status::unimplemented("the client uses the operation stream"))
    }
    async fn txn(&self, _: Request<v1::TxnRequest>) -> Result<Response<v1::TxnResponse>, Status> {
        Err(Status::unimplemented("the client uses the operation stream"))
    }

    async fn range(
        &self,
        request: Request<v1::RangeRequest>,
    ) -> Result<Response<Self::RangeStream>, Status> {
        let request = request.into_inner();
        let whole = {
            let mut state = self.world.state();
            state.seen.lists.push(request.clone());
            state.range(&request).map_err(|error| to_status(&error))?
        };
        let revision = whole.header.unwrap().revision;
        let mut chunks: Vec<v1::RangeResponse> = whole
            .kvs
            .chunks(3)
            .map(|kvs| v1::RangeResponse {
                header: self.header(revision),
                kvs: kvs.to_vec(),
                count: 0,
                more: false,
            })
            .collect();
        if chunks.is_empty() {
            chunks.push(v1::RangeResponse {
                header: self.header(revision),
                ..Default::default()
            });
        }
        let last = chunks.last_mut().unwrap();
        (last.count, last.more) = (whole.count, whole.more);
        let breaks = self.faults().range_breaks.pop_front();
        let mut messages: Vec<Result<_, Status>> = chunks.into_iter().map(Ok).collect();
        if let Some(after) = breaks
            && after <= messages.len()
        {
            messages.truncate(after);
            messages.push(Err(broken()));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn compact(
        &self,
        request: Request<v1::CompactRequest>,
    ) -> Result<Response<v1::CompactResponse>, Status> {
        let request = request.into_inner();
        let stamp = request.session.ok_or_else(|| Status::invalid_argument("no stamp"))?;
        self.world.state().seen.stamps.push(stamp);
        self.world.compact(request.revision);
        self.lose_unary()?;
        Ok(Response::new(v1::CompactResponse {
            header: self.latest(),
        }))
    }

    async fn pipe(
        &self,
        request: Request<Streaming<v1::PipeRequest>>,
    ) -> Result<Response<Self::PipeStream>, Status> {
        self.world.state().seen.pipes += 1;
        let (out, answers) = mpsc::channel(64);
        tokio::spawn(serve_pipe(self.clone(), request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

type PipeOut = mpsc::Sender<Result<v1::PipeResponse, Status>>;

async fn serve_pipe(node: Node, mut requests: Streaming<v1::PipeRequest>, out: PipeOut) {
    let credits = match node.faults().credits {
        0 => 1024,
        credits => credits,
    };
    let first = v1::PipeResponse {
        credits,
        ..Default::default()
    };
    if out.send(Ok(first)).await.is_err() {
        return;
    }
    let mut held = node.world.held.subscribe();
    let mut unanswered: Vec<v1::PipeResult> = Vec::new();
    loop {
        tokio::select! {
            request = requests.message() => {
                let Ok(Some(request)) = request else { return };
                note_message(&node, request.operations.len(), unanswered.len());
                for operation in request.operations {
                    let Some(result) = node.run(operation.operation.as_ref().unwrap()) else {
                        let _ = out.send(Err(broken())).await;
                        return;
                    };
                    unanswered.push(v1::PipeResult { id: operation.id, result: Some(result) });
                }
            }
            changed = held.changed() => if changed.is_err() { return },
        }
        {
            let faults = node.faults();
            if faults.silent || (faults.hold && *held.borrow()) {
                continue;
            }
        }
        let mut results = std::mem::take(&mut unanswered);
        if node.faults().duplicate {
            results.extend(results.clone());
        }
        let go_away = node.faults().go_away;
        let response = v1::PipeResponse {
            results,
            credits: 0,
            go_away,
        };
        if out.send(Ok(response)).await.is_err() {
            return;
        }
    }
}

fn note_message(node: &Node, operations: usize, unanswered: usize) {
    let mut state = node.world.state();
    let seen = &mut state.seen;
    seen.most_in_a_message = seen.most_in_a_message.max(operations);
    seen.most_unanswered = seen.most_unanswered.max(unanswered + operations);
}

#[tonic::async_trait]
impl watch_server::Watch for Node {
    type WatchStream = Boxed<v1::WatchResponse>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        self.world.state().seen.watches.push(request.clone());
        let watch = Watch::try_from(request).map_err(Status::from)?;
        let compacted = self.world.state().compacted;
        if watch.start_revision != 0 && watch.start_revision < compacted {
            return Err(to_status(&Error::compacted(compacted)));
        }
        let (out, messages) = mpsc::channel(1);
        let breaks = self.faults().watch_breaks.pop_front();
        tokio::spawn(serve_watch(self.clone(), watch, out, breaks));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

struct WatchOut {
    out: mpsc::Sender<Result<v1::WatchResponse, Status>>,
    left: Option<usize>,
}

impl WatchOut {
    /// False when the stream is over.
    async fn send(&mut self, message: WatchMessage) -> bool {
        // Small fragments, so that streams break inside revisions and lists.
        for message in convert::watch::fragments(message, 40) {
            if self.left == Some(0) {
                let _ = self.out.send(Err(broken())).await;
                return false;
            }
            self.left = self.left.map(|left| left - 1);
            if self.out.send(Ok(message)).await.is_err() {
                return false;
            }
        }
        true
    }
}

async fn serve_watch(
    node: Node,
    watch: Watch,
    out: mpsc::Sender<Result<v1::WatchResponse, Status>>,
    left: Option<usize>,
) {
    let mut out = WatchOut { out, left };
    let mut revisions = node.world.revision.subscribe();
    let latest = *revisions.borrow_and_update();
    let header = convert::header(node.header(latest)).unwrap();
    let mut next = match watch.start_revision {
        0 => latest + 1,
        start => start,
    };
    let created = WatchMessage::Created {
        header,
        start_revision: next,
    };
    if !out.send(created).await {
        return;
    }
    if watch.list {
        let kvs = node.world.state().at(latest, &watch.range);
        let list = WatchMessage::List {
            header,
            revision: latest,
            kvs,
        };
        let listed = WatchMessage::Listed {
            header,
            revision: latest,
        };
        if !out.send(list).await || !out.send(listed).await {
            return;
        }
    }
    loop {
        let latest = *revisions.borrow_and_update();
        while next <= latest {
            if let Some(message) = events(&node, &watch, next)
                && !out.send(message).await
            {
                return;
            }
            next += 1;
        }
        if watch.bookmarks {
            let bookmark = WatchMessage::Bookmark {
                header: convert::header(node.header(latest)).unwrap(),
                revision: latest,
            };
            if !out.send(bookmark).await {
                return;
            }
        }
        tokio::select! {
            changed = revisions.changed() => if changed.is_err() { return },
            () = out.out.closed() => return,
        }
    }
}

fn events(node: &Node, watch: &Watch, revision: u64) -> Option<WatchMessage> {
    let state = node.world.state();
    let events: Vec<podkv_api::Event> = state.history[revision as usize - 1]
        .iter()
        .filter(|(key, _)| watch.range.contains(key))
        .map(|(key, value)| podkv_api::Event {
            kind: match value {
                Some(_) => podkv_api::EventKind::Put,
                None => podkv_api::EventKind::Delete,
            },
            kv: KeyValue {
                key: key.clone(),
                value: value.clone().unwrap_or_default(),
                create_revision: 0,
                mod_revision: revision,
                version: 0,
                lease: None,
                expires_at_ms: None,
            },
            prev_kv: None,
        })
        .collect();
    drop(state);
    let header = convert::header(node.header(revision)).unwrap();
    (!events.is_empty()).then_some(WatchMessage::Events {
        header,
        revision,
        events,
    })
}

#[tonic::async_trait]
impl session_server::Session for Node {
    async fn open(
        &self,
        request: Request<v1::SessionOpenRequest>,
    ) -> Result<Response<v1::SessionOpenResponse>, Status> {
        let request = request.into_inner();
        let window = {
            let mut state = self.world.state();
            state.seen.opens.push(request.id.clone());
            state
                .sessions
                .entry(request.id.clone())
                .or_insert_with(|| SessionState {
                    results: HashMap::new(),
                    acknowledged_below: 1,
                });
            state.window
        };
        self.lose_unary()?;
        Ok(Response::new(v1::SessionOpenResponse {
            header: self.latest(),
            id: request.id,
            ttl_ms: request.ttl_ms,
            window,
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<v1::SessionKeepAliveRequest>,
    ) -> Result<Response<v1::SessionKeepAliveResponse>, Status> {
        let id = request.into_inner().id;
        {
            let mut state = self.world.state();
            state.seen.session_keep_alives += 1;
            if !state.sessions.contains_key(&id) {
                return Err(to_status(&Error::new(Reason::SessionNotFound, "gone")));
            }
        }
        Ok(Response::new(v1::SessionKeepAliveResponse {
            header: self.latest(),
            remaining_ms: 60_000,
        }))
    }

    async fn close(
        &self,
        request: Request<v1::SessionCloseRequest>,
    ) -> Result<Response<v1::SessionCloseResponse>, Status> {
        let id = request.into_inner().id;
        {
            let mut state = self.world.state();
            state.seen.closes += 1;
            state.sessions.remove(&id);
        }
        Ok(Response::new(v1::SessionCloseResponse {
            header: self.latest(),
        }))
    }
}

#[tonic::async_trait]
impl lease_server::Lease for Node {
    type KeepAliveStream = Boxed<v1::LeaseKeepAliveResponse>;

    async fn grant(
        &self,
        request: Request<v1::LeaseGrantRequest>,
    ) -> Result<Response<v1::LeaseGrantResponse>, Status> {
        let request = request.into_inner();
        {
            let mut state = self.world.state();
            state.seen.stamps.push(request.session.expect("a stamp"));
            state.leases.insert(request.id);
        }
        self.lose_unary()?;
        Ok(Response::new(v1::LeaseGrantResponse {
            header: self.latest(),
            id: request.id,
            ttl_ms: request.ttl_ms,
        }))
    }

    async fn revoke(
        &self,
        request: Request<v1::LeaseRevokeRequest>,
    ) -> Result<Response<v1::LeaseRevokeResponse>, Status> {
        self.world.state().leases.remove(&request.into_inner().id);
        Ok(Response::new(v1::LeaseRevokeResponse {
            header: self.latest(),
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let mut requests = request.into_inner();
        let (out, answers) = mpsc::channel(64);
        let node = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                node.world.state().seen.keep_alives.push(request.id);
                let breaks = {
                    let mut faults = node.faults();
                    let left = faults.break_keep_alive;
                    faults.break_keep_alive = left.saturating_sub(1);
                    left > 0
                };
                if breaks {
                    let _ = out.send(Err(broken())).await;
                    return;
                }
                let lease = podkv_api::LeaseId(request.id);
                let known = node.world.state().leases.contains(&request.id);
                let result = if known {
                    Ok(podkv_api::LeaseStatus {
                        header: convert::header(node.latest()).unwrap(),
                        lease,
                        granted_ttl_ms: 9_000,
                        remaining_ms: 9_000,
                        keys: Vec::new(),
                    })
                } else {
                    Err(Error::new(Reason::LeaseNotFound, "no such lease"))
                };
                let answer = v1::LeaseKeepAliveResponse::new(lease, result);
                if out.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn status(
        &self,
        request: Request<v1::LeaseStatusRequest>,
    ) -> Result<Response<v1::LeaseStatusResponse>, Status> {
        Ok(Response::new(v1::LeaseStatusResponse {
            header: self.latest(),
            id: request.into_inner().id,
            granted_ttl_ms: 9_000,
            remaining_ms: 5_000,
            keys: Vec::new(),
        }))
    }

    async fn list(
        &self,
        _: Request<v1::LeaseListRequest>,
    ) -> Result<Response<v1::LeaseListResponse>, Status> {
        let mut ids: Vec<i64> = self.world.state().leases.iter().copied().collect();
        ids.sort_unstable();
        Ok(Response::new(v1::LeaseListResponse {
            header: self.latest(),
            ids,
        }))
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for Node {
    async fn members(
        &self,
        _: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let addresses = self.addresses.lock().unwrap().clone();
        let members = addresses
            .into_iter()
            .enumerate()
            .map(|(place, client_address)| v1::Member {
                id: place as u64 + 1,
                name: format!("podkv-{place}"),
                peer_address: String::new(),
                client_address,
                role: v1::member::Role::Voter.into(),
            });
        Ok(Response::new(v1::MembersResponse {
            header: self.latest(),
            members: members.collect(),
        }))
    }

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let leader_id = {
            let mut state = self.world.state();
            state.seen.statuses += 1;
            state.leader as u64 + 1
        };
        Ok(Response::new(v1::StatusResponse {
            header: self.latest(),
            name: format!("podkv-{}", self.place),
            version: "0.1.0".into(),
            leader_id,
            ..Default::default()
        }))
    }

    async fn add_member(
        &self,
        _: Request<v1::AddMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        self.world.state().seen.operations += 1;
        self.lose_unary()?;
        self.members(Request::new(v1::MembersRequest { local: false }))
            .await
    }

    async fn promote_member(
        &self,
        _: Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        Err(to_status(&Error::new(
            Reason::MembershipConflict,
            "another change is unfinished",
        )))
    }

    async fn remove_member(
        &self,
        _: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        let leader = self.world.state().leader;
        if self.place != leader {
            let hint = podkv_api::LeaderHint {
                member: podkv_api::MemberId(leader as u64 + 1),
                client_address: self.addresses.lock().unwrap()[leader].clone(),
            };
            let error = Error::new(Reason::NotLeader, "not the leader").with_leader(Some(hint));
            return Err(to_status(&error));
        }
        let to = request.into_inner().to;
        {
            let mut state = self.world.state();
            state.leader = to as usize - 1;
            state.term += 1;
        }
        Ok(Response::new(v1::TransferLeadershipResponse {
            header: self.latest(),
            leader_id: to,
        }))
    }
}

#[tonic::async_trait]
impl snapshot_server::Snapshot for Node {
    type SaveStream = Boxed<v1::SnapshotChunk>;

    async fn save(
        &self,
        _: Request<v1::SnapshotSaveRequest>,
    ) -> Result<Response<Self::SaveStream>, Status> {
        use sha2::{Digest, Sha256};
        let data = b"the whole state";
        let mut hash = Sha256::digest(data).to_vec();
        if self.faults().damage_snapshot {
            hash[0] ^= 1;
        }
        let chunks = vec![
            Ok(v1::SnapshotChunk {
                header: self.latest(),
                total_bytes: data.len() as u64,
                data: Bytes::from_static(&data[..4]),
                ..Default::default()
            }),
            Ok(v1::SnapshotChunk {
                data: Bytes::from_static(&data[4..]),
                sha256: hash.into(),
                ..Default::default()
            }),
        ];
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
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
            cluster.servers.push(tokio::spawn(async { serving.await.unwrap() }));
        }
        cluster
    }

    /// Nodes on loopback.
    pub async fn start_on_tcp(n: usize) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..n {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses = listeners.iter().map(|one| one.local_addr().unwrap().to_string());
        let mut cluster = Self::describe(addresses.collect(), Network::default());
        for (node, listener) in cluster.nodes.clone().into_iter().zip(listeners) {
            let serving = router(node).serve_with_incoming(TcpListenerStream::new(listener));
            cluster.servers.push(tokio::spawn(async { serving.await.unwrap() }));
        }
        cluster
    }

    fn describe(addresses: Vec<String>, network: Network) -> Self {
        let n = addresses.len();
        let world = Arc::new(World {
            state: Mutex::new(State {
                history: vec![Vec::new()],
                compacted: 0,
                sessions: HashMap::new(),
                leases: HashSet::new(),
                leader: 0,
                term: 1,
                window: 1000,
                seen: Seen {
                    writes_at: vec![0; n],
                    reads_at: vec![0; n],
                    ..Seen::default()
                },
            }),
            revision: watch::Sender::new(1),
            held: watch::Sender::new(false),
        });
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
