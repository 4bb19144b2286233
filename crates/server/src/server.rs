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
use crate::connections::{Bounds, Connections, Http, listen};
use crate::room::{Hall, InRoom, Room};
use crate::unfinished::Unfinished;

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
    /// Answers that a client may leave unread on one connection, in bytes. Calls whose answers may be large wait for
    /// room. Enough for eight of the largest in one message; one more, of an etcd client, may be up to
    /// [`ApiSettings::max_etcd_answer_bytes`](crate::ApiSettings::max_etcd_answer_bytes).
    pub max_unread_bytes: usize,
    /// What answers have, for all connections together, that are larger than what they have on their connection: those of
    /// etcd clients, which cannot read in parts. Twice while they are made; who finds no room waits for as long as the
    /// call may take, and is refused then. Enough for two of the largest while they are made, and four that wait to be read.
    pub max_large_unread_bytes: usize,
    /// Requests of one connection of which a part is here and the rest is not, in bytes. Beyond that, calls are refused.
    /// Enough for eighty of the largest at once.
    pub max_unfinished_bytes: usize,
    /// A client that connects and has not begun to speak by then is cut. Far above a round trip, far below the
    /// hours for which a kernel keeps a connection to nobody.
    pub greeting_timeout: Duration,
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
            max_unread_bytes: 128 << 20,
            max_large_unread_bytes: 1 << 30,
            max_unfinished_bytes: 128 << 20,
            greeting_timeout: Duration::from_secs(20),
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
        let bounds = Bounds {
            max_connections: settings.max_connections,
            greeting_timeout: settings.greeting_timeout,
        };
        let (unread, unfinished) = (settings.max_unread_bytes, settings.max_unfinished_bytes);
        let hall = Hall::new(settings.max_large_unread_bytes);
        let service = move || {
            let (room, unfinished) = (Room::new(unread, hall.clone()), Unfinished::new(unfinished));
            InRoom::new(service.clone(), room, unfinished)
        };
        let connections = Connections::serve(listener, service, bounds, speak_http);
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
