//! From the users' tasks to the hub: new watches, and "look at this watcher".
//!
//! Bounded by the number of open watches: each is registered once, asks at most once before the hub
//! has looked, and says once that it is gone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podkv_api::{Revision, Watch};
use tokio::sync::Notify;

use super::WatcherId;
use super::outbox::Outbox;

/// A watch that the hub does not know yet.
#[derive(Debug)]
pub(super) struct Registration {
    pub id: WatcherId,
    pub watch: Arc<Watch>,
    pub outbox: Arc<Outbox>,
    /// The state had this revision when the watch was asked for: "from now on" is after it.
    pub current: Revision,
    pub compacted_revision: Revision,
}

#[derive(Debug, Default)]
pub(super) struct Mailbox {
    mail: Mutex<Mail>,
    /// Also rung by the publisher.
    pub bell: Notify,
}

#[derive(Debug, Default)]
struct Mail {
    registrations: VecDeque<Registration>,
    signals: VecDeque<WatcherId>,
    is_closed: bool,
}

impl Mailbox {
    /// Gives the registration back if the hub has stopped.
    pub fn register(&self, registration: Registration) -> Result<(), Registration> {
        let mut mail = self.lock();
        if mail.is_closed {
            return Err(registration);
        }
        mail.registrations.push_back(registration);
        drop(mail);
        self.bell.notify_one();
        Ok(())
    }

    pub fn signal(&self, id: WatcherId) {
        let mut mail = self.lock();
        if !mail.is_closed {
            mail.signals.push_back(id);
        }
        drop(mail);
        self.bell.notify_one();
    }

    /// At most `max` of each, in order; no signal of a watch before its registration.
    pub fn take(&self, max: usize) -> (Vec<Registration>, Vec<WatcherId>) {
        let mut mail = self.lock();
        let count = mail.registrations.len().min(max);
        let registrations: Vec<_> = mail.registrations.drain(..count).collect();
        // A signal may be of a registration that still waits: it waits as well.
        let count = match mail.registrations.is_empty() {
            true => mail.signals.len().min(max),
            false => 0,
        };
        let signals = mail.signals.drain(..count).collect();
        (registrations, signals)
    }

    /// No more mail is taken. What waited is given back.
    pub fn close(&self) -> VecDeque<Registration> {
        let mut mail = self.lock();
        mail.is_closed = true;
        mail.signals.clear();
        std::mem::take(&mut mail.registrations)
    }

    /// No code panics while it holds the lock, and every step leaves the mail whole.
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
