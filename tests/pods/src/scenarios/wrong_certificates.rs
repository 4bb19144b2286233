//! Promise: a certificate that cannot be used is named, with its file and what is wrong, and changes nothing.
//!
//! The pods' secret is replaced by a certificate that has expired, one of a CA that nobody trusts, and one of another
//! set's pods. Nodes that run go on with what they had. A pod that is started with it does not start, and says why; as
//! soon as the secret is right again it does, by itself.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Run, tls};
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::stage::{Stage, VolumeFate};
use crate::{Result, ensure};

const PODS: u32 = 3;
const DAYS: u32 = 1;

/// What is wrong, and what a node says of it.
struct Wrong {
    name: &'static str,
    said: &'static str,
    pod: &'static str,
    days: u32,
    trusted: bool,
}

const WRONG: [Wrong; 3] = [
    Wrong {
        name: "expired",
        said: "it expired",
        pod: "*",
        days: 0,
        trusted: true,
    },
    Wrong {
        name: "of another CA",
        said: "does not chain to a certificate in tls-ca",
        pod: "*",
        days: DAYS,
        trusted: false,
    },
    Wrong {
        name: "of other pods",
        // The first that is asked for is the name that peers dial.
        said: "it does not name this pod",
        pod: "other-0",
        days: DAYS,
        trusted: true,
    },
];

pub async fn play(run: Run) -> Result<Report> {
    let stage = run.stage(PODS).await?;
    let folder = stage.folder().to_path_buf();
    let (authority, stranger) = (folder.join("authority"), folder.join("stranger"));
    tls::make_authority(&stage, &authority).await?;
    tls::make_authority(&stage, &stranger).await?;
    tls::renew(&stage, &authority, DAYS).await?;
    stage.start_all().await?;
    stage.wait_whole().await?;
    stage.wait_all_ready().await?;
    let load = Load::start_with(
        &stage,
        "certificates",
        Writers::SESSIONS,
        Some(stage.client_tls()),
    )?;
    load.wait_for(10).await?;
    for (wrong, number) in WRONG.iter().zip(1..) {
        let by = if wrong.trusted { &authority } else { &stranger };
        let issued = folder.join(format!("wrong-{number}"));
        tls::issue(&stage, by, wrong.pod, wrong.days, &issued).await?;
        // Who trusts whom is not what changes.
        fs::copy(authority.join("ca.crt"), issued.join("ca.crt"))?;
        refused(&stage, wrong, &issued, &load).await?;
        tls::renew(&stage, &authority, DAYS + number).await?;
        stage.wait_all_ready().await?;
    }
    let ledger = load.stop().await;
    ensure(ledger.failed.is_empty(), || ledger.failures())?;
    stage.check(&ledger).await?;
    let names = WRONG.map(|wrong| wrong.name);
    Ok(Report::of(&ledger, names.join(", ")))
}

/// Nodes that run complain and go on; one that starts complains and does not.
async fn refused(stage: &Stage, wrong: &Wrong, issued: &Path, load: &Load) -> Result<()> {
    tls::publish(stage, issued)?;
    for (_, pod) in stage.running() {
        stage.wait_said(&pod, wrong.said).await?;
    }
    load.wait_for(10).await?;
    let pod = stage.lose(PODS - 1, VolumeFate::Kept).await?;
    stage.wait_said(&pod, wrong.said).await?;
    load.wait_for(10).await?;
    // A kubelet would start it again for ever.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let ready = stage.world.pod(pod.uid).is_some_and(|pod| pod.ready);
    ensure(!ready, || {
        format!(
            "{} serves with a certificate that is {}",
            pod.name, wrong.name
        )
    })
}
