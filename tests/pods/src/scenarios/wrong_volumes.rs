//! Promise: a volume that is not what it was is noticed: refused with the reason, or joined anew under a new id. It
//! never votes a second time.
//!
//! ```text
//!   foreign   a volume of another cluster, of a pod of the same name     refused by its peers, with the reason
//!   copied    a copy of another pod's volume                             the pod does not start, and says why
//!   rewound   the pod's own volume as it was before                      quarantined, joined under a new id
//! ```

use std::path::Path;

use podkv_api::{MemberId, Store as _};

use super::Run;
use crate::check::Report;
use crate::load::{Ledger, Load, Writers};
use crate::stage::{Stage, VolumeFate, until};
use crate::{PATIENCE, Result, ensure};

const PODS: u32 = 3;
const VICTIM: u32 = 1;

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.cluster(PODS).await?;
    let foreign = another_cluster(&stage).await?;
    let mut ledger = write(&stage, "before").await?;

    rewound(&stage, &mut ledger).await?;
    copied(&stage).await?;
    ledger.extend(write(&stage, "between").await?);
    foreign_volume(&stage, &foreign, &mut ledger).await?;
    ledger.extend(write(&stage, "after").await?);

    stage.wait_whole().await?;
    stage.check_replicas(&ledger).await?;
    let clusters = stage.clusters_ever()?;
    ensure(clusters.len() == 2, || {
        format!("there were to be two clusters in all, one after the other: {clusters:x?}")
    })?;
    Ok(Report::of(&ledger, "rewound, copied and foreign volumes"))
}

async fn write(stage: &Stage, name: &str) -> Result<Ledger> {
    let load = Load::start(stage, name, Writers::SESSIONS)?;
    load.wait_for(30).await?;
    Ok(load.stop().await)
}

/// Ends the cluster that runs, keeps the victim's volume, and founds another one.
async fn another_cluster(stage: &Stage) -> Result<std::path::PathBuf> {
    let kept = stage.folder().join("foreign");
    stage.scale(0).await?;
    copy(&volume(stage)?, &kept).await?;
    for ordinal in 0..PODS {
        stage.put_aside(ordinal)?;
    }
    stage.scale(PODS).await?;
    stage.wait_whole().await?;
    stage.wait_all_ready().await?;
    Ok(kept)
}

fn volume(stage: &Stage) -> Result<std::path::PathBuf> {
    let volumes = stage.volumes(VICTIM)?;
    Ok(volumes.first().ok_or("the pod has no volume")?.clone())
}

async fn member(stage: &Stage, ordinal: u32) -> Result<MemberId> {
    Ok(stage.status(ordinal).await?.status.header.member)
}

/// The volume as it was before a restart and some writes.
async fn rewound(stage: &Stage, ledger: &mut Ledger) -> Result<()> {
    let id = member(stage, VICTIM).await?;
    let snapshot = stage.folder().join("snapshot");
    stage.pod(VICTIM)?.delete().await;
    copy(&volume(stage)?, &snapshot).await?;
    stage.start(VICTIM).await?;
    stage.wait_all_ready().await?;
    ledger.extend(write(stage, "forgotten").await?);
    stage.pod(VICTIM)?.delete().await;
    stage.put_aside(VICTIM)?;
    copy(&snapshot, &volume(stage)?).await?;
    stage.start(VICTIM).await?;
    until(
        "a rewound volume joins under a new id",
        PATIENCE,
        async || {
            let now = member(stage, VICTIM)
                .await
                .map_err(|error| error.to_string())?;
            let members = stage.members().await.map_err(|error| error.to_string())?;
            let ids: Vec<_> = members.iter().map(|member| member.id).collect();
            let healed = now != id && ids.contains(&now) && !ids.contains(&id);
            healed
                .then_some(())
                .ok_or(format!("it is {now}, it was {id}; the members are {ids:?}"))
        },
    )
    .await?;
    stage.wait_all_ready().await
}

/// Another pod's volume: it must not come up, and its log must say why.
async fn copied(stage: &Stage) -> Result<()> {
    stage.pod(VICTIM)?.delete().await;
    stage.put_aside(VICTIM)?;
    // Of a pod that runs on: two pods with one volume.
    let original = stage.volumes(VICTIM - 1)?;
    copy(
        original.first().ok_or("the pod has no volume")?,
        &volume(stage)?,
    )
    .await?;
    let pod = stage.start(VICTIM).await?;
    stage.wait_said(&pod, "belongs to pod").await?;
    ensure(
        stage.world.pod(pod.uid).is_some_and(|pod| !pod.ready),
        || "it is ready with another pod's volume".into(),
    )?;
    stage.lose(VICTIM, VolumeFate::Lost).await?;
    stage.wait_whole().await?;
    Ok(())
}

/// A member of another cluster, under the right name.
async fn foreign_volume(stage: &Stage, foreign: &Path, ledger: &mut Ledger) -> Result<()> {
    stage.pod(VICTIM)?.delete().await;
    stage.put_aside(VICTIM)?;
    copy(foreign, &volume(stage)?).await?;
    let pod = stage.start(VICTIM).await?;
    stage.wait_said(&pod, "cluster").await?;
    // It is nobody here, and its peers go on without it.
    ledger.extend(write(stage, "meanwhile").await?);
    let client = stage.client_at(pod.ip)?;
    let status = client.status().await;
    client.close().await;
    ensure(
        stage.world.pod(pod.uid).is_some_and(|pod| !pod.ready),
        || format!("it is ready with a foreign volume: {status:?}"),
    )?;
    stage.lose(VICTIM, VolumeFate::Lost).await?;
    stage.wait_whole().await?;
    Ok(())
}

/// All of a volume, with its owners.
async fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = tokio::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .await?;
    ensure(status.success(), || {
        format!("{} is not copied: {status}", from.display())
    })
}
