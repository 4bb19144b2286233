//! Promise: a pod that loses its volume heals without a hand, whichever it is, as often as it happens.
//!
//! The machine dies with its disk; the pod comes back elsewhere with an empty volume. It must come in under a new id
//! and the old id must go: with each id that stays, the next loss is nearer to a lost majority.

use podkv_api::MemberRole;
use rand::RngExt as _;

use super::Run;
use crate::check::Report;
use crate::load::{Load, Writers};
use crate::stage::VolumeFate;
use crate::{Result, ensure};

const PODS: u32 = 3;

pub async fn play(run: Run) -> Result<Report> {
    let mut random = run.random();
    let stage = run.cluster(PODS).await?;
    let load = Load::start(&stage, "lost", Writers::SESSIONS)?;
    load.wait_for(10).await?;
    let rounds: u32 = run.by_length(2, 30);
    let mut leaders = 0;
    for round in 0..rounds {
        let leader = stage.wait_leader().await?;
        // Each ordinal in turn, and as often the leader, whoever it is.
        let victim = if round % 2 == 0 {
            leader
        } else {
            random.random_range(0..PODS)
        };
        leaders += u32::from(victim == leader);
        // As often with a warning as without.
        if random.random_bool(0.5) {
            stage.lose(victim, VolumeFate::Lost).await?;
        } else {
            stage.delete(victim, VolumeFate::Lost).await?;
        }
        stage.wait_whole().await?;
        let members = stage.members().await?;
        let voting = members
            .iter()
            .filter(|member| member.role == MemberRole::Voter)
            .count();
        ensure(voting == 3 && members.len() == 3, || {
            format!("round {round}: the members are {members:?}")
        })?;
    }
    load.wait_for(10).await?;
    let ledger = load.stop().await;
    stage.check(&ledger).await?;
    Ok(Report::of(
        &ledger,
        format!("{rounds} volumes lost, {leaders} of them the leader's"),
    ))
}
