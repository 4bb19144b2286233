//! After everything is healed: is all whole again, and what does every replica tell?

use std::time::Duration;

use futures_util::FutureExt as _;
use podkv_api::{AlarmKind, Error, KeyRange, MemberRole, Range, Reason, Result, Store as _};
use tokio::sync::{mpsc, oneshot};

use super::chronicle::Told;
use super::clock::nanos;
use super::host::Host;
use super::people::{self, Door};
use super::pod::{self, Order};
use super::{PATIENCE, PodHost, World, network};
use crate::harvest::{self, Forgotten};
use crate::history::{Replica, Revision};

/// At how many revisions digests are compared.
const DIGESTS: u64 = 5;

impl World {
    /// Every pod that there should be serves, they agree on who they are, and each holds what any of them held when
    /// that began: `mark`. The callers go on writing, so their revisions need not be equal at any moment.
    pub(super) fn is_whole(&self, mark: &mut Option<Revision>) -> bool {
        let Some(revisions) = self.settled() else {
            *mark = None;
            return false;
        };
        let newest = revisions.iter().max().copied().unwrap_or(0);
        let mark = *mark.get_or_insert(newest);
        revisions.iter().all(|revision| *revision >= mark)
    }

    /// The same, but for what they hold: work is under way.
    pub(super) fn is_settled(&self) -> bool {
        self.settled().is_some()
    }

    /// The revision of each pod, if there is nothing to wait for but them.
    fn settled(&self) -> Option<Vec<Revision>> {
        let expected = self.set.replicas();
        let mut nodes = Vec::new();
        for pod in &self.pods {
            let node = pod.slot.get();
            match pod.ordinal < expected {
                true => nodes.push((pod.name.clone(), node?)),
                false if pod.running.is_some() => return None,
                false => {}
            }
        }
        let first = nodes.first()?.1.header();
        let mut names = Vec::new();
        for (name, node) in &nodes {
            let header = node.header();
            let same = (header.cluster, header.term) == (first.cluster, first.term);
            if !same || !node.health().borrow().ready {
                return None;
            }
            names.push((name.clone(), node.id()));
        }
        let voters = match expected {
            2 => 2,
            odd if odd % 2 == 1 => odd,
            even => even - 1,
        };
        for (_, node) in &nodes {
            let members = node.members_known();
            let mut known: Vec<_> = members
                .iter()
                .map(|member| (member.name.clone(), member.id))
                .collect();
            known.sort();
            let voting = members
                .iter()
                .filter(|member| member.role == MemberRole::Voter);
            if known != names || voting.count() != voters as usize {
                return None;
            }
        }
        Some(
            nodes
                .iter()
                .map(|(_, node)| node.header().revision)
                .collect(),
        )
    }

    /// For people: what is not whole.
    pub(super) fn describe(&self) -> String {
        let one = |pod: &PodHost| match pod.slot.get() {
            None => format!("{} (runs: {})", pod.name, pod.running.is_some()),
            Some(node) => {
                let header = node.header();
                let members: Vec<_> = node
                    .members_known()
                    .iter()
                    .map(|member| format!("{}={}:{:?}", member.name, member.id, member.role))
                    .collect();
                format!(
                    "{} id {} term {} revision {} leader {:?} {:?} members {members:?} waits {:?} {:?}",
                    pod.name,
                    node.id(),
                    header.term,
                    header.revision,
                    node.leader(),
                    *node.health().borrow(),
                    node.membership_waits(),
                    node.size_waits(),
                )
            }
        };
        let all: Vec<_> = self.pods.iter().map(one).collect();
        all.join("; ")
    }

    /// Every replica tells its history, over the network, to a client that stays on it.
    pub(super) fn harvest(&mut self) -> std::io::Result<Result<Vec<Replica>, String>> {
        let name = "harvester";
        let mut host = Host::new(0)?;
        let link = self.network.up(name);
        let pods: Vec<_> = self
            .pods
            .iter()
            .filter_map(|pod| Some((pod.ordinal, pod.running.as_ref()?.orders.clone())))
            .collect();
        let mut telling = host.spawn(tell((link, self.plan.door), pods, self.chronicle.told()));
        let until = self.clock.now() + nanos(PATIENCE);
        while !telling.is_finished() {
            if self.clock.now() > until {
                let state = self.describe();
                return Ok(Err(format!("replicas do not tell their history: {state}")));
            }
            self.tick()?;
            host.play();
        }
        Ok(match (&mut telling).now_or_never() {
            Some(Ok(Ok(replicas))) => Ok(replicas),
            other => Err(format!("replicas did not tell their history: {other:?}")),
        })
    }
}

async fn tell(
    (link, door): (network::Link, Door),
    pods: Vec<(u32, mpsc::UnboundedSender<Order>)>,
    chronicle: Told,
) -> Result<Vec<Replica>> {
    let all = people::client(&link, &door, 1, None)?;
    let revision = loop {
        match all.range(Range::new(KeyRange::key("none"))).await {
            Ok(read) => break read.header.revision,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    all.close().await;
    let mut replicas = Vec::new();
    for (ordinal, orders) in pods {
        let client = people::client(&link, &door, 1, Some(ordinal))?;
        let forgotten = Forgotten {
            upto: chronicle.compacted,
            changes: &chronicle.changes,
        };
        let name = pod::name(ordinal);
        let mut replica = harvest::replica_after(&client, name, revision, forgotten).await?;
        let alarms = client.status().await?.alarms;
        client.close().await;
        // No disk here changes data unseen.
        if let Some(alarm) = alarms.iter().find(|alarm| alarm.kind == AlarmKind::Corrupt) {
            let text = format!("a scrub says that {} holds other data", alarm.member);
            return Err(Error::new(Reason::Corrupt, text));
        }
        let kept = revision.saturating_sub(chronicle.compacted);
        for nth in 1..=DIGESTS {
            let at = (chronicle.compacted + kept * nth / DIGESTS).max(1);
            let (answer, digest) = oneshot::channel();
            // Who does not take it drops the other end.
            let _ = orders.send(Order::Digest(at, answer));
            if let Ok(digest) = digest.await {
                replica.digests.push((at, digest?));
            }
        }
        replicas.push(replica);
    }
    Ok(replicas)
}
