//! `podkv serve`: one node as a process.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use podkv_api::{Error, Reason, Result};
use podkv_node::discovery::{Discovery, FixedDiscovery, Suggestion};
use podkv_node::{Node, NodeBuilder, config::StorageConfig};
use podkv_pod::{SIZE_TIMEOUT, Surroundings};
use tracing_subscriber::EnvFilter;

use crate::cli::Exit;
use crate::cli::args::ServeArgs;
use crate::settings::{LogFormat, ServeConfig, Values};
use crate::signals::Stop;
use crate::{AdminServer, Server};

/// A node that does not stop by then ends all the same: nothing that was acknowledged is lost by it.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs until SIGTERM or SIGINT, then drains.
pub async fn run(args: ServeArgs) -> Result<Exit> {
    let values = Values::read(args.settings.0, std::env::vars(), args.config.as_deref())?;
    let config = ServeConfig::from_values(&values, &Surroundings::read())?;
    start_logging(&config)?;
    let mut stop = Stop::listen()?;
    let memory = config.node.storage == StorageConfig::Memory;
    if memory {
        tracing::warn!("memory storage: NOT DURABLE, everything is gone when this process ends");
    }

    // Before any socket: who comes by the wrong certificate should not find half a node.
    let tls = podkv_node::open_tls(&config.node).await?;
    // Probes must be answered while the storage opens, which may replay a long log.
    let admin = AdminServer::listen(&config.admin_listen).await?;
    let builder = Node::builder(config.node.clone())
        .discovery(discovery(&config)?)
        .tls(tls);
    let starting = following_size(builder, &config).start();
    let node = tokio::select! {
        node = starting => node?,
        () = stop.requested() => return Ok(Exit::Ok),
    };
    let server = Server::builder(node.clone())
        .listen(&config.client_listen)
        .await;
    let server = match server {
        Ok(server) => server,
        Err(error) => {
            node.shutdown().await;
            return Err(error);
        }
    };
    admin.serve(node.clone());
    tracing::info!(name = %config.node.name, id = %node.id(), clients = server.local_address(), "serving");

    let failed = tokio::select! {
        () = stop.requested() => None,
        error = node.failed() => Some(error),
    };
    if let Some(error) = &failed {
        tracing::error!(%error, "the node stopped");
    } else {
        leave(&node, &config, &mut stop).await;
        tracing::info!("stopping");
    }
    let stopping = async {
        if failed.is_none() {
            server.drain().await;
        }
        node.shutdown().await;
        admin.close().await;
    };
    tokio::select! {
        result = tokio::time::timeout(STOP_TIMEOUT, stopping) => {
            if result.is_err() {
                tracing::warn!(after = ?STOP_TIMEOUT, "did not stop in time");
            }
        }
        // Whoever asks twice means it.
        () = stop.requested() => tracing::warn!("stopping at once"),
    }
    failed.map_or(Ok(Exit::Ok), Err)
}

/// Where the other nodes might be: behind the headless service, or where the settings say.
fn discovery(config: &ServeConfig) -> Result<Arc<dyn Discovery>> {
    let Some(network) = &config.network else {
        let suggestions = config.peers.iter().map(|(name, peer_address)| Suggestion {
            name: Some(name.clone()),
            peer_address: peer_address.clone(),
        });
        return Ok(Arc::new(FixedDiscovery::new(suggestions.collect())));
    };
    let (_, port) = config
        .node
        .peer_address
        .rsplit_once(':')
        .unwrap_or_default();
    // The settings have been checked.
    let port = port.parse().unwrap_or_default();
    let discovery = podkv_pod::discovery(network, &config.node.name, port)?;
    tracing::info!(service = discovery.name(), "looking for the other pods");
    Ok(Arc::new(discovery))
}

#[cfg(feature = "kubernetes")]
fn following_size(builder: NodeBuilder, config: &ServeConfig) -> NodeBuilder {
    let Some(statefulset) = config.statefulset.clone() else {
        return builder;
    };
    builder.size_source(Arc::new(statefulset.source()))
}

/// The settings are refused if they name a StatefulSet.
#[cfg(not(feature = "kubernetes"))]
fn following_size(builder: NodeBuilder, _: &ServeConfig) -> NodeBuilder {
    builder
}

/// See [`podkv_pod::leave`].
async fn leave(node: &Node, config: &ServeConfig, stop: &mut Stop) {
    let Some(patience) = config
        .termination_grace
        .checked_sub(STOP_TIMEOUT + SIZE_TIMEOUT)
        .filter(|patience| !patience.is_zero())
    else {
        return;
    };
    tokio::select! {
        () = podkv_pod::leave(node, patience) => {}
        // Whoever asks twice means it.
        () = stop.requested() => {}
        error = node.failed() => tracing::error!(%error, "the node stopped"),
    }
}

fn start_logging(config: &ServeConfig) -> Result<()> {
    let filter = EnvFilter::try_new(&config.log).map_err(|error| {
        let text = format!(
            "log is {:?}; expected levels like info or podkv=debug: {error}",
            config.log
        );
        Error::new(Reason::Configuration, text)
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| Error::internal(format!("logging cannot be started: {error}")))
}
