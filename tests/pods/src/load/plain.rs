//! A plain gRPC client, as any language has it: one connection to the virtual address, no retry policy, no knowledge
//! of podkv but its proto.
//!
//! One thing every gRPC library does without a policy, but tonic: a call that never left the library, because its
//! connection ended first, goes to the next connection ("transparent retry", gRFC A6). It is done here, and for that
//! error alone; hyper tells it apart from every other.

use std::time::Duration;

use podkv_proto::v1::PutRequest;
use podkv_proto::v1::kv_client::KvClient;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::Notes;
use crate::Result;
use crate::stage::Stage;

/// Every gRPC guide says: set a deadline.
const DEADLINE: Duration = Duration::from_secs(10);
/// What gRPC libraries wait for a connection, at least.
const CONNECT: Duration = Duration::from_secs(5);
const PACE: Duration = Duration::from_millis(20);

pub(super) fn channel(stage: &Stage) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}:2379", stage.service_name("podkv")))?;
    Ok(endpoint
        .connect_timeout(CONNECT)
        .timeout(DEADLINE)
        .connect_lazy())
}

pub(super) async fn write(channel: Channel, prefix: String, mut notes: Notes) {
    let mut client = KvClient::new(channel);
    let mut number = 0_u64;
    while notes.next(PACE).await {
        number += 1;
        let (key, value) = (format!("{prefix}/{number}"), format!("{number}"));
        let request = PutRequest {
            key: key.clone().into(),
            value: value.clone().into(),
            ..PutRequest::default()
        };
        match put(&mut client, request).await {
            Ok(()) => notes.acknowledged(key, value, false),
            Err(status) => notes.failed(key, value, format!("{status:?}")),
        }
    }
}

async fn put(client: &mut KvClient<Channel>, request: PutRequest) -> Result<(), Status> {
    loop {
        match client.put(request.clone()).await {
            Ok(_) => return Ok(()),
            Err(status) if never_left(&status) => {}
            Err(status) => return Err(status),
        }
    }
}

/// The call was still in the queue of a connection that ended.
fn never_left(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_canceled();
        }
        source = error.source();
    }
    false
}
