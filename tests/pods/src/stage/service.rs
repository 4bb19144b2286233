//! The virtual addresses of services, as kube-proxy keeps them: each new connection is translated to one of the
//! endpoints, by chance; a connection that exists stays where it is.
//!
//! The kernel translates (`nft`, as kube-proxy does in its newest mode), so a client sees what it sees in a
//! cluster: a connection that is refused, or that nobody answers, and no proxy that has taken it already. The
//! rules lag behind the endpoints by a time that can be set: a pod that has gone gets connections for a while.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::network::feed;
use super::world::World;
use crate::Result;

/// Keeps the rules until the tasks are dropped.
pub async fn serve(
    world: Arc<World>,
    service_ips: BTreeMap<String, IpAddr>,
    lag: Duration,
    tasks: &mut JoinSet<()>,
) -> Result<()> {
    let mut changes = world.changes();
    let mut written = rules(&world, &service_ips, lag);
    program(&written).await?;
    tasks.spawn(async move {
        loop {
            match world.next_change_seen(lag) {
                Some(due) => sleep_until(due).await,
                None if changes.changed().await.is_err() => return,
                None => continue,
            }
            let rules = rules(&world, &service_ips, lag);
            if rules == written {
                continue;
            }
            match program(&rules).await {
                Ok(()) => written = rules,
                Err(error) => eprintln!("the virtual addresses are not kept: {error}"),
            }
        }
    });
    Ok(())
}

async fn program(rules: &str) -> Result<()> {
    feed("nft", &["-f", "-"], rules).await
}

fn rules(world: &World, service_ips: &BTreeMap<String, IpAddr>, lag: Duration) -> String {
    let (mut nat, mut reject) = (String::new(), String::new());
    for service in &world.services {
        let Some(ip) = service_ips.get(&service.metadata.name) else {
            continue;
        };
        let (family, brackets) = match ip {
            IpAddr::V4(_) => ("ip", ("", "")),
            IpAddr::V6(_) => ("ip6", ("[", "]")),
        };
        let endpoints = world.endpoints(service, lag);
        for port in &service.spec.ports {
            let targets: Vec<_> = endpoints
                .iter()
                .filter_map(|endpoint| {
                    let found = endpoint.ports.iter().find(|(name, _)| *name == port.name);
                    found.map(|(_, number)| (endpoint.ip, *number))
                })
                .collect();
            let matching = format!("{family} daddr {ip} tcp dport {}", port.port);
            let _ = match targets.as_slice() {
                [] => writeln!(reject, "    {matching} reject with tcp reset"),
                [(ip, port)] => writeln!(
                    nat,
                    "    {matching} dnat {family} to {}{ip}{}:{port}",
                    brackets.0, brackets.1
                ),
                several => {
                    let map: Vec<_> = several
                        .iter()
                        .enumerate()
                        .map(|(index, (ip, port))| format!("{index} : {ip} . {port}"))
                        .collect();
                    writeln!(
                        nat,
                        "    {matching} dnat {family} to numgen random mod {} map {{ {} }}",
                        several.len(),
                        map.join(", ")
                    )
                }
            };
        }
    }
    format!(
        "table inet services\ndelete table inet services\ntable inet services {{\n  chain translate {{\n    type nat hook output priority -100;\n{nat}  }}\n  chain refuse {{\n    type filter hook output priority 0;\n{reject}  }}\n}}"
    )
}
