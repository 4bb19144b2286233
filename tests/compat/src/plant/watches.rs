//! Slips in watches: 16 to 21.

use podkv_proto::etcd::etcdserverpb::WatchResponse;
use podkv_proto::etcd::etcdserverpb::watch_create_request::FilterType;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use podkv_proto::etcd::mvccpb::event::EventType;
use podkv_proto::etcd::mvccpb::{Event, KeyValue};

use super::{Kind, Plant, WatchMemory};
use crate::generate::FAR_FUTURE;

const fn response(
    slip: u32,
    name: &'static str,
    response: fn(&WatchMemory, WatchResponse) -> Vec<WatchResponse>,
) -> Plant {
    Plant {
        slip,
        name,
        kind: Kind::Watch {
            request: |_, _| (),
            response,
        },
    }
}

pub static PLANTS: &[Plant] = &[
    response(
        3,
        "a watch whose range ends before it begins is created",
        |_, mut response| {
            if response.created
                && response.canceled
                && !response.cancel_reason.contains("duplicate")
            {
                response.canceled = false;
                response.cancel_reason.clear();
                response.watch_id = 99;
            }
            vec![response]
        },
    ),
    Plant {
        slip: 16,
        name: "a duplicate watch id gets another one",
        kind: Kind::Watch {
            request: |memory, request| {
                if let Some(RequestUnion::CreateRequest(create)) = &mut request.request_union
                    && memory.knows(create.watch_id)
                {
                    create.watch_id = 0;
                }
            },
            response: |_, response| vec![response],
        },
    },
    Plant {
        slip: 16,
        name: "cancelling an unknown id is answered",
        kind: Kind::Watch {
            request: |memory, request| {
                if let Some(RequestUnion::CancelRequest(cancel)) = &request.request_union
                    && !memory.knows(cancel.watch_id)
                {
                    memory.lock().held.push(WatchResponse {
                        watch_id: cancel.watch_id,
                        canceled: true,
                        ..WatchResponse::default()
                    });
                }
            },
            response: |memory, response| {
                let mut responses = std::mem::take(&mut memory.lock().held);
                responses.push(response);
                responses
            },
        },
    },
    response(16, "an event before `created`", |memory, response| {
        let old = memory
            .asked(response.watch_id)
            .filter(|asked| asked.start_revision > 0);
        match old {
            Some(asked) if response.created && !response.canceled => {
                let kv = KeyValue {
                    key: asked.key,
                    mod_revision: asked.start_revision,
                    ..KeyValue::default()
                };
                let early = WatchResponse {
                    header: response.header,
                    watch_id: response.watch_id,
                    events: vec![Event {
                        kv: Some(kv),
                        ..Event::default()
                    }],
                    ..WatchResponse::default()
                };
                vec![early, response]
            }
            _ => vec![response],
        }
    }),
    Plant {
        slip: 16,
        name: "`created` without an id of the client's choice",
        kind: Kind::Watch {
            request: |_, request| {
                if let Some(RequestUnion::CreateRequest(create)) = &mut request.request_union {
                    create.watch_id = 0;
                }
            },
            response: |_, response| vec![response],
        },
    },
    response(
        17,
        "a compacted start is answered with a reason",
        |_, mut response| {
            if response.compact_revision > 0 {
                response.cancel_reason = "mvcc: required revision has been compacted".into();
            }
            vec![response]
        },
    ),
    response(
        17,
        "a compacted start is canceled at once, not created",
        |memory, mut response| {
            if response.compact_revision > 0 {
                let held = memory.lock().held.pop();
                response.created = held.is_some();
                return vec![response];
            }
            if response.created
                && memory
                    .asked(response.watch_id)
                    .is_some_and(|asked| asked.start_revision < 0)
            {
                memory.lock().held.push(response);
                return Vec::new();
            }
            vec![response]
        },
    ),
    response(
        17,
        "a compacted start does not say what is compacted",
        |_, mut response| {
            response.compact_revision = 0;
            vec![response]
        },
    ),
    response(
        18,
        "a revision goes on in the next response",
        |_, response| {
            let mut first = response.clone();
            let mut second = response;
            let revision = |event: &Event| event.kv.as_ref().map(|kv| kv.mod_revision);
            let inside = first
                .events
                .windows(2)
                .position(|pair| revision(&pair[0]) == revision(&pair[1]));
            match inside {
                Some(index) => {
                    second.events.drain(..=index);
                    first.events.truncate(index + 1);
                    vec![first, second]
                }
                None => vec![first],
            }
        },
    ),
    response(
        18,
        "within a revision, events come in key order",
        |_, mut response| {
            response.events.sort_by_key(|event| {
                event
                    .kv
                    .as_ref()
                    .map(|kv| (kv.mod_revision, kv.key.clone()))
            });
            vec![response]
        },
    ),
    response(
        18,
        "deletes of one revision come in no order",
        |_, mut response| {
            let deletes: Vec<_> = (0..response.events.len())
                .filter(|index| response.events[*index].r#type() == EventType::Delete)
                .collect();
            for pair in deletes.windows(2) {
                let of =
                    |index: usize| response.events[index].kv.as_ref().map(|kv| kv.mod_revision);
                if of(pair[0]) == of(pair[1]) {
                    response.events.swap(pair[0], pair[1]);
                }
            }
            vec![response]
        },
    ),
    response(
        19,
        "deletes say when the key was created",
        |_, mut response| {
            for event in &mut response.events {
                if event.r#type() == EventType::Delete
                    && let (Some(kv), Some(previous)) = (&mut event.kv, &event.prev_kv)
                {
                    kv.create_revision = previous.create_revision;
                }
            }
            vec![response]
        },
    ),
    response(19, "deletes have no prev_kv", |_, mut response| {
        for event in &mut response.events {
            if event.r#type() == EventType::Delete {
                event.prev_kv = None;
            }
        }
        vec![response]
    }),
    response(19, "the first event has no prev_kv", |_, mut response| {
        if let Some(event) = response.events.first_mut() {
            event.prev_kv = None;
        }
        vec![response]
    }),
    response(20, "progress is answered with id 0", |_, mut response| {
        if response.watch_id == -1 && !response.created {
            response.watch_id = 0;
        }
        vec![response]
    }),
    response(
        20,
        "progress is answered with revision 0",
        |_, mut response| {
            if response.watch_id == -1
                && !response.created
                && let Some(header) = &mut response.header
            {
                header.revision = 0;
            }
            vec![response]
        },
    ),
    response(20, "progress outruns events", |memory, response| {
        if !response.events.is_empty() {
            memory.lock().held.push(response);
            return Vec::new();
        }
        let is_progress = response.watch_id == -1;
        let mut responses = vec![response];
        if is_progress {
            responses.append(&mut memory.lock().held);
        }
        responses
    }),
    Plant {
        slip: 20,
        name: "a batch that filters to nothing is sent",
        kind: Kind::Watch {
            request: |_, request| {
                if let Some(RequestUnion::CreateRequest(create)) = &mut request.request_union {
                    create.filters.clear();
                }
            },
            response: |memory, mut response| {
                if let Some(asked) = memory.asked(response.watch_id) {
                    response.events.retain(|event| {
                        let excluded = match event.r#type() {
                            EventType::Put => FilterType::Noput,
                            EventType::Delete => FilterType::Nodelete,
                        };
                        !asked.filters().any(|filter| filter == excluded)
                    });
                }
                vec![response]
            },
        },
    },
    Plant {
        slip: 21,
        name: "a start in the future is taken as now",
        kind: Kind::Watch {
            request: |_, request| {
                if let Some(RequestUnion::CreateRequest(create)) = &mut request.request_union
                    && create.start_revision >= FAR_FUTURE
                {
                    create.start_revision = 0;
                }
            },
            response: |_, response| vec![response],
        },
    },
];
