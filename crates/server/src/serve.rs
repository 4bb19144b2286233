//! `podkv serve`: one node as a process.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use podkv_api::{Error, Reason, Result};
use podkv_node::discovery::{FixedDiscovery, Suggestion};
use podkv_node::{Node, config::StorageConfig};
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
    let config = ServeConfig::from_values(&values)?;
    start_logging(&config)?;
    let mut stop = Stop::listen()?;
    let memory = config.node.storage == StorageConfig::Memory;
    if memory {
        tracing::warn!("memory storage: NOT DURABLE, everything is gone when this process ends");
    }

    // Probes must be answered while the storage opens, which may replay a long log.
    let admin = AdminServer::listen(&config.admin_listen).await?;
    let suggestions = config.peers.iter().map(|(name, peer_address)| Suggestion {
        name: Some(name.clone()),
        peer_address: peer_address.clone(),
    });
    let starting = Node::builder(config.node.clone())
        .discovery(Arc::new(FixedDiscovery::new(suggestions.collect())))
        .start();
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
