//! Promise: pod addresses change, and nobody remembers one.
//!
//! Every pod is rescheduled with its volume: one by one, as the machines of a node pool are replaced, then all at the
//! same moment, as after a power cut. Odd seeds do it in a cluster that has IPv6 alone. The containers' host names are
//! those of their machines, as with `hostNetwork`: only the manifest tells a pod its name.

use futures_util::future::try_join_all;

use super::Run;
use crate::Result;
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::stage::{Family, HostNames, VolumeFate};

const PODS: u32 = 3;

pub async fn play(run: Run) -> Result<Report> {
    let family = if run.seed.is_multiple_of(2) {
        Family::V4
    } else {
        Family::V6
    };
    let stage = run
        .stage_with(PODS, |setting| {
            setting.family = family;
            setting.host_names = HostNames::OfMachines;
        })
        .await?;
    stage.start_all().await?;
    stage.wait_all_ready().await?;
    stage.wait_virtual_addresses().await?;
    let before = stage.members().await?;
    let load = Load::start(&stage, "moves", Writers::SESSIONS)?;
    load.wait_for(10).await?;
    for ordinal in 0..PODS {
        stage.lose(ordinal, VolumeFate::Kept).await?;
        stage.wait_all_ready().await?;
    }
    load.wait_for(10).await?;
    try_join_all((0..PODS).map(|ordinal| stage.lose(ordinal, VolumeFate::Kept))).await?;
    stage.wait_all_ready().await?;
    load.wait_for(10).await?;
    let ledger = load.stop().await;
    stage.check(&ledger).await?;
    // A restart is not a decommission.
    crate::ensure(stage.members().await? == before, || {
        format!("other members than before: {before:?}")
    })?;
    Ok(Report::of(
        &ledger,
        format!("{family:?}; all at once in the end"),
    ))
}
