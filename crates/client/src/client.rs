//! The handle: the store trait, call by call.
//!
//! Puts, deletes, transactions and small ranges ride on the operation stream; everything else is an RPC
//! of its own.

use std::sync::Arc;
use std::time::Duration;

use podkv_api::{
    CompactResponse, Delete, DeleteResponse, Error, LeaseGrantResponse, LeaseId, LeaseStatus,
    Member, NodeStatus, Op, Put, PutResponse, Range, RangeResponse, RangeStream, Reason, Result,
    Revision, SessionStamp, Store, Txn, TxnResponse, Watch, WatchStream,
};
use podkv_proto::convert;
use podkv_proto::v1;
use podkv_proto::v1::cluster_client::ClusterClient;
use podkv_proto::v1::kv_client::KvClient;
use podkv_proto::v1::lease_client::LeaseClient;
use podkv_proto::v1::pipe_operation::Operation;
use podkv_proto::v1::pipe_result;
use podkv_tls::ClientTls;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::admin::ask_members;
use crate::builder::{Builder, without_scheme};
use crate::core::{Answered, Core, Plan};
use crate::credentials::Credentials;
use crate::dial::Dialer;
use crate::directory;
use crate::endpoint::{Endpoint, Runtime};
use crate::endpoints::Endpoints;
use crate::failure::{Failure, corrupt};
use crate::fence::Fence;
use crate::pipe::is_too_large;
use crate::scan::{Scan, collect, freshness};
use crate::session::Sessions;
use crate::settings::Settings;
use crate::watch;

/// A remote podkv store. Cheap to clone; when the last clone is gone, or after [`Client::close`], its
/// tasks and connections end.
///
/// Calls are retried on other nodes until the deadline. A write is applied at most once, whatever
/// happens in between; an error says by [`Error::outcome_unknown`] whether it may have been.
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
    /// Tasks hold the core, handles hold this.
    _stop_on_drop: Arc<DropGuard>,
}

/// What a client is made of.
pub(crate) struct Parts {
    pub endpoints: Vec<String>,
    pub services: Vec<String>,
    pub settings: Settings,
    pub dialer: Arc<dyn Dialer>,
    pub tls: Option<Arc<ClientTls>>,
    pub credentials: Option<Arc<Credentials>>,
    pub fence: Arc<Fence>,
}

impl Client {
    /// Begins to make a client.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Connects with the default settings to a cluster of which these are nodes, as `host:port`.
    ///
    /// # Errors
    /// See [`Builder::connect`].
    pub async fn connect(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        Self::builder().endpoints(endpoints).connect().await
    }

    /// A client that stays on one node: for its `local` reads, and its status. It has its own tasks
    /// and connection; its answers are held against what this client has seen of the cluster.
    ///
    /// # Errors
    /// [`Reason::Configuration`] if `endpoint` is not `host:port`.
    pub fn at(&self, endpoint: impl Into<String>) -> Result<Self> {
        let settings = Settings {
            fixed: true,
            ..(*self.core.runtime.settings).clone()
        };
        Self::start(Parts {
            endpoints: vec![without_scheme(
                &endpoint.into(),
                self.core.runtime.tls.is_some(),
            )?],
            services: Vec::new(),
            settings,
            dialer: self.core.runtime.dialer.clone(),
            tls: self.core.runtime.tls.clone(),
            credentials: self.core.runtime.credentials.clone(),
            fence: self.core.fence.clone(),
        })
    }

    pub(crate) fn start(parts: Parts) -> Result<Self> {
        let runtime = Runtime {
            settings: Arc::new(parts.settings),
            dialer: parts.dialer,
            tls: parts.tls,
            credentials: parts.credentials,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let endpoints: Result<Vec<_>> = parts
            .endpoints
            .iter()
            .map(|address| Endpoint::new(address, &runtime).map(Arc::new))
            .collect();
        let core = Arc::new(Core {
            endpoints: Arc::new(Endpoints::new(endpoints?)),
            fence: parts.fence,
            sessions: Sessions::default(),
            runtime,
        });
        core.runtime
            .spawn(directory::run(core.clone(), parts.services));
        Ok(Self {
            _stop_on_drop: Arc::new(core.runtime.stop.clone().drop_guard()),
            core,
        })
    }

    /// Ends the session, the tasks and the connections, and waits until they are gone. Calls that
    /// are under way fail; so do later ones, of every clone.
    pub async fn close(&self) {
        if !self.core.runtime.stop.is_cancelled() {
            Sessions::close(&self.core).await;
        }
        self.core.runtime.stop.cancel();
        self.core.endpoints.clear();
        self.core.runtime.tasks.close();
        self.core.runtime.tasks.wait().await;
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// A write on the operation stream.
    async fn pipe_write<T>(
        &self,
        operation: impl Fn(SessionStamp) -> Operation + Send + Sync,
        answer: fn(pipe_result::Result) -> Answered<T>,
    ) -> Result<T> {
        self.core
            .write(|endpoint, stamp, until| pipe(endpoint, operation(stamp), until, answer))
            .await
    }

    /// A read on the operation stream.
    async fn pipe_read<T>(
        &self,
        plan: Plan,
        operation: Operation,
        answer: fn(pipe_result::Result) -> Answered<T>,
    ) -> Result<T> {
        self.core
            .call(plan, self.core.deadline(), |endpoint, until| {
                pipe(endpoint, operation.clone(), until, answer)
            })
            .await
    }
}

async fn pipe<T>(
    endpoint: Arc<Endpoint>,
    operation: Operation,
    until: Instant,
    answer: fn(pipe_result::Result) -> Answered<T>,
) -> Answered<T> {
    let result = if is_too_large(&operation) {
        alone(&endpoint, operation, until).await?
    } else {
        endpoint.on_pipe(operation, until).await?
    };
    answer(result)
}

/// An operation as an RPC of its own.
async fn alone(
    endpoint: &Endpoint,
    operation: Operation,
    until: Instant,
) -> Result<pipe_result::Result, Failure> {
    let limit = endpoint.max_response_bytes();
    let mut client = KvClient::new(endpoint.channel()).max_decoding_message_size(limit);
    match operation {
        Operation::Put(put) => {
            let answer = endpoint.unary(until, client.put(put)).await?;
            Ok(pipe_result::Result::Put(answer))
        }
        Operation::Delete(delete) => {
            let answer = endpoint.unary(until, client.delete(delete)).await?;
            Ok(pipe_result::Result::Delete(answer))
        }
        Operation::Txn(txn) => {
            let answer = endpoint.unary(until, client.txn(txn)).await?;
            Ok(pipe_result::Result::Txn(answer))
        }
        Operation::Get(get) => {
            let answer = endpoint.unary(until, client.get(get)).await?;
            Ok(pipe_result::Result::Get(answer))
        }
        // Its keys alone are larger than any node accepts.
        Operation::Range(_) => Err(Failure::refused(Error::new(
            Reason::RequestTooLarge,
            "the bounds of the range are too large for a request",
        ))),
    }
}

/// Makes the function that takes one kind of result off the operation stream.
macro_rules! expect {
    ($kind:ident as $answer:ty) => {
        |result| match result {
            pipe_result::Result::$kind(answer) => {
                let answer =
                    <$answer>::try_from(answer).map_err(|error| corrupt(error.to_string()))?;
                Ok((answer.header, answer))
            }
            _ => Err(corrupt(concat!(
                "the node answered something else than ",
                stringify!($kind)
            ))),
        }
    };
}

impl Store for Client {
    async fn put(&self, put: Put) -> Result<PutResponse> {
        check_put(&put)?;
        let request = v1::PutRequest::from(put);
        let operation = |stamp: SessionStamp| {
            Operation::Put(v1::PutRequest {
                session: Some(stamp.into()),
                ..request.clone()
            })
        };
        self.pipe_write(operation, expect!(Put as PutResponse))
            .await
    }

    async fn delete(&self, delete: Delete) -> Result<DeleteResponse> {
        let request = v1::DeleteRequest::from(delete);
        let operation = |stamp: SessionStamp| {
            Operation::Delete(v1::DeleteRequest {
                session: Some(stamp.into()),
                ..request.clone()
            })
        };
        self.pipe_write(operation, expect!(Delete as DeleteResponse))
            .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        check_txn(&txn)?;
        let is_read_only = txn.is_read_only();
        let request = v1::TxnRequest::from(txn);
        if is_read_only {
            let operation = Operation::Txn(request);
            return self
                .pipe_read(Plan::READ, operation, expect!(Txn as TxnResponse))
                .await;
        }
        let operation = |stamp: SessionStamp| {
            Operation::Txn(v1::TxnRequest {
                session: Some(stamp.into()),
                ..request.clone()
            })
        };
        self.pipe_write(operation, expect!(Txn as TxnResponse))
            .await
    }

    async fn range(&self, range: Range) -> Result<RangeResponse> {
        let plan = Plan {
            freshness: freshness(range.consistency),
            ..Plan::READ
        };
        let is_get =
            range.range.is_single() && !range.keys_only && !range.count_only && range.limit == 0;
        if is_get {
            let operation = Operation::Get(v1::GetRequest {
                key: range.range.start,
                consistency: Some(range.consistency.into()),
                revision: range.revision,
            });
            return self
                .pipe_read(plan, operation, expect!(Get as RangeResponse))
                .await;
        }
        let operation = Operation::Range(range.clone().into());
        match self
            .pipe_read(plan, operation, expect!(Range as RangeResponse))
            .await
        {
            // It outgrew one message: the same again, as a stream.
            Err(error) if error.reason() == Reason::RequestTooLarge => {
                collect(Scan::new(&self.core, range, false)).await
            }
            result => result,
        }
    }

    async fn range_stream(&self, range: Range) -> Result<RangeStream> {
        Scan::new(&self.core, range, false).start().await
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream> {
        if watch.list && watch.start_revision != 0 {
            return Err(Error::new(
                Reason::InvalidArgument,
                "start_revision is set together with list; expected one of them",
            ));
        }
        watch::watch(self, watch).await
    }

    async fn compact(&self, revision: Revision) -> Result<CompactResponse> {
        let send = |endpoint: Arc<Endpoint>, stamp: SessionStamp, until| async move {
            let request = v1::CompactRequest {
                revision,
                session: Some(stamp.into()),
            };
            let mut client = KvClient::new(endpoint.channel());
            let answer = endpoint.unary(until, client.compact(request)).await?;
            let answer =
                CompactResponse::try_from(answer).map_err(|error| corrupt(error.to_string()))?;
            Ok((answer.header, answer))
        };
        self.core.write(send).await
    }

    async fn lease_grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseGrantResponse> {
        if let Some(lease) = id {
            check_lease(lease)?;
        }
        // Chosen here, so that a retry is the same request. Positive, as etcd's are.
        let id = id.unwrap_or_else(|| LeaseId(rand::random_range(1..=i64::MAX)));
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let send = |endpoint: Arc<Endpoint>, stamp: SessionStamp, until| async move {
            let request = v1::LeaseGrantRequest {
                ttl_ms,
                id: id.0,
                session: Some(stamp.into()),
            };
            let mut client = LeaseClient::new(endpoint.channel());
            let answer = endpoint.unary(until, client.grant(request)).await?;
            let answer =
                LeaseGrantResponse::try_from(answer).map_err(|error| corrupt(error.to_string()))?;
            Ok((answer.header, answer))
        };
        self.core.write(send).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        check_lease(id)?;
        let send = |endpoint: Arc<Endpoint>, stamp: SessionStamp, until| async move {
            let request = v1::LeaseRevokeRequest {
                id: id.0,
                session: Some(stamp.into()),
            };
            let mut client = LeaseClient::new(endpoint.channel());
            let answer = endpoint.unary(until, client.revoke(request)).await?;
            let header =
                convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
            Ok((header, ()))
        };
        self.core.write(send).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        check_lease(id)?;
        let deadline = self.core.deadline();
        self.core
            .call(Plan::RENEW, deadline, |endpoint, until| async move {
                let status = endpoint.renew(id, until).await?;
                Ok((status.header, status))
            })
            .await
    }

    async fn lease_status(&self, id: LeaseId, keys: bool) -> Result<LeaseStatus> {
        check_lease(id)?;
        let deadline = self.core.deadline();
        self.core
            .call(Plan::READ, deadline, |endpoint, until| async move {
                let request = v1::LeaseStatusRequest { id: id.0, keys };
                let limit = endpoint.max_response_bytes();
                let mut client =
                    LeaseClient::new(endpoint.channel()).max_decoding_message_size(limit);
                let answer = endpoint.unary(until, client.status(request)).await?;
                let status =
                    LeaseStatus::try_from(answer).map_err(|error| corrupt(error.to_string()))?;
                Ok((status.header, status))
            })
            .await
    }

    async fn leases(&self) -> Result<Vec<LeaseId>> {
        let deadline = self.core.deadline();
        self.core
            .call(Plan::READ, deadline, |endpoint, until| async move {
                let limit = endpoint.max_response_bytes();
                let mut client =
                    LeaseClient::new(endpoint.channel()).max_decoding_message_size(limit);
                let answer = endpoint
                    .unary(until, client.list(v1::LeaseListRequest {}))
                    .await?;
                let header =
                    convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
                Ok((header, answer.ids.into_iter().map(LeaseId).collect()))
            })
            .await
    }

    async fn members(&self) -> Result<Vec<Member>> {
        self.core
            .call(Plan::LOCAL, self.core.deadline(), |endpoint, until| {
                ask_members(endpoint, until, false)
            })
            .await
    }

    async fn status(&self) -> Result<NodeStatus> {
        let deadline = self.core.deadline();
        self.core
            .call(Plan::LOCAL, deadline, |endpoint, until| async move {
                let mut client = ClusterClient::new(endpoint.channel());
                let answer = endpoint
                    .unary(until, client.status(v1::StatusRequest {}))
                    .await?;
                let status =
                    NodeStatus::try_from(answer).map_err(|error| corrupt(error.to_string()))?;
                Ok((status.header, status))
            })
            .await
    }
}

/// Refuses what the wire cannot tell from "none": a 0 would silently mean no TTL and no lease.
fn check_put(put: &Put) -> Result<()> {
    if put.ttl_ms == Some(0) {
        return Err(Error::new(
            Reason::InvalidTtl,
            "a TTL of 0 ms; expected at least 1 ms, or no TTL",
        ));
    }
    put.lease.map_or(Ok(()), check_lease)
}

fn check_lease(lease: LeaseId) -> Result<()> {
    if lease.0 == 0 {
        return Err(Error::new(
            Reason::InvalidArgument,
            "lease 0; a lease is never 0",
        ));
    }
    Ok(())
}

fn check_txn(txn: &Txn) -> Result<()> {
    txn.then
        .iter()
        .chain(&txn.or_else)
        .try_for_each(|op| match op {
            Op::Put(put) => check_put(put),
            Op::Txn(txn) => check_txn(txn),
            Op::Delete(_) | Op::Range(_) => Ok(()),
        })
}
