//! Golden: one thing wrong at a time, and what is said of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use podkv_api::{
    Alarm, AlarmKind, ClusterId, DesiredSize, Header, Incarnation, Member, MemberId, MemberRole,
    NodeStatus, Retention,
};

use super::observed::*;
use super::*;

/// Fails if the file does not hold `text`; with `UPDATE_GOLDEN=1` writes it instead.
pub(super) fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/doctor/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == text,
        "{} differs. Look at the difference, then UPDATE_GOLDEN=1:\n{text}",
        path.display()
    );
}

/// What is not as it should be, under a heading.
pub(super) fn told(printed: &mut String, title: &str, findings: &[Finding]) {
    let _ = writeln!(printed, "# {title}");
    let wrong = findings.iter().filter(|one| one.level != Level::Ok);
    for finding in wrong {
        let _ = writeln!(printed, "{finding}");
    }
    let _ = writeln!(printed, "worst: {}\n", worst(findings).name());
}

fn address(ordinal: u64) -> String {
    format!("podkv-{ordinal}.podkv-headless.state.svc.cluster.local.:2379")
}

fn node(ordinal: u64) -> NodeSeen {
    let status = NodeStatus {
        header: Header {
            cluster: ClusterId(7),
            incarnation: Incarnation(1),
            member: MemberId(ordinal + 1),
            term: 4,
            revision: 100,
        },
        name: format!("podkv-{ordinal}"),
        version: "0.1.0".into(),
        role: Some(MemberRole::Voter),
        leader: Some(MemberId(1)),
        committed_index: 50_000,
        applied_index: 50_000,
        first_log_index: 1,
        last_log_index: 50_000,
        snapshot_index: 0,
        compacted_revision: 0,
        keys: 10,
        disk_bytes: 1 << 20,
        durable: true,
        clock_ms: 1,
        retention: Retention::default(),
        feature_level: 0,
        desired_size: Some(DesiredSize {
            source: "uid".into(),
            generation: 1,
            start: 0,
            replicas: 3,
        }),
        alarms: Vec::new(),
        lease_reads: false,
    };
    NodeSeen {
        address: address(ordinal),
        status: Ok(status),
    }
}

fn member(ordinal: u64) -> Member {
    Member {
        id: MemberId(ordinal + 1),
        name: format!("podkv-{ordinal}"),
        peer_address: address(ordinal),
        client_address: address(ordinal),
        role: MemberRole::Voter,
    }
}

fn peer(ordinal: u64) -> PeerSeen {
    PeerSeen {
        pod: format!("podkv-{ordinal}"),
        address: format!("podkv-{ordinal}.podkv-headless.state.svc.cluster.local.:2380"),
        addresses: Lookup::Found(vec!["10.0.0.7".parse().unwrap()]),
        port: PortSeen::Open,
    }
}

fn healthy() -> Observed {
    let metrics = OwnNode::parse(
        "# HELP podkv_ready x\npodkv_ready 1\npodkv_volume_free_bytes 8589934592\n\
         podkv_volume_size_bytes 10737418240\npodkv_log_write_seconds_bucket{le=\"0.01\"} 990\n\
         podkv_log_write_seconds_bucket{le=\"0.25\"} 1000\npodkv_log_write_seconds_bucket{le=\"+Inf\"} 1000\n",
    );
    Observed {
        settings: Settings::Good {
            name: "podkv-0".into(),
            in_memory: false,
        },
        size: SizeSeen::Read {
            start: 0,
            replicas: 3,
        },
        service: Some(ServiceSeen {
            name: "_grpc-peer._tcp.podkv-headless.state.svc.cluster.local.".into(),
            srv: Lookup::Found(3),
            cluster_domain: "cluster.local".into(),
            domain_is_right: Lookup::Found(()),
        }),
        peers: vec![peer(1), peer(2)],
        tls: TlsSeen::Good {
            allows_plain: false,
            expires_in_seconds: 60 * 86_400,
        },
        own: Some(OwnNode {
            ready: Ok((true, String::new())),
            metrics,
        }),
        members: Ok((0..3).map(member).collect()),
        nodes: (0..3).map(node).collect(),
    }
}

fn status(seen: &mut Observed, ordinal: usize) -> &mut NodeStatus {
    seen.nodes[ordinal].status.as_mut().unwrap()
}

fn service(seen: &mut Observed) -> &mut ServiceSeen {
    seen.service.as_mut().unwrap()
}

fn metric(seen: &mut Observed, name: &str, value: f64) {
    let metrics: &mut BTreeMap<_, _> = &mut seen.own.as_mut().unwrap().metrics;
    metrics.insert(name.into(), value);
}

type Change = fn(&mut Observed);

/// One line each: what is wrong, and the observation that shows it.
const SCENARIOS: &[(&str, Change)] = &[
    ("nothing is wrong", |_| ()),
    ("from a machine that is no node", |seen| {
        seen.settings = Settings::Absent;
        seen.size = SizeSeen::NotAsked;
        (seen.service, seen.own, seen.tls) = (None, None, TlsSeen::Off);
        seen.peers.clear();
    }),
    ("a setting cannot be used", |seen| {
        seen.settings = Settings::Bad(
            "max-voters is \"four\", from the variable PODKV_MAX_VOTERS; expected an odd number"
                .into(),
        );
    }),
    ("memory storage", |seen| {
        seen.settings = Settings::Good {
            name: "podkv-0".into(),
            in_memory: true,
        };
        status(seen, 0).durable = false;
    }),
    ("the Role is missing", |seen| {
        seen.size = SizeSeen::Forbidden("StatefulSet state/podkv: this pod's ServiceAccount may not read it; its Role needs the verb get on the resource statefulsets of the group apps, name podkv".into());
    }),
    ("a StatefulSet of another name", |seen| {
        seen.size = SizeSeen::Misnamed("there is no StatefulSet state/podkv".into());
    }),
    ("the API server is away", |seen| {
        seen.size = SizeSeen::Failed("the API server at 10.96.0.1:443 cannot be asked for StatefulSet state/podkv: timed out".into());
    }),
    ("no headless service", |seen| {
        service(seen).srv = Lookup::NoSuchName;
        for peer in &mut seen.peers {
            (peer.addresses, peer.port) = (Lookup::NoSuchName, PortSeen::NotDialled);
        }
    }),
    ("a wrong cluster domain", |seen| {
        service(seen).srv = Lookup::NoSuchName;
        service(seen).cluster_domain = "cluster.test".into();
        service(seen).domain_is_right = Lookup::NoSuchName;
        seen.peers.clear();
    }),
    ("DNS is silent", |seen| {
        service(seen).srv = Lookup::Failed("no answer within 3s".into());
        service(seen).domain_is_right = Lookup::Failed("no answer within 3s".into());
        seen.peers.truncate(1);
        seen.peers[0].addresses = Lookup::Failed("no answer within 3s".into());
    }),
    ("a peer's process is not up", |seen| {
        seen.peers[0].port = PortSeen::Refused
    }),
    ("a network policy, or a dead host", |seen| {
        seen.peers[1].port = PortSeen::Silent
    }),
    ("certificates that do not fit", |seen| {
        seen.peers[0].port = PortSeen::Tls(
            "the certificate is not for podkv-1.podkv-headless.state.svc.cluster.local".into(),
        );
    }),
    ("a certificate that cannot be used", |seen| {
        seen.tls = TlsSeen::Bad("tls-cert: /tls/tls.crt has expired".into());
    }),
    (
        "a certificate that is not renewed, and plain text",
        |seen| {
            seen.tls = TlsSeen::Good {
                allows_plain: true,
                expires_in_seconds: 2 * 86_400,
            };
        },
    ),
    ("not ready", |seen| {
        seen.own.as_mut().unwrap().ready = Ok((false, "no leader for 10s".into()));
    }),
    ("the process does not answer", |seen| {
        let own = seen.own.as_mut().unwrap();
        own.ready = Err("connection refused".into());
        own.metrics.clear();
    }),
    ("a slow disk", |seen| {
        metric(seen, "podkv_log_write_seconds_bucket{le=\"0.01\"}", 900.0);
    }),
    ("little space", |seen| {
        metric(seen, "podkv_volume_free_bytes", 1.0e9)
    }),
    ("no space", |seen| {
        metric(seen, "podkv_volume_free_bytes", 1.0e7)
    }),
    ("the leader waits", |seen| {
        metric(seen, "podkv_membership_waiting", 1.0);
        metric(seen, "podkv_size_waiting", 1.0);
    }),
    ("a voter is away", |seen| {
        seen.nodes[2].status = Err("it cannot be reached".into())
    }),
    ("a standby is away", |seen| {
        seen.nodes[2].status = Err("it cannot be reached".into());
        seen.members.as_mut().unwrap()[2].role = MemberRole::Learner;
    }),
    ("an endpoint that is no member's", |seen| {
        let status = Err("it cannot be reached".into());
        seen.nodes.push(NodeSeen {
            address: "10.9.9.9:2379".into(),
            status,
        });
    }),
    ("nobody answers", |seen| {
        for node in &mut seen.nodes {
            node.status = Err("it cannot be reached".into());
        }
        seen.members = Err("no endpoint answers".into());
    }),
    ("no majority", |seen| {
        for ordinal in 0..3 {
            status(seen, ordinal).leader = None;
        }
        seen.nodes[2].status = Err("it cannot be reached".into());
        seen.members = Err("no leader".into());
    }),
    ("one node does not follow", |seen| {
        status(seen, 2).leader = None;
        status(seen, 2).header.term = 9;
    }),
    ("two clusters", |seen| {
        status(seen, 2).header.cluster = ClusterId(8)
    }),
    ("no cluster yet", |seen| {
        for ordinal in 0..3 {
            let status = status(seen, ordinal);
            status.header.cluster = ClusterId(0);
            status.leader = None;
        }
        seen.members = Ok(Vec::new());
    }),
    ("a node of the past", |seen| {
        status(seen, 0).header.incarnation = Incarnation(2)
    }),
    ("a node is behind", |seen| {
        status(seen, 1).applied_index = 1_000
    }),
    ("two releases", |seen| {
        status(seen, 1).version = "0.2.0".into()
    }),
    ("four voters", |seen| {
        seen.nodes.push(node(3));
        seen.members.as_mut().unwrap().push(member(3));
    }),
    ("two voters", |seen| {
        seen.nodes.pop();
        seen.members.as_mut().unwrap().pop();
    }),
    ("a replacement under way", |seen| {
        let new = Member {
            id: MemberId(9),
            role: MemberRole::Learner,
            ..member(2)
        };
        seen.members.as_mut().unwrap().push(new);
    }),
    ("no space", |seen| {
        let member = MemberId(2);
        for ordinal in 0..3 {
            let alarms = &mut status(seen, ordinal).alarms;
            alarms.push(Alarm {
                member,
                kind: AlarmKind::NoSpace,
            });
        }
    }),
    ("other data, and the node is gone", |seen| {
        status(seen, 0).alarms.push(Alarm {
            member: MemberId(9),
            kind: AlarmKind::Corrupt,
        });
    }),
    ("suspended", |seen| {
        for ordinal in 0..3 {
            status(seen, ordinal)
                .desired_size
                .as_mut()
                .unwrap()
                .replicas = 0;
        }
    }),
];

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    let mut printed = String::new();
    for (title, change) in SCENARIOS {
        let mut seen = healthy();
        change(&mut seen);
        told(&mut printed, title, &judge(&seen));
    }
    golden("inside.txt", &printed);
}

#[test]
fn nothing_is_said_without_a_word_on_what_to_do() {
    for (title, change) in SCENARIOS {
        let mut seen = healthy();
        change(&mut seen);
        for finding in judge(&seen) {
            let is_ok = finding.level == Level::Ok;
            assert_eq!(finding.todo.is_empty(), is_ok, "{title}: {finding}");
        }
    }
}

#[test]
fn a_quantile_of_a_histogram() {
    let own = healthy().own.unwrap();
    assert_eq!(own.quantile("podkv_log_write_seconds", 0.99), Some(0.01));
    assert_eq!(own.quantile("podkv_log_write_seconds", 0.999), Some(0.25));
    assert_eq!(own.quantile("podkv_nothing", 0.5), None);
}
