//! The TLS of a node: one certificate for both ports and for dialling peers.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use podkv_api::Result;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::SingleCertAndKey;
use tokio_util::sync::CancellationToken;

use crate::certificate::{Certificate, span};
use crate::files::{
    ALPN, ALPN_HTTP1, CERT, Pair, bad, check_own, client_verifier, not_named, provider, read_pair,
    read_roots,
};
use crate::names::{host_of, name_pod, pod_domain};
use crate::reload::{Refreshed, Reloading};
use crate::throttle::Throttle;
use crate::{ClientAuth, TlsConfig, TlsMode};

/// From here on there is a warning a day.
const WARN_SECONDS: i64 = 7 * 86_400;

/// What this node's certificate must say.
#[derive(Clone, Debug, Default)]
pub struct OwnNames {
    /// The pod's name.
    pub pod: String,
    /// What peers and clients dial, `host:port` each. Empty ones and those of all addresses (`0.0.0.0`) ask nothing.
    pub peer_address: String,
    pub client_address: String,
}

impl OwnNames {
    fn domain(&self) -> Option<&str> {
        pod_domain(&self.pod, host_of(&self.peer_address))
    }

    fn hosts(&self) -> Vec<String> {
        let mut hosts: Vec<String> = Vec::new();
        for address in [&self.peer_address, &self.client_address] {
            let host = host_of(address);
            let nobody = host.is_empty()
                || host
                    .parse::<IpAddr>()
                    .is_ok_and(|address| address.is_unspecified());
            if !nobody && !hosts.iter().any(|one| one == host) {
                hosts.push(host.to_owned());
            }
        }
        hosts
    }
}

/// A node's TLS. Clones are the same; a change of files reaches all.
#[derive(Clone)]
pub struct Tls(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub config: TlsConfig,
    domain: Option<String>,
    material: Reloading<Material>,
    pub refused: Throttle,
    /// Days that were left at the last warning.
    warned_days: Mutex<Option<i64>>,
}

/// What was made of the files.
pub(crate) struct Material {
    certificate: Certificate,
    pub peers: Arc<ServerConfig>,
    pub clients: Arc<ServerConfig>,
    pub dial: Arc<ClientConfig>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.0.config).finish()
    }
}

impl Tls {
    /// Reads and checks the files: blocks on the disk. `None` if the mode is [`TlsMode::Off`].
    ///
    /// # Errors
    /// [`Reason::Configuration`](podkv_api::Reason::Configuration), naming setting and file: one is missing or
    /// is not PEM, the key is another's, the certificate is outside its time, does not chain to the CA, is not
    /// meant for servers and clients, or does not name this pod.
    pub fn open(config: &TlsConfig, names: &OwnNames) -> Result<Option<Self>> {
        if config.mode == TlsMode::Off {
            return Ok(None);
        }
        let paths = vec![config.cert.clone(), config.key.clone(), config.ca.clone()];
        let (again, own) = (config.clone(), names.clone());
        let material = Reloading::open(paths, Box::new(move || Material::load(&again, &own)))?;
        let tls = Self(Arc::new(Shared {
            config: config.clone(),
            domain: names.domain().map(str::to_owned),
            material,
            refused: Throttle::default(),
            warned_days: Mutex::default(),
        }));
        tls.warn_of_expiry();
        Ok(Some(tls))
    }

    pub fn config(&self) -> &TlsConfig {
        &self.0.config
    }

    /// The domain of this set's pods, if this pod's address tells it; see [`names`](crate::names).
    pub fn domain(&self) -> Option<&str> {
        self.0.domain.as_deref()
    }

    /// The certificate that is shown now.
    pub fn certificate(&self) -> Certificate {
        self.0.material.get().certificate.clone()
    }

    pub(crate) fn material(&self) -> Arc<Material> {
        self.0.material.get()
    }

    /// Looks at the files until `stop`: a task for the node to own.
    pub async fn watch(self, stop: CancellationToken) {
        let looking = async {
            loop {
                tokio::time::sleep(self.0.config.reload_interval).await;
                self.refresh().await;
            }
        };
        stop.run_until_cancelled(looking).await;
    }

    /// Looks at the files now, and uses them if they are new and good. True if they are in use now.
    pub async fn refresh(&self) -> bool {
        let shared = self.0.clone();
        let looked = tokio::task::spawn_blocking(move || shared.material.refresh()).await;
        let replaced = match looked {
            Ok(Refreshed::Unchanged) => false,
            Ok(Refreshed::Replaced) => {
                let left = span(self.certificate().expires_in_seconds());
                tracing::info!(
                    "the TLS files changed: the new certificate is in use, valid for {left}"
                );
                *self.warned_days() = None;
                true
            }
            Ok(Refreshed::Kept { why, news }) => {
                if news {
                    tracing::warn!(error = %why, "the TLS files changed and cannot be used; the old stay in use");
                }
                false
            }
            // The runtime is going away.
            Err(_) => false,
        };
        self.warn_of_expiry();
        replaced
    }

    fn warn_of_expiry(&self) {
        let left = self.certificate().expires_in_seconds();
        if left > WARN_SECONDS {
            return;
        }
        let days = left.div_euclid(86_400);
        let mut warned = self.warned_days();
        if warned.replace(days) == Some(days) {
            return;
        }
        let file = self.0.config.cert.display();
        if left < 0 {
            tracing::error!("{CERT} {file} has expired: peers and clients refuse new connections");
        } else {
            tracing::warn!("{CERT} {file} expires in {}", span(left));
        }
    }

    fn warned_days(&self) -> std::sync::MutexGuard<'_, Option<i64>> {
        self.0
            .warned_days
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Material {
    fn load(config: &TlsConfig, own: &OwnNames) -> Result<Self> {
        let roots = read_roots(&config.ca)?;
        let pair = read_pair(&config.cert, &config.key)?;
        let verifier = client_verifier(&roots, &config.ca)?;
        check_own(&pair, &config.cert, &roots, &*verifier, &own.hosts())?;
        let domain = own.domain();
        if !name_pod(pair.certificate.names(), &own.pod, domain) {
            let expected = match domain {
                Some(domain) => format!("{}.{domain}", own.pod),
                None => own.pod.clone(),
            };
            return Err(bad(
                CERT,
                &config.cert,
                not_named(&expected, &pair.certificate),
            ));
        }
        let wrong = |error: rustls::Error| bad(CERT, &config.cert, error);
        let clients = match config.client_auth {
            ClientAuth::None => server(&pair, None),
            ClientAuth::Require => server(&pair, Some(verifier.clone())),
        };
        let mut clients = clients.map_err(wrong)?;
        clients.alpn_protocols.push(ALPN_HTTP1.to_vec());
        let mut dial = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair.key.clone())));
        dial.alpn_protocols = vec![ALPN.to_vec()];
        dial.resumption = Resumption::disabled();
        Ok(Self {
            peers: Arc::new(server(&pair, Some(verifier)).map_err(wrong)?),
            clients: Arc::new(clients),
            dial: Arc::new(dial),
            certificate: pair.certificate,
        })
    }
}

fn server(
    pair: &Pair,
    verifier: Option<Arc<dyn rustls::server::danger::ClientCertVerifier>>,
) -> std::result::Result<ServerConfig, rustls::Error> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair.key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
