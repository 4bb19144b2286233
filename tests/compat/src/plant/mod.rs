//! Careless implementers, made of a real etcd and a wrapper around its client.
//!
//! Each plant is one of the slips that implementers of this API make. The comparison is worth something only as far as
//! it finds them: a test runs all of them. [`UNSEEN`] names the slips that it cannot see, and what looks after those.

mod calls;
mod careless;
mod watches;

use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use podkv_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use tonic::transport::Channel;

use crate::link::Answer;
use crate::step::Request;

pub struct Plant {
    /// Its number in the list of slips.
    pub slip: u32,
    pub name: &'static str,
    pub kind: Kind,
}

/// Where the slip is made.
pub enum Kind {
    /// The request is read wrong.
    Request(fn(&mut Request)),
    /// The answer is built wrong.
    Answer(fn(&Request, &mut Answer)),
    /// It takes other calls of the honest store to be this wrong.
    Call(fn(Channel, Request) -> BoxFuture<'static, Answer>),
    Watch {
        request: fn(&WatchMemory, &mut WatchRequest),
        response: fn(&WatchMemory, WatchResponse) -> Vec<WatchResponse>,
    },
}

/// Slips that no program sees, and why.
pub const UNSEEN: &[(u32, &str)] = &[
    (
        25,
        "a learner: etcd has one member here. What podkv's standbys serve is tested where membership is",
    ),
    (
        28,
        "access control: programs run without it. It is tested where users and roles are",
    ),
];

/// All plants, by number.
pub fn all() -> Vec<&'static Plant> {
    let mut plants: Vec<_> = calls::PLANTS.iter().chain(watches::PLANTS).collect();
    plants.sort_by_key(|plant| plant.slip);
    plants
}

impl Plant {
    pub async fn call(&self, channel: &Channel, mut request: Request) -> Answer {
        match self.kind {
            Kind::Request(wrong) => {
                wrong(&mut request);
                request.call(channel.clone()).await
            }
            Kind::Answer(wrong) => {
                let mut answer = request.clone().call(channel.clone()).await;
                wrong(&request, &mut answer);
                answer
            }
            Kind::Call(wrong) => wrong(channel.clone(), request).await,
            Kind::Watch { .. } => request.call(channel.clone()).await,
        }
    }

    pub(crate) fn watching(&self, memory: &WatchMemory, request: &mut WatchRequest) {
        if let Some(RequestUnion::CreateRequest(create)) = &request.request_union {
            memory.lock().asked.push(create.clone());
        }
        if let Kind::Watch { request: wrong, .. } = self.kind {
            wrong(memory, request);
        }
    }

    pub(crate) fn watched(
        &self,
        memory: &WatchMemory,
        response: WatchResponse,
    ) -> Vec<WatchResponse> {
        if response.created {
            memory.lock().created.push(response.watch_id);
        }
        match self.kind {
            Kind::Watch {
                response: wrong, ..
            } => wrong(memory, response),
            _ => vec![response],
        }
    }
}

/// What a wrapper remembers of one stream.
#[derive(Default)]
pub struct WatchMemory(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    /// Create requests, as they were asked.
    asked: Vec<WatchCreateRequest>,
    /// The ids of their answers.
    created: Vec<i64>,
    held: Vec<WatchResponse>,
}

impl WatchMemory {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was asked of the watch that has this id now.
    fn asked(&self, id: i64) -> Option<WatchCreateRequest> {
        let memory = self.lock();
        let index = memory.created.iter().rposition(|created| *created == id)?;
        memory.asked.get(index).cloned()
    }

    fn knows(&self, id: i64) -> bool {
        self.lock().created.contains(&id)
    }
}
