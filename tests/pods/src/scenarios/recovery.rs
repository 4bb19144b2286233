//! Promise: when the volumes of a majority are gone for good, `podkv recover` goes on from what is left; and if they
//! were not gone after all, the old majority is refused, and joins anew.
//!
//! Done as `k8s/README.md` says, by the user that the pods run as: all pods end, one volume is left, it is recovered
//! with the word that the command asks for, its pod starts. Then the other two come back with the volumes that they had:
//! together they are a majority of the old incarnation.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Run;
use crate::check::Report;
use crate::load::{Ledger, Load, Writers};
use crate::stage::{Stage, until};
use crate::{PATIENCE, Result, ensure};

const PODS: u32 = 3;
const SURVIVOR: u32 = 2;

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.cluster(PODS).await?;
    let mut ledger = write(&stage, "before").await?;
    // What only the lost majority had would be lost rightly.
    stage.check_replicas(&ledger).await?;
    stage.scale(0).await?;
    let kept = stage.folder().join("thought-lost");
    std::fs::create_dir(&kept)?;
    for ordinal in (0..PODS).filter(|ordinal| *ordinal != SURVIVOR) {
        std::fs::rename(volume(&stage, ordinal)?, kept.join(ordinal.to_string()))?;
    }
    recover(&stage).await?;

    stage
        .world
        .edit_stateful_set(|object| object["spec"]["replicas"] = json!(PODS));
    stage.start(SURVIVOR).await?;
    until("the survivor leads, alone", PATIENCE, async || {
        let leader = stage.leader().await;
        (leader == Some(SURVIVOR))
            .then_some(())
            .ok_or(format!("{leader:?} leads"))
    })
    .await?;
    ledger.extend(write(&stage, "alone").await?);

    let mut old = Vec::new();
    for ordinal in (0..PODS).filter(|ordinal| *ordinal != SURVIVOR) {
        std::fs::rename(kept.join(ordinal.to_string()), volume(&stage, ordinal)?)?;
        old.push(stage.start(ordinal).await?);
    }
    for pod in old {
        stage.wait_said(&pod, "Retired").await?;
    }
    stage.wait_whole().await?;
    for view in stage.statuses().await {
        let incarnation = view.status.header.incarnation.0;
        ensure(incarnation == 2, || {
            format!("{view:?} is of the incarnation {incarnation}")
        })?;
    }
    ledger.extend(write(&stage, "after").await?);
    stage.check(&ledger).await?;
    Ok(Report::of(
        &ledger,
        "recovered from one of three; the old majority joined anew",
    ))
}

async fn write(stage: &Stage, name: &str) -> Result<Ledger> {
    let load = Load::start(stage, name, Writers::SESSIONS)?;
    load.wait_for(30).await?;
    Ok(load.stop().await)
}

fn volume(stage: &Stage, ordinal: u32) -> Result<PathBuf> {
    let volumes = stage.volumes(ordinal)?;
    Ok(volumes.first().ok_or("the pod has no volume")?.clone())
}

/// Twice: to be told what it would do and the word, then to do it.
async fn recover(stage: &Stage) -> Result<()> {
    let volume = volume(stage, SURVIVOR)?;
    let asked = podkv_recover(stage, &volume, None).await?;
    let word = asked["confirm"]
        .as_str()
        .ok_or(format!("no word: {asked}"))?;
    let done = podkv_recover(stage, &volume, Some(word)).await?;
    ensure(done["recovered"] == json!(true), || {
        format!("not recovered: {done}")
    })
}

async fn podkv_recover(stage: &Stage, volume: &Path, confirm: Option<&str>) -> Result<Value> {
    let security = stage
        .world
        .stateful_set()?
        .spec
        .template
        .spec
        .security_context;
    let mut command = tokio::process::Command::new(&stage.binary);
    command
        .args(["recover", "-o", "json", "--data-dir"])
        .arg(volume)
        .args(["--lost", "podkv-0", "--lost", "podkv-1"])
        .env_clear();
    if let (Some(user), Some(group)) = (security.run_as_user, security.run_as_group) {
        command.uid(user).gid(group);
    }
    if let Some(word) = confirm {
        command.args(["--confirm", word]);
    }
    let output = command.output().await?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure(
        output.status.signal().is_none() && !said.trim().is_empty(),
        || {
            format!(
                "{}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )
        },
    )?;
    Ok(serde_json::from_str(said.trim())?)
}
