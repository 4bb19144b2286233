//! The one task that looks around: resolves services' names, learns members, finds the leader.
//!
//! It looks every refresh interval, and soon after a call met trouble. A member is used only once it
//! has answered under its own address and with its own id: from outside a cluster's network the
//! addresses that members know of themselves may lead nowhere, or to somebody else.

use std::sync::Arc;

use futures_util::future::join_all;
use podkv_api::{Error, Header, LeaderHint, Member, NodeStatus, Reason, Result};
use podkv_proto::v1;
use podkv_proto::v1::cluster_client::ClusterClient;
use podkv_tls::host_of;
use tokio::time::{Instant, sleep, timeout};

use crate::core::Core;
use crate::endpoint::Endpoint;
use crate::failure::{Failure, corrupt};
use crate::fence::Freshness;

/// How many nodes are asked who leads before the next look.
const ASKED_PER_LOOK: usize = 3;

pub(crate) async fn run(core: Arc<Core>, services: Vec<String>) {
    let mut failures = 0;
    loop {
        let found = look_around(&core, &services).await;
        failures = if found { 0 } else { failures + 1 };
        let pause = core.runtime.settings.backoff(failures.max(1));
        if found {
            tokio::select! {
                () = sleep(core.runtime.settings.refresh_interval) => {}
                () = core.endpoints.stale() => sleep(pause).await,
            }
        } else {
            sleep(pause).await;
        }
    }
}

/// True if somebody said who leads.
pub(crate) async fn look_around(core: &Arc<Core>, services: &[String]) -> bool {
    resolve(core, services).await;
    let now = Instant::now();
    let mut nodes = core.endpoints.all();
    nodes.retain(|endpoint| endpoint.retry_at(now).is_none());
    let offset = rand::random_range(0..nodes.len().max(1));
    nodes.rotate_left(offset);
    for endpoint in nodes.iter().take(ASKED_PER_LOOK) {
        let Ok(status) = ask_status(core, endpoint).await else {
            core.endpoints.not_leading(endpoint);
            continue;
        };
        if core.runtime.settings.fixed {
            get_acquainted(core).await;
        } else {
            learn_members(core, endpoint).await;
        }
        heard(core, &status);
        if status.leader.is_some() {
            return true;
        }
    }
    false
}

/// Notes who leads, as this node says.
fn heard(core: &Core, status: &NodeStatus) {
    let leader = status.leader.map(|member| {
        let address = core
            .endpoints
            .all()
            .into_iter()
            .find(|endpoint| endpoint.member() == Some(member))
            .map_or_else(String::new, |endpoint| endpoint.address().to_owned());
        LeaderHint {
            member,
            client_address: address,
        }
    });
    core.endpoints.heard_of_leader(leader, status.header.term);
}

/// Asks a node how it is. What it says of itself goes through the fence like every answer.
pub(crate) async fn ask_status(
    core: &Core,
    endpoint: &Arc<Endpoint>,
) -> Result<NodeStatus, Failure> {
    let result = fetch_status(core, endpoint)
        .await
        .map_err(|failure| Failure {
            error: endpoint.explain(failure.error),
            ..failure
        });
    match &result {
        Ok(status) => endpoint.answered(status.header.member),
        Err(_) => endpoint.failed(Instant::now()),
    }
    result
}

async fn fetch_status(core: &Core, endpoint: &Arc<Endpoint>) -> Result<NodeStatus, Failure> {
    let begun = core.fence.begin();
    let until = Instant::now() + core.runtime.settings.attempt_timeout;
    let mut client = ClusterClient::new(endpoint.channel());
    let answer = endpoint
        .unary(until, client.status(v1::StatusRequest {}))
        .await?;
    let status = NodeStatus::try_from(answer).map_err(|error| corrupt(error.to_string()))?;
    core.fence
        .admit(begun, status.header, Freshness::Any)
        .map_err(Failure::refused)?;
    Ok(status)
}

/// On fixed endpoints: learns which member stands behind each, so that the leader can be told apart.
async fn get_acquainted(core: &Arc<Core>) {
    let strangers = core.endpoints.all().into_iter().filter(|endpoint| {
        endpoint.member().is_none() && endpoint.retry_at(Instant::now()).is_none()
    });
    join_all(strangers.map(|endpoint| async move {
        let _asked_again_later = ask_status(core, &endpoint).await;
    }))
    .await;
}

async fn learn_members(core: &Arc<Core>, endpoint: &Arc<Endpoint>) {
    let members = match fetch_members(core, endpoint).await {
        Ok(members) => members,
        Err(failure) => {
            tracing::debug!(?endpoint, error = %failure.error, "members not learned");
            return;
        }
    };
    let found = join_all(members.iter().map(|member| find_member(core, member))).await;
    let found: Vec<_> = found.into_iter().flatten().collect();
    if !found.is_empty() {
        core.endpoints.set_members(found);
    }
}

/// Linearizable, so that a node that was left behind does not lead us to a former membership.
async fn fetch_members(core: &Core, endpoint: &Arc<Endpoint>) -> Result<Vec<Member>, Failure> {
    let begun = core.fence.begin();
    let until = Instant::now() + core.runtime.settings.attempt_timeout;
    let mut client = ClusterClient::new(endpoint.channel());
    let request = v1::MembersRequest { local: false };
    let answer = endpoint.unary(until, client.members(request)).await?;
    let (header, members) =
        <(Header, Vec<Member>)>::try_from(answer).map_err(|error| corrupt(error.to_string()))?;
    core.fence
        .admit(begun, header, Freshness::Any)
        .map_err(Failure::refused)?;
    Ok(members)
}

/// The endpoint of a member, if it answers there.
async fn find_member(core: &Core, member: &Member) -> Option<Arc<Endpoint>> {
    if member.client_address.is_empty() {
        return None;
    }
    let endpoint = match core.endpoints.find(&member.client_address) {
        // Known and met. If it is away now, its health says so.
        Some(known) if known.member() == Some(member.id) => return Some(known),
        Some(known) if known.retry_at(Instant::now()).is_some() => return None,
        Some(known) => known,
        None => Arc::new(Endpoint::new(&member.client_address, &core.runtime).ok()?),
    };
    let status = ask_status(core, &endpoint).await.ok()?;
    (status.header.member == member.id).then_some(endpoint)
}

/// Replaces what the services' names resolve to. A name that does not resolve now keeps what it had.
async fn resolve(core: &Arc<Core>, services: &[String]) {
    if services.is_empty() {
        return;
    }
    let resolved = join_all(services.iter().map(|name| lookup(core, name))).await;
    let mut found: Vec<Arc<Endpoint>> = Vec::new();
    for (service, result) in services.iter().zip(resolved) {
        let addresses = match result {
            Ok(addresses) => addresses,
            Err(error) => {
                tracing::debug!(%error, "service not resolved");
                return;
            }
        };
        for address in addresses {
            if found.iter().any(|one| one.address() == address) {
                continue;
            }
            let endpoint = match core.endpoints.find(&address) {
                Some(known) => Some(known),
                None => Endpoint::behind(host_of(service), &address, &core.runtime)
                    .ok()
                    .map(Arc::new),
            };
            found.extend(endpoint);
        }
    }
    core.endpoints.set_resolved(found);
}

async fn lookup(core: &Core, name: &str) -> Result<Vec<String>> {
    let unresolved = |text: String| Error::new(Reason::Unreachable, text);
    let limit = core.runtime.settings.attempt_timeout;
    match timeout(limit, tokio::net::lookup_host(name)).await {
        Ok(Ok(addresses)) => Ok(addresses.map(|address| address.to_string()).collect()),
        Ok(Err(error)) => Err(unresolved(format!("{name} does not resolve")).with_source(error)),
        Err(_elapsed) => Err(unresolved(format!(
            "{name} did not resolve within {limit:?}"
        ))),
    }
}
