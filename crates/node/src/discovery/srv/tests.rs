//! Against a DNS server of the test's own, which answers, fails, lies and is silent as it is told.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::*;
use crate::dns::DnsSettings;
use crate::transport::tcp::{DnsResolver, TcpSettings, TcpTransport};
use crate::transport::{Listener, Transport};

const DOMAIN: &str = "podkv-headless.ns.svc.cluster.local.";
const SERVICE: &str = "_grpc-peer._tcp.podkv-headless.ns.svc.cluster.local.";

/// What the server does with a question.
#[derive(Clone, Debug)]
enum Reply {
    Records(Vec<RData>),
    Code(ResponseCode),
    /// Too long for a datagram; over TCP it comes, or not even there.
    Truncated(Option<Vec<RData>>),
    Silence,
}

type Zone = Arc<Mutex<Vec<(String, RecordType, Reply)>>>;

/// A server on a port of its own, over UDP and TCP.
struct Server {
    address: SocketAddr,
    zone: Zone,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        // A port that is free for one may be taken for the other.
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let address = tcp.local_addr().unwrap();
        let (zone, asked) = (Zone::default(), Arc::<Mutex<Vec<String>>>::default());
        let mut tasks = JoinSet::new();
        let (of_udp, heard) = (zone.clone(), asked.clone());
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                if let Some(answer) = answer(&buffer[..length], &of_udp, &heard, false) {
                    udp.send_to(&answer, from).await.unwrap();
                }
            }
        });
        let (of_tcp, heard) = (zone.clone(), asked.clone());
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let Ok(length) = stream.read_u16().await else {
                    continue;
                };
                let mut question = vec![0; length.into()];
                stream.read_exact(&mut question).await.unwrap();
                if let Some(answer) = answer(&question, &of_tcp, &heard, true) {
                    let length = u16::try_from(answer.len()).unwrap();
                    stream.write_u16(length).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        });
        Self {
            address,
            zone,
            asked,
            _tasks: tasks,
        }
    }

    fn set(&self, name: &str, kind: RecordType, reply: Reply) {
        let mut zone = self.zone.lock().unwrap();
        zone.retain(|(known, of, _)| (known.as_str(), *of) != (name, kind));
        zone.push((name.into(), kind, reply));
    }

    /// `hasty` for questions that have no answer, and only for those.
    fn dns(&self, hasty: bool) -> Dns {
        let settings = DnsSettings {
            timeout: Duration::from_millis(if hasty { 50 } else { 20_000 }),
            lookup_timeout: Duration::from_millis(if hasty { 200 } else { 60_000 }),
            ..Default::default()
        };
        Dns::with_servers(&[self.address], &settings).unwrap()
    }

    fn discovery(&self, hasty: bool) -> SrvDiscovery {
        let ordinals = OrdinalDiscovery {
            base: "podkv".into(),
            domain: DOMAIN.into(),
            port: 2380,
        };
        SrvDiscovery::new(self.dns(hasty), ordinals)
    }
}

fn answer(
    question: &[u8],
    zone: &Zone,
    asked: &Mutex<Vec<String>>,
    over_tcp: bool,
) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let name = query.name().to_ascii();
    asked.lock().unwrap().push(name.clone());
    let zone = zone.lock().unwrap();
    let reply = zone
        .iter()
        .find(|(known, kind, _)| *known == name && *kind == query.query_type())
        .map(|(.., reply)| reply.clone());
    let named = zone.iter().any(|(known, ..)| *known == name);
    let mut answer = question.into_response();
    let mut add = |records: Vec<RData>| {
        for data in records {
            answer.add_answer(Record::from_rdata(query.name().clone(), 30, data));
        }
    };
    match reply {
        Some(Reply::Records(records)) => add(records),
        Some(Reply::Code(code)) => answer.metadata.response_code = code,
        Some(Reply::Truncated(Some(records))) if over_tcp => add(records),
        Some(Reply::Truncated(records)) => {
            if over_tcp && records.is_none() {
                return None;
            }
            answer.metadata.truncation = true;
        }
        Some(Reply::Silence) => return None,
        // Another kind of record is there under the name.
        None if named => {}
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    Some(answer.to_vec().unwrap())
}

fn srv(pods: &[&str]) -> Vec<RData> {
    let record = |pod: &&str| {
        let target = Name::from_ascii(format!("{pod}.{DOMAIN}")).unwrap();
        RData::SRV(SRV::new(0, 33, 2380, target))
    };
    pods.iter().map(record).collect()
}

fn address(ip: &str) -> RData {
    match ip.parse().unwrap() {
        IpAddr::V4(ip) => RData::A(ip.into()),
        IpAddr::V6(ip) => RData::AAAA(ip.into()),
    }
}

fn expected(replicas: u32) -> Ordinals {
    Ordinals { start: 0, replicas }
}

/// The names of what is suggested, or why nothing is; and that addresses fit the names.
async fn suggested(discovery: &SrvDiscovery, replicas: u32) -> String {
    match discovery.suggest(expected(replicas)).await {
        Err(error) => format!("error: {}", error.text()),
        Ok(suggestions) => {
            let names = suggestions.iter().map(|suggestion| {
                let name = suggestion.name.clone().unwrap();
                assert_eq!(suggestion.peer_address, format!("{name}.{DOMAIN}:2380"));
                name
            });
            names.collect::<Vec<_>>().join(" ")
        }
    }
}

#[tokio::test]
async fn what_dns_says_and_what_is_suggested() {
    use Reply::*;
    let server = Server::start().await;
    let discoveries = [false, true].map(|hasty| server.discovery(hasty));
    let three = ["podkv-0", "podkv-1", "podkv-2"];
    let many: Vec<_> = (0..60).map(|ordinal| format!("podkv-{ordinal}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let mut sorted = many.clone();
    sorted.sort_unstable();
    let all = sorted.join(" ");
    let nothing = "error: DNS knows nothing of ";
    let unknown = "could not be looked up";
    for (reply, replicas, said) in [
        (Records(srv(&three)), 3, "podkv-0 podkv-1 podkv-2"),
        // Each pod twice, as with addresses of both families.
        (
            Records(srv(&[three, three].concat())),
            3,
            "podkv-0 podkv-1 podkv-2",
        ),
        // Partial, old, or both: who is missing is asked all the same, and who is there beyond the size, too.
        (Records(srv(&["podkv-2"])), 3, "podkv-2 podkv-0 podkv-1"),
        (
            Records(srv(&["podkv-0", "podkv-4"])),
            3,
            "podkv-0 podkv-4 podkv-1 podkv-2",
        ),
        (Records(srv(&["podkv-4"])), 1, "podkv-4 podkv-0"),
        // How many there should be is not known yet.
        (Records(srv(&three)), 0, "podkv-0 podkv-1 podkv-2"),
        // Too many for a datagram.
        (Truncated(Some(srv(&many))), 3, all.as_str()),
        // An answer that there is nothing is never believed: this pod should be there at least.
        (Code(ResponseCode::NXDomain), 3, nothing),
        (Code(ResponseCode::NXDomain), 1, nothing),
        (Records(Vec::new()), 3, nothing),
        (Records(Vec::new()), 1, nothing),
        // Failures: all the expected, or nobody; never this pod alone.
        (Code(ResponseCode::ServFail), 3, "podkv-0 podkv-1 podkv-2"),
        (Code(ResponseCode::ServFail), 1, unknown),
        (Code(ResponseCode::ServFail), 0, unknown),
        (Code(ResponseCode::Refused), 1, unknown),
        (Truncated(None), 3, "podkv-0 podkv-1 podkv-2"),
        (Truncated(None), 1, unknown),
        (Silence, 3, "podkv-0 podkv-1 podkv-2"),
        (Silence, 1, unknown),
    ] {
        let case = format!("{replicas} expected, {reply:?}");
        let hasty = matches!(reply, Silence | Truncated(None));
        server.set(SERVICE, RecordType::SRV, reply);
        let got = suggested(&discoveries[usize::from(hasty)], replicas).await;
        match said == nothing || said == unknown {
            true => assert!(
                got.starts_with("error") && got.contains(said),
                "{got}: {case}"
            ),
            false => assert_eq!(got, said, "{case}"),
        }
    }
    // Complete names alone were asked for: no search list.
    assert!(
        server
            .asked
            .lock()
            .unwrap()
            .iter()
            .all(|name| name == SERVICE)
    );
}

#[tokio::test]
async fn nothing_is_remembered() {
    let server = Server::start().await;
    let discovery = server.discovery(false);
    for (reply, said) in [
        (Reply::Code(ResponseCode::NXDomain), None),
        (Reply::Records(srv(&["podkv-0"])), Some("podkv-0")),
        (Reply::Records(srv(&["podkv-7"])), Some("podkv-7")),
        (Reply::Code(ResponseCode::NXDomain), None),
    ] {
        server.set(SERVICE, RecordType::SRV, reply);
        let got = suggested(&discovery, 0).await;
        match said {
            Some(said) => assert_eq!(got, said),
            None => assert!(got.starts_with("error"), "{got}"),
        }
    }
}

/// A pod of the test: accepts connections on a loopback address.
async fn pod(address: &str) -> Listener {
    let transport = TcpTransport::new(TcpSettings::default());
    transport.listen(address).await.unwrap()
}

fn port(listener: &Listener) -> u16 {
    listener
        .local_address()
        .parse::<SocketAddr>()
        .unwrap()
        .port()
}

#[tokio::test]
async fn a_pod_is_dialled_at_its_address_of_this_moment_whatever_its_family() {
    let server = Server::start().await;
    let resolver = DnsResolver::new(server.dns(false));
    let settings = TcpSettings {
        connect_timeout: Duration::from_secs(60),
        ..Default::default()
    };
    let transport = TcpTransport::with_resolver(settings, Arc::new(resolver));
    let name = format!("podkv-0.{DOMAIN}");
    let v4 = pod("127.0.0.1:0").await;
    let to_v4 = format!("{name}:{}", port(&v4));

    // It has no address yet, then one, then another one.
    assert_eq!(
        transport.dial(&to_v4).await.unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    server.set(
        &name,
        RecordType::A,
        Reply::Records(vec![address("127.0.0.1")]),
    );
    transport.dial(&to_v4).await.unwrap();
    // Nobody listens on that one.
    server.set(
        &name,
        RecordType::A,
        Reply::Records(vec![address("127.0.0.9")]),
    );
    transport.dial(&to_v4).await.unwrap_err();
    // An old address beside the new one is passed over; so is a family that leads nowhere.
    let both = vec![address("127.0.0.9"), address("127.0.0.1")];
    server.set(&name, RecordType::A, Reply::Records(both));
    server.set(
        &name,
        RecordType::AAAA,
        Reply::Records(vec![address("::1")]),
    );
    transport.dial(&to_v4).await.unwrap();

    // One family that fails does not hide the other.
    server.set(&name, RecordType::AAAA, Reply::Code(ResponseCode::ServFail));
    transport.dial(&to_v4).await.unwrap();

    let Ok(v6) = std::net::TcpListener::bind("[::1]:0") else {
        eprintln!("NOT TESTED: IPv6 alone, for this machine has none");
        return;
    };
    drop(v6);
    let v6 = pod("[::1]:0").await;
    server.set(&name, RecordType::A, Reply::Records(Vec::new()));
    server.set(
        &name,
        RecordType::AAAA,
        Reply::Records(vec![address("::1")]),
    );
    transport
        .dial(&format!("{name}:{}", port(&v6)))
        .await
        .unwrap();
}

#[tokio::test]
async fn every_address_is_listened_on_in_both_families() {
    let listener = pod("[::]:0").await;
    let transport = TcpTransport::new(TcpSettings::default());
    let port = port(&listener);
    transport.dial(&format!("127.0.0.1:{port}")).await.unwrap();
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        transport.dial(&format!("[::1]:{port}")).await.unwrap();
    }
}
