//! Promise: a running cluster moves from plain text to `require` in two rollouts, and takes new certificates without
//! one, while clients write.
//!
//! The manifests are those of the component `tls`; `podkv cert` stands in for cert-manager, with the names that the
//! component's Certificate asks for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::Run;
use crate::check::Report;
use crate::load::{Ledger, Load, Writers};
use crate::stage::{Stage, secrets, until};
use crate::{PATIENCE, Result, ensure};

pub(super) const SECRET: &str = "podkv-tls";

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.stage(3).await?;
    let authority = stage.folder().join("authority");
    make_authority(&stage, &authority).await?;
    renew(&stage, &authority, 1).await?;
    // As it was before the component.
    stage
        .world
        .edit_stateful_set(|object| set_mode(&mut object["spec"]["template"], Some("off")));
    stage.start_all().await?;
    stage.wait_whole().await?;
    stage.wait_all_ready().await?;
    stage.wait_virtual_addresses().await?;

    let mut ledger = Ledger::default();
    roll_under_load(&stage, "allow", &mut ledger).await?;
    roll_under_load(&stage, "require", &mut ledger).await?;

    let load = Load::start(&stage, "renewed", Writers::SESSIONS)?;
    load.wait_for(10).await?;
    let before = expiry(&stage).await?;
    renew(&stage, &authority, 2).await?;
    until(
        "every node takes the new certificate",
        PATIENCE,
        async || {
            let now = expiry(&stage).await.map_err(|error| error.to_string())?;
            let taken = now.len() == before.len()
                && now.iter().zip(&before).all(|(now, before)| now > before);
            taken
                .then_some(())
                .ok_or(format!("{now:?}; before: {before:?}"))
        },
    )
    .await?;
    load.wait_for(30).await?;
    ledger.extend(load.stop().await);
    ensure(ledger.failed.is_empty(), || ledger.failures())?;
    stage.check(&ledger).await?;
    Ok(Report::of(
        &ledger,
        "off, allow, require, renewed; 0 failed",
    ))
}

/// One rollout. Clients speak as the mode before it allowed, which the mode after it must still take.
async fn roll_under_load(stage: &Stage, mode: &str, ledger: &mut Ledger) -> Result<()> {
    // Plain text while it is allowed; with `allow` everywhere, clients move to TLS before nodes require it.
    let load = match mode {
        "require" => Load::start_with(stage, mode, Writers::SESSIONS, Some(stage.client_tls()))?,
        _ => Load::start(stage, mode, Writers::SESSIONS)?,
    };
    load.wait_for(30).await?;
    stage
        .roll_with(|template| set_mode(template, Some(mode)))
        .await?;
    load.wait_for(30).await?;
    ledger.extend(load.stop().await);
    Ok(())
}

pub(super) fn set_mode(template: &mut Value, mode: Option<&str>) {
    let env = template.pointer_mut("/spec/containers/0/env");
    if let Some(Value::Array(env)) = env {
        env.retain(|variable| variable["name"] != "PODKV_TLS");
        env.extend(mode.map(|mode| json!({"name": "PODKV_TLS", "value": mode})));
    }
}

pub(super) async fn make_authority(stage: &Stage, folder: &PathBuf) -> Result<()> {
    podkv_cert(stage, &["ca", "--out"], folder).await
}

/// A new certificate for all nodes, in their secret.
pub(super) async fn renew(stage: &Stage, authority: &Path, days: u32) -> Result<()> {
    let issued = stage.folder().join(format!("issued-{days}"));
    issue(stage, authority, "*", days, &issued).await?;
    publish(stage, &issued)
}

/// A certificate for the pods of this name; `*` is all of this set.
pub(super) async fn issue(
    stage: &Stage,
    authority: &Path,
    pod: &str,
    days: u32,
    out: &PathBuf,
) -> Result<()> {
    let (ca, days) = (authority.display().to_string(), days.to_string());
    let namespace = stage.world.namespace.clone();
    let arguments = [
        "node",
        "--ca",
        &ca,
        "--name",
        pod,
        "--service=podkv-headless,podkv,podkv-local",
        "--namespace",
        &namespace,
        "--days",
        &days,
        "--out",
    ];
    podkv_cert(stage, &arguments, out).await
}

/// Puts the files of this folder into the pods' secret.
pub(super) fn publish(stage: &Stage, issued: &Path) -> Result<()> {
    let group = stage
        .world
        .stateful_set()?
        .spec
        .template
        .spec
        .security_context
        .fs_group;
    secrets::publish(stage.folder(), SECRET, issued, group.unwrap_or(0))
}

async fn podkv_cert(stage: &Stage, arguments: &[&str], out: &PathBuf) -> Result<()> {
    let output = tokio::process::Command::new(&stage.binary)
        .arg("cert")
        .args(arguments)
        .arg(out)
        .env_clear()
        .output()
        .await?;
    ensure(output.status.success(), || {
        format!("podkv cert: {}", String::from_utf8_lossy(&output.stderr))
    })
}

/// How long each node's certificate lasts, by what it reports.
async fn expiry(stage: &Stage) -> Result<Vec<f64>> {
    let mut found = Vec::new();
    for (_, pod) in stage.running() {
        let page = tokio::time::timeout(Duration::from_secs(5), stage.metrics(pod.ip)).await??;
        let line = page
            .lines()
            .find(|line| line.starts_with("podkv_tls_certificate_expiry_seconds"));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        found.push(value.ok_or("no podkv_tls_certificate_expiry_seconds")?);
    }
    Ok(found)
}
