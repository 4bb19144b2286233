//! The settings of peer connections.

use std::time::Duration;

/// The settings of connections between nodes, for both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// For resolving, connecting and the HTTP/2 handshake together. Above the transport's own connect
    /// timeout, so that its better message is the one that is seen.
    pub dial_timeout: Duration,
    /// Ping a connection this often, idle or not. Together with `keepalive_timeout` this is how long a peer
    /// that vanished without a reset (a lost machine) holds up calls that have no deadline.
    pub keepalive_interval: Duration,
    /// Close the connection if a ping has no answer for this long: more than a stalled disk or a paused
    /// process of the other side, which answers pings late and is not gone.
    pub keepalive_timeout: Duration,
    /// HTTP/2 flow control, fixed: adapting it costs pings and starts too small. A stream holds a few
    /// append batches, a connection several streams.
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    /// A larger message from a peer is refused before it is buffered. An append batch is about 1 MiB,
    /// but one log entry always fits, and it may hold many requests of 1.5 MiB.
    pub max_message_bytes: usize,
    /// Calls and streams that one peer may have open on one connection.
    pub max_concurrent_streams: u32,
    /// At shutdown, calls that are under way get this long; then their connections are closed.
    pub shutdown_grace: Duration,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_millis(1500),
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(3),
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 16 << 20,
            max_message_bytes: 32 << 20,
            max_concurrent_streams: 256,
            shutdown_grace: Duration::from_secs(1),
        }
    }
}
