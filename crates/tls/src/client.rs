//! The TLS of a client: what it trusts, and what it shows if it is asked.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use podkv_api::Result;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::connect::{Heard, TlsConnection, connect};
use crate::error::TlsError;
use crate::files::{ALPN, CA, CERT, KEY, bad, provider, read_pair, read_roots};
use crate::reload::{Refreshed, Reloading};

/// How often a client that dials looks whether its files changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What a client needs for TLS. All files are PEM; they are looked at again when a connection is made, so a client
/// outlives its certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// What the nodes' certificates chain to.
    pub ca: PathBuf,
    /// A certificate and its key, for clusters that ask for one (`tls-client-auth`). Both or none.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The name that the nodes' certificates must have, instead of the host that is dialled: for tunnels and
    /// port-forwards. Then any node will do for any other.
    pub server_name: Option<String>,
}

/// A client's TLS.
pub struct ClientTls {
    server_name: Option<String>,
    config: Arc<Reloading<Arc<ClientConfig>>>,
    looked: Mutex<Instant>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files, once.
    ///
    /// # Errors
    /// [`Reason::Configuration`](podkv_api::Reason::Configuration), naming the file and what is wrong with it.
    pub fn open(options: &TlsOptions) -> Result<Self> {
        match (&options.cert, &options.key) {
            (Some(cert), None) => {
                return Err(bad(CERT, cert, format!("it needs {KEY} too")));
            }
            (None, Some(key)) => return Err(bad(KEY, key, format!("it needs {CERT} too"))),
            _ => {}
        }
        let paths = [
            Some(&options.ca),
            options.cert.as_ref(),
            options.key.as_ref(),
        ];
        let paths = paths.into_iter().flatten().cloned().collect();
        let again = options.clone();
        Ok(Self {
            server_name: options.server_name.clone(),
            config: Arc::new(Reloading::open(paths, Box::new(move || load(&again)))?),
            looked: Mutex::new(Instant::now()),
        })
    }

    /// Speaks TLS over `io`, which leads to `address`, `host:port`. The certificate must name `host`, or what the
    /// options say instead; where nobody knows better, that is [`host_of`](crate::host_of) the address. The caller bounds the time.
    ///
    /// # Errors
    /// [`TlsError`]; what the other side refuses later goes to `heard`.
    pub async fn connect<S>(
        &self,
        host: &str,
        address: &str,
        io: S,
        heard: Heard,
    ) -> Result<TlsConnection<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.look().await;
        let host = self.server_name.as_deref().unwrap_or(host);
        connect((*self.config.get()).clone(), host, address, io, heard).await
    }

    async fn look(&self) {
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if now < *looked + LOOK_INTERVAL {
                return;
            }
            *looked = now;
        }
        let config = self.config.clone();
        let refreshed = tokio::task::spawn_blocking(move || config.refresh()).await;
        if let Ok(Refreshed::Kept { why, news: true }) = refreshed {
            tracing::warn!(error = %why, "the TLS files changed and cannot be used; the old stay in use");
        }
    }
}

fn load(options: &TlsOptions) -> Result<Arc<ClientConfig>> {
    let roots = read_roots(&options.ca)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(CA, &options.ca, error))?
        .with_root_certificates(roots);
    let mut config = match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => {
            let pair = read_pair(cert, key)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair.key)))
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
