//! Promise: two pods that live and claim one name do not take turns.
//!
//! A machine is cut off with its pod, and somebody deletes the pod by force: Kubernetes starts another under the same
//! name, with an empty volume. When the machine is back there are two. The one that the cluster took is in; the other
//! learns that its id is over, and whatever it does then, no id goes in and out and in again.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Run;
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::{Result, ensure};

const PODS: u32 = 3;
/// Several times what lies between two replacements under one name (10 s).
const WATCHED: Duration = Duration::from_secs(45);

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.cluster(PODS).await?;
    let load = Load::start(&stage, "claim", Writers::SESSIONS)?;
    load.wait_for(10).await?;
    let victim = PODS - 1;
    let old = stage.pod(victim)?;
    stage.kubelet.network().set_reachable(old.ip, false).await?;
    // `kubectl delete --force`: nobody waits for the machine.
    stage.world.remove(old.uid);
    stage.put_aside(victim)?;
    stage.start(victim).await?;
    stage.wait_whole().await?;
    let members = stage.members().await?;
    stage.kubelet.network().set_reachable(old.ip, true).await?;
    let end = Instant::now() + run.by_length(WATCHED / 3, WATCHED);
    let mut changes = 0;
    let mut known = members;
    while Instant::now() < end {
        sleep(Duration::from_millis(500)).await;
        // An election in between is no matter.
        if let Ok(now) = stage.members().await
            && now != known
        {
            changes += 1;
            known = now;
        }
    }
    // Two that both answer change nothing.
    ensure(changes == 0, || {
        format!("the members changed {changes} times: {known:?}")
    })?;
    old.lose().await;
    load.wait_for(10).await?;
    let ledger = load.stop().await;
    stage.check(&ledger).await?;
    Ok(Report::of(
        &ledger,
        format!("nobody changed places in {WATCHED:?}"),
    ))
}
