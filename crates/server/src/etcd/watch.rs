//! Watch: many watches in one stream, told apart by numbers.
//!
//! ```text
//!   requests ──► prepare (is this node's state fresh?) ──► Session ──► responses
//!                  several at once, in order                 ▲
//!                                   watches of the node ─────┘  (one stream of all of them)
//! ```
//!
//! The session is pulled by the connection: a client that does not read stops it, and the node's watches fall behind and
//! catch up by themselves. So its memory is a few hundred bytes a watch, and one response.
//!
//! What etcd's clients rely on: `created` comes before any event, and in the order in which was asked: that is how many
//! of them tell which watch it is of. A revision is in one response, unless the client asked
//! for fragments. A compacted start is `created`, then a response that cancels, with the revision to go on from, no
//! reason and no revision in its header. A progress request is answered under the id -1, once every watch of the stream
//! has reported everything up to the revision in the answer.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;

use bytes::Bytes;
use futures_util::future::{Either, ready};
use futures_util::stream::{FuturesOrdered, SelectAll, unfold};
use futures_util::{FutureExt, Stream, StreamExt};
use podkv_api::{
    Consistency, Error, ErrorKind, Header, Reason, Result as PodkvResult, Revision, WatchMessage,
    WatchStream,
};
use podkv_node::{Access, Node, Progress};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::watch_create_request::FilterType;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use podkv_proto::etcd::mvccpb;
use prost::Message;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use super::auth::cancel_reason;
use super::convert::{event, header, key_range, signed};
use super::require_leader;
use crate::api::caller::access;
use crate::api::draining::{draining, goodbye, refuse_if_draining};

/// Requests of one stream that wait for this node to be fresh. They share one round to the leader.
const PREPARED_AT_ONCE: usize = 1024;

/// And they hold at most about this many bytes of keys: a request may have a megabyte of them.
const PREPARED_BYTES: usize = 1 << 20;

/// Fragments are filled up to about this size: below the 2 MiB that etcd's own are.
const FRAGMENT_BYTES: usize = 1536 * 1024;

/// What a response of no watch has in place of the id.
const NO_WATCH: i64 = -1;

pub(super) struct Watch(pub Node);

#[tonic::async_trait]
impl pb::watch_server::Watch for Watch {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        refuse_if_draining(&self.0)?;
        require_leader(&self.0, request.metadata())?;
        // A token that does not hold refuses each watch, not the stream: so clients know what to do.
        let access = access(&self.0, request.metadata()).await;
        let session = Session::new(self.0.clone(), access, request.into_inner());
        let responses = unfold(session, |mut session| async move {
            let response = session.next().await?;
            Some((response, session))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// A request, with what it took to prepare it.
enum Prepared {
    Create(pb::WatchCreateRequest, PodkvResult<(Progress, WatchStream)>),
    Cancel(i64),
    Progress,
    Nothing,
}

type Preparing = Pin<Box<dyn Future<Output = Prepared> + Send>>;

/// Something that a watch of the node said, and which one.
type Said = (i64, u64, Option<PodkvResult<WatchMessage>>);

struct Session {
    node: Node,
    /// The node as the caller may use it, or why it may not at all.
    access: PodkvResult<Access>,
    requests: Option<Streaming<pb::WatchRequest>>,
    preparing: FuturesOrdered<Preparing>,
    /// What the requests in `preparing` hold.
    preparing_bytes: usize,
    watches: HashMap<i64, Open>,
    /// What was asked for and is not answered yet, in order.
    unanswered: VecDeque<Unanswered>,
    /// Ends when the newest watch is created: the next one has its turn after it.
    newest_created: Option<oneshot::Receiver<()>>,
    messages: SelectAll<Pin<Box<dyn Stream<Item = Said> + Send>>>,
    next_id: i64,
    /// Tells the watches of one id apart, when one follows another.
    next_serial: u64,
    /// What is to be sent next.
    ready: VecDeque<pb::WatchResponse>,
    /// The revision of a progress request that is not answered yet.
    asked: Option<Revision>,
    /// A watch that has not reported that much: while it has not, the others need not be looked at.
    not_level: Option<i64>,
    draining: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

/// A request for a watch, before its answer.
enum Unanswered {
    /// A watch, with its serial, that says by itself when it is created.
    Watch(i64, u64),
    Refused(pb::WatchResponse),
}

/// One watch of the session.
struct Open {
    serial: u64,
    /// Dropped when it is created, or never will be.
    uncreated: Option<oneshot::Sender<()>>,
    /// To be cancelled once it is created.
    is_unwanted: bool,
    progress: Progress,
    /// Everything up to here is reported.
    reported: Revision,
    /// 0: from now on.
    asked_start: Revision,
    notify: bool,
    fragment: bool,
    /// Ends the watch when dropped.
    _stop: oneshot::Sender<()>,
}

/// What the session waits for.
enum Turn {
    Request(Option<Result<pb::WatchRequest, Status>>),
    Prepared(Prepared),
    Said(Said),
    Draining,
}

impl Session {
    fn new(node: Node, access: PodkvResult<Access>, requests: Streaming<pb::WatchRequest>) -> Self {
        let draining = Box::pin(draining(node.health()));
        Self {
            node,
            access,
            requests: Some(requests),
            preparing: FuturesOrdered::new(),
            preparing_bytes: 0,
            watches: HashMap::new(),
            unanswered: VecDeque::new(),
            newest_created: None,
            messages: SelectAll::new(),
            next_id: 0,
            next_serial: 0,
            ready: VecDeque::new(),
            asked: None,
            not_level: None,
            draining,
            ended: false,
        }
    }

    /// The next response; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Result<pb::WatchResponse, Status>> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some(Ok(response));
            }
            if self.ended {
                return None;
            }
            match self.turn().await {
                Turn::Request(Some(Ok(request))) => self.prepare(request),
                Turn::Request(Some(Err(error))) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                // A client that has nothing more to ask may still listen.
                Turn::Request(None) => {
                    self.requests = None;
                    self.ended = self.watches.is_empty() && self.preparing.is_empty();
                }
                Turn::Prepared(prepared) => self.prepared(prepared),
                Turn::Said((id, serial, said)) => self.said(id, serial, said),
                Turn::Draining => {
                    self.ended = true;
                    return Some(Err(goodbye(&self.node)));
                }
            }
            self.answer_progress();
        }
    }

    async fn turn(&mut self) -> Turn {
        // What a client has sent is all there at once: other clients have their turn in between.
        tokio::task::coop::consume_budget().await;
        let may_prepare =
            self.preparing.len() < PREPARED_AT_ONCE && self.preparing_bytes < PREPARED_BYTES;
        let requests = match &mut self.requests {
            Some(requests) if may_prepare => Either::Left(requests.next()),
            _ => Either::Right(std::future::pending()),
        };
        tokio::select! {
            biased;
            () = &mut self.draining => Turn::Draining,
            Some(prepared) = self.preparing.next() => Turn::Prepared(prepared),
            request = requests => Turn::Request(request),
            Some(said) = self.messages.next() => Turn::Said(said),
        }
    }

    fn prepare(&mut self, request: pb::WatchRequest) {
        let prepared: Preparing = match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                let (node, access) = (self.node.clone(), self.access.clone());
                self.preparing_bytes += key_bytes(&create);
                Box::pin(async move {
                    let watching = watching(&node, access, &create).await;
                    Prepared::Create(create, watching)
                })
            }
            Some(RequestUnion::CancelRequest(cancel)) => {
                ready(Prepared::Cancel(cancel.watch_id)).boxed()
            }
            Some(RequestUnion::ProgressRequest(_)) => ready(Prepared::Progress).boxed(),
            None => ready(Prepared::Nothing).boxed(),
        };
        self.preparing.push_back(prepared);
    }

    fn prepared(&mut self, prepared: Prepared) {
        match prepared {
            Prepared::Create(create, watching) => {
                self.preparing_bytes -= key_bytes(&create);
                self.create(&create, watching);
            }
            Prepared::Cancel(id) => {
                // An unknown id is no error: it may have ended by itself.
                match self.watches.get_mut(&id) {
                    Some(open) if open.uncreated.is_some() => open.is_unwanted = true,
                    Some(_) => self.cancel(id),
                    None => {}
                }
            }
            Prepared::Progress => {
                let now = self.node.header().revision;
                // Asked already: the watches are asked once, whatever a client repeats.
                if self.asked >= Some(now) {
                    return;
                }
                self.asked = Some(now);
                for open in self.watches.values() {
                    if open.reported < now {
                        open.progress.ask(now);
                    }
                }
            }
            Prepared::Nothing => {}
        }
    }

    fn cancel(&mut self, id: i64) {
        self.watches.remove(&id);
        let head = self.node.header();
        self.ready.push_back(canceled(head, id, String::new()));
    }

    fn create(
        &mut self,
        create: &pb::WatchCreateRequest,
        watching: PodkvResult<(Progress, WatchStream)>,
    ) {
        let watch = watch_of(create);
        // Before an id is chosen: what is refused takes none.
        if watch.range.is_empty() {
            return self.refuse("mvcc: watcher range is empty".to_owned());
        }
        let id = match self.choose_id(create.watch_id) {
            Ok(id) => id,
            Err(why) => return self.refuse(why.to_owned()),
        };
        let asked_start = watch.start_revision;
        let (progress, watching) = match watching {
            Ok(watching) => watching,
            Err(error) => return self.refuse(cancel_reason(&error)),
        };
        let serial = self.next_serial;
        self.next_serial += 1;
        let (stop, stopped) = oneshot::channel();
        let (uncreated, created) = oneshot::channel();
        let turn = self.newest_created.replace(created);
        self.unanswered.push_back(Unanswered::Watch(id, serial));
        let open = Open {
            serial,
            uncreated: Some(uncreated),
            is_unwanted: false,
            progress,
            reported: 0,
            asked_start,
            notify: create.progress_notify,
            fragment: create.fragment,
            _stop: stop,
        };
        self.watches.insert(id, open);
        self.messages.push(say(watching, id, serial, turn, stopped));
    }

    fn choose_id(&mut self, wanted: i64) -> Result<i64, &'static str> {
        if wanted != 0 {
            return match self.watches.entry(wanted) {
                Entry::Occupied(_) => Err("mvcc: duplicate watch ID provided on the WatchStream"),
                Entry::Vacant(_) => Ok(wanted),
            };
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    /// No watch came about.
    fn refuse(&mut self, why: String) {
        let refusal = pb::WatchResponse {
            created: true,
            ..canceled(self.node.header(), NO_WATCH, why)
        };
        self.unanswered.push_back(Unanswered::Refused(refusal));
        self.answer_refusals();
    }

    /// Sends the refusals whose turn it is.
    fn answer_refusals(&mut self) {
        while let Some(next) = self.unanswered.pop_front() {
            match next {
                Unanswered::Refused(refusal) => self.ready.push_back(refusal),
                Unanswered::Watch(id, serial) => {
                    let open = self.watches.get(&id);
                    let is_coming =
                        open.is_some_and(|open| open.serial == serial && open.uncreated.is_some());
                    if is_coming {
                        self.unanswered.push_front(next);
                        return;
                    }
                }
            }
        }
    }

    fn said(&mut self, id: i64, serial: u64, said: Option<PodkvResult<WatchMessage>>) {
        // Cancelled meanwhile.
        let Some(open) = self
            .watches
            .get_mut(&id)
            .filter(|open| open.serial == serial)
        else {
            return;
        };
        match said {
            Some(Ok(message)) => {
                let was_uncreated = open.uncreated.is_some();
                open.take(id, message, &mut self.ready);
                if was_uncreated && open.uncreated.is_none() && open.is_unwanted {
                    self.cancel(id);
                }
            }
            Some(Err(error)) => {
                self.watches.remove(&id);
                self.ready.push_back(self.ended_by(id, &error));
            }
            None => {
                self.watches.remove(&id);
            }
        }
        self.answer_refusals();
        if self.requests.is_none() && self.preparing.is_empty() {
            self.ended = self.watches.is_empty();
        }
    }

    fn ended_by(&self, id: i64, error: &Error) -> pb::WatchResponse {
        if error.reason() == Reason::Compacted {
            // Without a revision and a reason: so clients know it from other ends.
            return pb::WatchResponse {
                header: Some(header(Header {
                    revision: 0,
                    ..self.node.header()
                })),
                compact_revision: signed(error.revision()),
                ..canceled(self.node.header(), id, String::new())
            };
        }
        canceled(self.node.header(), id, cancel_reason(error))
    }

    /// Answers a progress request, once every watch has reported what was there when it came.
    fn answer_progress(&mut self) {
        let Some(asked) = self.asked else { return };
        if !self.preparing.is_empty() {
            return;
        }
        let is_behind = |open: &Open| open.reported < asked && open.asked_start <= asked;
        let known = self.not_level.and_then(|id| self.watches.get(&id));
        if known.is_some_and(is_behind) {
            return;
        }
        let behind = self.watches.iter().find(|(_, open)| is_behind(open));
        self.not_level = behind.map(|(id, _)| *id);
        if self.not_level.is_some() {
            return;
        }
        self.asked = None;
        self.ready.push_back(pb::WatchResponse {
            header: Some(header(Header {
                revision: asked,
                ..self.node.header()
            })),
            watch_id: NO_WATCH,
            ..Default::default()
        });
    }
}

impl Open {
    /// What the client is told of a message.
    fn take(&mut self, id: i64, message: WatchMessage, ready: &mut VecDeque<pb::WatchResponse>) {
        match message {
            WatchMessage::Created {
                header: head,
                start_revision,
            } => {
                let begun = start_revision.saturating_sub(1);
                // "From now on" begins after the revision that the answer names.
                let revision = match self.asked_start {
                    0 => begun,
                    _ => head.revision,
                };
                self.reported = begun;
                self.uncreated = None;
                ready.push_back(pb::WatchResponse {
                    header: Some(header(Header { revision, ..head })),
                    watch_id: id,
                    created: true,
                    ..Default::default()
                });
            }
            WatchMessage::Events {
                header: head,
                revision,
                events,
            } => {
                self.reported = revision;
                let events: Vec<_> = events.into_iter().map(event).collect();
                let response = pb::WatchResponse {
                    // Not the node's newest: there are clients that resume after what the header names.
                    header: Some(header(Header { revision, ..head })),
                    watch_id: id,
                    events,
                    ..Default::default()
                };
                match self.fragment {
                    true => fragments(response, ready),
                    false => ready.push_back(response),
                }
            }
            WatchMessage::Bookmark {
                header: head,
                revision,
            } => {
                self.reported = revision;
                if self.notify {
                    ready.push_back(pb::WatchResponse {
                        header: Some(header(Header { revision, ..head })),
                        watch_id: id,
                        ..Default::default()
                    });
                }
            }
            // Only for watches that list, which etcd has not.
            WatchMessage::List { .. } | WatchMessage::Listed { .. } => {}
        }
    }
}

/// A watch from "now" begins after all that was acknowledged, if there is a leader to ask; one from a revision needs
/// this node's own state only. Without a leader a watch waits for better times, as etcd's do.
async fn fresh(node: &Node, start_revision: i64) -> PodkvResult<Revision> {
    if start_revision == 0 {
        match node.revision(Consistency::Linearizable, None).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            found => return found,
        }
    }
    node.revision(Consistency::Local, None).await
}

/// A watch that its caller may have. What is refused for another reason is refused for that one: it takes no watch.
async fn watching(
    node: &Node,
    access: PodkvResult<Access>,
    create: &pb::WatchCreateRequest,
) -> PodkvResult<(Progress, WatchStream)> {
    let access = access?;
    let at_least = fresh(node, create.start_revision).await?;
    access.watching(watch_of(create), at_least).await
}

fn key_bytes(create: &pb::WatchCreateRequest) -> usize {
    create.key.len() + create.range_end.len()
}

fn watch_of(create: &pb::WatchCreateRequest) -> podkv_api::Watch {
    // No key is the first key.
    let key = match create.key.is_empty() {
        true => Bytes::from_static(&[0]),
        false => create.key.clone(),
    };
    let has = |filter| create.filters().any(|found| found == filter);
    podkv_api::Watch {
        range: key_range(key, create.range_end.clone()),
        // Below 1 there never was anything: everything that is left.
        start_revision: match create.start_revision {
            0 => 0,
            start => u64::try_from(start).unwrap_or(1),
        },
        list: false,
        prev_kv: create.prev_kv,
        no_put: has(FilterType::Noput),
        no_delete: has(FilterType::Nodelete),
        bookmarks: create.progress_notify,
    }
}

/// A watch of the node, from its turn on until it is stopped.
fn say(
    watching: WatchStream,
    id: i64,
    serial: u64,
    turn: Option<oneshot::Receiver<()>>,
    stopped: oneshot::Receiver<()>,
) -> Pin<Box<dyn Stream<Item = Said> + Send>> {
    let turn = async move {
        if let Some(turn) = turn {
            // Nothing is ever sent: it ends when its sender is dropped.
            let _ = turn.await;
        }
        watching
    };
    let said = turn
        .into_stream()
        .flatten()
        .map(Some)
        .chain(futures_util::stream::once(async { None }));
    said.map(move |said| (id, serial, said))
        .take_until(stopped)
        .boxed()
}

fn canceled(head: Header, id: i64, why: String) -> pb::WatchResponse {
    pb::WatchResponse {
        header: Some(header(head)),
        watch_id: id,
        canceled: true,
        cancel_reason: why,
        ..Default::default()
    }
}

/// One revision in several responses, each below the size that clients take.
fn fragments(mut response: pb::WatchResponse, ready: &mut VecDeque<pb::WatchResponse>) {
    let events = std::mem::take(&mut response.events);
    let mut part = response.clone();
    let mut bytes = 0;
    for event in events {
        let size = mvccpb::Event::encoded_len(&event);
        if bytes + size > FRAGMENT_BYTES && !part.events.is_empty() {
            part.fragment = true;
            ready.push_back(std::mem::replace(&mut part, response.clone()));
            bytes = 0;
        }
        bytes += size;
        part.events.push(event);
    }
    ready.push_back(part);
}
