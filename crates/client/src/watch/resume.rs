//! Where a watch stands, and what it asks for when its stream breaks. Without I/O.
//!
//! ```text
//!              Created          List            Listed          Events, Bookmark
//!   Fresh ───────────────────────────────────────────────────►  Following{next}
//!     └── list: Created is held ──► Listing{revision, after} ──────────┘
//!
//!   the stream breaks in     the next one asks for
//!   Fresh                    the same again: nothing was reported yet
//!   Listing                  the rest of the list, at the same revision; then the changes after it
//!   Following                the changes from `next` on
//! ```
//!
//! So a user sees one `Created`, one list, and each revision once. Of a watch that lists, `Created` is
//! held until the list begins: until then everything can be started anew at a later revision.
//!
//! The list goes on at its own revision, with a plain range read, rather than anew, so nothing need be
//! kept in memory to undo it. If that revision is compacted meanwhile, the watch ends with that error.

use std::collections::VecDeque;

use bytes::Bytes;
use podkv_api::{Error, Header, KeyRange, KeyValue, Reason, Result, Revision, Watch, WatchMessage};

use crate::scan::after;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Fresh,
    Listing {
        revision: Revision,
        /// The last key that was reported.
        after: Option<Bytes>,
    },
    Following {
        /// Everything below has been reported.
        next: Revision,
    },
}

/// What to ask a node for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Watch(Watch),
    /// The rest of the list, at this revision.
    List {
        range: KeyRange,
        revision: Revision,
    },
}

#[derive(Debug)]
pub(crate) struct Resume {
    watch: Watch,
    phase: Phase,
    /// Of a watch that lists: held until the list begins.
    created: Option<WatchMessage>,
    /// To be given to the user.
    ready: VecDeque<WatchMessage>,
}

impl Resume {
    pub fn new(watch: Watch) -> Self {
        Self {
            watch,
            phase: Phase::Fresh,
            created: None,
            ready: VecDeque::new(),
        }
    }

    pub fn pop(&mut self) -> Option<WatchMessage> {
        self.ready.pop_front()
    }

    /// True if the user has been told something that binds what follows.
    pub fn has_begun(&self) -> bool {
        self.phase != Phase::Fresh
    }

    pub fn ask(&self) -> Ask {
        let mut watch = self.watch.clone();
        // Always: on a quiet range they are what keeps `next` ahead of compaction.
        watch.bookmarks = true;
        match &self.phase {
            Phase::Fresh => Ask::Watch(watch),
            Phase::Listing {
                revision,
                after: last,
            } => Ask::List {
                range: match last {
                    Some(last) => after(&watch.range, last, false),
                    None => watch.range,
                },
                revision: *revision,
            },
            Phase::Following { next } => {
                watch.list = false;
                watch.start_revision = *next;
                Ask::Watch(watch)
            }
        }
    }

    /// Takes a whole message of a stream. True if it is progress, not only the stream's beginning.
    pub fn accept(&mut self, message: WatchMessage) -> Result<bool> {
        match message {
            WatchMessage::Created { .. } => self.created(message),
            WatchMessage::List {
                header,
                revision,
                kvs,
            } => return self.list(header, revision, kvs).map(|()| true),
            WatchMessage::Listed { header, revision } => {
                return self.listed(header, revision).map(|()| true);
            }
            WatchMessage::Events { revision, .. } => {
                let next = self.following("events")?;
                if revision < next {
                    // Reported before the stream broke.
                    return Ok(false);
                }
                self.phase = Phase::Following { next: revision + 1 };
                self.ready.push_back(message);
                return Ok(true);
            }
            WatchMessage::Bookmark { revision, .. } => {
                let next = self.following("a bookmark")?;
                if revision + 1 < next {
                    return Ok(false);
                }
                self.phase = Phase::Following { next: revision + 1 };
                if self.watch.bookmarks {
                    self.ready.push_back(message);
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn created(&mut self, message: WatchMessage) {
        let WatchMessage::Created { start_revision, .. } = message else {
            return;
        };
        if self.phase != Phase::Fresh {
            return;
        }
        if self.watch.list {
            self.created = Some(message);
            return;
        }
        let next = match self.watch.start_revision {
            0 => start_revision,
            asked => asked,
        };
        self.phase = Phase::Following { next };
        self.ready.push_back(message);
    }

    fn list(&mut self, header: Header, revision: Revision, kvs: Vec<KeyValue>) -> Result<()> {
        self.begin_list(revision)?;
        if let Some(last) = kvs.last() {
            self.phase = Phase::Listing {
                revision,
                after: Some(last.key.clone()),
            };
            self.ready.push_back(WatchMessage::List {
                header,
                revision,
                kvs,
            });
        }
        Ok(())
    }

    fn listed(&mut self, header: Header, revision: Revision) -> Result<()> {
        self.begin_list(revision)?;
        self.phase = Phase::Following { next: revision + 1 };
        self.ready
            .push_back(WatchMessage::Listed { header, revision });
        Ok(())
    }

    fn begin_list(&mut self, revision: Revision) -> Result<()> {
        match &self.phase {
            Phase::Fresh if self.watch.list => {
                let created = self.created.take();
                self.ready
                    .extend(created.map(|created| starting_at(created, revision + 1)));
                self.phase = Phase::Listing {
                    revision,
                    after: None,
                };
                Ok(())
            }
            Phase::Listing { revision: ours, .. } if *ours == revision => Ok(()),
            _ => Err(out_of_place("part of a list")),
        }
    }

    fn following(&self, what: &str) -> Result<Revision> {
        match self.phase {
            Phase::Following { next } => Ok(next),
            Phase::Fresh | Phase::Listing { .. } => Err(out_of_place(what)),
        }
    }
}

/// Of a watch that lists, the changes begin after the list, whatever was known when it was created.
fn starting_at(created: WatchMessage, start: Revision) -> WatchMessage {
    match created {
        WatchMessage::Created { header, .. } => WatchMessage::Created {
            header,
            start_revision: start,
        },
        other => other,
    }
}

fn out_of_place(what: &str) -> Error {
    Error::new(
        Reason::Corrupt,
        format!("the node sent {what} where it does not belong in a watch"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header::default()
    }

    fn created(start_revision: Revision) -> WatchMessage {
        WatchMessage::Created {
            header: header(),
            start_revision,
        }
    }

    fn list(revision: Revision, keys: &[&'static str]) -> WatchMessage {
        let kv = |key: &&'static str| KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::new(),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: None,
            expires_at_ms: None,
        };
        WatchMessage::List {
            header: header(),
            revision,
            kvs: keys.iter().map(kv).collect(),
        }
    }

    fn listed(revision: Revision) -> WatchMessage {
        WatchMessage::Listed {
            header: header(),
            revision,
        }
    }

    fn events(revision: Revision) -> WatchMessage {
        WatchMessage::Events {
            header: header(),
            revision,
            events: Vec::new(),
        }
    }

    fn bookmark(revision: Revision) -> WatchMessage {
        WatchMessage::Bookmark {
            header: header(),
            revision,
        }
    }

    fn give(
        resume: &mut Resume,
        messages: impl IntoIterator<Item = WatchMessage>,
    ) -> Vec<WatchMessage> {
        for message in messages {
            resume.accept(message).unwrap();
        }
        std::iter::from_fn(|| resume.pop()).collect()
    }

    fn asks_from(resume: &Resume) -> Revision {
        match resume.ask() {
            Ask::Watch(watch) => {
                assert!(!watch.list && watch.bookmarks);
                watch.start_revision
            }
            Ask::List { .. } => panic!("asks for a list"),
        }
    }

    #[test]
    fn resumes_after_what_was_reported_and_creates_once() {
        let mut resume = Resume::new(Watch::new(KeyRange::all()));
        assert_eq!(
            give(&mut resume, [created(5), events(5), events(8)]).len(),
            3
        );
        assert_eq!(asks_from(&resume), 9);
        // The next stream repeats a little.
        let seen = give(&mut resume, [created(9), events(8), events(11)]);
        assert_eq!(seen, [events(11)]);
    }

    #[test]
    fn bookmarks_move_the_place_and_are_reported_only_if_asked_for() {
        let mut resume = Resume::new(Watch::new(KeyRange::all()));
        give(&mut resume, [created(5)]);
        assert_eq!(give(&mut resume, [bookmark(40)]), []);
        assert_eq!(asks_from(&resume), 41);
        let mut resume = Resume::new(Watch::new(KeyRange::all()).bookmarks());
        give(&mut resume, [created(5)]);
        assert_eq!(
            give(&mut resume, [bookmark(40), bookmark(30)]),
            [bookmark(40)]
        );
    }

    #[test]
    fn a_watch_from_now_that_broke_before_it_stood_asks_from_now_again() {
        let resume = Resume::new(Watch::new(KeyRange::all()));
        assert_eq!(asks_from(&resume), 0);
    }

    #[test]
    fn a_list_that_had_not_begun_starts_anew() {
        let mut resume = Resume::new(Watch::new(KeyRange::prefix("k")).list());
        assert_eq!(give(&mut resume, [created(6)]), []);
        assert!(matches!(resume.ask(), Ask::Watch(watch) if watch.list));
        let seen = give(&mut resume, [created(8), list(9, &["k1"]), listed(9)]);
        assert_eq!(seen, [created(10), list(9, &["k1"]), listed(9)]);
        assert_eq!(asks_from(&resume), 10);
    }

    #[test]
    fn a_list_that_had_begun_goes_on_at_its_revision() {
        let mut resume = Resume::new(Watch::new(KeyRange::prefix("k")).list());
        give(&mut resume, [created(6), list(5, &["k1", "k2"])]);
        let rest = Ask::List {
            range: KeyRange::between("k2\0", "l"),
            revision: 5,
        };
        assert_eq!(resume.ask(), rest);
        assert_eq!(
            give(&mut resume, [list(5, &["k3"]), listed(5)]),
            [list(5, &["k3"]), listed(5)]
        );
        assert_eq!(asks_from(&resume), 6);
        // Another revision can not be part of it.
        let mut resume = Resume::new(Watch::new(KeyRange::prefix("k")).list());
        give(&mut resume, [created(6), list(5, &["k1"])]);
        let error = resume.accept(list(6, &["k2"])).unwrap_err();
        assert_eq!(error.reason(), Reason::Corrupt);
    }

    #[test]
    fn an_empty_list_is_still_a_list() {
        let mut resume = Resume::new(Watch::new(KeyRange::prefix("k")).list());
        let seen = give(&mut resume, [created(6), listed(5), events(6)]);
        assert_eq!(seen, [created(6), listed(5), events(6)]);
    }
}
