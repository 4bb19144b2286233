//! One address: its HTTP/2 channel, its health by results, and the streams kept on it.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podkv_api::{Error, LeaseId, LeaseStatus, MemberId, Reason, Result};
use podkv_proto::v1::pipe_operation::Operation;
use podkv_proto::v1::pipe_result;
use podkv_tls::{ClientTls, host_of};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Uri};
use tonic::{Response, Status};

use crate::credentials::{Authorized, Credentials};
use crate::dial::{Connector, Dialer, TlsFailure};
use crate::failure::{Failure, closed};
use crate::lease::KeepAlives;
use crate::pipe::Pipe;
use crate::settings::{
    CONNECTION_WINDOW, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, STREAM_WINDOW, Settings, bad,
};

/// What every task of a client is made with.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub settings: Arc<Settings>,
    pub dialer: Arc<dyn Dialer>,
    pub tls: Option<Arc<ClientTls>>,
    pub credentials: Option<Arc<Credentials>>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Runtime {
    /// Spawns a task that ends, at the latest, when the client does.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled_owned(task).await;
        });
    }
}

/// Runs the tasks of connections. With it, closing a client closes its connections, also those
/// that a forgotten stream still holds.
#[derive(Clone)]
struct Connections(Runtime);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Connections {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

#[derive(Debug, Default)]
struct Health {
    /// Failures since the last success.
    failures: u32,
    /// Not before then, if it failed.
    retry_at: Option<Instant>,
}

pub(crate) struct Endpoint {
    address: String,
    channel: Channel,
    tls_failure: TlsFailure,
    runtime: Runtime,
    health: Mutex<Health>,
    /// Who answered last; 0 is nobody yet.
    member: AtomicU64,
    /// The streams, with the generation of credentials that they began with.
    pipe: Mutex<Option<(u64, Pipe)>>,
    keep_alives: Mutex<Option<(u64, KeepAlives)>>,
}

impl Endpoint {
    /// Dials nothing yet. The name is resolved on each dial.
    pub fn new(address: &str, runtime: &Runtime) -> Result<Self> {
        Self::behind(host_of(address), address, runtime)
    }

    /// One of the addresses of a name: what the caller asked for is the name, and no certificate names an address
    /// that the next pod will have.
    pub fn behind(host: &str, address: &str, runtime: &Runtime) -> Result<Self> {
        let tls_failure = TlsFailure::default();
        Ok(Self {
            address: address.to_owned(),
            channel: channel(host, address, runtime, tls_failure.clone())?,
            tls_failure,
            runtime: runtime.clone(),
            health: Mutex::default(),
            member: AtomicU64::new(0),
            pipe: Mutex::default(),
            keep_alives: Mutex::default(),
        })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its calls say who this client is.
    pub fn channel(&self) -> Authorized {
        Authorized::new(self.channel.clone(), self.runtime.credentials.clone())
    }

    pub fn member(&self) -> Option<MemberId> {
        match self.member.load(Ordering::Relaxed) {
            0 => None,
            id => Some(MemberId(id)),
        }
    }

    /// It answered, as this member.
    pub fn answered(&self, member: MemberId) {
        self.member.store(member.0, Ordering::Relaxed);
        self.healthy();
    }

    /// It answered.
    pub fn healthy(&self) {
        let mut health = lock(&self.health);
        health.failures = 0;
        health.retry_at = None;
    }

    /// It did not answer, or is going away. What fails together counts once: a burst of calls that lose
    /// one connection must not look like a long outage.
    pub fn failed(&self, now: Instant) {
        let mut health = lock(&self.health);
        if health.retry_at.is_some_and(|at| at > now) {
            return;
        }
        health.failures = health.failures.saturating_add(1);
        health.retry_at = Some(now + self.runtime.settings.backoff(health.failures));
    }

    /// The error of a call here, with what TLS says about it: a broken connection alone tells nobody that it was
    /// about a certificate.
    pub fn explain(&self, error: Error) -> Error {
        let about_connection = matches!(
            error.reason(),
            Reason::Unreachable | Reason::DeadlineExceeded
        );
        match self.tls_failure.get() {
            Some(why) if about_connection => {
                let explained = Error::new(error.reason(), why);
                let explained = if error.outcome_unknown() {
                    explained.with_unknown_outcome()
                } else {
                    explained
                };
                explained.with_source(error)
            }
            _ => error,
        }
    }

    /// `None` if it may be asked now.
    pub fn retry_at(&self, now: Instant) -> Option<Instant> {
        lock(&self.health).retry_at.filter(|at| *at > now)
    }

    /// The operation stream, opened if there is none, or if the token that it began with does not hold any more.
    fn pipe(&self) -> Pipe {
        let generation = self.generation();
        let mut slot = lock(&self.pipe);
        match &*slot {
            Some((begun, pipe)) if *begun == generation && !pipe.is_closed() => pipe.clone(),
            _ => {
                let pipe = Pipe::open(self.channel(), &self.runtime);
                slot.insert((generation, pipe)).1.clone()
            }
        }
    }

    /// The same for keep-alives.
    fn keep_alives(&self) -> KeepAlives {
        let generation = self.generation();
        let mut slot = lock(&self.keep_alives);
        match &*slot {
            Some((begun, stream)) if *begun == generation && !stream.is_closed() => stream.clone(),
            _ => {
                let stream = KeepAlives::open(self.channel(), &self.runtime);
                slot.insert((generation, stream)).1.clone()
            }
        }
    }

    /// Sends an operation on the operation stream.
    pub async fn on_pipe(
        &self,
        operation: Operation,
        until: Instant,
    ) -> Result<pipe_result::Result, Failure> {
        let generation = self.generation();
        let result = self.pipe().call(operation, until).await;
        self.judged(result, generation).await
    }

    /// Renews a lease on the stream of keep-alives.
    pub async fn renew(&self, id: LeaseId, until: Instant) -> Result<LeaseStatus, Failure> {
        let generation = self.generation();
        let result = self.keep_alives().renew(id, until).await;
        self.judged(result, generation).await
    }

    /// See [`Credentials::generation`].
    pub fn generation(&self) -> u64 {
        let credentials = self.runtime.credentials.as_ref();
        credentials.map_or(0, |credentials| credentials.generation())
    }

    /// The same, and what a failure means for the credentials that it began with.
    pub async fn judged<T>(
        &self,
        result: Result<T, Failure>,
        generation: u64,
    ) -> Result<T, Failure> {
        match (result, &self.runtime.credentials) {
            (Err(failure), Some(credentials)) => Err(credentials.judge(failure, generation).await),
            (result, _) => result,
        }
    }

    /// Awaits one RPC until the attempt ends.
    pub async fn unary<T>(
        &self,
        until: Instant,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let generation = self.generation();
        let result = tokio::select! {
            () = self.runtime.stop.cancelled() => Err(Failure::lost(closed())),
            answer = timeout_at(until, call) => match answer {
                Ok(Ok(response)) => Ok(response.into_inner()),
                Ok(Err(status)) => Err(Failure::from_status(&status)),
                Err(_elapsed) => Err(Failure::lost(no_answer())),
            },
        };
        self.judged(result, generation).await
    }

    pub fn max_response_bytes(&self) -> usize {
        self.runtime.settings.max_response_bytes
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.address)
    }
}

pub(crate) fn no_answer() -> Error {
    Error::new(
        Reason::DeadlineExceeded,
        "the node did not answer within an attempt's time",
    )
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these locks panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn channel(host: &str, address: &str, runtime: &Runtime, failure: TlsFailure) -> Result<Channel> {
    let expected = || bad(format!("endpoint {address:?}; expected host:port"));
    let (name, port) = address.rsplit_once(':').ok_or_else(expected)?;
    if name.is_empty() || !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return Err(expected());
    }
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| expected().with_source(error))?;
    let connector = Connector {
        address: address.into(),
        host: host.into(),
        dialer: runtime.dialer.clone(),
        tls: runtime.tls.clone(),
        failure,
        limit: runtime.settings.connect_timeout,
    };
    // The connector speaks TLS; the scheme in each request is for proxies, which look at it.
    let endpoint = if runtime.tls.is_some() {
        let origin = format!("https://{address}").parse::<Uri>();
        endpoint.origin(origin.map_err(|error| expected().with_source(error))?)
    } else {
        endpoint
    };
    Ok(endpoint
        .executor(Connections(runtime.clone()))
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_with_connector_lazy(connector))
}
