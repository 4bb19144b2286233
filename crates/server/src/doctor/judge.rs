//! From what was seen to what it means. Pure; its golden tests stand beside it.

use std::collections::{BTreeMap, BTreeSet};

use podkv_api::{Alarm, AlarmKind, ClusterId, Member, MemberRole, NodeStatus};

use super::observed::{
    Lookup, NodeSeen, Observed, OwnNode, PeerSeen, PortSeen, ServiceSeen, Settings, SizeSeen,
    TlsSeen,
};
use super::{Finding, Level};

/// Above this in the 99th percentile, elections come near: the alert `PodkvFsyncSlow` has the same.
const SLOW_FSYNC_SECONDS: f64 = 0.1;
/// A volume with less than this share of free space.
const SPACE_LOW: f64 = 0.15;
const SPACE_GONE: f64 = 0.03;
/// Certificates are renewed weeks before.
const EXPIRY_NEAR_SECONDS: i64 = 7 * 86_400;
/// A node this many entries behind does not keep up: at any rate it would have them within a second.
const LAG_ENTRIES: u64 = 10_000;

/// All findings, those that explain others first.
pub(crate) fn judge(seen: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    settings(seen, &mut findings);
    size(&seen.size, &mut findings);
    if let Some(service) = &seen.service {
        dns(service, &mut findings);
    }
    tls(&seen.tls, &mut findings);
    for peer in &seen.peers {
        findings.push(reach(peer));
    }
    if let Some(own) = &seen.own {
        this_node(own, &mut findings);
    }
    cluster(seen, &mut findings);
    findings
}

fn settings(seen: &Observed, findings: &mut Vec<Finding>) {
    const CHECK: &str = "settings";
    match &seen.settings {
        Settings::Absent => findings.push(Finding::ok(
            CHECK,
            "no node's settings in this environment: only the cluster is asked",
        )),
        Settings::Bad(why) => findings.push(Finding::problem(
            CHECK,
            why,
            "mend this setting: `podkv serve` ends with the same words",
        )),
        Settings::Good { name, in_memory } => {
            findings.push(Finding::ok(CHECK, format!("those of {name} can be used")));
            if *in_memory {
                findings.push(in_memory_finding(name));
            }
        }
    }
}

fn in_memory_finding(name: &str) -> Finding {
    Finding::warning(
        "durability",
        format!("{name} keeps everything in memory: acknowledged writes go with the processes"),
        "set PODKV_STORAGE=disk and mount a volume, if the data matters",
    )
}

fn size(seen: &SizeSeen, findings: &mut Vec<Finding>) {
    const CHECK: &str = "size";
    findings.push(match seen {
        SizeSeen::NotAsked => return,
        SizeSeen::Read { start, replicas } => Finding::ok(
            CHECK,
            format!("the StatefulSet wants {replicas} pods, from ordinal {start} on"),
        ),
        SizeSeen::BeingDeleted => Finding::warning(
            CHECK,
            "the StatefulSet is being deleted",
            "nothing, if that is meant: the members stay as they are until there is one again",
        ),
        SizeSeen::Forbidden(why) => Finding::problem(
            CHECK,
            why,
            "apply the Role and the RoleBinding of k8s/base/rbac.yaml, and use its ServiceAccount in the pods. Until \
             then the members stay as they are",
        ),
        SizeSeen::Unauthenticated(why) => Finding::problem(
            CHECK,
            why,
            "restart the pod if its ServiceAccount was made anew; else ask who runs the API server",
        ),
        SizeSeen::Misnamed(why) => Finding::problem(
            CHECK,
            why,
            "set PODKV_STATEFULSET to the name of the pods' StatefulSet and mount the ServiceAccount's token; or drop it, \
             and set PODKV_REPLICAS",
        ),
        SizeSeen::Failed(why) => Finding::warning(
            CHECK,
            why,
            "let the pods reach the API server (egress in the NetworkPolicy, DNS is not needed). Until then the members \
             stay as they are",
        ),
    });
}

fn dns(service: &ServiceSeen, findings: &mut Vec<Finding>) {
    const CHECK: &str = "dns";
    let domain = &service.cluster_domain;
    let (name, records) = (&service.name, &service.srv);
    findings.push(match (records, &service.domain_is_right) {
        (Lookup::Found(targets), _) => Finding::ok(CHECK, format!("{name} has {targets} targets")),
        (_, Lookup::NoSuchName) => Finding::problem(
            CHECK,
            format!("there is no kubernetes.default.svc.{domain}: this cluster's names do not end with {domain}"),
            "set PODKV_CLUSTER_DOMAIN to what they end with, or drop it: it is found in /etc/resolv.conf",
        ),
        (Lookup::NoSuchName, _) => Finding::problem(
            CHECK,
            format!("there is no {name}"),
            "the headless service must exist in this namespace under this name, with clusterIP None, a port named \
             grpc-peer, and publishNotReadyAddresses true. A cache repeats this for up to half a minute",
        ),
        (Lookup::Failed(why), _) => Finding::problem(
            CHECK,
            format!("DNS does not answer for {name}: {why}"),
            "look at the cluster's DNS (kubectl -n kube-system get pods -l k8s-app=kube-dns), and let the pods send to \
             port 53 in the NetworkPolicy. Nodes that know each other go on by the pods' names",
        ),
    });
}

fn tls(seen: &TlsSeen, findings: &mut Vec<Finding>) {
    const CHECK: &str = "tls";
    match seen {
        TlsSeen::Off => {}
        TlsSeen::Bad(why) => findings.push(Finding::problem(
            CHECK,
            why,
            "mend the files: a node that is running goes on with the ones from before, and does not start with these",
        )),
        TlsSeen::Good {
            allows_plain,
            expires_in_seconds,
        } => {
            if *allows_plain {
                findings.push(Finding::warning(
                    CHECK,
                    "plain text is accepted besides TLS",
                    "set PODKV_TLS=require once every node and client speaks TLS",
                ));
            }
            let days = expires_in_seconds / 86_400;
            findings.push(if *expires_in_seconds < EXPIRY_NEAR_SECONDS {
                Finding::warning(
                    CHECK,
                    format!("this node's certificate expires in {days} days"),
                    "look at why it was not renewed (kubectl get certificate, kubectl describe certificate)",
                )
            } else {
                Finding::ok(CHECK, format!("this node's certificate is good for {days} days"))
            });
        }
    }
}

fn reach(peer: &PeerSeen) -> Finding {
    const CHECK: &str = "peer";
    let (pod, address) = (&peer.pod, &peer.address);
    match (&peer.addresses, &peer.port) {
        (Lookup::NoSuchName, _) => Finding::problem(
            CHECK,
            format!("{pod} has no name in DNS ({address})"),
            "its pod is not there (kubectl get pods), or the headless service lacks publishNotReadyAddresses: true",
        ),
        (Lookup::Failed(why), _) => Finding::problem(
            CHECK,
            format!("{pod} cannot be looked up ({address}): {why}"),
            "look at the cluster's DNS: nothing is known about this pod",
        ),
        (Lookup::Found(_), PortSeen::Open | PortSeen::NotDialled) => {
            Finding::ok(CHECK, format!("{pod} answers at {address}"))
        }
        (Lookup::Found(ips), PortSeen::Refused) => Finding::problem(
            CHECK,
            format!(
                "{pod} is at {}, and nothing listens on its peer port",
                list(ips)
            ),
            "its container is starting, or ended: kubectl logs (with --previous) says why. A wrong peer-listen does it too",
        ),
        (Lookup::Found(ips), PortSeen::Silent) => Finding::problem(
            CHECK,
            format!(
                "{pod} is at {}, and nothing comes back from its peer port",
                list(ips)
            ),
            "its host is down, or a NetworkPolicy does not let the pods reach each other's port 2380",
        ),
        (Lookup::Found(ips), PortSeen::Failed(why)) => Finding::problem(
            CHECK,
            format!("{pod} at {} cannot be dialled: {why}", list(ips)),
            "look at the network between the two pods",
        ),
        (Lookup::Found(_), PortSeen::Tls(why)) => Finding::problem(
            CHECK,
            format!("TLS with {pod} does not come about: {why}"),
            "both must have certificates of one CA that name their pods, and modes that fit: go from off to require by way \
             of allow",
        ),
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

fn this_node(own: &OwnNode, findings: &mut Vec<Finding>) {
    findings.push(match &own.ready {
        Ok((true, _)) => Finding::ok("ready", "this node is ready"),
        Ok((false, why)) => Finding::problem(
            "ready",
            format!("this node is not ready: {why}"),
            "see the other findings for what it waits for; if there are none, it may only need time",
        ),
        Err(why) => Finding::problem(
            "ready",
            format!("this node's admin port does not answer: {why}"),
            "the process is not up yet, or listens elsewhere than admin-listen says; its log says more",
        ),
    });
    if let Some(p99) = own.quantile("podkv_log_write_seconds", 0.99)
        && p99 > SLOW_FSYNC_SECONDS
    {
        findings.push(Finding::warning(
            "disk",
            format!("one of a hundred fsyncs of this volume took {p99} s or more since the node started"),
            "give the volume a faster class, or fewer neighbours: heartbeats wait behind it, and leaders are deposed",
        ));
    }
    if let (Some(free), Some(all)) = (
        own.metric("podkv_volume_free_bytes"),
        own.metric("podkv_volume_size_bytes")
            .filter(|all| *all > 0.0),
    ) {
        findings.push(space(free, all));
    }
    for (name, check, what) in [
        (
            "podkv_membership_waiting",
            "membership",
            "this node leads, and something keeps the membership from what it should be",
        ),
        (
            "podkv_size_waiting",
            "size",
            "this node leads, and the wanted number of pods cannot be read or does not count",
        ),
    ] {
        if own.metric(name).unwrap_or_default() > 0.0 {
            findings.push(Finding::warning(
                check,
                what,
                "this node's log says what it waits for",
            ));
        }
    }
}

const MORE_SPACE: &str = "enlarge the volume: \"Resize the volumes\" in k8s/README.md. `podkv compact` and a shorter \
    `podkv retention` free what only history holds";

fn space(free: f64, all: f64) -> Finding {
    let share = free / all;
    let text = format!(
        "{:.1} of {:.1} GiB are free on this volume",
        free / f64::from(1 << 30),
        all / f64::from(1 << 30)
    );
    let todo = MORE_SPACE;
    match share {
        share if share < SPACE_GONE => Finding::problem("disk", text, todo),
        share if share < SPACE_LOW => Finding::warning("disk", text, todo),
        _ => Finding::ok("disk", text),
    }
}

/// What the nodes say of themselves and of each other.
fn cluster(seen: &Observed, findings: &mut Vec<Finding>) {
    let alive: Vec<(&NodeSeen, &NodeStatus)> = seen
        .nodes
        .iter()
        .filter_map(|node| node.status.as_ref().ok().map(|status| (node, status)))
        .collect();
    let members = seen.members.as_deref().unwrap_or_default();
    for node in &seen.nodes {
        if let Err(why) = &node.status {
            findings.push(silent(node, why, members));
        }
    }
    if alive.is_empty() {
        findings.push(Finding::problem(
            "cluster",
            "no node answers to clients",
            "check the endpoints and the way to them; in Kubernetes: podkv doctor --kube",
        ));
        return;
    }
    one_cluster(&alive, findings);
    alarms(&alive, findings);
    leadership(&alive, findings);
    progress(&alive, findings);
    releases(&alive, findings);
    for (node, status) in &alive {
        if !status.durable
            && !matches!(
                &seen.settings,
                Settings::Good {
                    in_memory: true,
                    ..
                }
            )
        {
            findings.push(in_memory_finding(&named(node, status)));
        }
    }
    match &seen.members {
        Ok(members) => membership(members, &alive, findings),
        Err(why) => findings.push(Finding::problem(
            "members",
            format!("nobody can say who the members are: {why}"),
            "see what keeps the nodes from electing a leader",
        )),
    }
}

/// What the nodes themselves have found. All tell the same, but for those that lag.
fn alarms(alive: &[(&NodeSeen, &NodeStatus)], findings: &mut Vec<Finding>) {
    let raised: BTreeSet<Alarm> = alive
        .iter()
        .flat_map(|(_, status)| status.alarms.iter().copied())
        .collect();
    for alarm in raised {
        let of = |(_, status): &&(&NodeSeen, &NodeStatus)| status.header.member == alarm.member;
        let who = match alive.iter().find(of) {
            Some((node, status)) => named(node, status),
            None => format!("member {}", alarm.member),
        };
        findings.push(match alarm.kind {
            AlarmKind::NoSpace => Finding::problem(
                "space",
                format!("{who} has no space left: the cluster refuses writes that add data"),
                MORE_SPACE,
            ),
            AlarmKind::Corrupt => Finding::problem(
                "data",
                format!("{who} holds other data than most members at the same revision"),
                "do not read from it. Keep a copy of its volume if you want to know why, then give its pod an empty one: it \
                 rejoins under a new id and copies everything from its peers",
            ),
            _ => Finding::problem("alarm", format!("{who}: {}", alarm.kind.name()), "see the log of that node"),
        });
    }
}

fn named(node: &NodeSeen, status: &NodeStatus) -> String {
    match status.name.as_str() {
        "" => node.address.clone(),
        name => name.to_owned(),
    }
}

fn silent(node: &NodeSeen, why: &str, members: &[Member]) -> Finding {
    let member = members
        .iter()
        .find(|member| member.client_address == node.address);
    let who = member.map_or_else(
        || node.address.clone(),
        |member| format!("{} ({})", member.name, node.address),
    );
    let votes = match member {
        Some(member) => member.role == MemberRole::Voter,
        // An address that nobody has: a mistake of who asks, unless nothing at all is known.
        None => members.is_empty(),
    };
    Finding::new(
        if votes {
            Level::Problem
        } else {
            Level::Warning
        },
        "node",
        format!("{who} does not answer: {why}"),
        "see whether its pod runs (podkv doctor --kube), and whether this machine may reach its port",
    )
}

fn one_cluster(alive: &[(&NodeSeen, &NodeStatus)], findings: &mut Vec<Finding>) {
    let none = ClusterId::default();
    let mut ids: BTreeMap<ClusterId, Vec<String>> = BTreeMap::new();
    for (node, status) in alive {
        let of = ids.entry(status.header.cluster).or_default();
        of.push(named(node, status));
    }
    if let Some(homeless) = ids.remove(&none) {
        findings.push(Finding::problem(
            "cluster",
            format!("{} belong to no cluster yet", homeless.join(", ")),
            "their /readyz says what they wait for: all of the pods that found a cluster must be there",
        ));
    }
    if ids.len() > 1 {
        let groups: Vec<_> = ids
            .iter()
            .map(|(id, nodes)| format!("{id}: {}", nodes.join(", ")))
            .collect();
        findings.push(Finding::problem(
            "cluster",
            format!("the endpoints lead to {} clusters ({})", ids.len(), groups.join("; ")),
            "a volume of another cluster was mounted, or an address leads elsewhere. Find out which one is meant; give the \
             other pods empty volumes only when you know that their data is not needed",
        ));
    }
    let incarnations: BTreeSet<u64> = alive
        .iter()
        .filter(|(_, status)| status.header.cluster != none)
        .map(|(_, status)| status.header.incarnation.0)
        .collect();
    if incarnations.len() > 1 && ids.len() == 1 {
        findings.push(Finding::problem(
            "cluster",
            format!("nodes of incarnations {} answer", list(&Vec::from_iter(&incarnations))),
            "the cluster was recovered from a lost majority; nodes of the past end when they reach the leader of the \
             present: see why they do not",
        ));
    }
}

fn leadership(alive: &[(&NodeSeen, &NodeStatus)], findings: &mut Vec<Finding>) {
    let claims: Vec<_> = alive
        .iter()
        .filter(|(_, status)| status.leader == Some(status.header.member))
        .collect();
    let newest = claims.iter().max_by_key(|(_, status)| status.header.term);
    let Some((node, leader)) = newest else {
        findings.push(Finding::problem(
            "leader",
            "no node leads: writes are refused",
            "a majority of the voters must run and reach each other. If their volumes are gone for good: \"Recover\" in \
             k8s/README.md",
        ));
        return;
    };
    let (term, name) = (leader.header.term, named(node, leader));
    findings.push(Finding::ok(
        "leader",
        format!("{name} leads in term {term}"),
    ));
    let strangers: Vec<_> = alive
        .iter()
        .filter(|(_, status)| {
            status.header.cluster == leader.header.cluster
                && status.header.incarnation == leader.header.incarnation
                && status.leader != leader.leader
        })
        .map(|(node, status)| format!("{} (term {})", named(node, status), status.header.term))
        .collect();
    if !strangers.is_empty() {
        findings.push(Finding::warning(
            "leader",
            format!("{} do not follow {name}", strangers.join(", ")),
            "an election may have been under way: ask again. If it stays, they cannot reach each other on port 2380",
        ));
    }
}

fn progress(alive: &[(&NodeSeen, &NodeStatus)], findings: &mut Vec<Finding>) {
    let committed = alive.iter().map(|(_, status)| status.committed_index).max();
    for (node, status) in alive {
        let behind = committed
            .unwrap_or_default()
            .saturating_sub(status.applied_index);
        if behind > LAG_ENTRIES {
            findings.push(Finding::warning(
                "lag",
                format!("{} is {behind} entries behind", named(node, status)),
                "it catches up, or its disk or network is slower than the writes: ask again and compare",
            ));
        }
    }
}

fn releases(alive: &[(&NodeSeen, &NodeStatus)], findings: &mut Vec<Finding>) {
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (node, status) in alive {
        let of = versions.entry(&status.version).or_default();
        of.push(named(node, status));
    }
    if versions.len() > 1 {
        let groups: Vec<_> = versions
            .iter()
            .map(|(version, nodes)| format!("{version}: {}", nodes.join(", ")))
            .collect();
        findings.push(Finding::warning(
            "release",
            format!("several releases run ({})", groups.join("; ")),
            "nothing while a rollout is under way; else see why it stands still (kubectl rollout status)",
        ));
    }
}

fn membership(members: &[Member], alive: &[(&NodeSeen, &NodeStatus)], findings: &mut Vec<Finding>) {
    const CHECK: &str = "members";
    let voters = members
        .iter()
        .filter(|member| member.role == MemberRole::Voter);
    let (voters, count) = (voters.count(), members.len());
    findings.push(Finding::ok(
        CHECK,
        format!("{count} members, {voters} of them vote"),
    ));
    if voters > 2 && voters % 2 == 0 {
        findings.push(Finding::warning(
            CHECK,
            format!("{voters} voters bear no more failures than {}", voters - 1),
            "nothing while members come and go; an odd number of voters is kept by itself",
        ));
    }
    if voters == 2 {
        findings.push(Finding::warning(
            CHECK,
            "of two voters neither may fail",
            "run three pods: a majority of two is two",
        ));
    }
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for member in members {
        *names.entry(&member.name).or_default() += 1;
    }
    for (name, times) in names.iter().filter(|(_, times)| **times > 1) {
        findings.push(Finding::warning(
            CHECK,
            format!("{name} is there {times} times: a new node waits to take the place of an old one"),
            "nothing if that is over within a minute; else two pods live under one name, or the new one does not catch up",
        ));
    }
    let wanted = alive
        .iter()
        .max_by_key(|(_, status)| status.applied_index)
        .and_then(|(_, status)| status.desired_size.as_ref());
    match wanted {
        Some(size) if size.replicas == 0 => findings.push(Finding::warning(
            CHECK,
            "the StatefulSet wants no pods: the cluster is suspended",
            "scale it up again: the same members come back",
        )),
        Some(size) if size.replicas as usize != names.len() => findings.push(Finding::warning(
            CHECK,
            format!("{} pods are wanted, and {} are members", size.replicas, names.len()),
            "pods that come join within seconds, pods that go leave after half a minute; if it stays, see why a pod is not \
             there",
        )),
        _ => {}
    }
}
