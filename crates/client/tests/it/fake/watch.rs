//! Watches, in small fragments.

use podkv_api::{Error, KeyValue, Watch, WatchMessage};
use podkv_proto::convert::{self, to_status};
use podkv_proto::v1;
use podkv_proto::v1::watch_server;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Boxed, Node, broken};

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
    let mut revisions = node.world.revisions();
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
