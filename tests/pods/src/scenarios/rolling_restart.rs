//! Promise: a rolling restart fails no operation.
//!
//! Three kinds of clients write while every pod is replaced in turn, and each gets a new address: the Rust client,
//! `podkv put` without a retry, and a plain gRPC client through the virtual address, whose endpoints lag 2 s. The last
//! one needs the preStop sleep, the drain and the readiness probe of the manifests: without any of them it fails.
//! What the pods log meanwhile is for machines to read: a JSON object a line.

use super::Run;
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::stage::Stage;
use crate::{Result, ensure};

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.cluster(3).await?;
    let load = Load::start(&stage, "roll", Writers::ALL)?;
    load.wait_for(30).await?;
    stage.roll().await?;
    load.wait_for(30).await?;
    let ledger = load.stop().await;
    ensure(ledger.failed.is_empty(), || ledger.failures())?;
    check_logs(&stage)?;
    stage.check(&ledger).await?;
    Ok(Report::of(&ledger, "0 failed of three kinds of clients"))
}

fn check_logs(stage: &Stage) -> Result<()> {
    for (_, pod) in stage.running() {
        let log = stage.log_of(&pod);
        let own = log.lines().filter(|line| !line.starts_with("--- kubelet"));
        let other = own
            .into_iter()
            .find(|line| serde_json::from_str::<serde_json::Map<_, _>>(line).is_err());
        ensure(other.is_none(), || {
            format!("{} logged what is no JSON: {other:?}", pod.name)
        })?;
    }
    Ok(())
}
