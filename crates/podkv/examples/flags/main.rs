//! Feature flags for the replicas of one service, kept by the replicas themselves.
//!
//! Without arguments it starts three replicas on this machine (`local.rs`):
//!
//! ```sh
//! cargo run -p podkv --features embed --example flags
//! ```
//!
//! In Kubernetes each pod of a StatefulSet runs `flags serve`, with its settings in the environment:
//!
//! | variable | what it is | default |
//! | --- | --- | --- |
//! | `HEADLESS_SERVICE` | the headless service that names the pods, with a port named `grpc-peer` | |
//! | `STATEFULSET` | the StatefulSet: the pods' names begin with it, its `replicas` are followed | |
//! | `DATA_DIR` | a folder on the pod's own volume | |
//! | `HTTP_LISTEN` | where it serves | `0.0.0.0:8080` |
//! | `GRACE` | the pod's `terminationGracePeriodSeconds` | 120 |
//!
//! Elsewhere `NAME`, `PEERS` (`flags-0=host:port,…`, every replica) and `PEER_LISTEN` stand for the first two.
//!
//! This file is what one replica does from its start to its end; `flags.rs` is the application.

mod flags;
mod local;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use podkv::node::discovery::FixedDiscovery;
use podkv::node::{Health, Node, NodeBuilder, NodeConfig, StorageConfig};
use podkv::pod::{Pod, PodSettings};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

use crate::flags::Flags;

/// How long requests under way may take at the end. Below the 30 seconds that Kubernetes grants.
const GRACE: Duration = Duration::from_secs(10);

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let result = match argument.as_deref() {
        None => local::run().await,
        Some("serve") => serve().await,
        Some(_) => Err("usage: flags [serve]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flags: {error}");
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str) -> Result<String, Error> {
    std::env::var(name).map_err(|error| format!("{name}: {error}").into())
}

/// The node of this replica, which finds the others by itself.
fn builder() -> Result<NodeBuilder, Error> {
    let data_dir = PathBuf::from(variable("DATA_DIR")?);
    let storage = StorageConfig::Disk { data_dir };
    let Ok(peers) = variable("PEERS") else {
        let (service, set) = (variable("HEADLESS_SERVICE")?, variable("STATEFULSET")?);
        let pod = Pod::find(PodSettings::new(service, set))?;
        return Ok(pod.builder(pod.config(storage))?);
    };
    let (name, peers): (_, FixedDiscovery) = (variable("NAME")?, peers.parse()?);
    let mut replicas = peers.suggestions().iter();
    let own = replicas.find(|replica| replica.name.as_ref() == Some(&name));
    let own = own.ok_or_else(|| format!("PEERS does not name {name:?}, which is NAME"))?;
    let mut config = NodeConfig::new(name, storage);
    config.peer_address = own.peer_address.clone();
    config.peer_listen = variable("PEER_LISTEN")?;
    // Only this application uses the store, from the inside.
    config.client_address = String::new();
    // As many as found the cluster together: none of them would found one without the others.
    config.replicas = u32::try_from(peers.suggestions().len())?;
    Ok(Node::builder(config).discovery(Arc::new(peers)))
}

async fn serve() -> Result<(), Error> {
    // Raft warns of each attempt to reach a replica that is away.
    let usual = EnvFilter::new("warn,openraft=error,flags=info");
    let filter = EnvFilter::try_from_default_env().unwrap_or(usual);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let node = tokio::select! {
        node = builder()?.start() => node?,
        () = &mut stop => return Ok(()),
    };
    let listen = variable("HTTP_LISTEN").unwrap_or("0.0.0.0:8080".into());
    let result = serve_http(&listen, &node, stop).await;
    // It must end after all that uses it. Were it killed instead, nothing that was acknowledged would be lost.
    node.shutdown().await;
    result
}

async fn serve_http(
    address: &str,
    node: &Node,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| format!("cannot listen on {address}: {error}"))?;
    let flags = Flags::new(node.clone());
    let ready = get(readyz).with_state((node.clone(), flags.clone()));
    // It listens before the cluster is up, so that probes tell "not ready" from "dead".
    let app: Router = flags::router(flags.clone()).route("/readyz", ready);
    let server = axum::serve(listener, app).with_graceful_shutdown(flags.closed());
    let mut server = tokio::spawn(server.into_future());
    let mut background = JoinSet::new();
    let opened = flags.clone();
    background.spawn(async move { opened.open().await });
    background.spawn(log_health(node.health()));

    let result = tokio::select! {
        () = stop => {
            // A replica that is scaled away votes on until the others have taken it out.
            podkv::pod::leave(node, patience()).await;
            // Unready from now on, and another replica leads. Requests are served until the traffic has moved.
            node.drain().await;
            Ok(())
        }
        // A failed disk, for example. Kubernetes starts it again.
        error = node.failed() => Err(error.into()),
    };
    flags.close();
    if timeout(GRACE, &mut server).await.is_err() {
        tracing::warn!(grace = ?GRACE, "cut requests that did not end in time");
        server.abort();
    }
    background.shutdown().await;
    result
}

type Replica = (Node, Arc<Flags<Node>>);

/// What of the pod's grace may go by before it drains.
fn patience() -> Duration {
    let grace = variable("GRACE").ok().and_then(|grace| grace.parse().ok());
    Duration::from_secs(grace.unwrap_or(120)).saturating_sub(2 * GRACE)
}

/// For the readiness probe. It says nothing about liveness: a replica without a majority needs no restart.
async fn readyz(State((node, flags)): State<Replica>) -> (StatusCode, String) {
    let health = node.health().borrow().clone();
    if !health.ready || !flags.is_open() {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {}\n", health.reason),
        );
    }
    let role = if node.is_leader() {
        "leader"
    } else {
        "follower"
    };
    (StatusCode::OK, format!("ready ({role})\n"))
}

async fn log_health(mut health: watch::Receiver<Health>) {
    loop {
        let now = health.borrow_and_update().clone();
        if now.ready {
            tracing::info!("ready");
        } else {
            tracing::info!(reason = now.reason, "not ready");
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

/// SIGTERM comes from Kubernetes, SIGINT from a terminal. Both are caught from the call on.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
