//! A hub without a runtime: a state that applies commands, the desk, and users who poll when told to.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::Stream as _;
use podkv_api::{
    Bytes, Delete, EventKind, Header, KeyRange, Put, Result, Revision, Txn, Watch, WatchMessage,
};
use podkv_core::{
    Applier, Command, Effects, Entry, MemoryView, Proposal, RevisionEvents, read_meta,
};

use crate::storage::{
    Checkpoint, CheckpointFile, StagedCheckpoint, StateStore, StateView, StateWrites, StorageError,
    TransferError,
};
use crate::watch::driver::Desk;
use crate::watch::hub::{Action, Event, TICK};
use crate::watch::{HeaderSource, Progress, Shared, Tip, WatchSettings, Watching};

/// As much of a state store as watches need.
#[derive(Default)]
pub struct FakeState(Mutex<Arc<MemoryView>>);

impl FakeState {
    fn current(&self) -> Arc<MemoryView> {
        self.0.lock().unwrap().clone()
    }

    /// Applies one entry and commits what it comes to.
    pub fn apply(&self, commands: impl IntoIterator<Item = Command>) -> Effects {
        let view = self.current();
        let mut applier = Applier::new(&*view).unwrap();
        let proposals = commands.into_iter().map(Proposal::from).collect();
        applier
            .apply(&Entry {
                clock_ms: 0,
                proposals,
            })
            .unwrap();
        let effects = applier.finish();
        self.commit(effects.writes.clone()).unwrap();
        effects
    }

    pub fn tip(&self) -> Tip {
        let meta = read_meta(&*self.current()).unwrap();
        Tip {
            revision: meta.revision,
            compacted_revision: meta.compacted_revision,
        }
    }
}

impl StateStore for FakeState {
    fn view(&self) -> Arc<dyn StateView> {
        self.current()
    }

    fn commit(&self, writes: StateWrites) -> Result<(), StorageError> {
        let mut state = self.0.lock().unwrap();
        Arc::make_mut(&mut *state).commit(writes);
        Ok(())
    }

    fn view_in_memory(&self) -> Arc<dyn StateView> {
        self.current()
    }

    fn flush(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn get_durable(&self, _key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        unreachable!("watches read views alone")
    }

    fn checkpoint(&self) -> Result<Arc<dyn Checkpoint>, StorageError> {
        unreachable!("watches read views alone")
    }

    fn stage(
        &self,
        _id: &str,
        _files: Vec<CheckpointFile>,
    ) -> Result<Arc<dyn StagedCheckpoint>, TransferError> {
        unreachable!("watches read views alone")
    }

    fn install(&self, _staged: Arc<dyn StagedCheckpoint>) -> Result<(), TransferError> {
        unreachable!("watches read views alone")
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

pub fn tip_of(effects: &Effects) -> Tip {
    let meta = &effects.meta;
    Tip {
        revision: meta.revision,
        compacted_revision: meta.compacted_revision,
    }
}

/// A header of nobody.
pub fn header() -> HeaderSource {
    Arc::new(Header::default)
}

pub struct Rig {
    pub state: Arc<FakeState>,
    pub shared: Arc<Shared>,
    pub desk: Desk,
    pub now: Instant,
}

impl Rig {
    pub fn new(settings: WatchSettings) -> Self {
        Self::over(Arc::new(FakeState::default()), settings)
    }

    /// A hub that starts over a state that is there.
    pub fn over(state: Arc<FakeState>, settings: WatchSettings) -> Self {
        let tip = state.tip();
        let shared = Arc::new(Shared::new(tip, header(), settings));
        let now = Instant::now();
        let desk = Desk::new(shared.clone(), tip, now);
        Self {
            state,
            shared,
            desk,
            now,
        }
    }

    /// Applies and publishes, as the apply thread does.
    pub fn apply(
        &mut self,
        commands: impl IntoIterator<Item = Command>,
    ) -> Vec<Arc<RevisionEvents>> {
        let effects = self.state.apply(commands);
        self.shared
            .publish(effects.events.clone(), tip_of(&effects));
        effects.events
    }

    /// Each command in an entry of its own.
    pub fn apply_each(&mut self, commands: impl IntoIterator<Item = Command>) {
        commands
            .into_iter()
            .for_each(|command| drop(self.apply([command])));
    }

    pub fn watch(&mut self, watch: Watch) -> User {
        let at_least = self.state.tip().revision;
        User::new(self.shared.watch(watch, at_least).unwrap())
    }

    /// Lets the hub do all it can, reads of the state included. Users poll by themselves.
    pub fn settle(&mut self) {
        loop {
            let is_busy = self.desk.take_over();
            let actions = std::mem::take(&mut self.desk.actions);
            if !is_busy && actions.is_empty() {
                return;
            }
            actions.into_iter().for_each(|action| self.run(action));
        }
    }

    pub fn run(&mut self, action: Action) {
        let event = action.run(&*self.state);
        self.desk.handle(event);
    }

    /// All that a user gets, when the user reads as fast as it comes.
    pub fn read(&mut self, user: &mut User) -> Vec<String> {
        let mut messages = Vec::new();
        loop {
            self.settle();
            match user.poll() {
                Poll::Ready(Some(message)) => messages.push(describe(&message)),
                Poll::Ready(None) => {
                    messages.push("end".into());
                    return messages;
                }
                Poll::Pending => {
                    self.settle();
                    if user.was_woken() {
                        continue;
                    }
                    return messages;
                }
            }
        }
    }

    /// One whole bookmark interval.
    pub fn tick(&mut self, interval: Duration) {
        let end = self.now + interval;
        while self.now < end {
            self.now += TICK;
            self.desk.handle(Event::Tick(self.now));
        }
    }
}

/// Somebody who watches.
pub struct User {
    stream: Pin<Box<Watching>>,
    pub progress: Progress,
    woken: Arc<WakeFlag>,
}

#[derive(Default)]
struct WakeFlag(std::sync::atomic::AtomicBool);

impl std::task::Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

impl User {
    pub fn new(stream: Watching) -> Self {
        Self {
            progress: stream.progress(),
            stream: Box::pin(stream),
            woken: Arc::default(),
        }
    }

    /// True if the stream woke its user since the last poll.
    pub fn was_woken(&self) -> bool {
        self.woken.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub fn poll(&mut self) -> Poll<Option<Result<WatchMessage>>> {
        self.woken
            .0
            .store(false, std::sync::atomic::Ordering::SeqCst);
        let waker = Waker::from(self.woken.clone());
        self.stream
            .as_mut()
            .poll_next(&mut Context::from_waker(&waker))
    }
}

/// One line for a message, as a script would show it.
pub fn describe(message: &Result<WatchMessage>) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let kv = |kv: &podkv_api::KeyValue| format!("{}={}", text(&kv.key), text(&kv.value));
    match message {
        Ok(WatchMessage::Created { start_revision, .. }) => {
            format!("created from {start_revision}")
        }
        Ok(WatchMessage::List { revision, kvs, .. }) => {
            format!(
                "list at {revision}: {}",
                kvs.iter().map(kv).collect::<Vec<_>>().join(" ")
            )
        }
        Ok(WatchMessage::Listed { revision, .. }) => format!("listed at {revision}"),
        Ok(WatchMessage::Bookmark { revision, .. }) => format!("bookmark {revision}"),
        Ok(WatchMessage::Events {
            revision, events, ..
        }) => {
            let events = events.iter().map(|event| {
                let before = match &event.prev_kv {
                    Some(before) => format!(" (was {})", text(&before.value)),
                    None => String::new(),
                };
                match event.kind {
                    EventKind::Put => format!("put {}{before}", kv(&event.kv)),
                    EventKind::Delete => format!("delete {}{before}", text(&event.kv.key)),
                }
            });
            format!("{revision}: {}", events.collect::<Vec<_>>().join(", "))
        }
        Err(error) => format!("{} at {}", error.reason().name(), error.revision()),
    }
}

pub fn put(key: &str, value: &str) -> Command {
    Command::Put(Put::new(key.to_owned(), value.to_owned()))
}

pub fn delete(key: &str) -> Command {
    Command::Delete(Delete::new(KeyRange::key(key.to_owned())))
}

pub fn delete_range(range: KeyRange) -> Command {
    Command::Delete(Delete::new(range))
}

pub fn txn(puts: &[(&str, &str)]) -> Command {
    let op = |(key, value): &(&str, &str)| Put::new(key.to_string(), value.to_string()).into();
    Command::Txn(Txn::new().then(puts.iter().map(op)))
}

pub fn compact(revision: Revision) -> Command {
    Command::Compact { revision }
}
