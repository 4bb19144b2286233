//! Who writes while the scenario goes on, and what was acknowledged to them.
//!
//! Each write has a key of its own, so that at the end each is there once: lost if it is missing, done twice if its
//! version is not 1. A write that failed with an unknown outcome may be there or not, once.
//!
//! Three kinds of clients, as they come in a cluster: the Rust client with its session, `podkv put` as a process for
//! each write, and a plain gRPC client that knows nothing but the virtual address.

mod one_shot;
mod plain;
mod session;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use podkv_tls::TlsOptions;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Result;
use crate::stage::Stage;

/// Between two writes of one writer. The point is to have some at any moment, not to load the machine.
const PACE: Duration = Duration::from_millis(10);

/// Which clients write.
#[derive(Clone, Copy, Debug)]
pub struct Writers {
    pub sessions: usize,
    pub one_shot: usize,
    pub plain: usize,
}

impl Writers {
    pub const SESSIONS: Self = Self {
        sessions: 3,
        one_shot: 0,
        plain: 0,
    };
    pub const ALL: Self = Self {
        sessions: 3,
        one_shot: 1,
        plain: 2,
    };
}

/// A write that was not acknowledged.
#[derive(Clone, Debug)]
pub struct Failed {
    pub key: String,
    pub value: String,
    pub why: String,
    /// When, from the start of the load.
    pub after: Duration,
}

/// What was answered to all writers.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Key and value.
    pub acknowledged: BTreeMap<String, String>,
    pub failed: Vec<Failed>,
    /// The longest time in which no writer with a session had an answer.
    pub longest_pause: Duration,
    last: Option<Instant>,
    started: Option<Instant>,
}

impl Ledger {
    /// Puts a later load behind this one.
    pub fn extend(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.failed.extend(other.failed);
        self.longest_pause = self.longest_pause.max(other.longest_pause);
    }

    /// The failures, for a message; none is what a scenario wants to see.
    pub fn failures(&self) -> String {
        let shown = self.failed.iter().take(5);
        let lines: Vec<_> = shown
            .map(|failed| format!("{} after {:.1?}: {}", failed.key, failed.after, failed.why))
            .collect();
        format!("{} writes failed:\n{}", self.failed.len(), lines.join("\n"))
    }
}

/// Where writers write down what they were answered.
#[derive(Clone)]
struct Notes {
    ledger: Arc<Mutex<Ledger>>,
    stop: watch::Receiver<bool>,
}

impl Notes {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged(&self, key: String, value: String, in_session: bool) {
        let mut ledger = self.ledger();
        ledger.acknowledged.insert(key, value);
        if in_session {
            let now = Instant::now();
            if let Some(last) = ledger.last.replace(now) {
                ledger.longest_pause = ledger.longest_pause.max(now - last);
            }
        }
    }

    fn failed(&self, key: String, value: String, why: String) {
        let mut ledger = self.ledger();
        let after = ledger
            .started
            .map_or(Duration::ZERO, |started| started.elapsed());
        ledger.failed.push(Failed {
            key,
            value,
            why,
            after,
        });
    }

    /// Waits for the next turn; false when it is time to end.
    async fn next(&mut self, pace: Duration) -> bool {
        tokio::select! {
            biased;
            _ = self.stop.wait_for(|stop| *stop) => false,
            () = tokio::time::sleep(pace) => true,
        }
    }
}

/// Writers at work.
pub struct Load {
    notes: Notes,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts writing. `name` begins every key, so that loads after one another do not meet.
    pub fn start(stage: &Stage, name: &str, writers: Writers) -> Result<Self> {
        Self::start_with(stage, name, writers, stage.tls())
    }

    /// Clients with a session speak TLS as told; the others as the StatefulSet says.
    pub fn start_with(
        stage: &Stage,
        name: &str,
        writers: Writers,
        tls: Option<TlsOptions>,
    ) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let notes = Notes {
            ledger: Arc::new(Mutex::new(Ledger {
                started: Some(Instant::now()),
                ..Ledger::default()
            })),
            stop: stopped,
        };
        let mut tasks = JoinSet::new();
        for writer in 0..writers.sessions {
            let client = stage.client_with(tls.clone())?;
            let prefix = format!("{name}/session-{writer}");
            tasks.spawn(session::write(client, prefix, notes.clone()));
        }
        for writer in 0..writers.one_shot {
            let prefix = format!("{name}/one-shot-{writer}");
            tasks.spawn(one_shot::write(
                one_shot::Command::new(stage),
                prefix,
                notes.clone(),
            ));
        }
        for writer in 0..writers.plain {
            let prefix = format!("{name}/plain-{writer}");
            tasks.spawn(plain::write(plain::channel(stage)?, prefix, notes.clone()));
        }
        Ok(Self { notes, stop, tasks })
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.notes.ledger().acknowledged.len()
    }

    /// Waits until this many more were acknowledged.
    pub async fn wait_for(&self, more: usize) -> Result<()> {
        let wanted = self.acknowledged() + more;
        crate::stage::until("writes are acknowledged", crate::PATIENCE, async || {
            let have = self.acknowledged();
            let failures = self.notes.ledger().failures();
            (have >= wanted)
                .then_some(())
                .ok_or(format!("{have} of {wanted}; {failures}"))
        })
        .await
    }

    /// Lets the writers end what they are at.
    pub async fn stop(mut self) -> Ledger {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        std::mem::take(&mut *self.notes.ledger())
    }
}
