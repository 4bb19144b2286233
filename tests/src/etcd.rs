//! A client of the etcd API that does nothing by itself: for tests that must know each message.

use std::time::Duration;

use bytes::Bytes;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use podkv_proto::etcd::etcdserverpb::watch_client::WatchClient;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Longer than anything here takes, on a machine that does other things as well.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One connection.
#[derive(Clone)]
pub struct Etcd(pub Channel);

// A failure here is a failed test.
#[expect(clippy::missing_panics_doc, reason = "a failure is a failed test")]
impl Etcd {
    /// `address` is host:port.
    pub async fn connect(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self(endpoint.connect().await.expect("it listens"))
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.0.clone()).max_decoding_message_size(64 << 20)
    }

    pub fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.0.clone())
    }

    /// Opens a stream of watches.
    pub async fn watch(&self) -> Watches {
        let (requests, receiver) = mpsc::channel(1024);
        let mut client = WatchClient::new(self.0.clone()).max_decoding_message_size(64 << 20);
        let responses = client.watch(ReceiverStream::new(receiver)).await;
        Watches {
            requests: Some(requests),
            responses: responses.expect("a stream").into_inner(),
        }
    }
}

/// A stream of watches.
pub struct Watches {
    /// `None` once this half is closed.
    pub requests: Option<mpsc::Sender<pb::WatchRequest>>,
    pub responses: Streaming<pb::WatchResponse>,
}

#[expect(clippy::missing_panics_doc, reason = "a failure is a failed test")]
impl Watches {
    pub async fn ask(&self, request: RequestUnion) {
        let request = pb::WatchRequest {
            request_union: Some(request),
        };
        let requests = self.requests.as_ref().expect("not closed");
        requests.send(request).await.expect("the stream is open");
    }

    /// Watches `key`, or all keys that begin with it.
    pub async fn create(&self, key: impl Into<Bytes>, prefix: bool, start_revision: i64) {
        let key = key.into();
        let create = pb::WatchCreateRequest {
            range_end: if prefix { end_of(&key) } else { Bytes::new() },
            key,
            start_revision,
            ..Default::default()
        };
        self.ask(RequestUnion::CreateRequest(create)).await;
    }

    /// The next response.
    pub async fn next(&mut self) -> pb::WatchResponse {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        let next = next.expect("a response in time").expect("no error");
        next.expect("the stream goes on")
    }
}

/// The end of the range of keys that begin with `prefix`.
#[must_use]
pub fn end_of(prefix: &Bytes) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

#[must_use]
pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

#[must_use]
pub fn get(key: impl Into<Bytes>) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        ..Default::default()
    }
}
