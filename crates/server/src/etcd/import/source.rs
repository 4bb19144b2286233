//! The etcd that data comes from: etcd's client, as far as a copy needs one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hyper_util::rt::TokioIo;
use podkv_api::{Error, KeyValue, LeaseId, Reason, Result, Revision};
use podkv_proto::convert::{Call, from_status};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::auth_client::AuthClient;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use podkv_proto::etcd::etcdserverpb::watch_client::WatchClient;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use podkv_proto::etcd::mvccpb;
use podkv_tls::ClientTls;
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status, Streaming};

use super::From;

/// Keys that are read at once. etcd answers a page in time that grows with it, and holds up nobody for so few.
const PAGE_KEYS: i64 = 1000;
/// What a page is to have, as far as the one before tells: values may have 1.5 MiB each, and a podkv answers no more than 2 MiB
/// at once by default.
const PAGE_BYTES: usize = 1 << 20;
/// Of an answer. No page is as long; a response of a watch may be.
const MAX_MESSAGE_BYTES: usize = 2 << 30;
/// Leases that are asked for at once.
const LEASES_AT_ONCE: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// etcd's own clients ping as often; a dead connection is noticed by it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Shows who asks.
#[derive(Clone, Default)]
pub(crate) struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

type Connection = InterceptedService<Channel, Token>;

/// A running etcd.
#[derive(Clone)]
pub(crate) struct Source {
    channel: Channel,
    /// Name and password.
    user: Option<Arc<(String, String)>>,
    token: Arc<Mutex<Token>>,
}

/// Some keys of a range, and where the rest begins.
pub(crate) struct Page {
    pub kvs: Vec<KeyValue>,
    pub next: Option<Next>,
}

/// The page to come.
pub(crate) struct Next {
    from: Bytes,
    keys: i64,
}

impl Next {
    /// From the first key on.
    pub fn first() -> Self {
        Self {
            from: Bytes::from_static(&[0]),
            keys: 1,
        }
    }

    /// As many keys as the page before lets expect to be right, and not too many more than that had.
    fn after(kvs: &[KeyValue], keys: i64) -> Option<Self> {
        let bytes: usize = kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        let of_one = (bytes / kvs.len().max(1)).max(1);
        let fit = i64::try_from(PAGE_BYTES / of_one).unwrap_or(PAGE_KEYS);
        Some(Self {
            from: Bytes::from([&kvs.last()?.key[..], &[0]].concat()),
            keys: fit.min(2 * keys).clamp(1, PAGE_KEYS),
        })
    }
}

impl Source {
    pub async fn connect(from: From) -> Result<Self> {
        let address = from.address.trim_end_matches('/');
        let bare = address
            .strip_prefix("http://")
            .or_else(|| address.strip_prefix("https://"))
            .unwrap_or(address);
        if address.starts_with("https://") != from.tls.is_some() {
            let text = format!("{address}: https:// and --from-ca go together");
            return Err(Error::new(Reason::Configuration, text));
        }
        let tls = from.tls.as_ref().map(ClientTls::open).transpose()?;
        let (target, tls) = (Arc::<str>::from(bare), tls.map(Arc::new));
        let connector = tower::service_fn(move |_: Uri| dial(target.clone(), tls.clone()));
        // What is dialled is decided by the connector; this is what the host is called in HTTP.
        let endpoint = Endpoint::from_shared(format!("http://{bare}")).map_err(|_| {
            let text = format!("{address} is no address; expected host:port, or a URL");
            Error::new(Reason::Configuration, text)
        })?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|error| {
                let text = format!("etcd at {address} cannot be reached: {}", chain(&error));
                Error::new(Reason::Unreachable, text).with_source(error)
            })?;
        let source = Self {
            channel,
            user: from.user.map(Arc::new),
            token: Arc::default(),
        };
        source.authenticate().await?;
        Ok(source)
    }

    fn connection(&self) -> Connection {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        InterceptedService::new(self.channel.clone(), token.clone())
    }

    /// Asks for a token, if there is a user.
    async fn authenticate(&self) -> Result<()> {
        let Some(user) = self.user.as_deref() else {
            return Ok(());
        };
        let (name, password) = user.clone();
        let request = pb::AuthenticateRequest { name, password };
        let mut auth = AuthClient::new(self.channel.clone());
        let answer = auth.authenticate(request).await.map_err(failed)?;
        let token = answer.into_inner().token.parse().map_err(|_| {
            let text = "etcd's token is not one line of text";
            Error::new(Reason::Unauthenticated, text)
        })?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Token(Some(token));
        Ok(())
    }

    /// Makes a call, and once more with another token if etcd does not take this one: it ends after a while, when a
    /// member restarts, and when somebody changes users or roles. Everything that is asked here is a read.
    async fn call<T>(
        &self,
        call: impl AsyncFn(Connection) -> Result<Response<T>, Status>,
    ) -> Result<Response<T>, Status> {
        let answer = call(self.connection()).await;
        match &answer {
            // The second is what a change of users is called: "revision of auth store is old".
            Err(status)
                if matches!(status.code(), Code::Unauthenticated | Code::InvalidArgument) => {}
            _ => return answer,
        }
        if self.user.is_none() || self.authenticate().await.is_err() {
            return answer;
        }
        call(self.connection()).await
    }

    async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse> {
        let answer = self.call(async |connection| {
            let mut kv = KvClient::new(connection).max_decoding_message_size(MAX_MESSAGE_BYTES);
            kv.range(request.clone()).await
        });
        Ok(answer.await.map_err(failed)?.into_inner())
    }

    /// etcd's cluster id, and its revision now. Linearizable.
    pub async fn position(&self) -> Result<(u64, Revision)> {
        let request = pb::RangeRequest {
            key: Bytes::from_static(&[0]),
            count_only: true,
            ..Default::default()
        };
        let answer = self.range(request).await?;
        let header = answer.header.unwrap_or_default();
        Ok((header.cluster_id, unsigned(header.revision)))
    }

    /// Keys as they were at `revision`: fewer than were meant, if an answer may not have so much.
    pub async fn page(&self, mut next: Next, revision: Revision) -> Result<Page> {
        let answer = loop {
            let request = pb::RangeRequest {
                key: next.from.clone(),
                range_end: Bytes::from_static(&[0]),
                limit: next.keys,
                revision: i64::try_from(revision).unwrap_or(i64::MAX),
                ..Default::default()
            };
            match self.range(request).await {
                Err(error) if error.reason() == Reason::RequestTooLarge && next.keys > 1 => {
                    next.keys /= 2;
                }
                answer => break answer?,
            }
        };
        let kvs: Vec<_> = answer.kvs.into_iter().map(key_value).collect();
        let next = answer.more.then(|| Next::after(&kvs, next.keys)).flatten();
        Ok(Page { kvs, next })
    }

    /// The value of a key as it was at `revision`, or, where that is compacted, as it is now.
    pub async fn at(&self, key: Bytes, revision: Revision) -> Result<Option<Bytes>> {
        let request = |revision| pb::RangeRequest {
            key: key.clone(),
            revision,
            ..Default::default()
        };
        let then = i64::try_from(revision).unwrap_or(i64::MAX);
        let found = match self.range(request(then)).await {
            Err(error) if error.reason() == Reason::Compacted => self.range(request(0)).await,
            found => found,
        };
        Ok(found?.kvs.pop().map(|kv| kv.value))
    }

    /// Every lease that is there now, with the TTL that it was granted, in milliseconds.
    pub async fn leases(&self) -> Result<BTreeMap<LeaseId, u64>> {
        let request = pb::LeaseLeasesRequest {};
        let answer =
            self.call(async |connection| LeaseClient::new(connection).lease_leases(request).await);
        let answer = answer.await.map_err(failed)?;
        let ids = answer.into_inner().leases.into_iter().map(|lease| lease.id);
        let found = stream::iter(ids)
            .map(
                |id| async move { Ok::<_, Error>((LeaseId(id), self.granted(LeaseId(id)).await?)) },
            )
            .buffer_unordered(LEASES_AT_ONCE);
        let found: Vec<_> = found.try_collect().await?;
        let live = found.into_iter().filter_map(|(id, ttl)| Some((id, ttl?)));
        Ok(live.collect())
    }

    /// What a lease was granted, in milliseconds; `None` if it has ended.
    pub async fn granted(&self, id: LeaseId) -> Result<Option<u64>> {
        let request = pb::LeaseTimeToLiveRequest {
            id: id.0,
            keys: false,
        };
        let answer = self.call(async |connection| {
            LeaseClient::new(connection)
                .lease_time_to_live(request)
                .await
        });
        match answer.await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let seconds = u64::try_from(answer.granted_ttl).unwrap_or(0);
                Ok((answer.ttl > 0 && seconds > 0).then(|| seconds.saturating_mul(1000)))
            }
            // Some releases say so instead of a TTL of -1.
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(status)),
        }
    }

    /// All changes from `revision` on. The stream lives as long as the sender.
    ///
    /// To be called after another call: etcd does not say of a watch that it is the token that it does not take.
    pub async fn watch(
        &self,
        revision: Revision,
    ) -> Result<(
        tokio::sync::mpsc::Sender<pb::WatchRequest>,
        Streaming<pb::WatchResponse>,
    )> {
        let create = pb::WatchCreateRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            start_revision: i64::try_from(revision).unwrap_or(i64::MAX),
            ..Default::default()
        };
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        let create = pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // There is room for one, and the receiver is here.
        let _ = sender.try_send(create);
        let mut client =
            WatchClient::new(self.connection()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let responses = client.watch(ReceiverStream::new(requests)).await;
        Ok((sender, responses.map_err(failed)?.into_inner()))
    }
}

async fn dial(
    address: Arc<str>,
    tls: Option<Arc<ClientTls>>,
) -> std::io::Result<TokioIo<Box<dyn podkv_client::Connection>>> {
    let stream = TcpStream::connect(&*address).await?;
    stream.set_nodelay(true)?;
    let stream: Box<dyn podkv_client::Connection> = match tls {
        None => Box::new(stream),
        Some(tls) => {
            let heard = Arc::new(|_: Result<(), String>| {});
            Box::new(
                tls.connect(podkv_tls::host_of(&address), &address, stream, heard)
                    .await?,
            )
        }
    };
    Ok(TokioIo::new(stream))
}

pub(super) fn failed(status: Status) -> Error {
    let error = from_status(&status, Call::Read);
    match status.code() {
        Code::OutOfRange => Error::new(
            Reason::Compacted,
            format!(
                "etcd: {}: begin again, into an empty cluster",
                status.message()
            ),
        ),
        _ => Error::new(error.reason(), format!("etcd: {}", error.text())),
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(super) fn key_value(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: unsigned(kv.create_revision),
        mod_revision: unsigned(kv.mod_revision),
        version: unsigned(kv.version),
        lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
        expires_at_ms: None,
    }
}

/// All that an error says, for a person.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
