//! Promise: `kubectl scale` does what it says.
//!
//! All excess pods are ended at once, the leader among them, and what is left is writable within 30 s. Volumes stay
//! when pods go, so those that come back later are old. A size of 0 is suspension: the same members come back.

use std::time::Duration;

use podkv_api::{Put, Store as _};
use tokio::time::Instant;

use super::Run;
use crate::check::Report;
use crate::load::{Ledger, Load, Writers};
use crate::stage::{Stage, until};
use crate::{PATIENCE, Result, ensure};

/// From the moment when excess pods are gone.
const WRITABLE_WITHIN: Duration = Duration::from_secs(30);
const MANY: u32 = 20;

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.cluster(3).await?;
    let mut ledger = Ledger::default();
    let mut slowest = Duration::ZERO;
    let sizes: &[u32] = run.by_length(&[5, 1], &[5, 3, 1, 3, 5, 1, 3]);
    for (step, size) in sizes.iter().enumerate() {
        let now = u32::try_from(stage.running().len())?;
        if *size < now {
            lead_from_the_end(&stage, now - 1).await?;
        }
        let load = Load::start(&stage, &format!("scale-{step}"), Writers::SESSIONS)?;
        load.wait_for(10).await?;
        stage.scale(*size).await?;
        slowest = slowest.max(writable(&stage, &mut ledger, step).await?);
        stage.wait_whole().await?;
        load.wait_for(10).await?;
        ledger.extend(load.stop().await);
    }
    let mut notes = format!("writable after {slowest:.1?} at most");
    if run.length == super::Length::Full {
        suspend(&stage, &mut ledger).await?;
        let load = Load::start(&stage, "many", Writers::SESSIONS)?;
        stage.scale(MANY).await?;
        stage.wait_whole().await?;
        load.wait_for(10).await?;
        ledger.extend(load.stop().await);
        notes += &format!(", {MANY} pods with 5 voters in the end");
    }
    stage.check(&ledger).await?;
    Ok(Report::of(&ledger, notes))
}

/// The pod that goes first should be the one that is missed most.
async fn lead_from_the_end(stage: &Stage, ordinal: u32) -> Result<()> {
    let member = stage.status(ordinal).await?.status.header.member;
    let client = stage.client()?;
    // Standbys cannot lead.
    let moved = client.transfer_leadership(Some(member)).await;
    client.close().await;
    if moved.is_ok() {
        until("the last pod leads", PATIENCE, async || {
            let leader = stage.leader().await;
            (leader == Some(ordinal))
                .then_some(())
                .ok_or(format!("{leader:?} leads"))
        })
        .await?;
    }
    Ok(())
}

/// How long it takes until a write is acknowledged.
async fn writable(stage: &Stage, ledger: &mut Ledger, step: usize) -> Result<Duration> {
    let started = Instant::now();
    let client = stage.client_builder().deadline(WRITABLE_WITHIN).build()?;
    let key = format!("writable-{step}");
    let written = client.put(Put::new(key.clone(), "yes")).await;
    client.close().await;
    let took = started.elapsed();
    ensure(written.is_ok() && took <= WRITABLE_WITHIN, || {
        format!("step {step}: not writable within {WRITABLE_WITHIN:?}: {written:?}")
    })?;
    ledger.acknowledged.insert(key, "yes".into());
    Ok(took)
}

/// 3 → 0 → 3.
async fn suspend(stage: &Stage, ledger: &mut Ledger) -> Result<()> {
    let load = Load::start(stage, "suspend", Writers::SESSIONS)?;
    load.wait_for(10).await?;
    ledger.extend(load.stop().await);
    let before = stage.members().await?;
    stage.scale(0).await?;
    stage.scale(3).await?;
    stage.wait_whole().await?;
    let after = stage.members().await?;
    ensure(before == after, || {
        format!("{before:?} went, and {after:?} came back")
    })
}
