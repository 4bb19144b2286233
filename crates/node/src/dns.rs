//! DNS, asked directly and remembered by nobody here.
//!
//! The operating system's resolver would do for the answers, but not for the waiting. It blocks a thread
//! for each question, cannot be cancelled, and gives up after ten seconds or more. While DNS is
//! down every peer is dialled about once a second, so such threads would pile up in the pool in which the
//! storage is read. Here a question is a future with a limit, and dropping it ends it.
//!
//! Nothing is cached: a pod that moved must be found at its new address by the very next dial, and a
//! name that did not exist a moment ago may exist now. The cluster's DNS has a cache of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use podkv_api::{Error, Reason, Result};

/// How long DNS may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// One question to one server. A cluster's DNS answers within milliseconds; a datagram that was lost
    /// is better sent again than waited for.
    pub timeout: Duration,
    /// Questions that failed are asked again so often.
    pub retries: usize,
    /// All of a look-up: every retry, and TCP where an answer was too long for a datagram.
    pub lookup_timeout: Duration,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(1),
            retries: 1,
            lookup_timeout: Duration::from_secs(3),
        }
    }
}

/// Asks the servers of `/etc/resolv.conf`. Cheap to clone.
#[derive(Clone)]
pub struct Dns {
    resolver: TokioResolver,
    lookup_timeout: Duration,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum DnsFailure {
    /// The server answered that there is no such name, or nothing of the kind under it. Caches
    /// repeat that for a while after it ceased to be true.
    #[error("there is no such name")]
    NoSuchName,
    /// Nobody answered, or with a failure: nothing is known.
    #[error("{0}")]
    Failed(#[source] NetError),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// Where a service record leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SrvTarget {
    /// With its trailing dot.
    pub host: String,
    pub port: u16,
}

impl Dns {
    /// The servers that this machine uses.
    pub fn from_system(settings: &DnsSettings) -> Result<Self> {
        let (config, _) = hickory_resolver::system_conf::read_system_conf().map_err(|error| {
            Error::new(
                Reason::Configuration,
                format!("/etc/resolv.conf names no usable DNS server: {error}"),
            )
            .with_source(error)
        })?;
        Self::build(config.name_servers, settings)
    }

    /// These servers, each on its port, over UDP and TCP.
    pub fn with_servers(servers: &[SocketAddr], settings: &DnsSettings) -> Result<Self> {
        let servers = servers.iter().map(|server| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            let on_port = connections.map(|mut connection| {
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, on_port.into())
        });
        Self::build(servers.collect(), settings)
    }

    /// Without domain and search list: names here are complete.
    fn build(servers: Vec<NameServerConfig>, settings: &DnsSettings) -> Result<Self> {
        let mut options = ResolverOpts::default();
        options.timeout = settings.timeout;
        options.attempts = settings.retries;
        options.cache_size = 0;
        options.positive_max_ttl = Some(Duration::ZERO);
        options.negative_max_ttl = Some(Duration::ZERO);
        options.use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let resolver = builder.with_options(options).build().map_err(|error| {
            Error::new(
                Reason::Configuration,
                format!("DNS cannot be used: {error}"),
            )
            .with_source(error)
        })?;
        Ok(Self {
            resolver,
            lookup_timeout: settings.lookup_timeout,
        })
    }

    /// The targets of a service record, each once, in order.
    pub async fn srv(&self, name: &str) -> std::result::Result<Vec<SrvTarget>, DnsFailure> {
        let lookup = self
            .bounded(self.resolver.lookup(complete(name)?, RecordType::SRV))
            .await?;
        let mut targets: Vec<_> = lookup
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(SrvTarget {
                    host: srv.target.to_ascii().to_ascii_lowercase(),
                    port: srv.port,
                }),
                _ => None,
            })
            .collect();
        // A pod with an address in each family is there twice.
        targets.sort();
        targets.dedup();
        if targets.is_empty() {
            return Err(DnsFailure::NoSuchName);
        }
        Ok(targets)
    }

    /// The addresses of a host, of both families. One family that fails does not hide the other.
    pub async fn addresses(&self, name: &str) -> std::result::Result<Vec<IpAddr>, DnsFailure> {
        let lookup = self
            .bounded(self.resolver.lookup_ip(complete(name)?))
            .await?;
        Ok(lookup.iter().collect())
    }

    async fn bounded<T>(
        &self,
        lookup: impl Future<Output = std::result::Result<T, NetError>>,
    ) -> std::result::Result<T, DnsFailure> {
        match tokio::time::timeout(self.lookup_timeout, lookup).await {
            Ok(result) => result.map_err(DnsFailure::from),
            Err(_elapsed) => Err(DnsFailure::TimedOut(self.lookup_timeout)),
        }
    }
}

fn complete(name: &str) -> std::result::Result<Name, DnsFailure> {
    let mut name = Name::from_ascii(name)
        .map_err(NetError::from)
        .map_err(DnsFailure::Failed)?;
    name.set_fqdn(true);
    Ok(name)
}

impl From<NetError> for DnsFailure {
    fn from(error: NetError) -> Self {
        match &error {
            NetError::Dns(DnsError::NoRecordsFound(NoRecords {
                response_code: ResponseCode::NXDomain | ResponseCode::NoError,
                ..
            })) => Self::NoSuchName,
            _ => Self::Failed(error),
        }
    }
}

impl From<DnsFailure> for io::Error {
    fn from(failure: DnsFailure) -> Self {
        let kind = match failure {
            DnsFailure::NoSuchName => io::ErrorKind::NotFound,
            DnsFailure::Failed(NetError::Timeout) | DnsFailure::TimedOut(_) => {
                io::ErrorKind::TimedOut
            }
            DnsFailure::Failed(_) => io::ErrorKind::Other,
        };
        io::Error::new(kind, failure)
    }
}
