//! The port for clients: gRPC over HTTP/2, JSON over either HTTP, over TLS if the node's settings say so; and how it
//! ends.
//!
//! Ending takes three steps, so that no client sees more than a call to repeat elsewhere:
//!
//! ```text
//!   node drains     unready, leadership handed over; watches end, pipes are told to go away
//!   port closes     no new connections; HTTP/2 GOAWAY: calls under way are finished
//!   grace is over   what is left is cut
//! ```

use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use podkv_api::Result;
use podkv_node::Node;
use podkv_node::transport::tcp::{TcpSettings, TcpTransport};
use podkv_node::transport::tls::accept_tls;
use podkv_node::transport::{Listener, Transport};
use podkv_tls::Port;

use crate::api::{self, ApiSettings};
use crate::connections::{Connections, Http, listen};

/// How connections of clients are treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Beyond this many, the next one waits. A connection costs some tens of kilobytes, and more
    /// while its windows are full.
    pub max_connections: usize,
    /// Calls at once on one connection. Watches are calls, and a client has one for each.
    pub max_streams: u32,
    /// What a client may send on one stream before it must wait. Fixed, and above the largest
    /// request: else each large put would wait for a round trip.
    pub stream_window_bytes: u32,
    /// The same for all streams of a connection together.
    pub connection_window_bytes: u32,
    /// A connection that is quiet for this long is pinged. Below the minutes after which load
    /// balancers forget a quiet connection.
    pub keep_alive_interval: Duration,
    /// A ping that has no answer by then means that the client is gone.
    pub keep_alive_timeout: Duration,
    /// An HTTP/1.1 client that has not sent the head of a request by then never will; nor does it keep a connection for
    /// longer without asking. Above the minute for which HTTP libraries keep theirs.
    pub http1_header_timeout: Duration,
    /// How long a drain waits for calls under way. Below the 30 seconds that Kubernetes grants.
    pub drain_grace: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            max_streams: 4096,
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 16 << 20,
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(10),
            http1_header_timeout: Duration::from_secs(90),
            drain_grace: Duration::from_secs(15),
        }
    }
}

/// A server that is yet to listen.
#[derive(Clone)]
pub struct ServerBuilder {
    node: Node,
    api: ApiSettings,
    settings: ServerSettings,
}

impl ServerBuilder {
    pub fn api(mut self, api: ApiSettings) -> Self {
        self.api = api;
        self
    }

    pub fn settings(mut self, settings: ServerSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Listens on a TCP address, `host:port`. Port 0 takes any free one.
    pub async fn listen(self, address: &str) -> Result<Server> {
        self.listen_over(&TcpTransport::new(TcpSettings::default()), address)
            .await
    }

    /// Listens over another transport: pipes in memory, for tests.
    pub async fn listen_over(self, transport: &dyn Transport, address: &str) -> Result<Server> {
        let listener = listen(transport, "client listen address", address).await?;
        let listener = match self.node.tls() {
            Some(tls) => accept_tls(listener, tls.clone(), Port::Clients),
            None => listener,
        };
        Ok(self.serve(listener))
    }

    fn serve(self, listener: Listener) -> Server {
        let settings = self.settings;
        let routes = api::routes(self.node.clone(), self.api).prepare();
        let service = TowerToHyperService::new(routes);
        let speak_http = |http: &mut Http| {
            // HTTP/1.1 is for JSON; gRPC is HTTP/2.
            http.http1()
                .header_read_timeout(settings.http1_header_timeout);
            http.http2()
                .max_concurrent_streams(settings.max_streams)
                .initial_stream_window_size(settings.stream_window_bytes)
                .initial_connection_window_size(settings.connection_window_bytes)
                .keep_alive_interval(settings.keep_alive_interval)
                .keep_alive_timeout(settings.keep_alive_timeout);
        };
        let connections =
            Connections::serve(listener, service, settings.max_connections, speak_http);
        Server {
            node: self.node,
            settings,
            connections,
        }
    }
}

/// The port for clients. Dropping it cuts every connection; [`Server::drain`] is the polite way.
pub struct Server {
    node: Node,
    settings: ServerSettings,
    connections: Connections,
}

impl Server {
    /// Serves `node`, once it listens.
    pub fn builder(node: Node) -> ServerBuilder {
        ServerBuilder {
            node,
            api: ApiSettings::default(),
            settings: ServerSettings::default(),
        }
    }

    /// Where it listens, with the real port.
    pub fn local_address(&self) -> &str {
        self.connections.local_address()
    }

    /// Ends politely: see the module. The node is drained and still runs; shut it down afterwards.
    /// True if every call was finished within the grace.
    pub async fn drain(self) -> bool {
        self.node.drain().await;
        let polite = self.connections.close(self.settings.drain_grace).await;
        if !polite {
            tracing::warn!(grace = ?self.settings.drain_grace, "cut calls that did not end in time");
        }
        polite
    }
}
