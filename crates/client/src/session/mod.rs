//! Exactly-once writes: the client's session, opened at the first write and kept alive.
//!
//! The session's id is chosen here, so an open whose answer was lost is repeated and gives the same
//! session. Each write takes a [`Ticket`]: a number in the session, held until the write will not be
//! sent again. Writes renew the session; a task renews it while there are none, and closes it after
//! a while without any, because each renewal is replicated and an idle client should cost nothing.

pub(crate) mod decision;
mod numbers;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podkv_api::{Error, Reason, Result, SessionId, SessionStamp};
use podkv_proto::convert;
use podkv_proto::v1;
use podkv_proto::v1::session_client::SessionClient;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use self::numbers::Numbers;
use crate::core::{Core, Plan};
use crate::endpoint::lock;
use crate::failure::{closed, corrupt};

/// A session without writes for this many of its TTLs is closed.
const IDLE_TTLS: u32 = 10;
/// How long closing the client waits for the goodbye to its session. Without it the session expires by
/// itself, so this is a courtesy.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct Sessions {
    current: Mutex<Option<Arc<Session>>>,
    /// Held while a session is being opened. Holds the id that is tried, so that who comes after
    /// somebody who gave up goes on with the same one.
    opening: tokio::sync::Mutex<Option<SessionId>>,
}

struct Session {
    id: SessionId,
    ttl: Duration,
    numbers: Mutex<Numbers>,
    /// A number was released, or the session was lost.
    room: Notify,
    lost: AtomicBool,
    renewed: Mutex<Instant>,
    written: Mutex<Instant>,
}

/// A write's place in a session.
pub(crate) struct Ticket {
    session: Arc<Session>,
    core: Arc<Core>,
    stamp: SessionStamp,
}

impl Ticket {
    /// The same for every attempt.
    pub fn stamp(&self) -> SessionStamp {
        self.stamp
    }

    /// The write was executed, which renewed the session.
    pub fn renewed(&self) {
        *lock(&self.session.renewed) = Instant::now();
    }

    /// A node does not know the session.
    pub fn session_is_lost(&self) {
        self.core.sessions.lose(&self.session);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.session.numbers).release(self.stamp.sequence);
        self.session.room.notify_waiters();
    }
}

impl Sessions {
    /// A place in the current session, waiting for a session and for room in its window.
    pub async fn ticket(core: &Arc<Core>, deadline: Instant) -> Result<Ticket> {
        loop {
            let session = Self::open(core, deadline).await?;
            let room = session.room.notified();
            tokio::pin!(room);
            // Registered before the look, so that no release in between is missed.
            room.as_mut().enable();
            if let Some(stamp) = core.sessions.take(&session) {
                return Ok(Ticket {
                    session: session.clone(),
                    core: core.clone(),
                    stamp,
                });
            }
            tokio::select! {
                () = core.runtime.stop.cancelled() => return Err(closed()),
                waited = timeout_at(deadline, room) => if waited.is_err() {
                    return Err(Error::new(
                        Reason::DeadlineExceeded,
                        "too many writes of this client are unanswered: its session's window is full",
                    ));
                },
            }
        }
    }

    /// A number in the session, if it is still the current one and has room.
    fn take(&self, session: &Arc<Session>) -> Option<SessionStamp> {
        // Under the lock of `current`, so that nobody closes an idle session in between.
        let current = lock(&self.current);
        if !current
            .as_ref()
            .is_some_and(|one| Arc::ptr_eq(one, session))
        {
            // Who waits for room here waits in vain: look again for the current one.
            session.room.notify_waiters();
            return None;
        }
        let mut numbers = lock(&session.numbers);
        let sequence = numbers.take()?;
        *lock(&session.written) = Instant::now();
        Some(SessionStamp {
            session: session.id,
            sequence,
            acknowledged_below: numbers.acknowledged_below(),
        })
    }

    fn lose(&self, session: &Arc<Session>) {
        session.lost.store(true, Ordering::Release);
        let mut current = lock(&self.current);
        if current
            .as_ref()
            .is_some_and(|one| Arc::ptr_eq(one, session))
        {
            *current = None;
        }
        session.room.notify_waiters();
    }

    async fn open(core: &Arc<Core>, deadline: Instant) -> Result<Arc<Session>> {
        let sessions = &core.sessions;
        if let Some(session) = lock(&sessions.current).clone() {
            return Ok(session);
        }
        let mut tried = tokio::select! {
            () = core.runtime.stop.cancelled() => return Err(closed()),
            tried = timeout_at(deadline, sessions.opening.lock()) => tried.map_err(|_elapsed| {
                Error::new(Reason::DeadlineExceeded, "no session could be opened in time")
            })?,
        };
        if let Some(session) = lock(&sessions.current).clone() {
            return Ok(session);
        }
        let id = *tried.get_or_insert_with(|| SessionId(rand::random()));
        let result = open_call(core, id, deadline).await;
        if !result.as_ref().is_err_and(Error::is_retryable) {
            // Settled: the next session gets another id.
            *tried = None;
        }
        let (ttl, window) = result?;
        let now = Instant::now();
        let session = Arc::new(Session {
            id,
            ttl,
            numbers: Mutex::new(Numbers::new(window)),
            room: Notify::new(),
            lost: AtomicBool::new(false),
            renewed: Mutex::new(now),
            written: Mutex::new(now),
        });
        *lock(&sessions.current) = Some(session.clone());
        core.runtime
            .spawn(keep_alive(core.clone(), session.clone()));
        Ok(session)
    }

    /// Says goodbye, so that the nodes may forget the session now.
    pub async fn close(core: &Arc<Core>) {
        let session = lock(&core.sessions.current).take();
        if let Some(session) = session {
            let _courtesy = close_call(core, session.id).await;
        }
    }
}

async fn open_call(core: &Core, id: SessionId, deadline: Instant) -> Result<(Duration, u64)> {
    let ttl_ms = u64::try_from(core.runtime.settings.session_ttl().as_millis()).unwrap_or(u64::MAX);
    core.call(Plan::RENEW, deadline, |endpoint, until| async move {
        let request = v1::SessionOpenRequest {
            ttl_ms,
            id: convert::session_id_to_wire(id),
        };
        let mut client = SessionClient::new(endpoint.channel());
        let answer = endpoint.unary(until, client.open(request)).await?;
        let header = convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
        let ttl = Duration::from_millis(answer.ttl_ms);
        if ttl.is_zero() || answer.window == 0 {
            return Err(corrupt("a session was opened with no TTL or no window"));
        }
        Ok((header, (ttl, u64::from(answer.window))))
    })
    .await
}

/// Renews the session while there are no writes that do; ends with it.
async fn keep_alive(core: Arc<Core>, session: Arc<Session>) {
    let interval = session.ttl / 3;
    while !session.lost.load(Ordering::Acquire) {
        let due = *lock(&session.renewed) + interval;
        if Instant::now() < due {
            sleep_until(due).await;
            continue;
        }
        if core.sessions.retire_if_idle(&session) {
            let _expires_by_itself = close_call(&core, session.id).await;
            return;
        }
        let asked = Instant::now();
        match keep_alive_call(&core, session.id, asked + interval).await {
            Ok(()) => *lock(&session.renewed) = asked,
            Err(error) if error.reason() == Reason::SessionNotFound => core.sessions.lose(&session),
            Err(error) if error.is_retryable() => {
                tracing::debug!(session = %session.id, %error, "session not renewed, trying on");
            }
            Err(error) => {
                tracing::warn!(session = %session.id, %error, "session cannot be renewed");
                sleep_until(asked + interval).await;
            }
        }
    }
}

impl Sessions {
    /// Takes the session out of use if nothing was written in it for long and nothing is outstanding.
    fn retire_if_idle(&self, session: &Arc<Session>) -> bool {
        let mut current = lock(&self.current);
        let is_current = current
            .as_ref()
            .is_some_and(|one| Arc::ptr_eq(one, session));
        let is_idle = lock(&session.numbers).is_idle();
        let is_old = lock(&session.written).elapsed() > session.ttl * IDLE_TTLS;
        if is_current && is_idle && is_old {
            *current = None;
        }
        // A session that is not current any more ends once its last write does.
        is_idle && (!is_current || is_old)
    }
}

async fn keep_alive_call(core: &Core, id: SessionId, deadline: Instant) -> Result<()> {
    core.call(Plan::RENEW, deadline, |endpoint, until| async move {
        let request = v1::SessionKeepAliveRequest {
            id: convert::session_id_to_wire(id),
        };
        let mut client = SessionClient::new(endpoint.channel());
        let answer = endpoint.unary(until, client.keep_alive(request)).await?;
        let header = convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
        Ok((header, ()))
    })
    .await
}

async fn close_call(core: &Core, id: SessionId) -> Result<()> {
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    core.call(Plan::RENEW, deadline, |endpoint, until| async move {
        let request = v1::SessionCloseRequest {
            id: convert::session_id_to_wire(id),
        };
        let mut client = SessionClient::new(endpoint.channel());
        let answer = endpoint.unary(until, client.close(request)).await?;
        let header = convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
        Ok((header, ()))
    })
    .await
}
