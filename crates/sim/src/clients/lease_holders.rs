//! Leases: granted, kept alive for a while, then revoked or let go.
//!
//! A lease that is let go must live out its time. Who holds it never deletes its keys by hand, so that every delete
//! of them is the lease's.

use std::time::Duration;

use crate::history::{Action, Answer, Step};
use podkv_api::{LeaseId, Store as _};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::{Caller, Run};
use crate::recorder::header;

pub async fn run(caller: Caller, mut rng: StdRng) {
    loop {
        one(&caller, &mut rng).await;
        sleep(Duration::from_millis(rng.random_range(10..200))).await;
    }
}

async fn one(caller: &Caller, rng: &mut StdRng) {
    let ttl = Duration::from_millis(rng.random_range(2000..4000));
    // Chosen here, so that the history knows it even if the answer is lost.
    let lease = rng.random_range(1..=i64::MAX);
    if grant(caller, lease, ttl).await.is_err() {
        return;
    }
    for key in 0..2 {
        let id = caller.recorder.id();
        let put = Step::Put {
            key: format!("lease/{}/{key}", caller.number),
            value: id.to_string(),
            lease: Some(lease),
            ttl_ms: None,
        };
        // If it fails, the lease has a key less.
        let _ = caller.run(Run::new(id, vec![put])).await;
    }
    for _ in 0..rng.random_range(0..5) {
        sleep(Duration::from_millis(rng.random_range(100..1500))).await;
        let _ = keep_alive(caller, lease).await;
    }
    if rng.random_bool(0.3) {
        let _ = revoke(caller, lease).await;
    }
}

async fn grant(caller: &Caller, lease: i64, ttl: Duration) -> Result<(), podkv_api::Error> {
    let id = caller.recorder.id();
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let action = (Action::Grant { lease, ttl_ms }, None);
    let call = caller.client.lease_grant(ttl, Some(LeaseId(lease)));
    caller
        .recorder
        .call(caller.number, id, action, call, |answer| {
            let granted = Answer::Granted {
                ttl_ms: answer.ttl_ms,
            };
            (Some(header(&answer.header)), granted)
        })
        .await
        .map(|_| ())
}

async fn keep_alive(caller: &Caller, lease: i64) -> Result<(), podkv_api::Error> {
    let id = caller.recorder.id();
    let action = (Action::KeepAlive { lease }, None);
    let call = caller.client.lease_keep_alive(LeaseId(lease));
    caller
        .recorder
        .call(caller.number, id, action, call, |status| {
            let kept = Answer::KeptAlive {
                ttl_ms: status.granted_ttl_ms,
                remaining_ms: status.remaining_ms,
            };
            (Some(header(&status.header)), kept)
        })
        .await
        .map(|_| ())
}

async fn revoke(caller: &Caller, lease: i64) -> Result<(), podkv_api::Error> {
    let id = caller.recorder.id();
    let action = (Action::Revoke { lease }, None);
    let call = caller.client.lease_revoke(LeaseId(lease));
    caller
        .recorder
        .call(caller.number, id, action, call, |()| {
            (None, Answer::Revoked)
        })
        .await
}
