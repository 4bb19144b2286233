//! Notes what clients call and see.
//!
//! The order of the notes matters more than anything else here: `invoked` is read off the clock **before** the call
//! is made, `returned` **after** its answer is there. Whoever reads it the other way round proves things that did not
//! happen.
//!
//! An error counts as "certainly not applied" only where the store's own contract says so
//! ([`Error::outcome_unknown`]). A call whose future was dropped is unknown.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::history::{
    Action, Answer, Call, Event, Fault, Fence, Header, History, Hold, KeyValue, LargeAction,
    LargeCall, LargeOutcome, Nanos, Outcome, Rewound, Setup, Sighting, WatchStream,
};
use podkv_api::{Error, Reason};

/// Reads one monotonic clock: since the run began.
type Clock = Box<dyn Fn() -> Nanos + Send + Sync>;

/// Where everything is noted. Cheap to clone.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    clock: Clock,
    next_id: AtomicU64,
    history: Mutex<History>,
}

impl Recorder {
    pub fn new(setup: Setup) -> Self {
        let begun = Instant::now();
        let since = move || u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Self::with_clock(setup, since)
    }

    /// Notes the time of another clock. It must not stand still: of two calls, one after the other, the second must
    /// be later.
    pub fn with_clock(setup: Setup, clock: impl Fn() -> Nanos + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            clock: Box::new(clock),
            next_id: AtomicU64::new(1),
            history: Mutex::new(History {
                setup,
                ..History::default()
            }),
        }))
    }

    /// Since the run began.
    pub fn now(&self) -> Nanos {
        (self.0.clock)()
    }

    /// The id of a call to be; its values carry it.
    pub fn id(&self) -> u64 {
        self.0.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a call, and notes it. Gives its answer back.
    pub async fn call<T>(
        &self,
        client: u32,
        id: u64,
        (action, fence): (Action, Option<Fence>),
        call: impl Future<Output = Result<T, Error>>,
        answer: impl FnOnce(&T) -> (Option<Header>, Answer),
    ) -> Result<T, Error> {
        let invoked = self.now();
        // If this future is dropped, the call may have been sent: it is noted as unknown.
        let mut pending = Pending {
            recorder: self,
            call: Some(Call {
                id,
                client,
                invoked,
                returned: invoked,
                action,
                outcome: Outcome::Unknown {
                    reason: "nobody waited for the answer".into(),
                },
                fence,
            }),
        };
        let result = call.await;
        let returned = self.now();
        if let Some(call) = &mut pending.call {
            call.returned = returned;
            call.outcome = match &result {
                Ok(ok) => {
                    let (header, answer) = answer(ok);
                    Outcome::Ok { header, answer }
                }
                Err(error) => outcome(error),
            };
        }
        result
    }

    pub fn watch(&self, stream: WatchStream) {
        self.with(|history| history.watches.push(stream));
    }

    pub fn hold(&self, hold: Hold) {
        self.with(|history| history.holds.push(hold));
    }

    /// Makes a call for a large value, and notes it. `outcome` is asked about the answer.
    pub async fn large<T>(
        &self,
        (client, id): (u32, u64),
        (key, action): (String, LargeAction),
        call: impl Future<Output = Result<T, Error>>,
        outcome: impl FnOnce(T) -> LargeOutcome,
    ) {
        let invoked = self.now();
        let mut pending = PendingLarge {
            recorder: self,
            call: Some(LargeCall {
                id,
                client,
                invoked,
                returned: invoked,
                key,
                action,
                outcome: LargeOutcome::Unknown {
                    reason: "nobody waited for the answer".into(),
                },
            }),
        };
        let result = call.await;
        let returned = self.now();
        if let Some(call) = &mut pending.call {
            call.returned = returned;
            call.outcome = match result {
                Ok(answer) => outcome(answer),
                Err(error) if is_unknown(&error) => LargeOutcome::Unknown {
                    reason: format!("{:?}", error.reason()),
                },
                Err(error) => LargeOutcome::Refused {
                    reason: format!("{:?}: {}", error.reason(), error.text()),
                },
            };
        }
    }

    pub fn sighting(&self, sighting: Sighting) {
        self.with(|history| history.sightings.push(sighting));
    }

    /// A volume was put back to an earlier state just now.
    pub fn rewound(&self, node: &str) {
        let rewound = Rewound {
            at: self.now(),
            node: node.into(),
        };
        self.with(|history| history.rewound.push(rewound));
    }

    pub fn fault(&self, what: impl Into<String>) {
        let fault = Fault {
            at: self.now(),
            what: what.into(),
        };
        self.with(|history| history.faults.push(fault));
    }

    /// Everything so far, when the clients are done.
    pub fn take(&self) -> History {
        self.with(std::mem::take)
    }

    fn with<T>(&self, change: impl FnOnce(&mut History) -> T) -> T {
        change(
            &mut self
                .0
                .history
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

struct Pending<'r> {
    recorder: &'r Recorder,
    call: Option<Call>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            self.recorder.with(|history| history.calls.push(call));
        }
    }
}

struct PendingLarge<'r> {
    recorder: &'r Recorder,
    call: Option<LargeCall>,
}

impl Drop for PendingLarge<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            self.recorder.with(|history| history.large.push(call));
        }
    }
}

/// It may be applied; or it was, and its answer is gone: where, only the replicas can say.
fn is_unknown(error: &Error) -> bool {
    error.outcome_unknown() || error.reason() == Reason::AnswerNotKept
}

fn outcome(error: &Error) -> Outcome {
    let reason = format!("{:?}", error.reason());
    if is_unknown(error) {
        Outcome::Unknown { reason }
    } else {
        Outcome::Refused { reason }
    }
}

pub fn header(header: &podkv_api::Header) -> Header {
    Header {
        cluster: header.cluster.0,
        incarnation: header.incarnation.0,
        member: header.member.0,
        term: header.term,
        revision: header.revision,
    }
}

pub fn key_value(kv: &podkv_api::KeyValue) -> KeyValue {
    KeyValue {
        key: text(&kv.key),
        value: text(&kv.value),
        created: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease.map(|lease| lease.0),
        has_ttl: kv.expires_at_ms.is_some(),
    }
}

pub fn event(event: &podkv_api::Event) -> Event {
    match event.kind {
        podkv_api::EventKind::Put => Event::Put(key_value(&event.kv)),
        podkv_api::EventKind::Delete => Event::Delete {
            key: text(&event.kv.key),
        },
    }
}

/// Everything that clients write here is text; but for what stands in place of a large value, which is told in hexadecimal.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("{NO_TEXT}{}", hex(bytes)),
    }
}

/// Before a value that is no text.
pub const NO_TEXT: &str = "hex:";

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(recorder: &Recorder) -> Vec<Call> {
        recorder.take().calls
    }

    fn get() -> (Action, Option<Fence>) {
        (Action::KeepAlive { lease: 1 }, None)
    }

    #[tokio::test]
    async fn only_what_the_store_calls_certain_is_refused() {
        let recorder = Recorder::new(Setup::default());
        for error in [
            Error::new(Reason::NoLeader, ""),
            Error::new(Reason::LeaderChanged, "").with_unknown_outcome(),
            Error::new(Reason::AnswerNotKept, ""),
        ] {
            let failing = async { Err::<(), _>(error) };
            let _ = recorder
                .call(0, 1, get(), failing, |()| (None, Answer::Revoked))
                .await;
        }
        let calls = history(&recorder);
        assert!(matches!(calls[0].outcome, Outcome::Refused { .. }));
        assert!(calls[1].is_unknown());
        assert!(calls[2].is_unknown());
    }

    #[tokio::test]
    async fn a_call_that_nobody_waits_for_is_unknown() {
        let recorder = Recorder::new(Setup::default());
        let never = std::future::pending::<Result<(), Error>>();
        let call = recorder.call(0, 1, get(), never, |()| (None, Answer::Revoked));
        tokio::select! {
            biased;
            _ = call => unreachable!("it never ends"),
            () = std::future::ready(()) => {}
        }
        assert!(history(&recorder)[0].is_unknown());
    }
}
