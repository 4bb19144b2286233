//! Promise: one cluster, never two, whatever happens while pods start for the first time.
//!
//! Three, four or five pods start in parallel, each after a delay of its own. Meanwhile containers crash, pods lose
//! their volumes, and the StatefulSet says another size for a while. In the second kind of runs DNS is silent, fails,
//! lies or tells a part. Then all is mended, and there must be one cluster of all pods; at no time may two volumes
//! belong to different clusters.
//!
//! No more volumes are lost than a minority of those who found: a majority that is gone is another scenario.

use std::time::Duration;

use futures_util::future::try_join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::Run;
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::stage::dns::Fault;
use crate::stage::{Stage, VolumeFate};
use crate::{Result, ensure};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Pods,
    Dns,
    /// As `Pods`, with the bug: see [`crate::planted`].
    Planted,
}

/// In which things go wrong.
const TURMOIL_MS: u64 = 4_000;
/// Of the planted bug. Charts say a minute, and pods that take longer: it is the ratio that counts.
const PLANTED_PATIENCE_S: u64 = 2;
/// A first start takes seconds.
const PLANTED_END: Duration = Duration::from_secs(30);

/// What happens to one pod, in milliseconds from the start.
#[derive(Clone, Debug)]
struct Fate {
    starts: u64,
    crashes: Vec<u64>,
    loses_volume: Option<u64>,
}

pub async fn play(run: Run, trouble: Trouble) -> Result<Report> {
    let mut random = run.random();
    let replicas = 3 + u32::try_from(run.seed % 3)?;
    // Half of the runs begin with another size.
    let at_first = match random.random_range(0..4) {
        0 => replicas - 1,
        1 => random.random_range(1..replicas),
        _ => replicas,
    };
    let stage = run.stage(at_first).await?;
    if trouble == Trouble::Planted {
        let arguments = [
            "planted",
            &replicas.to_string(),
            &PLANTED_PATIENCE_S.to_string(),
        ];
        let entrypoint = (std::env::current_exe()?, arguments.map(String::from).into());
        stage.kubelet.set_entrypoint(Some(entrypoint));
    }
    let mut fates: Vec<_> = (0..replicas).map(|_| fate(&mut random)).collect();
    // A minority of the volumes, at most, also of those of the first size: it may be the one that is founded.
    let may_lose = usize::try_from((at_first - 1) / 2)?;
    let losing: Vec<usize> = (0..fates.len())
        .filter(|index| fates[*index].loses_volume.is_some())
        .collect();
    for index in losing.into_iter().skip(may_lose) {
        fates[index].loses_volume = None;
    }
    let resized = random.random_range(500..TURMOIL_MS);
    let dns_seed = random.random();
    tokio::try_join!(
        try_join_all(fates.iter().zip(0..).map(|(fate, ordinal)| {
            // Pods that the first size does not have come with the second.
            let created = if ordinal < at_first { 0 } else { resized };
            live(&stage, ordinal, created, fate)
        })),
        async {
            sleep(Duration::from_millis(resized)).await;
            if at_first != replicas {
                stage
                    .world
                    .edit_stateful_set(|object| object["spec"]["replicas"] = json!(replicas));
            }
            Ok(())
        },
        async {
            match trouble {
                Trouble::Dns => disturb(&stage, dns_seed).await,
                Trouble::Pods | Trouble::Planted => Ok(()),
            }
        },
    )?;
    // One or none yet, never two.
    let clusters = stage.clusters_ever()?;
    ensure(clusters.len() <= 1, || {
        format!("{} CLUSTERS: {clusters:x?}", clusters.len())
    })?;
    let whole = match trouble {
        // One that went alone and was followed by all is no cluster of these pods, and never will be.
        Trouble::Planted => match timeout(PLANTED_END, stage.wait_whole()).await {
            Ok(whole) => whole,
            Err(_) => Err(format!("not whole within {PLANTED_END:?}").into()),
        },
        Trouble::Pods | Trouble::Dns => stage.wait_whole().await,
    };
    // Said first: it is the reason, if there are two.
    stage.check_one_cluster()?;
    whole?;
    let load = Load::start(&stage, "first", Writers::SESSIONS)?;
    load.wait_for(30).await?;
    let ledger = load.stop().await;
    stage.check(&ledger).await?;
    Ok(Report::of(&ledger, format!("{replicas} pods")))
}

fn fate(random: &mut StdRng) -> Fate {
    let crashes = match random.random_range(0..10) {
        0..5 => 0,
        5..8 => 1,
        _ => 2,
    };
    Fate {
        starts: random.random_range(0..TURMOIL_MS),
        crashes: (0..crashes)
            .map(|_| random.random_range(100..TURMOIL_MS))
            .collect(),
        loses_volume: random
            .random_bool(0.15)
            .then(|| random.random_range(100..TURMOIL_MS)),
    }
}

/// One pod's first seconds.
async fn live(stage: &Stage, ordinal: u32, created: u64, fate: &Fate) -> Result<()> {
    sleep(Duration::from_millis(created.max(fate.starts))).await;
    stage.start(ordinal).await?;
    let mut events: Vec<_> = fate.crashes.iter().map(|after| (*after, false)).collect();
    events.extend(fate.loses_volume.map(|after| (after, true)));
    events.sort_unstable();
    let mut now = 0;
    for (after, loses_volume) in events {
        sleep(Duration::from_millis(after - now)).await;
        now = after;
        if loses_volume {
            stage.lose(ordinal, VolumeFate::Lost).await?;
        } else {
            stage.pod(ordinal)?.kill().await;
        }
    }
    Ok(())
}

/// DNS is wrong in one way after the other, and right again.
async fn disturb(stage: &Stage, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..random.random_range(2..5) {
        let fault = match random.random_range(0..6) {
            0 => Fault::Silence,
            1 => Fault::ServerFailure,
            2 => Fault::NoSuchName,
            3 => Fault::Stale(random.random_range(1..6)),
            4 => Fault::Truncated,
            _ => Fault::Partial,
        };
        let chance = [0.3, 0.7, 1.0][random.random_range(0..3)];
        stage.dns.set_fault(Some(fault), chance);
        sleep(Duration::from_millis(random.random_range(1_000..4_000))).await;
        let clusters = stage.clusters_ever()?;
        ensure(clusters.len() <= 1, || {
            format!("{} CLUSTERS: {clusters:x?}", clusters.len())
        })?;
    }
    stage.dns.set_fault(None, 0.0);
    Ok(())
}
