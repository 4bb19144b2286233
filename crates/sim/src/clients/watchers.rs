//! Watches: for a while, then broken off and taken up where they ended, or begun anew with a list.

use std::time::Duration;

use crate::history::{WatchMessage, WatchStream};
use futures_util::StreamExt as _;
use podkv_api::{KeyRange, Revision, Store as _, Watch, WatchMessage as Message};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::sync::watch::Receiver;
use tokio::time::{sleep, timeout};

use super::Caller;
use crate::recorder::{event, key_value};
use crate::world::plan::Planted;

/// Some keys, all keys, and the keys that come and go by themselves.
const RANGES: [(&str, &str); 4] = [("k/", "k0"), ("k/1", "k/2"), ("a", "z"), ("l", "u")];

/// Streams are kept whole, so it ends by itself when `stopped` says so.
pub async fn run(caller: Caller, mut rng: StdRng, mut stopped: Receiver<bool>) {
    let mut range = RANGES[rng.random_range(0..RANGES.len())];
    let mut next: Option<Revision> = None;
    while !*stopped.borrow() {
        let mut stream = WatchStream {
            client: caller.number,
            start: range.0.into(),
            end: range.1.into(),
            messages: Vec::new(),
        };
        let mut watch = Watch::new(KeyRange::between(range.0, range.1));
        watch.start_revision = next.unwrap_or(0);
        watch.list = next.is_none() && rng.random_bool(0.7);
        watch.bookmarks = rng.random_bool(0.7);
        let patience = Duration::from_millis(rng.random_range(200..15_000));
        tokio::select! {
            _ = timeout(patience, follow(&caller, watch, &mut stream)) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        next = told(&stream).map(|told| told + 1);
        let stood = !stream.messages.is_empty();
        if stood {
            caller.recorder.watch(stream);
        }
        if !stood || rng.random_bool(0.2) {
            next = None;
            range = RANGES[rng.random_range(0..RANGES.len())];
            sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn follow(caller: &Caller, watch: Watch, stream: &mut WatchStream) {
    let Ok(mut messages) = caller.client.watch(watch).await else {
        return;
    };
    while let Some(Ok(message)) = messages.next().await {
        if caller.planted == Some(Planted::SkippedEvent)
            && matches!(&message, Message::Events { revision, .. } if revision.is_multiple_of(50))
        {
            continue;
        }
        stream
            .messages
            .push((caller.recorder.now(), noted(&message)));
    }
}

fn noted(message: &Message) -> WatchMessage {
    match message {
        Message::Created { start_revision, .. } => WatchMessage::Created {
            start_revision: *start_revision,
        },
        Message::List { revision, kvs, .. } => WatchMessage::List {
            revision: *revision,
            kvs: kvs.iter().map(key_value).collect(),
        },
        Message::Listed { revision, .. } => WatchMessage::Listed {
            revision: *revision,
        },
        Message::Events {
            revision, events, ..
        } => WatchMessage::Events {
            revision: *revision,
            events: events.iter().map(event).collect(),
        },
        Message::Bookmark { revision, .. } => WatchMessage::Bookmark {
            revision: *revision,
        },
    }
}

/// Up to where a stream has told everything; `None` if it broke off within its list.
fn told(stream: &WatchStream) -> Option<Revision> {
    let (_, last) = stream.messages.last()?;
    match last {
        WatchMessage::Created { start_revision } => Some(start_revision.saturating_sub(1)),
        WatchMessage::List { .. } => None,
        WatchMessage::Listed { revision }
        | WatchMessage::Events { revision, .. }
        | WatchMessage::Bookmark { revision } => Some(*revision),
    }
}
