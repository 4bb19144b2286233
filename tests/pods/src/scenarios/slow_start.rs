//! Promise: a node that takes long to start is left in peace until it has started.
//!
//! A large log is replayed, or a volume is slow: for longer than the liveness probe would wait, the container answers
//! nobody. Without the startup probe it is killed, begins anew, and is killed again.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use super::Run;
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::stage::{IMAGE_PROGRAM, VolumeFate};
use crate::{Result, ensure};

/// The entry point: silent for so long, then the image's own program. Returns only if that cannot be started.
pub fn enter(silent: Duration, arguments: &[String]) -> Result<()> {
    std::thread::sleep(silent);
    Err(Command::new(IMAGE_PROGRAM).args(arguments).exec().into())
}

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.cluster(3).await?;
    let load = Load::start(&stage, "slow", Writers::SESSIONS)?;
    load.wait_for(10).await?;
    let patience = stage.liveness_patience()?;
    let silent = patience + Duration::from_secs(15);
    let arguments = vec!["slow".into(), silent.as_secs().to_string()];
    stage
        .kubelet
        .set_entrypoint(Some((std::env::current_exe()?, arguments)));
    let pod = stage.delete(1, VolumeFate::Kept).await?;
    stage.wait_available(&pod).await?;
    load.wait_for(10).await?;
    let ledger = load.stop().await;
    ensure(ledger.failed.is_empty(), || ledger.failures())?;
    stage.check(&ledger).await?;
    Ok(Report::of(
        &ledger,
        format!("silent for {silent:?}, the liveness probe waits for {patience:?}"),
    ))
}
