//! TLS for podkv's ports.
//!
//! # Modes
//!
//! A running cluster moves `off` → `allow` → `require`, one rolling restart for each step, and back the same
//! way. Who dials with what, and what comes of it:
//!
//! | dialling ↓, listening → | `off` | `allow` | `require` |
//! | --- | --- | --- | --- |
//! | `off` | plain | plain | refused, with a line in the log |
//! | `allow` | plain, after TLS was tried | TLS | TLS |
//! | `require` | fails | TLS | TLS |
//!
//! A listening port tells the two apart by the first byte: a TLS handshake begins with 0x16, HTTP/2 with the
//! `P` of its preface. A dialling node in `allow` takes plain text only if the other side does not speak TLS
//! at all: it answered with something else, or hung up on the first message. A certificate that is refused, on
//! either side, is an error in every mode. `allow` protects from nobody who can change what is on the
//! wire; it is a step on the way.
//!
//! # What is checked
//!
//! *Who dials* checks that the certificate of the listening side chains to the CA, is within its time, is
//! meant for servers, and names the host that was dialled: the name without a trailing dot, or the IP address.
//!
//! *Who listens for peers* asks every TLS connection for a certificate that chains to the CA, is within its
//! time and is meant for clients. Each call then names its sender, and the certificate must name that pod; see
//! [`names`]. The sender's id must belong to that same name if it is in the committed membership.
//!
//! *Who listens for clients* asks for a certificate only with [`ClientAuth::Require`], and then for any that
//! chains to the CA and is meant for clients.
//!
//! No session is resumed, so that each connection is checked against the files of its own time. A connection
//! that is open goes on when files change.
//!
//! # Files
//!
//! [`reload`] looks at the files by time and inode, as Kubernetes swaps symbolic links below a mounted secret.
//! New ones are read and checked in full before they replace the old; bad ones are named in the log once, and
//! the old stay in use.
//!
//! Nothing here is global: the crypto provider is *ring*, given to each configuration.

mod accept;
mod certificate;
mod client;
mod connect;
mod error;
mod files;
mod forward;
/// What is private, for `tests/fuzz`: no part of the API.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod names;
mod prefixed;
mod reload;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod throttle;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

pub use accept::{Accepted, Port};
pub use certificate::Certificate;
pub use client::{ClientTls, TlsOptions};
pub use connect::{Heard, Outcome, TlsConnection};
pub use error::{TlsError, explain};
pub use names::host_of;
pub use tls::{OwnNames, Tls};

/// Whether a node's ports speak TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Plain text only.
    #[default]
    Off,
    /// Both: the step between the two others.
    Allow,
    /// TLS only.
    Require,
}

/// Whether the port for clients asks for certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    #[default]
    None,
    /// One that chains to the CA. Plain text needs none while the mode is [`TlsMode::Allow`].
    Require,
}

/// The TLS settings of a node. Paths may lie below a mounted secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    pub mode: TlsMode,
    /// This node's certificate and what is between it and the CA, in PEM, the certificate first. It must be
    /// meant for servers and for clients: peers are both.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// The certificates that peers' and clients' certificates chain to, in PEM.
    pub ca: PathBuf,
    pub client_auth: ClientAuth,
    /// A handshake takes two round trips and a signature; this is for a pause of the other side. It also bounds
    /// how long who connects and says nothing takes up one of `max_handshakes`.
    pub handshake_timeout: Duration,
    /// Handshakes under way on one port. Beyond it connections wait in the kernel's queue.
    pub max_handshakes: usize,
    /// How often the files are looked at. Kubernetes itself takes a minute to bring a new secret.
    pub reload_interval: Duration,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            mode: TlsMode::Off,
            cert: PathBuf::new(),
            key: PathBuf::new(),
            ca: PathBuf::new(),
            client_auth: ClientAuth::None,
            handshake_timeout: Duration::from_secs(5),
            max_handshakes: 256,
            reload_interval: Duration::from_secs(10),
        }
    }
}
