//! Promise: what is wrong around a pod gives a clear error or a clear degraded state, never a guess.
//!
//! First starts that cannot be: each pod must say why in its log, and no cluster may come of it. Then a cluster that
//! runs, and an API server that fails, forbids, falls silent and says what cannot be meant: writes go on and the
//! members stay.

use std::time::Duration;

use podkv_api::Member;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::Run;
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::stage::Stage;
use crate::stage::api_server::Mood;
use crate::{Result, ensure};

const PODS: u32 = 3;
/// The leader reads the StatefulSet every 10 s, and a size that shrinks waits for 30 s.
const NOTICED: Duration = Duration::from_secs(45);

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.stage(PODS).await?;
    let wrong: &[(&str, &str, &str)] = &[
        ("PODKV_NAME", "podkv", "ordinal"),
        ("PODKV_HEADLESS_SERVICE", "nowhere", "DNS knows nothing of"),
        (
            "PODKV_CLUSTER_DOMAIN",
            "wrong.local",
            "DNS knows nothing of",
        ),
        ("PODKV_STATEFULSET", "another", "none of its"),
        ("PODKV_MAX_VOTERS", "4", "max"),
    ];
    for (name, value, said) in wrong {
        refused(&stage, name, value, said).await?;
    }
    stage.api_server.set_mood(Mood::Forbidding);
    stage.start_all().await?;
    stage
        .wait_said(&stage.pod(0)?, "Role needs the verb get")
        .await?;
    ensure(stage.clusters_ever()?.is_empty(), || {
        "a cluster was founded, and nobody knew how large".into()
    })?;
    stage.api_server.set_mood(Mood::Well);
    // Names that Kubernetes would inject for a service called podkv, into pods that come later.
    stage.wait_whole().await?;
    stage.wait_all_ready().await?;

    let load = Load::start(&stage, "degraded", Writers::SESSIONS)?;
    let before = stage.members().await?;
    for mood in [Mood::Failing, Mood::Forbidding, Mood::Silent] {
        stage.api_server.set_mood(mood);
        load.wait_for(30).await?;
    }
    holds(&stage, &before, run.by_length(NOTICED / 3, NOTICED)).await?;
    stage.api_server.set_mood(Mood::Well);
    stage
        .world
        .edit_stateful_set(|object| object["spec"]["replicas"] = json!(1000));
    holds(&stage, &before, run.by_length(NOTICED / 3, NOTICED)).await?;
    stage
        .world
        .edit_stateful_set(|object| object["spec"]["replicas"] = json!(PODS));
    with_service_links(&stage).await?;
    let ledger = load.stop().await;
    ensure(ledger.failed.is_empty(), || ledger.failures())?;
    stage.check(&ledger).await?;
    Ok(Report::of(
        &ledger,
        format!(
            "{} wrong first starts, 4 states of the API server",
            wrong.len() + 1
        ),
    ))
}

/// A first start with one variable wrong.
async fn refused(stage: &Stage, name: &str, value: &str, said: &str) -> Result<()> {
    let right = stage.world.stateful_set_object()["spec"]["template"].clone();
    stage
        .world
        .edit_stateful_set(|object| set(&mut object["spec"]["template"], name, value));
    stage.start_all().await?;
    for (_, pod) in stage.running() {
        stage.wait_said(&pod, said).await?;
    }
    let founded = stage.clusters_ever()?;
    for (ordinal, pod) in stage.running() {
        pod.lose().await;
        stage.put_aside(ordinal)?;
    }
    stage
        .world
        .edit_stateful_set(|object| object["spec"]["template"] = right);
    ensure(founded.is_empty(), || {
        format!("{name}={value}: clusters came of it: {founded:x?}")
    })
}

fn set(template: &mut Value, name: &str, value: &str) {
    if let Some(Value::Array(env)) = template.pointer_mut("/spec/containers/0/env") {
        env.retain(|variable| variable["name"] != name);
        env.push(json!({"name": name, "value": value}));
    }
}

/// Nothing changes in the members for so long.
async fn holds(stage: &Stage, before: &[Member], time: Duration) -> Result<()> {
    sleep(time).await;
    let now = stage.members().await?;
    ensure(now == before, || {
        format!("the members were {before:?} and are {now:?}")
    })
}

/// `PODKV_PORT=tcp://…` and its like are no settings.
async fn with_service_links(stage: &Stage) -> Result<()> {
    stage
        .roll_with(|template| template["spec"]["enableServiceLinks"] = json!(true))
        .await
}
