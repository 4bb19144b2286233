//! The connections of one listener, and every task that serves them.
//!
//! Nothing is detached: the accept loop, each connection and each HTTP/2 stream run in one tracker, and
//! [`Connections::close`] returns when the last of them has ended.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use podkv_api::Reason;
use podkv_node::transport::{ByteStream, Listener, Transport};
use tokio::sync::Semaphore;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

type BoxError = Box<dyn Error + Send + Sync>;

/// How HTTP is spoken on a listener.
pub(crate) type Http = auto::Builder<OwnedTasks>;

/// Spawns HTTP/2 streams where [`Connections`] can wait for them.
#[derive(Clone, Default)]
pub(crate) struct OwnedTasks {
    tasks: TaskTracker,
    killed: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for OwnedTasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let killed = self.killed.clone();
        self.tasks
            .spawn(async move { killed.run_until_cancelled_owned(future).await });
    }
}

/// How many connections there may be, and how long they may take to begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Beyond these, the next one waits in the kernel's queue until another ends.
    pub max_connections: usize,
    /// A client that has not said enough by then to tell which HTTP it speaks is cut.
    pub greeting_timeout: Duration,
}

/// What tells which HTTP is spoken: the preface of HTTP/2. A request of HTTP/1.1 with a host is longer.
const GREETING_BYTES: usize = 24;

/// A listener at work.
#[derive(Debug)]
pub(crate) struct Connections {
    local_address: String,
    tasks: TaskTracker,
    closing: CancellationToken,
    killed: CancellationToken,
}

impl Connections {
    /// Serves what comes in at `listener`. `service` makes the service of each connection, `configure` says how HTTP is
    /// spoken.
    pub fn serve<S, B>(
        listener: Listener,
        service: impl Fn() -> S + Send + 'static,
        bounds: Bounds,
        configure: impl FnOnce(&mut Http),
    ) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let owned = OwnedTasks::default();
        let mut http = auto::Builder::new(owned.clone());
        http.http1().timer(TokioTimer::new());
        http.http2().timer(TokioTimer::new());
        configure(&mut http);
        let connections = Self {
            local_address: listener.local_address().to_owned(),
            tasks: owned.tasks,
            closing: CancellationToken::new(),
            killed: owned.killed,
        };
        let (tasks, closing) = (connections.tasks.clone(), connections.closing.clone());
        let killed = connections.killed.clone();
        let accept = accept(
            listener,
            service,
            http,
            bounds,
            tasks,
            closing.clone(),
            killed,
        );
        connections
            .tasks
            .spawn(async move { closing.run_until_cancelled_owned(accept).await });
        connections
    }

    /// Where it listens, with the real port.
    pub fn local_address(&self) -> &str {
        &self.local_address
    }

    /// Accepts nothing more, tells the connections to end, and waits for them for at most `grace`;
    /// those that are left are cut. True if none was.
    pub async fn close(&self, grace: Duration) -> bool {
        self.closing.cancel();
        self.tasks.close();
        let in_time = tokio::time::timeout(grace, self.tasks.wait()).await.is_ok();
        self.killed.cancel();
        self.tasks.wait().await;
        in_time
    }
}

impl Drop for Connections {
    /// Who drops it without closing it wants it gone now.
    fn drop(&mut self) {
        self.closing.cancel();
        self.killed.cancel();
    }
}

async fn accept<S, B>(
    mut listener: Listener,
    service: impl Fn() -> S,
    http: Http,
    bounds: Bounds,
    tasks: TaskTracker,
    closing: CancellationToken,
    killed: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let permits = Arc::new(Semaphore::new(bounds.max_connections));
    // The semaphore is never closed; were it, nothing more should be accepted.
    while let Ok(permit) = permits.clone().acquire_owned().await {
        let Some(io) = listener.next().await else {
            return;
        };
        let (service, http, closing) = (service(), http.clone(), closing.clone());
        let connection = async move {
            let _permit = permit;
            serve_one(io, service, http, bounds.greeting_timeout, closing).await;
        };
        let killed = killed.clone();
        tasks.spawn(async move { killed.run_until_cancelled_owned(connection).await });
    }
}

async fn serve_one<S, B>(
    io: ByteStream,
    service: S,
    http: Http,
    greeting_timeout: Duration,
    closing: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let remote = io.remote().to_owned();
    let heard = Arc::new(AtomicUsize::new(0));
    let counted = heard.clone();
    let io = InspectReader::new(io, move |bytes: &[u8]| {
        counted.fetch_add(bytes.len(), Ordering::Relaxed);
    });
    // The time-outs of each HTTP begin when it is known which one it is.
    let mute = async move {
        tokio::time::sleep(greeting_timeout).await;
        if heard.load(Ordering::Relaxed) >= GREETING_BYTES {
            std::future::pending::<()>().await;
        }
    };
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(io), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = mute => return tracing::debug!(remote, "said nothing: cut"),
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // A client that went away: worth a line only to who looks for it.
        tracing::debug!(remote, error, "connection ended");
    }
}

/// Listens, or says in the user's terms why not. `setting` names the address.
pub(crate) async fn listen(
    transport: &dyn Transport,
    setting: &str,
    address: &str,
) -> podkv_api::Result<Listener> {
    transport.listen(address).await.map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another process listens there: stop it, or choose another port"
            }
            std::io::ErrorKind::PermissionDenied => {
                "this user may not listen there: choose a port above 1023"
            }
            std::io::ErrorKind::AddrNotAvailable => {
                "the address is not one of this machine's: [::] is all of them"
            }
            _ => "expected host:port of this machine",
        };
        let text = format!("{setting} {address:?}: cannot listen: {error}; {advice}");
        podkv_api::Error::new(Reason::Configuration, text).with_source(error)
    })
}
