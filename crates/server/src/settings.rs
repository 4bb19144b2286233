//! The settings of `podkv serve`: flags, then `PODKV_*` variables, then a TOML file, then defaults.
//!
//! Everything is text until it is parsed here, once, before any socket opens. A bad value names itself,
//! where it came from, and what would be accepted.
//!
//! Kubernetes injects variables for the services of a namespace, so a service called `podkv` sets
//! `PODKV_PORT`, `PODKV_SERVICE_HOST`, `PODKV_PORT_2379_TCP` and more. No setting may ever have such a name;
//! a test checks the table, and such variables are ignored.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use podkv_api::{Error, Reason, Result};
use podkv_node::NodeConfig;
use podkv_node::config::{ClientAuth, RaftTiming, StorageConfig, TlsConfig, TlsMode};

use podkv_pod::{PodNetwork, Surroundings, is_domain, is_label, search_domain};

/// One setting: its name as a flag. As a variable it is `PODKV_` and the name in capitals, with
/// underscores; in the file it is the name with underscores.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub name: &'static str,
    pub help: &'static str,
    pub default: &'static str,
}

macro_rules! settings {
    ($($konst:ident = $name:literal, $default:literal, $help:literal;)*) => {
        $(pub(crate) const $konst: Setting = Setting { name: $name, help: $help, default: $default };)*
        /// Every setting, in the order of the help text.
        pub const SETTINGS: &[Setting] = &[$($konst,)*];
    };
}

settings! {
    NAME = "name", "", "This pod's name with its ordinal, like podkv-0. Default: the host name";
    HEADLESS_SERVICE = "headless-service", "", "In a StatefulSet: the headless service that names the pods, with a port named grpc-peer. Peers and addresses follow from it";
    NAMESPACE = "namespace", "", "The pods' namespace. Default: from /etc/resolv.conf";
    CLUSTER_DOMAIN = "cluster-domain", "", "What the cluster's names end with, like cluster.local. Default: from /etc/resolv.conf";
    STATEFULSET = "statefulset", "", "Read from this StatefulSet how many pods there should be; needs a Role that may get it";
    KUBERNETES_ACCOUNT_DIR = "kubernetes-account-dir", "/var/run/secrets/kubernetes.io/serviceaccount", "The folder with the pod's token and ca.crt for the Kubernetes API";
    TERMINATION_GRACE = "termination-grace", "120s", "The pod's terminationGracePeriodSeconds: a pod that is scaled away votes on until 20s before its end";
    DATA_DIR = "data-dir", "/var/lib/podkv", "The folder of the volume";
    STORAGE = "storage", "disk", "disk, or memory (NOT DURABLE)";
    CLIENT_LISTEN = "client-listen", "[::]:2379", "Where clients connect; [::] is every address of both families";
    PEER_LISTEN = "peer-listen", "[::]:2380", "Where the other nodes connect";
    ADMIN_LISTEN = "admin-listen", "[::]:2381", "Plain HTTP: probes and metrics";
    CLIENT_ADDRESS = "client-address", "", "What clients are told to dial. Default: the pod's name in the headless service, or client-listen";
    PEER_ADDRESS = "peer-address", "", "What the other nodes are told to dial. Default: the pod's name in the headless service, or peer-listen";
    PEERS = "peers", "", "Without a headless service: all nodes, this one too: podkv-0=host:2380,podkv-1=host:2380";
    REPLICAS = "replicas", "", "How many nodes found the cluster together. Default: what the StatefulSet says, or the number of peers";
    MAX_VOTERS = "max-voters", "5", "At most this many nodes vote; odd";
    READ_ONLY = "read-only", "false", "true: a read-only replica. It joins the cluster behind the headless service, founds none and never votes. For the pods of a second StatefulSet";
    TIMING = "timing", "network", "network (volumes with fsyncs of up to 100 ms), or fast (local disks)";
    LEASE_READS = "lease-reads", "false", "true: while a leader holds a lease of the nodes that have this, it answers linearizable reads without asking them. Trusts clocks to differ by less than a tenth; not where machines are suspended, or virtual ones paused, restored or moved while they run. A node that starts does not vote for one election time-out then";
    REQUEST_TIMEOUT = "request-timeout", "5s", "A request without an answer fails after this";
    MAX_REQUEST_BYTES = "max-request-bytes", "1536KiB", "The largest request";
    MAX_TXN_OPS = "max-txn-ops", "128", "The most operations in one list of a transaction";
    CACHE_BYTES = "cache-bytes", "", "The block cache of the state. Default: a quarter of the memory limit, from 32MiB to 1GiB; 128MiB without a limit";
    QUOTA_BYTES = "quota-bytes", "0", "The data may grow to this on this node; 0 is no quota. Beyond it the cluster refuses writes that add data, until there is less";
    HEADROOM_BYTES = "headroom-bytes", "", "What is kept free on the volume: below it the cluster refuses writes that add data, until there is more. Default: 5% of the volume, from 128MiB to 1GiB, and a quarter of it at most";
    SCRUB_INTERVAL = "scrub-interval", "24h", "The nodes compare digests of their data this often, and read their logs through; 0s is never";
    STALL_TIMEOUT = "stall-timeout", "2s", "A leader whose disk has not answered a write for this long hands over to a node whose disk does";
    SNAPSHOT_LOG_BYTES = "snapshot-log-bytes", "256MiB", "Build a snapshot when the log has grown by this much";
    LOG_KEEP_BYTES = "log-keep-bytes", "64MiB", "Log kept behind a snapshot, for nodes that are a little behind";
    TLS = "tls", "off", "off, allow (plain text and TLS) or require, on both gRPC ports";
    TLS_CERT = "tls-cert", "", "This node's certificate and what is between it and the CA, PEM";
    TLS_KEY = "tls-key", "", "Its private key, PEM";
    TLS_CA = "tls-ca", "", "What peers' and clients' certificates chain to, PEM";
    TLS_CLIENT_AUTH = "tls-client-auth", "none", "none, or require: clients show a certificate too";
    AUTH_TOKEN_TTL = "auth-token-ttl", "24h", "How long a token holds that a client was given for its password. Changing the password ends it at once";
    AUTH_WITHOUT_TLS = "auth-without-tls", "false", "true: authentication may be enabled although this node's clients may come in clear, with their passwords and tokens. For networks that are trusted";
    LOG = "log", "info,openraft=error", "What to log, as for RUST_LOG: info, podkv=debug";
    LOG_FORMAT = "log-format", "text", "text or json";
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Flag,
    Variable(String),
    File(PathBuf),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag => f.write_str("a flag"),
            Source::Variable(name) => write!(f, "the variable {name}"),
            Source::File(path) => write!(f, "the file {}", path.display()),
            Source::Default => f.write_str("the default"),
        }
    }
}

impl Setting {
    pub fn variable(&self) -> String {
        format!("PODKV_{}", self.name.replace('-', "_").to_uppercase())
    }

    fn key(&self) -> String {
        self.name.replace('-', "_")
    }
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Everything that `podkv serve` runs on, checked.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    pub node: NodeConfig,
    /// Every node's name and peer address, this one's too; nobody if there is a `network`.
    pub peers: Vec<(String, String)>,
    /// The pods' names, in a StatefulSet.
    pub network: Option<PodNetwork>,
    pub statefulset: Option<StatefulSetConfig>,
    pub termination_grace: Duration,
    pub client_listen: String,
    pub admin_listen: String,
    pub log: String,
    pub log_format: LogFormat,
}

/// The StatefulSet that says how many pods there should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatefulSetConfig {
    pub name: String,
    pub namespace: String,
    /// Of the API server, as Kubernetes tells every pod.
    pub api_host: String,
    pub api_port: u16,
    pub account_dir: PathBuf,
}

#[cfg(feature = "kubernetes")]
impl StatefulSetConfig {
    /// Where it is read.
    pub fn source(self) -> podkv_pod::StatefulSetSource {
        podkv_pod::StatefulSetSource {
            host: self.api_host,
            port: self.api_port,
            account_dir: self.account_dir,
            namespace: self.namespace,
            name: self.name,
        }
    }
}

/// Raw values by setting name, with their sources.
pub struct Values {
    flags: BTreeMap<&'static str, String>,
    variables: BTreeMap<String, String>,
    file: Option<(PathBuf, toml::Table)>,
}

impl Values {
    /// Reads the file if there is one. `variables` is the environment.
    pub fn read(
        flags: BTreeMap<&'static str, String>,
        variables: impl IntoIterator<Item = (String, String)>,
        file: Option<&Path>,
    ) -> Result<Self> {
        let file = file.map(read_file).transpose()?;
        Ok(Self {
            flags,
            variables: variables.into_iter().collect(),
            file,
        })
    }

    fn raw(&self, setting: &Setting) -> (String, Source) {
        if let Some(value) = self.flags.get(setting.name) {
            return (value.clone(), Source::Flag);
        }
        let variable = setting.variable();
        if let Some(value) = self.variables.get(&variable) {
            return (value.clone(), Source::Variable(variable));
        }
        if let Some((path, table)) = &self.file
            && let Some(value) = table.get(&setting.key())
        {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_string);
            return (text, Source::File(path.clone()));
        }
        (setting.default.to_string(), Source::Default)
    }

    fn text(&self, setting: &Setting) -> String {
        self.raw(setting).0
    }

    fn parse<T>(
        &self,
        setting: &Setting,
        accepted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let (value, source) = self.raw(setting);
        parse(value.trim()).ok_or_else(|| bad(setting, &value, &source, accepted))
    }

    fn number<T: FromStr>(&self, setting: &Setting, accepted: &str) -> Result<T> {
        self.parse(setting, accepted, |text| text.parse().ok())
    }

    fn bytes(&self, setting: &Setting) -> Result<u64> {
        self.parse(setting, "a size like 64MiB or 1048576", parse_bytes)
    }

    fn label(&self, setting: &Setting) -> Result<String> {
        self.parse(setting, "a name like podkv-headless", |text| {
            is_label(text).then(|| text.to_string())
        })
    }

    fn address(&self, setting: &Setting) -> Result<String> {
        self.parse(setting, "host:port", |text| {
            is_address(text).then(|| text.to_string())
        })
    }
}

fn bad(setting: &Setting, value: &str, source: &Source, accepted: &str) -> Error {
    Error::new(
        Reason::Configuration,
        format!(
            "{} is {value:?}, from {source}; expected {accepted}",
            setting.name
        ),
    )
}

fn read_file(path: &Path) -> Result<(PathBuf, toml::Table)> {
    let named = |what: &dyn fmt::Display| {
        Error::new(
            Reason::Configuration,
            format!("the settings file {}: {what}", path.display()),
        )
    };
    let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| named(&error))?;
    for key in table.keys() {
        if !SETTINGS.iter().any(|setting| setting.key() == *key) {
            let known: Vec<_> = SETTINGS.iter().map(Setting::key).collect();
            return Err(named(&format!(
                "{key} is not a setting; expected one of {}",
                known.join(", ")
            )));
        }
    }
    Ok((path.to_path_buf(), table))
}

impl ServeConfig {
    /// Parses and checks everything.
    pub fn from_values(values: &Values, surroundings: &Surroundings) -> Result<Self> {
        let name = match values.text(&NAME) {
            name if name.is_empty() => surroundings.pod_name().to_string(),
            name => name,
        };
        let storage = values.parse(&STORAGE, "disk or memory", |text| match text {
            "disk" => Some(StorageConfig::Disk {
                data_dir: PathBuf::from(values.text(&DATA_DIR)),
            }),
            "memory" => Some(StorageConfig::Memory),
            _ => None,
        })?;
        let client_listen = values.address(&CLIENT_LISTEN)?;
        let peers = values.parse(
            &PEERS,
            "a list like podkv-0=host:2380,podkv-1=host:2380",
            parse_peers,
        )?;
        let network = network(values, surroundings)?;
        if network.is_some() && !peers.is_empty() {
            return Err(wrong(
                "peers and headless-service are both set; expected one of them".into(),
            ));
        }
        let mut node = NodeConfig::new(name, storage);
        // The first thing that is wrong in a pod that is no StatefulSet's.
        node.ordinal()?;
        node.peer_listen = values.address(&PEER_LISTEN)?;
        let reachable = |listen: &str| match &network {
            Some(network) => network.address(&node.name, port_of(listen)),
            None => advertised(listen),
        };
        let peer_address = or_else(values, &PEER_ADDRESS, || {
            let mine = peers.iter().find(|(name, _)| *name == node.name);
            mine.map_or_else(|| reachable(&node.peer_listen), |(_, mine)| mine.clone())
        })?;
        node.client_address = or_else(values, &CLIENT_ADDRESS, || reachable(&client_listen))?;
        node.peer_address = peer_address;
        let statefulset = statefulset(values, surroundings, &node.name)?;
        node.replicas = replicas(values, &peers, network.is_some(), statefulset.is_some())?;
        node.tls = tls(values)?;
        node.max_voters = values.number(&MAX_VOTERS, "an odd number")?;
        node.read_only = values.parse(&READ_ONLY, "true or false", |text| text.parse().ok())?;
        node.timing = values.parse(&TIMING, "network or fast", |text| match text {
            "network" => Some(RaftTiming::default()),
            "fast" => Some(RaftTiming::fast()),
            _ => None,
        })?;
        node.lease_reads = values.parse(&LEASE_READS, "true or false", |text| text.parse().ok())?;
        node.request_timeout =
            values.parse(&REQUEST_TIMEOUT, "a time like 5s or 500ms", parse_duration)?;
        node.limits.max_request_bytes = usize_of(values.bytes(&MAX_REQUEST_BYTES)?);
        node.auth_token_ttl =
            values.parse(&AUTH_TOKEN_TTL, "a time like 24h or 30m", parse_duration)?;
        node.auth_without_tls =
            values.parse(&AUTH_WITHOUT_TLS, "true or false", |text| text.parse().ok())?;
        node.limits.max_txn_ops = values.number(&MAX_TXN_OPS, "a number")?;
        node.cache_bytes = usize_of(match values.text(&CACHE_BYTES) {
            text if text.is_empty() => surroundings.cache_bytes(),
            _ => values.bytes(&CACHE_BYTES)?,
        });
        node.scrub_interval =
            values.parse(&SCRUB_INTERVAL, "a time like 24h, or 0s", parse_duration)?;
        node.stall_timeout =
            values.parse(&STALL_TIMEOUT, "a time like 2s or 500ms", parse_duration)?;
        node.quota_bytes = values.bytes(&QUOTA_BYTES)?;
        node.headroom_bytes = match values.text(&HEADROOM_BYTES) {
            text if text.is_empty() => None,
            _ => Some(values.bytes(&HEADROOM_BYTES)?),
        };
        node.snapshot_log_bytes = values.bytes(&SNAPSHOT_LOG_BYTES)?;
        node.log_keep_bytes = values.bytes(&LOG_KEEP_BYTES)?;
        node.check()?;
        Ok(Self {
            node,
            peers,
            network,
            statefulset,
            termination_grace: values.parse(
                &TERMINATION_GRACE,
                "a time like 120s",
                parse_duration,
            )?,
            client_listen,
            admin_listen: values.address(&ADMIN_LISTEN)?,
            log: values.text(&LOG),
            log_format: values.parse(&LOG_FORMAT, "text or json", |text| match text {
                "text" => Some(LogFormat::Text),
                "json" => Some(LogFormat::Json),
                _ => None,
            })?,
        })
    }
}

/// The files are read when the node opens them, before it opens anything else.
fn tls(values: &Values) -> Result<TlsConfig> {
    let mode = values.parse(&TLS, "off, allow or require", |text| match text {
        "off" => Some(TlsMode::Off),
        "allow" => Some(TlsMode::Allow),
        "require" => Some(TlsMode::Require),
        _ => None,
    })?;
    let client_auth = values.parse(&TLS_CLIENT_AUTH, "none or require", |text| match text {
        "none" => Some(ClientAuth::None),
        "require" => Some(ClientAuth::Require),
        _ => None,
    })?;
    let path = |setting: &Setting| PathBuf::from(values.text(setting));
    Ok(TlsConfig {
        mode,
        cert: path(&TLS_CERT),
        key: path(&TLS_KEY),
        ca: path(&TLS_CA),
        client_auth,
        ..TlsConfig::default()
    })
}

fn or_else(values: &Values, setting: &Setting, default: impl FnOnce() -> String) -> Result<String> {
    if values.text(setting).is_empty() {
        Ok(default())
    } else {
        values.address(setting)
    }
}

/// The headless service's names, if this is a pod of a StatefulSet.
fn network(values: &Values, surroundings: &Surroundings) -> Result<Option<PodNetwork>> {
    if values.text(&HEADLESS_SERVICE).is_empty() {
        return Ok(None);
    }
    Ok(Some(PodNetwork {
        headless_service: values.label(&HEADLESS_SERVICE)?,
        namespace: namespace(values, surroundings)?,
        cluster_domain: match values.text(&CLUSTER_DOMAIN) {
            text if text.is_empty() => {
                found_in_search_list(&CLUSTER_DOMAIN, surroundings, |(_, domain)| domain)?
            }
            _ => values.parse(&CLUSTER_DOMAIN, "a name like cluster.local", |text| {
                let text = text.trim_end_matches('.');
                is_domain(text).then(|| text.to_string())
            })?,
        },
    }))
}

fn namespace(values: &Values, surroundings: &Surroundings) -> Result<String> {
    match values.text(&NAMESPACE) {
        text if text.is_empty() => {
            found_in_search_list(&NAMESPACE, surroundings, |(namespace, _)| namespace)
        }
        _ => values.label(&NAMESPACE),
    }
}

fn found_in_search_list(
    setting: &Setting,
    surroundings: &Surroundings,
    choose: impl Fn((String, String)) -> String,
) -> Result<String> {
    let found = search_domain(&surroundings.resolv_conf).map(choose);
    found.ok_or_else(|| {
        wrong(format!(
            "{} is not set, and /etc/resolv.conf has no search entry like default.svc.cluster.local to take \
             it from; set it, or give the pod the dnsPolicy ClusterFirst",
            setting.name
        ))
    })
}

fn statefulset(
    values: &Values,
    surroundings: &Surroundings,
    pod: &str,
) -> Result<Option<StatefulSetConfig>> {
    if values.text(&STATEFULSET).is_empty() {
        return Ok(None);
    }
    let name = values.parse(&STATEFULSET, "a name like podkv", |text| {
        is_domain(text).then(|| text.to_string())
    })?;
    if cfg!(not(feature = "kubernetes")) {
        return Err(wrong(
            "statefulset is set, and this binary was built without the feature kubernetes; set replicas instead"
                .into(),
        ));
    }
    if pod.rsplit_once('-').is_none_or(|(base, _)| base != name) {
        return Err(wrong(format!(
            "statefulset is {name:?}, and this pod, {pod:?}, is none of its: those are called {name}-0, {name}-1, …"
        )));
    }
    let injected = |variable: &str| {
        values.variables.get(variable).cloned().ok_or_else(|| {
            wrong(format!(
                "statefulset is set, and {variable} is not: Kubernetes sets it in every container; is this one?"
            ))
        })
    };
    let port = injected("KUBERNETES_SERVICE_PORT")?;
    Ok(Some(StatefulSetConfig {
        name,
        namespace: namespace(values, surroundings)?,
        api_host: injected("KUBERNETES_SERVICE_HOST")?,
        api_port: port.parse().map_err(|_| {
            wrong(format!(
                "KUBERNETES_SERVICE_PORT is {port:?}; expected a port, as Kubernetes sets it"
            ))
        })?,
        account_dir: PathBuf::from(values.text(&KUBERNETES_ACCOUNT_DIR)),
    }))
}

/// How many nodes found the cluster. To guess it would be to found several.
fn replicas(
    values: &Values,
    peers: &[(String, String)],
    in_pod: bool,
    from_statefulset: bool,
) -> Result<u32> {
    let is_set = !values.text(&REPLICAS).is_empty();
    match (is_set, from_statefulset) {
        (true, true) => Err(wrong(
            "replicas and statefulset are both set; expected one of them, which says how many pods there should be"
                .into(),
        )),
        (true, false) => values.number(&REPLICAS, "a number from 1 up"),
        (false, false) if in_pod => Err(wrong(
            "headless-service is set, and neither replicas nor statefulset is: one of them must say how many \
             pods found the cluster"
                .into(),
        )),
        (false, _) => Ok(u32::try_from(peers.len().max(1)).unwrap_or(u32::MAX)),
    }
}

fn port_of(address: &str) -> u16 {
    let port = address
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok());
    port.unwrap_or_default()
}

/// What others are told to dial where only a port is known. "Every address" is none: it is this machine.
pub(crate) fn advertised(listen: &str) -> String {
    match listen.rsplit_once(':') {
        Some(("[::]" | "0.0.0.0", port)) => format!("localhost:{port}"),
        _ => listen.to_string(),
    }
}

fn wrong(text: String) -> Error {
    Error::new(Reason::Configuration, text)
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// `host:port`, with a port that is a number. The host is resolved when it is dialled.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn parse_peers(text: &str) -> Option<Vec<(String, String)>> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, address) = part.split_once('=')?;
            is_address(address).then(|| (name.to_string(), address.to_string()))
        })
        .collect()
}

/// `1536`, `64KiB`, `8MiB`, `1GiB`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale: u64 = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(scale)
}

/// `500ms`, `5s`, `2m`, `1h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let millis: u64 = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    digits
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(millis)
        .map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(
        flags: &[(&'static str, &str)],
        variables: &[(&str, &str)],
        file: Option<&Path>,
    ) -> Result<ServeConfig> {
        let flags = flags
            .iter()
            .map(|(name, value)| (*name, value.to_string()))
            .collect();
        let variables = variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        let surroundings = Surroundings {
            host_name: "podkv-1".into(),
            resolv_conf: "search prod.svc.cluster.local svc.cluster.local cluster.local".into(),
            memory_limit: Some(1 << 30),
        };
        ServeConfig::from_values(&Values::read(flags, variables, file)?, &surroundings)
    }

    const IN_POD: [(&str, &str); 3] = [
        ("PODKV_HEADLESS_SERVICE", "podkv-headless"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
    ];

    #[test]
    fn a_pod_needs_no_setting_of_its_own() {
        let config = config(&[("statefulset", "podkv")], &IN_POD, None).unwrap();
        assert_eq!(config.node.name, "podkv-1");
        let host = "podkv-1.podkv-headless.prod.svc.cluster.local.";
        assert_eq!(config.node.peer_address, format!("{host}:2380"));
        assert_eq!(config.node.client_address, format!("{host}:2379"));
        assert_eq!(config.node.cache_bytes, 256 << 20);
        let statefulset = config.statefulset.unwrap();
        assert_eq!(statefulset.namespace, "prod");
        assert_eq!(
            (statefulset.api_host.as_str(), statefulset.api_port),
            ("10.96.0.1", 443)
        );
    }

    #[test]
    fn settings_override_what_a_pod_knows_of_itself() {
        let flags = [
            ("name", "db-0"),
            ("namespace", "test"),
            ("cluster-domain", "k8s.example.org."),
            ("replicas", "3"),
            ("peer-listen", "[::]:3380"),
            ("cache-bytes", "64MiB"),
        ];
        let config = config(&flags, &IN_POD, None).unwrap();
        let host = "db-0.podkv-headless.test.svc.k8s.example.org.";
        assert_eq!(config.node.peer_address, format!("{host}:3380"));
        assert_eq!(config.node.replicas, 3);
        assert_eq!(config.node.cache_bytes, 64 << 20);
        assert_eq!(config.statefulset, None);
    }

    #[test]
    fn what_cannot_work_in_a_pod_says_so() {
        for (flags, said) in [
            (&[("name", "web-7d9c5b6f4d-x2x5z")][..], "no ordinal"),
            (
                &[("headless-service", "podkv headless")],
                "headless-service",
            ),
            (
                &[("cluster-domain", "cluster..local"), ("replicas", "3")],
                "cluster-domain",
            ),
            (&[("peers", "podkv-1=a:1")], "both set"),
            (&[], "must say how many pods"),
            (&[("statefulset", "podkv"), ("replicas", "3")], "both set"),
            (&[("statefulset", "other")], "none of its"),
            (&[("statefulset", "podkv"), ("namespace", "A")], "namespace"),
        ] {
            let error = config(flags, &IN_POD, None).unwrap_err();
            assert_eq!(error.reason(), Reason::Configuration, "{flags:?}");
            assert!(error.text().contains(said), "{flags:?}: {error}");
        }
        let error = config(&[("statefulset", "podkv")], &IN_POD[..1], None).unwrap_err();
        assert!(error.text().contains("KUBERNETES_SERVICE_PORT"), "{error}");
    }

    #[test]
    fn flags_win_over_variables_over_the_file_over_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "max_voters = 3\nname = \"file-0\"\nmax_txn_ops = 7\n",
        )
        .unwrap();
        let variables = [("PODKV_NAME", "variable-0"), ("PODKV_MAX_VOTERS", "7")];
        let config = config(&[("name", "flag-0")], &variables, Some(file.path())).unwrap();
        assert_eq!(config.node.name, "flag-0");
        assert_eq!(config.node.max_voters, 7);
        assert_eq!(config.node.limits.max_txn_ops, 7);
        assert_eq!(config.node.request_timeout, Duration::from_secs(5));
    }

    #[test]
    fn a_bad_value_names_itself_its_source_and_what_is_accepted() {
        let error = config(&[("name", "p-0")], &[("PODKV_CACHE_BYTES", "much")], None).unwrap_err();
        assert_eq!(error.reason(), Reason::Configuration);
        for part in ["cache-bytes", "\"much\"", "PODKV_CACHE_BYTES", "64MiB"] {
            assert!(error.text().contains(part), "{part} is missing in {error}");
        }
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "datadir = \"/x\"\n").unwrap();
        let error = config(&[("name", "p-0")], &[], Some(file.path())).unwrap_err();
        assert!(error.text().contains("datadir is not a setting"), "{error}");
    }

    #[test]
    fn injected_service_variables_are_never_ours_and_change_nothing() {
        for setting in SETTINGS {
            let variable = setting.variable();
            assert!(
                !variable.contains("_SERVICE_") && !variable.contains("_PORT"),
                "{variable}"
            );
        }
        let injected = [
            ("PODKV_PORT", "tcp://10.0.0.1:2379"),
            ("PODKV_SERVICE_HOST", "10.0.0.1"),
            ("PODKV_PEER_PORT_2380_TCP_ADDR", "10.0.0.1"),
        ];
        let config = config(&[("name", "p-0")], &injected, None).unwrap();
        assert_eq!(config.client_listen, "[::]:2379");
        assert_eq!(config.node.client_address, "localhost:2379");
    }

    #[test]
    fn replicas_follow_the_peers() {
        let config = config(
            &[("name", "p-1"), ("peers", "p-0=a:1,p-1=b:2,p-2=c:3")],
            &[],
            None,
        )
        .unwrap();
        assert_eq!(config.node.replicas, 3);
        assert_eq!(config.node.peer_address, "b:2");
    }

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(parse_bytes("64KiB"), Some(65_536));
        assert_eq!(parse_bytes("12"), Some(12));
        assert_eq!(parse_bytes("12MB"), None);
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("5"), None);
    }
}
