//! Watches of the fake store.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream;
use podkv_api::*;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{FakeStore, Link, select};

/// Two keys to a part, so that most lists have several.
const LIST_PART: usize = 2;
const BOOKMARK_EVERY: Duration = Duration::from_secs(1);

struct Cursor {
    store: FakeStore,
    link: watch::Receiver<Link>,
    news: watch::Receiver<()>,
    generation: u64,
    watch: Watch,
    /// The next revision to look at.
    next: Revision,
    ready: VecDeque<Result<WatchMessage>>,
    ended: bool,
}

pub fn start(store: FakeStore, watch: Watch) -> Result<WatchStream> {
    let server = store.server.clone();
    let mut news = server.news.subscribe();
    news.mark_unchanged();
    let link = store.link.subscribe();
    let generation = *server.generation.lock().unwrap();
    let mut ready = VecDeque::new();
    let next = {
        let state = server.state();
        let header = state.header();
        if watch.list {
            let revision = stale_revision(&store).unwrap_or(state.revision);
            let listed = select(
                &state.keys_at(revision),
                &Range::new(watch.range.clone()),
                header,
            );
            ready.push_back(Ok(WatchMessage::Created {
                header,
                start_revision: revision + 1,
            }));
            for kvs in listed.kvs.chunks(LIST_PART) {
                ready.push_back(Ok(WatchMessage::List {
                    header,
                    revision,
                    kvs: kvs.to_vec(),
                }));
            }
            ready.push_back(Ok(WatchMessage::Listed { header, revision }));
            if store.take_fault(|faults| &mut faults.broken_lists) {
                ready.truncate(2);
                ready.push_back(Err(Error::new(Reason::WatchLost, "broken in the list")));
            }
            revision + 1
        } else {
            let next = match watch.start_revision {
                0 => state.revision + 1,
                start if start <= state.compacted => return Err(Error::compacted(state.compacted)),
                start => start,
            };
            ready.push_back(Ok(WatchMessage::Created {
                header,
                start_revision: next,
            }));
            next
        }
    };
    let cursor = Cursor {
        store,
        link,
        news,
        generation,
        watch,
        next,
        ready,
        ended: false,
    };
    Ok(Box::pin(stream::unfold(cursor, async |mut cursor| {
        let message = cursor.message().await?;
        Some((message, cursor))
    })))
}

fn stale_revision(store: &FakeStore) -> Option<Revision> {
    let mut faults = store.server.faults.lock().unwrap();
    let (left, revision) = faults.stale_lists.as_mut()?;
    *left = left.checked_sub(1)?;
    Some(*revision)
}

impl Cursor {
    async fn message(&mut self) -> Option<Result<WatchMessage>> {
        if self.ended {
            return None;
        }
        loop {
            tokio::task::yield_now().await;
            self.link.wait_for(|link| !link.cut).await.ok()?;
            self.news.mark_unchanged();
            if *self.store.server.generation.lock().unwrap() != self.generation {
                return self.end(Error::new(Reason::WatchLost, "lost on purpose"));
            }
            if let Some(message) = self.ready.pop_front() {
                self.ended = message.is_err();
                return Some(message);
            }
            if let Err(error) = self.read_log() {
                return self.end(error);
            }
            if !self.ready.is_empty() {
                continue;
            }
            let news = timeout(BOOKMARK_EVERY, self.news.changed()).await;
            if news.is_err() && self.watch.bookmarks && !self.link.borrow().cut {
                let header = self.store.server.state().header();
                return Some(Ok(WatchMessage::Bookmark {
                    header,
                    revision: self.next - 1,
                }));
            }
        }
    }

    fn end(&mut self, error: Error) -> Option<Result<WatchMessage>> {
        self.ended = true;
        Some(Err(error))
    }

    fn read_log(&mut self) -> Result<()> {
        let state = self.store.server.state();
        if self.next <= state.compacted && self.next <= state.revision {
            return Err(Error::compacted(state.compacted));
        }
        let header = state.header();
        for (revision, events) in state.log.range(self.next..) {
            let wanted = |event: &&Event| self.watch.range.contains(&event.kv.key);
            let events: Vec<_> = events.iter().filter(wanted).cloned().collect();
            if !events.is_empty() {
                let revision = *revision;
                self.ready.push_back(Ok(WatchMessage::Events {
                    header,
                    revision,
                    events,
                }));
            }
        }
        self.next = self.next.max(state.revision + 1);
        Ok(())
    }
}
