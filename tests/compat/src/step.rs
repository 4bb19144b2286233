//! One step of a program: a unary call, or a request on one of its watch streams.
//!
//! Which calls there are is said once, in the table at the end: their word in scripts, their messages, their stub.

use podkv_proto::etcd::FILE_DESCRIPTOR_SET;
use podkv_proto::etcd::etcdserverpb::{self as pb, *};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use std::sync::LazyLock;
use tonic::transport::Channel;
use tonic::{Response as Reply, Status};

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap());

/// `name` is without its package.
pub fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(&format!("etcdserverpb.{name}"))
        .or_else(|| POOL.get_message_by_name(&format!("mvccpb.{name}")))
        .unwrap_or_else(|| panic!("no message {name}"))
}

pub fn dynamic<M: Message>(name: &str, message: &M) -> DynamicMessage {
    let mut dynamic = DynamicMessage::new(descriptor(name));
    dynamic.transcode_from(message).unwrap();
    dynamic
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Call(Request),
    /// The stream is opened by its first request.
    Watch {
        stream: usize,
        request: WatchRequest,
    },
}

impl Step {
    /// The message of the request, whatever it is.
    pub fn message(&self) -> DynamicMessage {
        match self {
            Self::Call(request) => request.dynamic(),
            Self::Watch { request, .. } => dynamic("WatchRequest", request),
        }
    }

    /// The same step with another message of the same type.
    pub fn with_message(&self, message: &DynamicMessage) -> Self {
        match self {
            Self::Call(request) => Self::Call(request.with(message)),
            Self::Watch { stream, .. } => Self::Watch {
                stream: *stream,
                request: message.transcode_to().unwrap(),
            },
        }
    }
}

/// A call that may be made on a channel.
type Called<T> = Result<Reply<T>, Status>;

/// The only bidirectional call beside Watch: one request, one answer.
async fn keep_alive(
    channel: Channel,
    request: LeaseKeepAliveRequest,
) -> Called<LeaseKeepAliveResponse> {
    let requests = tokio_stream::once(request);
    let mut answers = lease_client::LeaseClient::new(channel)
        .lease_keep_alive(requests)
        .await?
        .into_inner();
    let answer = answers.message().await?;
    answer
        .map(Reply::new)
        .ok_or_else(|| Status::internal("the stream ended without an answer"))
}

macro_rules! calls {
    ($($word:literal $variant:ident($request:ident) -> $response:ident: $call:expr;)*) => {
        #[derive(Clone, Debug, PartialEq)]
        pub enum Request { $($variant($request),)* }

        #[derive(Clone, Debug, PartialEq)]
        pub enum Response { $($variant($response),)* }

        impl Request {
            /// A request without fields, by its word in scripts.
            pub fn of_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant($request::default())),)*
                    _ => None,
                }
            }

            pub fn word(&self) -> &'static str {
                match self { $(Self::$variant(_) => $word,)* }
            }

            pub fn dynamic(&self) -> DynamicMessage {
                match self { $(Self::$variant(request) => dynamic(stringify!($request), request),)* }
            }

            pub fn with(&self, message: &DynamicMessage) -> Self {
                match self { $(Self::$variant(_) => Self::$variant(message.transcode_to().unwrap()),)* }
            }

            pub async fn call(self, channel: Channel) -> Result<Response, Status> {
                match self {
                    $(Self::$variant(request) => {
                        let reply: Called<$response> = ($call)(channel, request).await;
                        Ok(Response::$variant(reply?.into_inner()))
                    })*
                }
            }
        }

        impl Response {
            pub fn dynamic(&self) -> DynamicMessage {
                match self { $(Self::$variant(response) => dynamic(stringify!($response), response),)* }
            }

            pub fn header(&self) -> Option<&ResponseHeader> {
                match self { $(Self::$variant(response) => response.header.as_ref(),)* }
            }

            pub fn header_mut(&mut self) -> &mut Option<ResponseHeader> {
                match self { $(Self::$variant(response) => &mut response.header,)* }
            }
        }
    };
}

macro_rules! stub {
    ($client:ident::$method:ident) => {
        async |channel: Channel, request| {
            // What etcd's own clients allow an answer to have.
            stub!(@client $client)(channel)
                .max_decoding_message_size(64 << 20)
                .$method(request)
                .await
        }
    };
    (@client Kv) => { kv_client::KvClient::new };
    (@client Lease) => { lease_client::LeaseClient::new };
    (@client Cluster) => { cluster_client::ClusterClient::new };
    (@client Maintenance) => { maintenance_client::MaintenanceClient::new };
}

calls! {
    "range" Range(RangeRequest) -> RangeResponse: stub!(Kv::range);
    "put" Put(PutRequest) -> PutResponse: stub!(Kv::put);
    "delete" Delete(DeleteRangeRequest) -> DeleteRangeResponse: stub!(Kv::delete_range);
    "txn" Txn(TxnRequest) -> TxnResponse: stub!(Kv::txn);
    "compact" Compact(CompactionRequest) -> CompactionResponse: stub!(Kv::compact);
    "grant" Grant(LeaseGrantRequest) -> LeaseGrantResponse: stub!(Lease::lease_grant);
    "revoke" Revoke(LeaseRevokeRequest) -> LeaseRevokeResponse: stub!(Lease::lease_revoke);
    "ttl" TimeToLive(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse: stub!(Lease::lease_time_to_live);
    "leases" Leases(LeaseLeasesRequest) -> LeaseLeasesResponse: stub!(Lease::lease_leases);
    "keepalive" KeepAlive(LeaseKeepAliveRequest) -> LeaseKeepAliveResponse: keep_alive;
    "members" Members(MemberListRequest) -> MemberListResponse: stub!(Cluster::member_list);
    "alarm" Alarm(AlarmRequest) -> AlarmResponse: stub!(Maintenance::alarm);
    "status" Status(StatusRequest) -> StatusResponse: stub!(Maintenance::status);
    "defragment" Defragment(DefragmentRequest) -> DefragmentResponse: stub!(Maintenance::defragment);
}

impl Request {
    /// Served from the state of the node that is asked, with no word from a leader.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Range(request) => request.serializable,
            Self::Txn(request) => txn_is_local(request),
            Self::Leases(_)
            | Self::TimeToLive(_)
            | Self::KeepAlive(_)
            | Self::Members(_)
            | Self::Alarm(_)
            | Self::Status(_)
            | Self::Defragment(_) => true,
            _ => false,
        }
    }
}

/// etcd serves a txn locally if all its ranges say so.
fn txn_is_local(txn: &TxnRequest) -> bool {
    let mut operations = txn.success.iter().chain(&txn.failure);
    operations.any(|operation| match &operation.request {
        Some(pb::request_op::Request::RequestRange(range)) => range.serializable,
        Some(pb::request_op::Request::RequestTxn(nested)) => txn_is_local(nested),
        _ => false,
    })
}
