//! Runs a program on one store and writes down, in comparable form, all that the store answered.

use std::collections::BTreeMap;
use std::time::Duration;

use podkv_proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use podkv_proto::etcd::etcdserverpb::*;
use podkv_proto::etcd::mvccpb::Event;
use tonic::Status;

use crate::link::{Answer, Link, WatchStream};
use crate::normalise::Origin;
use crate::program::Program;
use crate::step::{Request, Response, Step};
use crate::streams::{Seen, StreamRun, Watched};

/// Longer than anything takes on a busy machine. What is not there by then is missing, and that is a difference.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a store answered, in order: what was asked, and the answer.
pub type Trace = Vec<(String, String)>;

/// Runs `program` on a store whose keyspace is emptied first, or that is new if the program says so.
///
/// # Errors
/// Only where emptying it fails: that is no answer to the program.
pub async fn run(link: &Link, program: &Program, patience: Duration) -> Result<Trace, Status> {
    let offset = if program.fresh {
        0
    } else {
        empty(&link.honest()).await? - 1
    };
    let history = link.honest().watch(0);
    history.send(watch_everything(offset + 1)).await;
    let mut run = Run {
        link,
        patience,
        origin: Origin {
            offset,
            ..Origin::default()
        },
        turn: 0,
        compacted: offset + 1,
        newest: offset + 1,
        streams: BTreeMap::new(),
        history,
        is_stuck: false,
        trace: Trace::new(),
    };
    for (number, step) in program.steps.iter().enumerate() {
        run.step(number + 1, step).await;
        if run.is_stuck {
            return Ok(run.trace);
        }
    }
    run.finish().await;
    Ok(run.trace)
}

/// Empties the keyspace and returns the revision at which it is empty, which is also compacted.
async fn empty(link: &Link) -> Result<i64, Status> {
    let disarm = AlarmRequest {
        action: AlarmAction::Deactivate.into(),
        alarm: AlarmType::Nospace.into(),
        ..AlarmRequest::default()
    };
    Request::Alarm(disarm).ask(link).await?;
    let leases = Request::Leases(LeaseLeasesRequest {}).ask(link).await?;
    if let Response::Leases(LeaseLeasesResponse { leases, .. }) = leases {
        for lease in leases {
            Request::Revoke(LeaseRevokeRequest { id: lease.id })
                .ask(link)
                .await?;
        }
    }
    let everything = DeleteRangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..DeleteRangeRequest::default()
    };
    Request::Delete(everything).ask(link).await?;
    // So that the revision at which programs begin is the same kind of revision everywhere.
    let marker = PutRequest {
        key: "reset".into(),
        ..PutRequest::default()
    };
    Request::Put(marker).ask(link).await?;
    let marker = DeleteRangeRequest {
        key: "reset".into(),
        ..DeleteRangeRequest::default()
    };
    let deleted = Request::Delete(marker).ask(link).await?;
    let revision = deleted.header().map_or(0, |header| header.revision);
    let compact = CompactionRequest {
        revision,
        physical: false,
    };
    Request::Compact(compact).ask(link).await?;
    Ok(revision)
}

impl Request {
    /// Of a store's first node, once that has what the others have.
    async fn ask(self, link: &Link) -> Answer {
        link.settle(0).await;
        link.call(0, self).await
    }
}

fn watch_everything(start_revision: i64) -> WatchRequest {
    let create = WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision,
        prev_kv: true,
        ..WatchCreateRequest::default()
    };
    WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    }
}

fn events_of(seen: &[Seen]) -> Vec<Event> {
    let responses = seen.iter().filter_map(Seen::response);
    responses
        .flat_map(|response| response.events.clone())
        .collect()
}

fn reaches(seen: &[Seen], revision: i64) -> bool {
    let mut responses = seen.iter().rev().filter_map(Seen::response);
    let last = responses.find_map(|response| response.events.last());
    last.and_then(|event| event.kv.as_ref())
        .is_some_and(|kv| kv.mod_revision >= revision)
}

struct Run<'a> {
    link: &'a Link,
    patience: Duration,
    origin: Origin,
    /// Whose turn among the nodes it is.
    turn: usize,
    compacted: i64,
    /// The highest revision that an answer named.
    newest: i64,
    streams: BTreeMap<usize, StreamRun>,
    /// All events since the program began: see `streams`.
    history: WatchStream,
    /// Something did not come in time. More would only wait for it again.
    is_stuck: bool,
    trace: Trace,
}

impl Run<'_> {
    fn note(&mut self, asked: impl Into<String>, answer: impl Into<String>) {
        self.trace.push((asked.into(), answer.into()));
    }

    async fn step(&mut self, number: usize, step: &Step) {
        self.turn += 1;
        let mut message = step.message();
        self.origin.to_wire(&mut message);
        let asked = format!("step {number}: {step}");
        match step.with_message(&message) {
            Step::Call(request) => {
                let answer = self.call(request).await;
                self.note(asked, answer);
            }
            Step::Watch { stream, request } => self.watch(&asked, stream, request).await,
        }
    }

    async fn call(&mut self, request: Request) -> String {
        if matches!(request, Request::Compact(_)) {
            self.catch_up("before a compaction").await;
            let events = events_of(&self.history.seen.borrow());
            let mut lives = self.streams.values().flat_map(|run| &run.lives);
            if lives.any(|life| life.is_on_its_way_unseen(&events)) {
                return "not asked: a watch may not have come so far".into();
            }
        }
        if request.is_local() {
            self.link.settle(self.turn).await;
        }
        let call = self.link.call(self.turn, request.clone());
        let answer = match tokio::time::timeout(self.patience, call).await {
            Ok(answer) => answer,
            Err(_) => {
                self.is_stuck = true;
                Err(Status::deadline_exceeded("no answer"))
            }
        };
        let response = match answer {
            Ok(response) => response,
            Err(status) => return format!("{:?}: {}", status.code(), status.message()),
        };
        if let Some(header) = response.header() {
            self.newest = self.newest.max(header.revision);
        }
        match (&request, &response) {
            (Request::Grant(request), Response::Grant(response)) if request.id == 0 => {
                self.origin.chosen.push(response.id);
            }
            (Request::Compact(request), Response::Compact(_)) => self.compacted = request.revision,
            _ => {}
        }
        let mut answer = response.dynamic();
        self.origin.from_wire(&mut answer);
        answer.to_text_format()
    }

    async fn watch(&mut self, asked: &str, stream: usize, request: WatchRequest) {
        let Some(mut union) = request.request_union else {
            return;
        };
        if let RequestUnion::CreateRequest(create) = &mut union
            && (create.start_revision < self.compacted && create.start_revision != 0)
        {
            create.watch_id = 0;
        }
        let request = WatchRequest {
            request_union: Some(union.clone()),
        };
        if !matches!(union, RequestUnion::CreateRequest(_)) {
            self.catch_up("before a request of a stream").await;
        }
        let turn = stream;
        self.link.settle(turn).await;
        let link = self.link;
        let run = self.streams.entry(stream).or_insert_with(|| StreamRun {
            stream: link.watch(turn),
            lives: Vec::new(),
            end: None,
        });
        let id = match &union {
            RequestUnion::CreateRequest(create) => create.watch_id,
            RequestUnion::CancelRequest(cancel) => cancel.watch_id,
            RequestUnion::ProgressRequest(_) => -1,
        };
        if run
            .lives
            .iter()
            .any(|life| life.id == id && life.begins_too_early())
            && names_id(&union)
        {
            return self.note(asked, "not asked: a compaction canceled this watch");
        }
        let before = run.seen().len();
        run.stream.send(request).await;
        let answered = match union {
            RequestUnion::CreateRequest(create) => {
                let compacted = self.compacted;
                created(run, before, create, compacted, self.patience).await
            }
            RequestUnion::CancelRequest(cancel) => {
                canceled(run, cancel.watch_id, self.patience).await
            }
            RequestUnion::ProgressRequest(_) => {
                run.stream
                    .wait(self.patience, |seen| {
                        seen[before.min(seen.len())..].iter().any(Seen::is_progress)
                    })
                    .await
            }
        };
        self.is_stuck |= !answered;
        self.note(asked, if answered { "answered" } else { "no answer" });
    }

    /// Waits until every watch has what happened until now.
    async fn catch_up(&mut self, when: &str) {
        let newest = self.newest;
        let begin = self.origin.offset + 1;
        let told = self.history.wait(self.patience, |seen| {
            newest <= begin || reaches(seen, newest)
        });
        if !told.await {
            self.is_stuck = true;
            self.note(
                when,
                "the history ends before the newest revision of a header",
            );
        }
        let events = events_of(&self.history.seen.borrow());
        let mut late = Vec::new();
        for (number, run) in &mut self.streams {
            if !run.catch_up(self.patience, &events).await {
                late.push(*number);
            }
            for index in 0..run.lives.len() {
                let canceled = run.seen()[run.lives[index].index..].iter().any(|seen| {
                    seen.response().is_some_and(|response| {
                        response.canceled && response.watch_id == run.lives[index].id
                    })
                });
                run.lives[index].ended |= canceled;
            }
        }
        self.is_stuck |= !late.is_empty();
        for stream in late {
            self.note(
                when,
                format!("stream {stream}: a watch does not report all"),
            );
        }
    }

    async fn finish(&mut self) {
        self.catch_up("at the end").await;
        for run in self.streams.values_mut() {
            fence(run, self.patience).await;
        }
        let streams = std::mem::take(&mut self.streams);
        for (number, run) in &streams {
            for (id, lines) in run.comparable(&self.origin) {
                for (index, line) in lines.into_iter().enumerate() {
                    self.note(format!("stream {number}, watch {id}, {index}"), line);
                }
            }
        }
        self.full_history().await;
    }

    /// All that the store still knows: the events since the compacted revision, and the keys at each revision.
    async fn full_history(&mut self) {
        let newest = self.newest;
        let stream = self.link.watch(self.turn);
        if newest > self.compacted {
            stream.send(watch_everything(self.compacted + 1)).await;
            let all = stream
                .wait(self.patience, |seen| reaches(seen, newest))
                .await;
            let origin = self.origin.clone();
            let run = StreamRun {
                stream,
                lives: Vec::new(),
                end: None,
            };
            for lines in run.comparable(&origin).into_values() {
                for (index, line) in lines.into_iter().skip(1).enumerate() {
                    self.note(format!("history, event {index}"), line);
                }
            }
            if !all {
                self.note("history", "does not come to the newest revision");
            }
        }
        for revision in self.compacted..=newest {
            self.turn += 1;
            let everything = RangeRequest {
                key: "\0".into(),
                range_end: "\0".into(),
                revision,
                ..RangeRequest::default()
            };
            let answer = self.call(Request::Range(everything)).await;
            let relative = revision - self.origin.offset;
            self.note(format!("everything at revision {relative}"), answer);
        }
    }
}

/// 0 lets the server choose, but there is a watch 0 to be canceled.
fn names_id(union: &RequestUnion) -> bool {
    match union {
        RequestUnion::CreateRequest(create) => create.watch_id != 0,
        RequestUnion::CancelRequest(_) => true,
        RequestUnion::ProgressRequest(_) => false,
    }
}

/// Waits for the answer to a create request, and remembers the watch.
async fn created(
    run: &mut StreamRun,
    before: usize,
    request: WatchCreateRequest,
    compacted: i64,
    patience: Duration,
) -> bool {
    let position = |seen: &Vec<Seen>| {
        let mut after = seen.iter().enumerate().skip(before);
        after.find_map(|(index, seen)| seen.is_created().then_some(index))
    };
    if !run
        .stream
        .wait(patience, |seen| position(seen).is_some())
        .await
    {
        return false;
    }
    let seen = run.seen();
    let index = position(&seen).unwrap_or_default();
    if let Some(response) = seen[index].response()
        && !response.canceled
    {
        run.lives.push(Watched {
            id: response.watch_id,
            request,
            created_at: response.header.as_ref().map_or(0, |header| header.revision),
            compacted,
            index,
            ended: false,
        });
    }
    true
}

/// Waits for the answer to a cancel request, if there is a watch to be canceled.
async fn canceled(run: &mut StreamRun, id: i64, patience: Duration) -> bool {
    let Some(index) = run.live(id).map(|life| {
        life.ended = true;
        life.index
    }) else {
        return true;
    };
    let is_end = |seen: &Seen| {
        seen.response()
            .is_some_and(|response| response.watch_id == id && response.canceled)
    };
    run.stream
        .wait(patience, |seen| {
            seen[index.min(seen.len())..].iter().any(is_end)
        })
        .await
}

/// Asks something that is always answered, so that all that the stream had to say before has come.
async fn fence(run: &mut StreamRun, patience: Duration) {
    let before = run.seen().iter().filter(|seen| seen.is_created()).count();
    let create = WatchCreateRequest {
        key: "fence".into(),
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    run.stream.send(request).await;
    let is_last = |seen: &Vec<Seen>| seen.iter().filter(|seen| seen.is_created()).count() > before;
    if run.stream.wait(patience, is_last).await {
        run.end = run.seen().iter().rposition(Seen::is_created);
    }
}
