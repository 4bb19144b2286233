//! What watch streams answered: waiting for it, and making it comparable.
//!
//! To know when to stop waiting, there is a naive twin: [`Watched`] selects from the full history what a watch has to
//! report. It says *how far* a watch must come; *what* it reports is compared with the other store.

use std::collections::BTreeMap;
use std::time::Duration;

use podkv_proto::etcd::etcdserverpb::watch_create_request::FilterType;
use podkv_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchResponse};
use podkv_proto::etcd::mvccpb::Event;
use podkv_proto::etcd::mvccpb::event::EventType;
use tonic::Status;

use crate::link::WatchStream;
use crate::normalise::Origin;
use crate::step::dynamic;

#[derive(Clone, Debug)]
pub enum Seen {
    Response(WatchResponse),
    End(Status),
}

impl Seen {
    pub fn response(&self) -> Option<&WatchResponse> {
        match self {
            Self::Response(response) => Some(response),
            Self::End(_) => None,
        }
    }

    pub fn is_created(&self) -> bool {
        self.response().is_some_and(|response| response.created)
    }

    pub fn is_progress(&self) -> bool {
        self.response()
            .is_some_and(|response| response.watch_id == -1 && !response.created)
    }
}

/// One life of a watch id.
pub struct Watched {
    pub id: i64,
    pub request: WatchCreateRequest,
    /// The header of `created`.
    pub created_at: i64,
    /// The compacted revision then.
    pub compacted: i64,
    /// Where in the stream its `created` stands.
    pub index: usize,
    /// No more is to come.
    pub ended: bool,
}

impl Watched {
    fn first_revision(&self) -> i64 {
        match self.request.start_revision {
            0 => self.created_at + 1,
            start => start,
        }
    }

    /// Its begin is gone: it is canceled.
    pub fn begins_too_early(&self) -> bool {
        self.request.start_revision != 0 && self.request.start_revision < self.compacted
    }

    fn selects(&self, event: &Event) -> bool {
        let Some(kv) = &event.kv else { return false };
        let excluded = match event.r#type() {
            EventType::Put => FilterType::Noput,
            EventType::Delete => FilterType::Nodelete,
        };
        kv.mod_revision >= self.first_revision()
            && !self.request.filters().any(|filter| filter == excluded)
            && contains(&self.request.key, &self.request.range_end, &kv.key)
            && !self.is_forgotten_tombstone(event)
    }

    /// See `normalise::WATCH_RULES`.
    fn is_forgotten_tombstone(&self, event: &Event) -> bool {
        event.r#type() == EventType::Delete
            && event
                .kv
                .as_ref()
                .is_some_and(|kv| kv.mod_revision <= self.compacted)
    }

    /// Whether nobody can see if it has come past the compactions that are to come: it began in the past, and has
    /// nothing to report yet.
    pub fn is_on_its_way_unseen(&self, history: &[Event]) -> bool {
        let begins_in_the_past = (1..=self.created_at).contains(&self.request.start_revision);
        !self.ended && begins_in_the_past && !history.iter().any(|event| self.selects(event))
    }

    /// Whether the stream has all that is to come until now.
    fn is_caught_up(&self, seen: &[Seen], history: &[Event]) -> bool {
        let after = &seen[self.index.min(seen.len())..];
        let mut own = after
            .iter()
            .filter_map(Seen::response)
            .filter(|response| response.watch_id == self.id);
        if self.begins_too_early() {
            return own.any(|response| response.canceled);
        }
        let expected = history.iter().filter(|event| self.selects(event));
        match expected.filter_map(mod_revision).max() {
            None => true,
            Some(last) => own
                .filter(|response| !response.fragment)
                .flat_map(|response| &response.events)
                .filter_map(mod_revision)
                .any(|revision| revision >= last),
        }
    }
}

fn mod_revision(event: &Event) -> Option<i64> {
    event.kv.as_ref().map(|kv| kv.mod_revision)
}

fn contains(key: &[u8], range_end: &[u8], candidate: &[u8]) -> bool {
    let first = if key.is_empty() { b"\0" } else { key };
    match range_end {
        [] => candidate == first,
        [0] => candidate >= first,
        end => candidate >= first && candidate < end,
    }
}

/// A stream of a program.
pub struct StreamRun {
    pub stream: WatchStream,
    pub lives: Vec<Watched>,
    /// How much of `seen` belongs to the program.
    pub end: Option<usize>,
}

impl StreamRun {
    pub fn seen(&self) -> Vec<Seen> {
        let mut seen = self.stream.seen.borrow().clone();
        seen.truncate(self.end.unwrap_or(usize::MAX));
        seen
    }

    /// The life of an id that goes on.
    pub fn live(&mut self, id: i64) -> Option<&mut Watched> {
        self.lives
            .iter_mut()
            .find(|life| life.id == id && !life.ended)
    }

    /// Waits until all of its watches have what happened. False if one does not.
    pub async fn catch_up(&mut self, patience: Duration, history: &[Event]) -> bool {
        let going_on = self.lives.iter().filter(|life| !life.ended);
        let going_on: Vec<_> = going_on.collect();
        let all = self.stream.wait(patience, |seen| {
            going_on.iter().all(|life| life.is_caught_up(seen, history))
        });
        all.await
    }

    /// What it answered, by watch id. The answers to progress requests are those of -1.
    pub fn comparable(&self, origin: &Origin) -> BTreeMap<i64, Vec<String>> {
        let mut lists: BTreeMap<i64, List> = BTreeMap::new();
        for (index, seen) in self.seen().into_iter().enumerate() {
            match seen {
                Seen::End(status) => {
                    lists
                        .entry(i64::MAX)
                        .or_default()
                        .lines
                        .push(format!("{status:?}"));
                }
                Seen::Response(response) => {
                    let list = lists.entry(response.watch_id).or_default();
                    if response.created {
                        list.life = self.lives.iter().find(|life| life.index == index);
                    }
                    list.add(response, origin);
                }
            }
        }
        lists
            .into_iter()
            .map(|(id, list)| (id, list.lines))
            .collect()
    }
}

/// What one watch id answered.
#[derive(Default)]
struct List<'a> {
    lines: Vec<String>,
    life: Option<&'a Watched>,
    /// The last revision of the response before this one.
    last_revision: i64,
    /// The response before this one announced that its last revision goes on.
    continues: bool,
}

impl List<'_> {
    fn add(&mut self, mut response: WatchResponse, origin: &Origin) {
        let events = std::mem::take(&mut response.events);
        if response.created || response.canceled || response.watch_id == -1 {
            self.lines.push(text(origin, "WatchResponse", &response));
        } else if events.is_empty() && !self.life.is_some_and(|life| life.request.progress_notify) {
            self.lines.push("a response without events".into());
        }
        self.add_events(&response, &events, origin);
    }

    fn add_events(&mut self, response: &WatchResponse, events: &[Event], origin: &Origin) {
        let Some(first) = events.first().and_then(mod_revision) else {
            return;
        };
        if first == self.last_revision && !self.continues {
            self.lines.push(format!("SPLIT: revision {first} goes on"));
        }
        for event in events {
            if !self
                .life
                .is_some_and(|life| life.is_forgotten_tombstone(event))
            {
                self.lines.push(text(origin, "Event", event));
            }
        }
        self.last_revision = events.last().and_then(mod_revision).unwrap_or_default();
        self.continues = response.fragment;
        let header = response.header.as_ref().map_or(0, |header| header.revision);
        if header < self.last_revision {
            self.lines.push(format!(
                "the header is of revision {header}, before its events"
            ));
        }
        if response.fragment && !self.life.is_some_and(|life| life.request.fragment) {
            self.lines.push("a fragment that nobody asked for".into());
        }
    }
}

fn text<M: prost::Message>(origin: &Origin, name: &str, message: &M) -> String {
    let mut message = dynamic(name, message);
    origin.from_wire(&mut message);
    message.to_text_format()
}
