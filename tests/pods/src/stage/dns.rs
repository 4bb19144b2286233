//! DNS as CoreDNS serves it in a cluster, with the two plugins that matter: `kubernetes` and `cache`.
//!
//! ```text
//!   _grpc-peer._tcp.podkv-headless.ns.svc.cluster.local.  SRV      a record a pod, with its addresses beside
//!   podkv-headless.ns.svc.cluster.local.                  A, AAAA  every endpoint
//!   podkv-0.podkv-headless.ns.svc.cluster.local.          A, AAAA  that pod
//!   podkv.ns.svc.cluster.local.                           A, AAAA  the virtual address
//! ```
//!
//! A headless service without endpoints is NXDOMAIN, and so is a port without a name. A name that has records of
//! another type is NODATA. Each answer, a denial too, is kept for its TTL of 5 s and told again with what is left
//! of it: so a pod that was asked for too early stays unknown for a while.
//!
//! How it can be wrong is set by [`Fault`], for all questions or, with a chance, for some of them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::world::{Endpoint, World};
use crate::Result;

/// Of `kubernetes`, where its file does not say another; `cache` keeps denials no longer than the SOA says.
const TTL: u32 = 5;
/// Without EDNS.
const DATAGRAM: usize = 512;

/// How the server misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Questions are not answered.
    Silence,
    ServerFailure,
    /// There is nothing, whatever is asked.
    NoSuchName,
    /// What was true so many seconds ago.
    Stale(u64),
    /// Some of the records of an answer are left out.
    Partial,
    /// Every answer claims to be too long for a datagram, and TCP is not answered.
    Truncated,
}

/// Records, additional records, or none of that type, or no such name.
#[derive(Clone, Debug)]
enum Answer {
    Records(Vec<Record>, Vec<Record>),
    NoData,
    NoSuchName,
}

struct Faults {
    fault: Option<Fault>,
    /// Of a question to meet it.
    chance: f64,
    random: StdRng,
}

/// The server's state.
pub struct Dns {
    world: Arc<World>,
    service_ips: BTreeMap<String, IpAddr>,
    cache: Mutex<HashMap<(String, RecordType), (Instant, Answer)>>,
    faults: Mutex<Faults>,
}

impl Dns {
    /// Listens at port 53 of `ip`, over UDP and TCP, until the tasks are dropped.
    pub async fn serve(
        world: Arc<World>,
        service_ips: BTreeMap<String, IpAddr>,
        ip: IpAddr,
        seed: u64,
        tasks: &mut JoinSet<()>,
    ) -> Result<Arc<Self>> {
        let address = SocketAddr::new(ip, 53);
        let udp = UdpSocket::bind(address).await?;
        let tcp = TcpListener::bind(address).await?;
        let dns = Arc::new(Self {
            world,
            service_ips,
            cache: Mutex::default(),
            faults: Mutex::new(Faults {
                fault: None,
                chance: 0.0,
                random: StdRng::seed_from_u64(seed),
            }),
        });
        let server = dns.clone();
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                if let Some(answer) = server.answer(&buffer[..length], false) {
                    // Who asked may be gone.
                    let _ = udp.send_to(&answer, from).await;
                }
            }
        });
        let server = dns.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = tcp.accept().await {
                let server = server.clone();
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut question = vec![0; length.into()];
                        if stream.read_exact(&mut question).await.is_err() {
                            return;
                        }
                        let Some(answer) = server.answer(&question, true) else {
                            // Silence, not an end: the connection stays open until the other side gives up.
                            std::future::pending::<()>().await;
                            return;
                        };
                        let Ok(length) = u16::try_from(answer.len()) else {
                            return;
                        };
                        let written = stream.write_u16(length).await.is_ok()
                            && stream.write_all(&answer).await.is_ok();
                        if !written {
                            return;
                        }
                    }
                });
            }
        });
        Ok(dns)
    }

    /// From now on each question meets this fault with this chance.
    pub fn set_fault(&self, fault: Option<Fault>, chance: f64) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.fault = fault;
        faults.chance = chance;
        drop(faults);
        // A server that was restarted has forgotten; a fault must show at once.
        self.cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn fault_of_this_question(&self) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let met = faults.fault.is_some() && {
            let chance = faults.chance;
            faults.random.random_bool(chance)
        };
        faults.fault.filter(|_| met)
    }

    fn answer(&self, question: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).ok()?;
        let query = question.queries.first()?.clone();
        let limit = match (over_tcp, question.edns.as_ref()) {
            (true, _) => usize::from(u16::MAX),
            (false, Some(edns)) => usize::from(edns.max_payload()).max(DATAGRAM),
            (false, None) => DATAGRAM,
        };
        let name = query.name().to_ascii().to_ascii_lowercase();
        let fault = self.fault_of_this_question();
        let mut message = question.into_response();
        message.metadata.authoritative = true;
        message.metadata.recursion_available = true;
        let found = match fault {
            Some(Fault::Silence) => return None,
            Some(Fault::Truncated) if over_tcp => return None,
            Some(Fault::Truncated) => {
                message.metadata.truncation = true;
                return message.to_vec().ok();
            }
            Some(Fault::ServerFailure) => {
                message.metadata.response_code = ResponseCode::ServFail;
                return message.to_vec().ok();
            }
            Some(Fault::NoSuchName) => Answer::NoSuchName,
            Some(Fault::Stale(seconds)) => {
                self.look_up(&name, query.query_type(), Duration::from_secs(seconds))
            }
            Some(Fault::Partial) => {
                self.some_of(self.look_up(&name, query.query_type(), Duration::ZERO))
            }
            None => self.cached(&name, query.query_type()),
        };
        match found {
            Answer::Records(answers, additional) => {
                message.add_answers(answers);
                message.add_additionals(additional);
            }
            denied => {
                if matches!(denied, Answer::NoSuchName) {
                    message.metadata.response_code = ResponseCode::NXDomain;
                }
                message.add_authority(self.start_of_authority()?);
            }
        }
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        // CoreDNS drops what does not fit, additional records first.
        message.additionals.clear();
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        message.answers.clear();
        message.metadata.truncation = true;
        message.to_vec().ok()
    }

    /// What the cache says, and what it keeps from now on if it has nothing.
    fn cached(&self, name: &str, kind: RecordType) -> Answer {
        let now = Instant::now();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_string(), kind);
        if let Some((since, answer)) = cache.get(&key) {
            let age = u32::try_from(now.duration_since(*since).as_secs()).unwrap_or(u32::MAX);
            if age < TTL {
                return aged(answer.clone(), TTL - age);
            }
        }
        let answer = self.look_up(name, kind, Duration::ZERO);
        cache.insert(key, (now, answer.clone()));
        answer
    }

    /// What the cluster says, as of so long ago.
    fn look_up(&self, name: &str, kind: RecordType, age: Duration) -> Answer {
        let suffix = format!(
            ".{}.svc.{}.",
            self.world.namespace, self.world.cluster_domain
        );
        let Some(rest) = name.strip_suffix(&suffix) else {
            return Answer::NoSuchName;
        };
        let labels: Vec<&str> = rest.split('.').collect();
        match labels.as_slice() {
            [service] => self.service(service, name, kind, age),
            [pod, service] if !pod.starts_with('_') => {
                let endpoints = self.endpoints(service, age);
                let ips = endpoints
                    .iter()
                    .filter(|endpoint| host_of(endpoint) == *pod)
                    .map(|endpoint| endpoint.ip);
                addresses(name, kind, ips.collect())
            }
            [port, "_tcp", service] => {
                let Some(port) = port.strip_prefix('_') else {
                    return Answer::NoSuchName;
                };
                self.service_records(port, service, name, kind, age)
            }
            _ => Answer::NoSuchName,
        }
    }

    fn endpoints(&self, service: &str, age: Duration) -> Vec<Endpoint> {
        let service = self
            .world
            .service(service)
            .filter(|service| service.is_headless());
        service.map_or_else(Vec::new, |service| self.world.endpoints(service, age))
    }

    fn service(&self, service: &str, name: &str, kind: RecordType, age: Duration) -> Answer {
        if let Some(ip) = self.service_ips.get(service) {
            return addresses(name, kind, vec![*ip]);
        }
        let endpoints = self.endpoints(service, age);
        addresses(
            name,
            kind,
            endpoints.iter().map(|endpoint| endpoint.ip).collect(),
        )
    }

    fn service_records(
        &self,
        port: &str,
        service: &str,
        name: &str,
        kind: RecordType,
        age: Duration,
    ) -> Answer {
        let domain = format!(
            "{service}.{}.svc.{}.",
            self.world.namespace, self.world.cluster_domain
        );
        let endpoints = self.endpoints(service, age);
        let (mut answers, mut additional) = (Vec::new(), Vec::new());
        let weight = u16::try_from(100 / endpoints.len().max(1)).unwrap_or(1);
        for endpoint in &endpoints {
            let numbers = endpoint.ports.iter().filter(|(name, _)| name == port);
            for (_, number) in numbers {
                let host = format!("{}.{domain}", host_of(endpoint));
                let Ok(target) = Name::from_ascii(&host) else {
                    continue;
                };
                let srv = RData::SRV(SRV::new(0, weight, *number, target));
                answers.extend(record(name, srv));
                additional.extend(record(&host, address(endpoint.ip)));
            }
        }
        match (answers.is_empty(), kind) {
            (true, _) => Answer::NoSuchName,
            (false, RecordType::SRV) => Answer::Records(answers, additional),
            (false, _) => Answer::NoData,
        }
    }

    /// At least one record is missing, if there is any.
    fn some_of(&self, answer: Answer) -> Answer {
        let Answer::Records(mut answers, _) = answer else {
            return answer;
        };
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = faults.random.random_range(0..answers.len());
        while answers.len() > keep {
            let index = faults.random.random_range(0..answers.len());
            answers.remove(index);
        }
        if answers.is_empty() {
            return Answer::NoSuchName;
        }
        Answer::Records(answers, Vec::new())
    }

    /// The TTL here is how long a denial may be believed.
    fn start_of_authority(&self) -> Option<Record> {
        let zone = format!("{}.", self.world.cluster_domain);
        let name = |text: String| Name::from_ascii(text).ok();
        let soa = SOA::new(
            name(format!("ns.dns.{zone}"))?,
            name(format!("hostmaster.{zone}"))?,
            1,
            7200,
            1800,
            86400,
            TTL,
        );
        record(&zone, RData::SOA(soa))
    }
}

/// A pod without a host name is known by its address.
fn host_of(endpoint: &Endpoint) -> String {
    match &endpoint.hostname {
        Some(name) => name.clone(),
        None => endpoint.ip.to_string().replace(['.', ':'], "-"),
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(ip.into()),
        IpAddr::V6(ip) => RData::AAAA(ip.into()),
    }
}

fn addresses(name: &str, kind: RecordType, ips: Vec<IpAddr>) -> Answer {
    if ips.is_empty() {
        return Answer::NoSuchName;
    }
    let fits = |ip: &IpAddr| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        _ => false,
    };
    let records: Vec<_> = ips
        .into_iter()
        .filter(fits)
        .filter_map(|ip| record(name, address(ip)))
        .collect();
    match records.is_empty() {
        true => Answer::NoData,
        false => Answer::Records(records, Vec::new()),
    }
}

fn record(name: &str, data: RData) -> Option<Record> {
    Some(Record::from_rdata(Name::from_ascii(name).ok()?, TTL, data))
}

fn aged(answer: Answer, ttl: u32) -> Answer {
    let Answer::Records(mut answers, mut additional) = answer else {
        return answer;
    };
    for record in answers.iter_mut().chain(&mut additional) {
        record.ttl = ttl;
    }
    Answer::Records(answers, additional)
}
