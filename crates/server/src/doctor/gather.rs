//! Asks: what a node in this container would, in the same way, and then every member that answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use podkv_api::{Reason, Store as _};
use podkv_node::config::{StorageConfig, TlsMode};
use podkv_node::dns::{Dns, DnsFailure, DnsSettings};
use podkv_node::open_tls;
use podkv_tls::{Outcome, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::observed::{
    Lookup, NodeSeen, Observed, OwnNode, PeerSeen, PortSeen, ServiceSeen, Settings, SizeSeen,
    TlsSeen,
};
use crate::settings::{HEADLESS_SERVICE, NAME, PEERS, ServeConfig, Values, advertised};
use podkv_pod::Surroundings;

/// For a connection, and for a page of the admin port. Within a cluster both take milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A page of metrics is some kilobytes.
const MAX_PAGE_BYTES: u64 = 4 << 20;

/// Where to ask.
pub(crate) struct Sources {
    pub client: podkv_client::Builder,
    pub endpoints: Vec<String>,
    /// The environment.
    pub variables: Vec<(String, String)>,
    pub surroundings: Surroundings,
}

/// Asks everybody, at most a few seconds each, most of them at the same time.
pub(crate) async fn gather(sources: Sources) -> Observed {
    let Sources {
        client,
        mut endpoints,
        variables,
        surroundings,
    } = sources;
    let (settings, config) = settings(variables, &surroundings);
    let mut seen = Observed {
        settings,
        size: SizeSeen::NotAsked,
        service: None,
        peers: Vec::new(),
        tls: TlsSeen::Off,
        own: None,
        members: Err("nobody was asked".into()),
        nodes: Vec::new(),
    };
    if let Some(config) = config {
        seen.size = size(&config).await;
        let tls = match open_tls(&config.node).await {
            Ok(tls) => tls,
            Err(error) => {
                seen.tls = TlsSeen::Bad(error.text().to_owned());
                None
            }
        };
        if let Some(tls) = &tls {
            seen.tls = TlsSeen::Good {
                allows_plain: config.node.tls.mode == TlsMode::Allow,
                expires_in_seconds: tls.certificate().expires_in_seconds(),
            };
        }
        let pods = expected(&config, &seen.size);
        for (_, _, client_address) in &pods {
            endpoints.extend(client_address.clone());
        }
        let dns = Dns::from_system(&DnsSettings::default());
        let asked = pods
            .into_iter()
            .filter(|(pod, _, _)| *pod != config.node.name)
            .map(|(pod, address, _)| peer(pod, address, dns.as_ref().ok(), tls.as_ref()));
        let (peers, service, own) = tokio::join!(
            join_all(asked),
            service(&config, dns.as_ref().ok()),
            own(&config)
        );
        (seen.peers, seen.service, seen.own) = (peers, service, Some(own));
    }
    nodes(&mut seen, client, endpoints).await;
    seen
}

/// As `podkv serve` would read them, if this is a node's environment.
fn settings(
    variables: Vec<(String, String)>,
    surroundings: &Surroundings,
) -> (Settings, Option<ServeConfig>) {
    let names = [&NAME, &HEADLESS_SERVICE, &PEERS].map(|setting| setting.variable());
    if !variables.iter().any(|(name, _)| names.contains(name)) {
        return (Settings::Absent, None);
    }
    let file = variables
        .iter()
        .find(|(name, value)| name == "PODKV_CONFIG" && !value.is_empty())
        .map(|(_, value)| std::path::PathBuf::from(value));
    let read = Values::read(Default::default(), variables, file.as_deref())
        .and_then(|values| ServeConfig::from_values(&values, surroundings));
    match read {
        Err(error) => (Settings::Bad(error.text().to_owned()), None),
        Ok(config) => {
            let good = Settings::Good {
                name: config.node.name.clone(),
                in_memory: config.node.storage == StorageConfig::Memory,
            };
            (good, Some(config))
        }
    }
}

#[cfg(feature = "kubernetes")]
async fn size(config: &ServeConfig) -> SizeSeen {
    use podkv_node::SizeSource as _;

    let Some(statefulset) = config.statefulset.clone() else {
        return SizeSeen::NotAsked;
    };
    let source = statefulset.source();
    // Longer than the rest: it is TCP, TLS and a read of the API server's own store.
    match timeout(2 * ANSWER_TIMEOUT, source.read()).await {
        Ok(Ok(Some(size))) => SizeSeen::Read {
            start: size.start,
            replicas: size.replicas,
        },
        Ok(Ok(None)) => SizeSeen::BeingDeleted,
        Ok(Err(error)) => {
            let text = error.text().to_owned();
            match error.reason() {
                Reason::PermissionDenied => SizeSeen::Forbidden(text),
                Reason::Unauthenticated => SizeSeen::Unauthenticated(text),
                Reason::Configuration => SizeSeen::Misnamed(text),
                _ => SizeSeen::Failed(text),
            }
        }
        Err(_) => SizeSeen::Failed(format!(
            "the API server at {}:{} does not answer",
            source.host, source.port
        )),
    }
}

/// The settings are refused if they name a StatefulSet.
#[cfg(not(feature = "kubernetes"))]
async fn size(_: &ServeConfig) -> SizeSeen {
    SizeSeen::NotAsked
}

/// Name, peer address and client address of each pod that there should be, this one's too.
fn expected(config: &ServeConfig, size: &SizeSeen) -> Vec<(String, String, Option<String>)> {
    let Some(network) = &config.network else {
        let peers = config.peers.iter();
        return peers
            .map(|(name, address)| (name.clone(), address.clone(), None))
            .collect();
    };
    let ordinals = match size {
        SizeSeen::Read { start, replicas } => *start..start.saturating_add(*replicas),
        _ => 0..config.node.replicas,
    };
    let (base, _) = config.node.name.rsplit_once('-').unwrap_or_default();
    let port = |address: &str| {
        let port = address.rsplit_once(':').map(|(_, port)| port.parse());
        port.and_then(Result::ok).unwrap_or_default()
    };
    ordinals
        .map(|ordinal| {
            let pod = format!("{base}-{ordinal}");
            let peer = network.address(&pod, port(&config.node.peer_listen));
            let client = network.address(&pod, port(&config.client_listen));
            (pod, peer, Some(client))
        })
        .collect()
}

async fn service(config: &ServeConfig, dns: Option<&Dns>) -> Option<ServiceSeen> {
    let network = config.network.as_ref()?;
    let name = format!("_grpc-peer._tcp.{}", network.domain());
    let everywhere = format!("kubernetes.default.svc.{}.", network.cluster_domain);
    let (srv, domain_is_right) = match dns {
        Some(dns) => {
            let (srv, everywhere) = tokio::join!(dns.srv(&name), dns.addresses(&everywhere));
            (found(srv, |targets| targets.len()), found(everywhere, drop))
        }
        None => {
            let why = "/etc/resolv.conf names no usable DNS server";
            (Lookup::Failed(why.into()), Lookup::Failed(why.into()))
        }
    };
    Some(ServiceSeen {
        name,
        srv,
        cluster_domain: network.cluster_domain.clone(),
        domain_is_right,
    })
}

fn found<T, U>(answer: Result<T, DnsFailure>, map: impl FnOnce(T) -> U) -> Lookup<U> {
    match answer {
        Ok(found) => Lookup::Found(map(found)),
        Err(DnsFailure::NoSuchName) => Lookup::NoSuchName,
        Err(failure) => Lookup::Failed(failure.to_string()),
    }
}

async fn peer(pod: String, address: String, dns: Option<&Dns>, tls: Option<&Tls>) -> PeerSeen {
    let (host, port) = address.rsplit_once(':').unwrap_or((&address, ""));
    let port = port.parse().unwrap_or_default();
    let addresses = resolve(host.trim_matches(['[', ']']), port, dns).await;
    let dialled = match &addresses {
        Lookup::Found(found) => dial(found, port, &address, tls).await,
        _ => PortSeen::NotDialled,
    };
    PeerSeen {
        pod,
        addresses,
        port: dialled,
        address,
    }
}

/// A complete name is asked of DNS, as the node does it; others go to the system.
async fn resolve(host: &str, port: u16, dns: Option<&Dns>) -> Lookup<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Lookup::Found(vec![address]);
    }
    if host.ends_with('.')
        && let Some(dns) = dns
    {
        return found(dns.addresses(host).await, |addresses| addresses);
    }
    match timeout(ANSWER_TIMEOUT, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => Lookup::Found(found.map(|address| address.ip()).collect()),
        Ok(Err(error)) => Lookup::Failed(error.to_string()),
        Err(_) => Lookup::Failed(format!("no answer within {ANSWER_TIMEOUT:?}")),
    }
}

/// The first address that answers counts.
async fn dial(addresses: &[IpAddr], port: u16, name: &str, tls: Option<&Tls>) -> PortSeen {
    let mut seen = PortSeen::NotDialled;
    for address in addresses {
        let dialling = TcpStream::connect(SocketAddr::new(*address, port));
        seen = match timeout(ANSWER_TIMEOUT, dialling).await {
            Ok(Ok(stream)) => return speak(stream, name, tls).await,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => PortSeen::Refused,
            Ok(Err(error)) => PortSeen::Failed(error.to_string()),
            Err(_) => PortSeen::Silent,
        };
    }
    seen
}

async fn speak(stream: TcpStream, name: &str, tls: Option<&Tls>) -> PortSeen {
    let Some(tls) = tls else {
        return PortSeen::Open;
    };
    match tls.connect(name, stream).await {
        Ok(Outcome::Tls(_) | Outcome::DialPlain) => PortSeen::Open,
        Err(error) => PortSeen::Tls(error.to_string()),
    }
}

async fn own(config: &ServeConfig) -> OwnNode {
    let address = advertised(&config.admin_listen);
    let (ready, metrics) = tokio::join!(page(&address, "/readyz"), page(&address, "/metrics"));
    OwnNode {
        ready: ready.map(|(status, body)| (status == 200, body.trim().to_owned())),
        metrics: metrics.map_or_else(|_| Default::default(), |(_, body)| OwnNode::parse(&body)),
    }
}

/// One page of plain HTTP/1.1 from the own admin port, which closes the connection behind it.
async fn page(address: &str, path: &str) -> Result<(u16, String), String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream
            .take(MAX_PAGE_BYTES)
            .read_to_string(&mut answer)
            .await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = timeout(ANSWER_TIMEOUT, asking)
        .await
        .map_err(|_| format!("no answer within {ANSWER_TIMEOUT:?}"))?
        .map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let status = status.ok_or("what answers there does not speak HTTP")?;
    Ok((status, body.to_owned()))
}

/// Every member that is known, and every endpoint that was given, for its own view.
async fn nodes(seen: &mut Observed, builder: podkv_client::Builder, endpoints: Vec<String>) {
    seen.members = match builder.clone().endpoints(endpoints.clone()).build() {
        Ok(client) => {
            let members = client.members().await;
            client.close().await;
            members.map_err(|error| error.text().to_owned())
        }
        Err(error) => Err(error.text().to_owned()),
    };
    let members = seen.members.as_deref().unwrap_or_default();
    let mut addresses: Vec<String> = members
        .iter()
        .map(|member| member.client_address.clone())
        .collect();
    let known = addresses.len();
    for endpoint in endpoints {
        if !addresses.contains(&endpoint) {
            addresses.push(endpoint);
        }
    }
    let asked = addresses
        .into_iter()
        .map(|address| status(&builder, address));
    let mut nodes: Vec<NodeSeen> = join_all(asked).await;
    // What was given may be another way to a member. In a node's container most of it was guessed here, and a pod that
    // is no member is spoken of as a peer.
    let by_hand = matches!(seen.settings, Settings::Absent);
    let given = nodes.split_off(known.min(nodes.len()));
    for node in given {
        let is_new = match &node.status {
            Ok(status) => !nodes.iter().any(|other| {
                let other = other.status.as_ref().map(|other| other.header);
                other.is_ok_and(|other| {
                    (other.cluster, other.member) == (status.header.cluster, status.header.member)
                })
            }),
            Err(_) => known == 0 || by_hand,
        };
        if is_new {
            nodes.push(node);
        }
    }
    seen.nodes = nodes;
}

/// Asks one node, with a client of its own: what one says of its cluster must not keep another from being heard.
async fn status(builder: &podkv_client::Builder, address: String) -> NodeSeen {
    let status = match builder
        .clone()
        .endpoints([address.clone()])
        .fixed(true)
        .build()
    {
        Ok(client) => {
            let status = client.status().await;
            client.close().await;
            status
        }
        Err(error) => Err(error),
    };
    NodeSeen {
        address,
        status: status.map_err(|error| error.text().to_owned()),
    }
}
