//! Locks: taken by the recipe, and written under.

use std::time::Duration;

use crate::history::{Compare, Fence, Hold, Nanos, Step};
use podkv_api::recipes::{Mutex, MutexGuard};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, timeout};

use super::{Caller, Run, compare};

const LOCKS: u32 = 2;
/// The shortest that the store grants: a lock whose holder is gone is free again soon.
const TTL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(8);
/// Clocks that differ by more than this do not both go: less than the margin that the recipe keeps of the TTL.
const STANDSTILL: Duration = Duration::from_millis(10);

pub async fn run(caller: Caller, mut rng: StdRng) {
    loop {
        let lock = format!("lock/{}", rng.random_range(0..LOCKS));
        let asked = Moment::of(&caller);
        let mutex = Mutex::new(caller.client.clone(), &lock).with_ttl(TTL);
        match timeout(PATIENCE, mutex.lock()).await {
            Ok(Ok(guard)) => held(&caller, &mut rng, lock, asked, guard).await,
            Ok(Err(_)) | Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A moment on the clock that histories are noted with, and on the client's own.
#[derive(Clone, Copy)]
struct Moment {
    noted: Nanos,
    own: Instant,
}

impl Moment {
    fn of(caller: &Caller) -> Self {
        let noted = caller.recorder.now();
        let own = Instant::now();
        Self { noted, own }
    }

    /// True if the client's own clock did not stand still since `before`, as it does while a machine is suspended. A holder
    /// of a lock knows by that clock alone how long it surely has it: [`MutexGuard::lost`] promises no more.
    fn is_measured_since(self, before: Self) -> bool {
        let noted = Duration::from_nanos(self.noted - before.noted);
        noted <= self.own - before.own + STANDSTILL
    }
}

async fn held(caller: &Caller, rng: &mut StdRng, lock: String, asked: Moment, guard: MutexGuard) {
    let recorder = &caller.recorder;
    let mut hold = Hold {
        lock: lock.clone(),
        client: caller.number,
        asked: asked.noted,
        acquired: recorder.now(),
        confirmed: 0,
        token: guard.fencing_token(),
    };
    for _ in 0..rng.random_range(1..6) {
        // The moment is taken first: it is the one of which the answer speaks.
        let moment = Moment::of(caller);
        if guard.check().is_err() || !moment.is_measured_since(asked) {
            break;
        }
        hold.confirmed = moment.noted;
        let id = recorder.id();
        let held = Compare::Created {
            key: String::from_utf8_lossy(guard.key()).into_owned(),
            equals: hold.token,
        };
        // What is recorded must be what the recipe means.
        assert_eq!(compare(&held), guard.fence(), "the fence of a lock");
        let put = Step::Put {
            key: format!("guarded/{lock}"),
            value: id.to_string(),
            lease: None,
            ttl_ms: None,
        };
        let write = Run {
            compare: vec![held],
            fence: Some(Fence {
                lock: lock.clone(),
                token: hold.token,
            }),
            ..Run::new(id, vec![put])
        };
        let _ = caller.run(write).await;
        sleep(Duration::from_millis(rng.random_range(1..100))).await;
    }
    recorder.hold(hold);
    // Dropped, it is freed in the background: the next in line may have it before we know.
    if rng.random_bool(0.7) {
        let _ = guard.unlock().await;
    }
}
