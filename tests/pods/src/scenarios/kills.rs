//! Promise: `kill -9` at any instant is a supported way to stop, and a pod that hangs is restarted.
//!
//! A pod is killed every few seconds, the leader as likely as any; Kubernetes starts its container again. Then one is
//! stopped without being killed, as a machine does that thrashes: only its liveness probe can tell.

use std::time::Duration;

use rand::RngExt as _;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::Run;
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::stage::until;
use crate::{PATIENCE, Result, ensure};

const PODS: u32 = 3;

pub async fn play(run: Run) -> Result<Report> {
    let mut random = run.random();
    let stage = run.cluster(PODS).await?;
    let load = Load::start(&stage, "kills", Writers::SESSIONS)?;
    load.wait_for(10).await?;
    let end = Instant::now() + run.by_length(Duration::from_secs(20), Duration::from_secs(150));
    let mut kills = 0;
    while Instant::now() < end {
        sleep(Duration::from_millis(random.random_range(1_000..4_000))).await;
        stage.pod(random.random_range(0..PODS))?.kill().await;
        kills += 1;
    }
    stage.wait_all_ready().await?;
    let mut notes = format!("{kills} kills");
    if run.length == super::Length::Full {
        let hung = stage.pod(random.random_range(0..PODS))?;
        hung.signal(Signal::STOP).await;
        let restarts = |log: &str| log.matches("the liveness probe failed").count();
        let before = restarts(&stage.log_of(&hung));
        until(
            "its liveness probe restarts a pod that hangs",
            PATIENCE,
            async || {
                let now = restarts(&stage.log_of(&hung));
                (now > before)
                    .then_some(())
                    .ok_or_else(|| "it still hangs".to_string())
            },
        )
        .await?;
        stage.wait_all_ready().await?;
        notes += ", one hung and was restarted";
    }
    let ledger = load.stop().await;
    // One pod at a time is away: a client with a session has no reason to see it.
    ensure(
        run.length == super::Length::Full || ledger.failed.is_empty(),
        || ledger.failures(),
    )?;
    stage.check(&ledger).await?;
    Ok(Report::of(&ledger, notes))
}
