//! Views of the state, lent to those who read at their own pace.
//!
//! An old view keeps the storage from freeing what was deleted since. A stream whose client stopped reading is not
//! polled any more, so it cannot give its view back: it is taken. Who goes on reads from a younger view, at the same
//! revision, and is told if that was compacted meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;

use crate::storage::{StateStore, StateView};

/// A client that reads takes its next chunk in milliseconds; watches have their lists for as long.
const MAX_AGE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_secs(1);

/// All views that a node has lent.
#[derive(Default)]
pub(crate) struct Loans(Mutex<Vec<Weak<Loan>>>);

/// A view, until it is taken back.
pub(crate) struct Loan {
    state: Arc<dyn StateStore>,
    view: Mutex<Option<Lent>>,
}

struct Lent {
    view: Arc<dyn StateView>,
    since: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked left what it was: nothing is changed in steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Loans {
    pub fn lend(&self, state: &Arc<dyn StateStore>) -> Arc<Loan> {
        let loan = Arc::new(Loan {
            state: state.clone(),
            view: Mutex::default(),
        });
        lock(&self.0).push(Arc::downgrade(&loan));
        loan
    }

    /// Takes old views back until the node stops.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut tick = interval(TICK);
        let for_ever = async {
            loop {
                tick.tick().await;
                self.take_back();
            }
        };
        stop.run_until_cancelled(for_ever).await;
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        let loans = lock(&self.0);
        let held = loans.iter().filter_map(Weak::upgrade);
        held.filter(|loan| lock(&loan.view).is_some()).count()
    }

    fn take_back(&self) {
        lock(&self.0).retain(|loan| {
            let Some(loan) = loan.upgrade() else {
                return false;
            };
            lock(&loan.view).take_if(|lent| lent.since.elapsed() >= MAX_AGE);
            true
        });
    }
}

impl Loan {
    /// The view that was lent, or a new one.
    pub fn view(&self) -> Arc<dyn StateView> {
        let mut lent = lock(&self.view);
        let lent = lent.get_or_insert_with(|| Lent {
            view: self.state.view(),
            since: Instant::now(),
        });
        lent.view.clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;
    use podkv_api::{Header, KeyRange, Put, Range, Reason};
    use podkv_core::{Applier, Command, Entry};

    use super::*;
    use crate::query::Query;
    use crate::storage::MemoryDisk;

    fn apply(state: &Arc<dyn StateStore>, command: Command) {
        let view = state.view();
        let mut applier = Applier::new(&*view).unwrap();
        let proposals = vec![command.into()];
        applier
            .apply(&Entry {
                clock_ms: 0,
                proposals,
            })
            .unwrap();
        state.commit(applier.finish().writes).unwrap();
    }

    fn put_all(state: &Arc<dyn StateStore>) {
        for key in ["a", "b", "c", "d"] {
            let put = Put::new(key, vec![0; 400 << 10]);
            apply(state, Command::Put(put));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_loses_the_view_but_not_its_place() {
        let state = MemoryDisk::new().attach().open_stores().state;
        put_all(&state);
        let query = Query::new(state.clone(), 1 << 20);
        let stop = CancellationToken::new();
        let taking = tokio::spawn(query.clone().take_back_views(stop.clone()));
        let read = || {
            let all = Range::new(KeyRange::all());
            query.range_stream(Header::default(), all, None)
        };
        let (mut slow, mut slower) = (read(), read());
        let first = slow.try_next().await.unwrap().unwrap();
        slower.try_next().await.unwrap().unwrap();
        assert_eq!(query.loans().held(), 2);
        while query.loans().held() > 0 {
            tokio::time::sleep(TICK).await;
        }
        // What is written meanwhile is not in the list.
        put_all(&state);
        let rest: Vec<_> = slow.try_collect().await.unwrap();
        let kvs = rest.into_iter().flat_map(|chunk| chunk.kvs);
        let revisions: Vec<_> = first
            .kvs
            .into_iter()
            .chain(kvs)
            .map(|kv| kv.mod_revision)
            .collect();
        assert_eq!(revisions, [2, 3, 4, 5]);
        let compact = Command::Compact { revision: 9 };
        apply(&state, compact);
        while query.loans().held() > 0 {
            tokio::time::sleep(TICK).await;
        }
        let error = slower.try_next().await.unwrap_err();
        assert_eq!(error.reason(), Reason::Compacted);
        stop.cancel();
        taking.await.unwrap();
    }
}
