//! Promise: without a majority writes are refused with a reason that reaches the caller, `local` reads go on through
//! their service, and everything returns when pods return.

use std::net::SocketAddr;
use std::time::Duration;

use podkv_api::{Consistency, KeyRange, Put, Range, Reason, Store as _};
use podkv_client::Client;

use super::Run;
use crate::check::Report;
use crate::load::{Failed, Load, Writers};
use crate::stage::until;
use crate::{PATIENCE, Result, ensure};

const PODS: u32 = 3;
const SURVIVOR: u32 = 0;
/// Longer than a node takes to say why it refuses (5 s).
const PATIENT: Duration = Duration::from_secs(15);

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.cluster(PODS).await?;
    let load = Load::start(&stage, "before", Writers::SESSIONS)?;
    load.wait_for(30).await?;
    let mut ledger = load.stop().await;
    // Machines that do not come back for a while.
    for ordinal in SURVIVOR + 1..PODS {
        stage.pod(ordinal)?.lose().await;
    }
    let survivor = stage.pod(SURVIVOR)?;
    let client = Client::builder()
        .endpoints([SocketAddr::new(survivor.ip, 2379).to_string()])
        .fixed(true)
        .deadline(PATIENT)
        .attempt_timeout(PATIENT)
        .build()?;
    // As a person would see it. A leader that survives may have taken the write: then its outcome is unknown.
    let refused = client.put(Put::new("refused", "")).await;
    client.close().await;
    let Err(error) = refused else {
        return Err("a write was acknowledged without a majority".into());
    };
    let told = matches!(error.reason(), Reason::NoLeader | Reason::DeadlineExceeded);
    ensure(told && error.text().contains("majority"), || {
        format!("the reason does not reach the caller: {error:?}")
    })?;
    // Unready, so that services take it out; the service for local reads does not.
    until("the survivor is unready", PATIENCE, async || {
        let ready = stage.world.pod(survivor.uid).is_some_and(|pod| pod.ready);
        (!ready)
            .then_some(())
            .ok_or_else(|| "it is ready".to_string())
    })
    .await?;
    let expected = ledger.acknowledged.len();
    let local = Client::builder()
        .endpoints([format!("{}:2379", stage.service_name("podkv-local"))])
        .fixed(true)
        .deadline(Duration::from_secs(5))
        .build()?;
    let read = until("local reads through their service", PATIENCE, async || {
        let range = Range::new(KeyRange::all()).consistency(Consistency::Local);
        local.range(range).await.map_err(|error| error.to_string())
    })
    .await;
    local.close().await;
    let found = read?.kvs.len();
    ensure(found >= expected, || {
        format!("{found} keys of {expected} are read locally")
    })?;
    for ordinal in SURVIVOR + 1..PODS {
        stage.start(ordinal).await?;
    }
    stage.wait_all_ready().await?;
    let load = Load::start(&stage, "after", Writers::SESSIONS)?;
    load.wait_for(30).await?;
    ledger.extend(load.stop().await);
    ledger.failed.push(Failed {
        key: "refused".into(),
        value: String::new(),
        why: error.to_string(),
        after: Duration::ZERO,
    });
    stage.check(&ledger).await?;
    Ok(Report::of(
        &ledger,
        format!("meanwhile: {:?}", error.reason()),
    ))
}
