//! Watches and events, and revisions that are too large for one message.
//!
//! To users a revision is never split. On the wire it may be: [`fragments`] splits it into messages
//! that a receiver accepts, [`Assembler`] joins them again.
//!
//! ```text
//!   Events{rev 7, fragment}  Events{rev 7, fragment}  Events{rev 7}   =>   Events{rev 7}
//! ```

use podkv_api::{Event, EventKind, Header, KeyValue, Revision, Watch, WatchMessage};
use prost::Message as _;

use super::{Malformed, header, key_range};
use crate::v1;
use crate::v1::event::Kind;
use crate::v1::watch_response::{Bookmark, Created, Events, List, Listed, Message};

impl From<Watch> for v1::WatchRequest {
    fn from(watch: Watch) -> Self {
        Self {
            range: Some(watch.range.into()),
            start_revision: watch.start_revision,
            list: watch.list,
            prev_kv: watch.prev_kv,
            no_put: watch.no_put,
            no_delete: watch.no_delete,
            bookmarks: watch.bookmarks,
        }
    }
}

impl TryFrom<v1::WatchRequest> for Watch {
    type Error = Malformed;

    fn try_from(watch: v1::WatchRequest) -> Result<Self, Malformed> {
        if watch.list && watch.start_revision != 0 {
            return Err(Malformed::request(
                "start_revision",
                "set together with list; expected one of them",
            ));
        }
        Ok(Self {
            range: key_range(watch.range)?,
            start_revision: watch.start_revision,
            list: watch.list,
            prev_kv: watch.prev_kv,
            no_put: watch.no_put,
            no_delete: watch.no_delete,
            bookmarks: watch.bookmarks,
        })
    }
}

impl From<Event> for v1::Event {
    fn from(event: Event) -> Self {
        let kind = match event.kind {
            EventKind::Put => Kind::Put,
            EventKind::Delete => Kind::Delete,
        };
        Self {
            kind: kind.into(),
            kv: Some(event.kv.into()),
            prev_kv: event.prev_kv.map(Into::into),
        }
    }
}

impl TryFrom<v1::Event> for Event {
    type Error = Malformed;

    fn try_from(event: v1::Event) -> Result<Self, Malformed> {
        let kind = match Kind::try_from(event.kind) {
            Ok(Kind::Put) => EventKind::Put,
            Ok(Kind::Delete) => EventKind::Delete,
            Err(unknown) => return Err(Malformed::answer("kind", unknown.to_string())),
        };
        let kv = event.kv.ok_or_else(|| Malformed::answer("kv", "missing"))?;
        Ok(Self {
            kind,
            kv: kv.into(),
            prev_kv: event.prev_kv.map(Into::into),
        })
    }
}

/// A watch message as messages of about `max_bytes` each. A single key and its values are never
/// split, so one message may be larger than that by one event or one listed key.
pub fn fragments(message: WatchMessage, max_bytes: usize) -> Vec<v1::WatchResponse> {
    let response = |header: Header, revision: Revision, message: Message| v1::WatchResponse {
        header: Some(header.into()),
        revision,
        message: Some(message),
    };
    match message {
        WatchMessage::Created {
            header,
            start_revision,
        } => {
            vec![response(
                header,
                start_revision,
                Message::Created(Created {}),
            )]
        }
        WatchMessage::List {
            header,
            revision,
            kvs,
        } => {
            let kvs = kvs.into_iter().map(v1::KeyValue::from).collect();
            let list = |kvs, _| response(header, revision, Message::List(List { kvs }));
            chunks(kvs, max_bytes, list)
        }
        WatchMessage::Listed { header, revision } => {
            vec![response(header, revision, Message::Listed(Listed {}))]
        }
        WatchMessage::Events {
            header,
            revision,
            events,
        } => {
            let events = events.into_iter().map(v1::Event::from).collect();
            chunks(events, max_bytes, |events, is_last| {
                let events = Events {
                    events,
                    fragment: !is_last,
                };
                response(header, revision, Message::Events(events))
            })
        }
        WatchMessage::Bookmark { header, revision } => {
            vec![response(header, revision, Message::Bookmark(Bookmark {}))]
        }
    }
}

/// Cuts `items` where the size passes `max_bytes`; `make` is told which chunk is the last.
fn chunks<T: prost::Message>(
    items: Vec<T>,
    max_bytes: usize,
    make: impl Fn(Vec<T>, bool) -> v1::WatchResponse,
) -> Vec<v1::WatchResponse> {
    let mut messages = Vec::new();
    let mut chunk = Vec::new();
    let mut chunk_bytes = 0;
    for item in items {
        let item_bytes = item.encoded_len();
        if !chunk.is_empty() && chunk_bytes + item_bytes > max_bytes {
            messages.push(make(std::mem::take(&mut chunk), false));
            chunk_bytes = 0;
        }
        chunk_bytes += item_bytes;
        chunk.push(item);
    }
    messages.push(make(chunk, true));
    messages
}

/// Joins what [`fragments`] split. One for each watch stream.
#[derive(Debug)]
pub struct Assembler {
    max_bytes: usize,
    /// The revision that is being joined, its events so far and their size.
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    revision: Revision,
    events: Vec<Event>,
    bytes: usize,
}

impl Assembler {
    /// The largest revision that a receiver holds in memory: room for a lease that is revoked with
    /// a million keys, and an end to a sender that never finishes.
    pub const DEFAULT_MAX_BYTES: usize = 256 << 20;

    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            pending: None,
        }
    }

    /// Takes one message of the stream. `None` means that the revision goes on in the next one.
    pub fn push(&mut self, response: v1::WatchResponse) -> Result<Option<WatchMessage>, Malformed> {
        let header = header(response.header)?;
        let revision = response.revision;
        let message = response
            .message
            .ok_or_else(|| Malformed::answer("message", "not set"))?;
        if let (Some(pending), false) = (&self.pending, matches!(message, Message::Events(_))) {
            let problem = format!("came before revision {} was complete", pending.revision);
            return Err(Malformed::answer("message", problem));
        }
        Ok(Some(match message {
            Message::Created(Created {}) => WatchMessage::Created {
                header,
                start_revision: revision,
            },
            Message::List(list) => {
                let kvs: Vec<KeyValue> = list.kvs.into_iter().map(Into::into).collect();
                WatchMessage::List {
                    header,
                    revision,
                    kvs,
                }
            }
            Message::Listed(Listed {}) => WatchMessage::Listed { header, revision },
            Message::Bookmark(Bookmark {}) => WatchMessage::Bookmark { header, revision },
            Message::Events(events) => return self.push_events(header, revision, events),
        }))
    }

    fn push_events(
        &mut self,
        header: Header,
        revision: Revision,
        fragment: Events,
    ) -> Result<Option<WatchMessage>, Malformed> {
        let fragment_bytes = fragment.encoded_len();
        let mut pending = self.pending.take().unwrap_or(Pending {
            revision,
            events: Vec::new(),
            bytes: 0,
        });
        if pending.revision != revision {
            let problem = format!("{revision}; expected the rest of {}", pending.revision);
            return Err(Malformed::answer("revision", problem));
        }
        pending.bytes += fragment_bytes;
        if pending.bytes > self.max_bytes {
            let problem = format!(
                "revision {revision} is larger than {} bytes",
                self.max_bytes
            );
            return Err(Malformed::answer("events", problem));
        }
        for (place, event) in fragment.events.into_iter().enumerate() {
            let event = Event::try_from(event)
                .map_err(|malformed| malformed.within(format_args!("events[{place}]")))?;
            pending.events.push(event);
        }
        if fragment.fragment {
            self.pending = Some(pending);
            return Ok(None);
        }
        Ok(Some(WatchMessage::Events {
            header,
            revision,
            events: pending.events,
        }))
    }
}

impl Default for Assembler {
    fn default() -> Self {
        Self::new(Self::DEFAULT_MAX_BYTES)
    }
}
