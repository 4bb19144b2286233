//! A store in memory that tells the truth, except where a test asks it to fail.
//!
//! All handles share one server. Each handle has a link of its own, which can be slow or cut: a
//! call over a cut link waits until it is mended, like one into a network that drops packets.

mod state;
mod watching;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::stream;
use podkv_api::*;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use state::State;
pub use state::select;

/// What goes wrong next.
#[derive(Default)]
pub struct Faults {
    /// So many transactions are applied and answered with "outcome unknown".
    pub unknown_after: usize,
    /// So many transactions are not applied and answered with "outcome unknown".
    pub unknown_before: usize,
    /// Before each of so many transactions, another writer touches the first compared key.
    pub storms: usize,
    /// So many keep-alives are dropped: their callers wait for ever.
    pub dropped_keep_alives: usize,
    /// So many calls of `watch` fail.
    pub refused_watches: usize,
    /// So many calls of `range` fail.
    pub refused_ranges: usize,
    /// So many lists are served as of this revision.
    pub stale_lists: Option<(usize, Revision)>,
    /// Lists break after their first part, so many times.
    pub broken_lists: usize,
}

pub struct Server {
    state: Mutex<State>,
    pub faults: Mutex<Faults>,
    calls: Mutex<HashMap<&'static str, usize>>,
    /// Changes with everything that a watch may wait for.
    news: watch::Sender<()>,
    /// Watches of an older generation are lost.
    generation: Mutex<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    pub cut: bool,
    pub request_delay: Duration,
    pub answer_delay: Duration,
}

#[derive(Clone)]
pub struct FakeStore {
    server: Arc<Server>,
    link: Arc<watch::Sender<Link>>,
    /// Ends leases that are due. Shared by all handles.
    _clock: Arc<AbortOnDropHandle<()>>,
}

impl std::fmt::Debug for FakeStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeStore")
    }
}

impl FakeStore {
    pub fn new() -> Self {
        let server = Arc::new(Server {
            state: Mutex::new(State::new()),
            faults: Mutex::default(),
            calls: Mutex::default(),
            news: watch::Sender::new(()),
            generation: Mutex::default(),
        });
        let clock = AbortOnDropHandle::new(tokio::spawn(run_clock(server.clone())));
        Self {
            server,
            link: Arc::default(),
            _clock: Arc::new(clock),
        }
    }

    /// Another client of the same server, with a link of its own.
    pub fn client(&self) -> Self {
        Self {
            link: Arc::default(),
            ..self.clone()
        }
    }

    pub fn set_link(&self, link: Link) {
        self.link.send_replace(link);
    }

    pub fn cut(&self) {
        self.link.send_modify(|link| link.cut = true);
    }

    pub fn mend(&self) {
        self.link.send_modify(|link| link.cut = false);
    }

    pub fn fail(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.server.faults.lock().unwrap());
    }

    /// Every watch fails with [`Reason::WatchLost`].
    pub fn lose_watches(&self) {
        *self.server.generation.lock().unwrap() += 1;
        self.server.news.send_replace(());
    }

    /// How often a call was made.
    pub fn calls(&self, name: &'static str) -> usize {
        self.server
            .calls
            .lock()
            .unwrap()
            .get(name)
            .copied()
            .unwrap_or(0)
    }

    pub fn contents(&self) -> BTreeMap<Bytes, KeyValue> {
        self.state().keys.clone()
    }

    pub fn contents_at(&self, revision: Revision) -> BTreeMap<Bytes, KeyValue> {
        self.state().keys_at(revision)
    }

    pub fn revision(&self) -> Revision {
        self.state().revision
    }

    pub fn lease_count(&self) -> usize {
        self.state().leases.len()
    }

    /// How many handles, watches and tasks hold the store.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.server)
    }

    /// When the key was deleted last.
    pub fn deleted_at(&self, key: &[u8]) -> Option<Instant> {
        let state = self.state();
        let is_deletion = |event: &Event| event.kind == EventKind::Delete && event.kv.key == key;
        let (revision, _) = state
            .log
            .iter()
            .rev()
            .find(|(_, events)| events.iter().any(is_deletion))?;
        state.made_at.get(revision).copied()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.server.state()
    }

    /// The way there, the call, and the way back.
    async fn call<T>(
        &self,
        name: &'static str,
        run: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        *self.server.calls.lock().unwrap().entry(name).or_default() += 1;
        self.travel(|link| link.request_delay).await;
        let answer = self.server.change(run);
        self.travel(|link| link.answer_delay).await;
        answer
    }

    async fn travel(&self, delay: impl Fn(&Link) -> Duration) {
        // Others get their turn between any two calls.
        tokio::task::yield_now().await;
        let delay = delay(&self.link.borrow());
        if !delay.is_zero() {
            sleep(delay).await;
        }
        self.wait_for_link().await;
    }

    async fn wait_for_link(&self) {
        let mut link = self.link.subscribe();
        link.wait_for(|link| !link.cut)
            .await
            .expect("this handle owns the sender");
    }

    fn take_fault(&self, pick: impl FnOnce(&mut Faults) -> &mut usize) -> bool {
        let mut faults = self.server.faults.lock().unwrap();
        let left = pick(&mut faults);
        let taken = *left > 0;
        *left -= usize::from(taken);
        taken
    }
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        state.expire_due();
        state
    }

    fn change<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        let answer = run(&mut self.state());
        self.news.send_replace(());
        answer
    }
}

async fn run_clock(server: Arc<Server>) {
    let mut news = server.news.subscribe();
    loop {
        let next = server.state().next_deadline();
        let due = async {
            match next {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => server.change(|_| ()),
            _ = news.changed() => {}
        }
    }
}

fn unknown() -> Error {
    Error::new(Reason::LeaderChanged, "the leader changed").with_unknown_outcome()
}

impl Store for FakeStore {
    async fn put(&self, put: Put) -> Result<PutResponse> {
        self.call("put", |state| {
            let answer = state.txn(&Txn::new().then([put.into()]))?;
            match answer.responses.into_iter().next() {
                Some(OpResponse::Put(put)) => Ok(PutResponse {
                    header: answer.header,
                    ..put
                }),
                _ => unreachable!("a put answers as a put"),
            }
        })
        .await
    }

    async fn delete(&self, delete: Delete) -> Result<DeleteResponse> {
        self.call("delete", |state| {
            let answer = state.txn(&Txn::new().then([delete.into()]))?;
            match answer.responses.into_iter().next() {
                Some(OpResponse::Delete(delete)) => Ok(DeleteResponse {
                    header: answer.header,
                    ..delete
                }),
                _ => unreachable!("a delete answers as a delete"),
            }
        })
        .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        let storm = self.take_fault(|faults| &mut faults.storms);
        let lost_before = self.take_fault(|faults| &mut faults.unknown_before);
        let lost_after = !lost_before && self.take_fault(|faults| &mut faults.unknown_after);
        self.call("txn", |state| {
            if lost_before {
                return Err(unknown());
            }
            if storm && let Some(compare) = txn.compare.first() {
                let key = compare.range.start.clone();
                let value = state
                    .keys
                    .get(&key)
                    .map(|kv| kv.value.clone())
                    .unwrap_or("0".into());
                state.txn(&Txn::new().then([Put::new(key, value).into()]))?;
            }
            let answer = state.txn(&txn)?;
            if lost_after {
                Err(unknown())
            } else {
                Ok(answer)
            }
        })
        .await
    }

    async fn range(&self, range: Range) -> Result<RangeResponse> {
        if self.take_fault(|faults| &mut faults.refused_ranges) {
            return Err(Error::new(Reason::NoLeader, "no leader"));
        }
        self.call("range", |state| match range.revision {
            0 => Ok(select(&state.keys, &range, state.header())),
            past if past < state.compacted => Err(Error::compacted(state.compacted)),
            past => Ok(select(&state.keys_at(past), &range, state.header())),
        })
        .await
    }

    async fn range_stream(&self, range: Range) -> Result<RangeStream> {
        let all = self.range(range).await?;
        let chunks: Vec<_> = all
            .kvs
            .chunks(2)
            .map(|kvs| {
                Ok(RangeResponse {
                    kvs: kvs.to_vec(),
                    ..all.clone()
                })
            })
            .collect();
        Ok(Box::pin(stream::iter(chunks)))
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream> {
        if self.take_fault(|faults| &mut faults.refused_watches) {
            return Err(Error::new(Reason::NodeNotReady, "starting"));
        }
        self.call("watch", |_| Ok(())).await?;
        watching::start(self.clone(), watch)
    }

    async fn compact(&self, revision: Revision) -> Result<CompactResponse> {
        self.call("compact", |state| {
            state.compacted = state.compacted.max(revision);
            Ok(CompactResponse {
                header: state.header(),
            })
        })
        .await
    }

    async fn lease_grant(&self, ttl: Duration, _: Option<LeaseId>) -> Result<LeaseGrantResponse> {
        self.call("lease_grant", |state| Ok(state.grant(ttl))).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.call("lease_revoke", |state| state.revoke(id)).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        if self.take_fault(|faults| &mut faults.dropped_keep_alives) {
            std::future::pending::<()>().await;
        }
        self.call("lease_keep_alive", |state| state.keep_alive(id))
            .await
    }

    async fn lease_status(&self, id: LeaseId, _keys: bool) -> Result<LeaseStatus> {
        self.call("lease_status", |state| state.lease_status(id))
            .await
    }

    async fn leases(&self) -> Result<Vec<LeaseId>> {
        self.call("leases", |state| Ok(state.leases.keys().copied().collect()))
            .await
    }

    async fn members(&self) -> Result<Vec<Member>> {
        Ok(Vec::new())
    }

    async fn status(&self) -> Result<NodeStatus> {
        Err(Error::new(Reason::Unsupported, "the fake is no node"))
    }
}
