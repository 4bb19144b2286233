//! How a client is made.

use std::sync::Arc;
use std::time::Duration;

use podkv_api::{Result, Store};
use podkv_tls::{ClientTls, TlsOptions};

use crate::client::{Client, Parts};
use crate::credentials::Credentials;
use crate::dial::{Dialer, Tcp};
use crate::settings::{Settings, bad};

/// Settings of a client to be. Durations and sizes of 0 are refused.
#[derive(Clone, Default)]
pub struct Builder {
    endpoints: Vec<String>,
    services: Vec<String>,
    settings: Settings,
    dialer: Option<Arc<dyn Dialer>>,
    tls: Option<TlsOptions>,
    /// Name and password.
    user: Option<(String, String)>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("endpoints", &self.endpoints)
            .field("services", &self.services)
            .field("settings", &self.settings)
            .field("tls", &self.tls)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Any nodes of the cluster, as `host:port`, or `https://host:port` with [`tls`](Self::tls). One that answers is enough: the others are learned.
    #[must_use]
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// A name that resolves to the addresses of many nodes, as a headless service does:
    /// `podkv-headless.ns.svc.cluster.local.:2379`. Resolved again whenever the client looks around.
    /// End it with a dot: it spares the search domains.
    #[must_use]
    pub fn service(mut self, service: impl Into<String>) -> Self {
        self.services.push(service.into());
        self
    }

    /// Ask only what was given here; do not learn the members' own addresses. For tunnels, and to
    /// speak with one node.
    #[must_use]
    pub fn fixed(mut self, fixed: bool) -> Self {
        self.settings.fixed = fixed;
        self
    }

    /// A call that has no answer by then fails. 5 s unless set.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// How long one node may take before another is asked; keep it above an election. 2 s unless set.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.settings.attempt_timeout = timeout;
        self
    }

    /// How long a connection may take. 1 s unless set.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// The wait between attempts, doubled from the first to the second, with jitter. 25 ms and 1 s unless
    /// set.
    #[must_use]
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.settings.backoff_min = min;
        self.settings.backoff_max = max;
        self
    }

    /// How often the client looks for members and leader when nothing goes wrong. 10 s unless set.
    #[must_use]
    pub fn refresh_interval(mut self, interval: Duration) -> Self {
        self.settings.refresh_interval = interval;
        self
    }

    /// How long the nodes keep this client's session when they hear nothing of it. 60 s unless set, and
    /// always at least twice the deadline.
    #[must_use]
    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.settings.session_ttl = ttl;
        self
    }

    /// How many calls may wait for room on one node's stream; more wait outside. 1024 unless set.
    #[must_use]
    pub fn queue(mut self, calls: usize) -> Self {
        self.settings.queue = calls;
        self
    }

    /// The largest answer that is accepted, in bytes. 64 MiB unless set.
    #[must_use]
    pub fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_response_bytes = bytes;
        self
    }

    /// Speak TLS to every node; plain text unless set. The nodes' certificates must chain to the CA and name the
    /// host that is dialled.
    #[must_use]
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Says to the nodes who this client is. It gets its tokens by itself, and gets another when one has ended. Has no
    /// effect while the cluster asks nobody. Without TLS the password crosses the network in clear.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((name.into(), password.into()));
        self
    }

    /// How connections are made; TCP unless set. TLS runs over them.
    #[must_use]
    pub fn dialer(mut self, dialer: Arc<dyn Dialer>) -> Self {
        self.dialer = Some(dialer);
        self
    }

    /// Makes the client without waiting for an answer: calls connect as they need. Must be called
    /// inside a tokio runtime. With TLS it reads the files, which are small, before it returns.
    ///
    /// # Errors
    /// [`Reason::Configuration`](podkv_api::Reason::Configuration), naming the setting.
    pub fn build(self) -> Result<Client> {
        self.settings.check()?;
        if self.endpoints.is_empty() && self.services.is_empty() {
            return Err(bad("no endpoints; expected host:port, or a service".into()));
        }
        if let Some(service) = self.services.iter().find(|name| !name.contains(':')) {
            return Err(bad(format!("service {service:?}; expected name:port")));
        }
        let tls = self.tls.as_ref().map(ClientTls::open).transpose()?;
        let endpoints: Result<Vec<_>> = self
            .endpoints
            .iter()
            .map(|endpoint| without_scheme(endpoint, tls.is_some()))
            .collect();
        Client::start(Parts {
            endpoints: endpoints?,
            services: self.services,
            settings: self.settings,
            dialer: self.dialer.unwrap_or_else(|| Arc::new(Tcp)),
            tls: tls.map(Arc::new),
            credentials: self
                .user
                .map(|(name, password)| Arc::new(Credentials::new(name, password))),
            fence: Arc::default(),
        })
    }

    /// Makes the client, and waits until a node answers.
    ///
    /// # Errors
    /// As [`build`](Self::build), and those of [`Store::status`] when no node answers within the
    /// deadline.
    pub async fn connect(self) -> Result<Client> {
        let client = self.build()?;
        client.status().await?;
        Ok(client)
    }
}

/// `host:port` of an endpoint. A scheme is a promise about TLS, and is held against what was set.
pub(crate) fn without_scheme(endpoint: &str, tls: bool) -> Result<String> {
    let (address, expected) = if let Some(address) = endpoint.strip_prefix("https://") {
        (address, true)
    } else if let Some(address) = endpoint.strip_prefix("http://") {
        (address, false)
    } else {
        (endpoint, tls)
    };
    let address = address.strip_suffix('/').unwrap_or(address);
    match (expected, tls) {
        (true, false) => Err(bad(format!(
            "endpoint {endpoint:?} is TLS, and no CA is set to check the node's certificate"
        ))),
        (false, true) => Err(bad(format!(
            "endpoint {endpoint:?} is plain text, and TLS is set; expected https:// or none"
        ))),
        _ => Ok(address.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_held_against_the_settings() {
        for (endpoint, tls) in [("a:1", false), ("a:1", true), ("http://a:1", false)] {
            assert_eq!(without_scheme(endpoint, tls).unwrap(), "a:1", "{endpoint}");
        }
        assert_eq!(without_scheme("https://a:1/", true).unwrap(), "a:1");
        assert!(without_scheme("https://a:1", false).is_err());
        assert!(without_scheme("http://a:1", true).is_err());
    }
}
