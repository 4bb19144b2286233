//! How a leader lets go without leaving anybody in doubt.
//!
//! A write that was proposed and has no answer may be applied or not; its caller can only be told that. So before
//! leadership is handed over, nothing may be in that state, and afterwards nobody may be cut off who still waits:
//!
//! ```text
//!   hold       the router takes no new entry; what comes meanwhile queues
//!   settled    every entry that was proposed is applied and answered
//!   transfer   the next leader has all of it
//!   release    the queue goes to the next leader; what other nodes had sent goes back to them, not executed
//!   farewell   each of them ends its stream once it knows the next leader and has all its answers
//! ```

use tokio::sync::watch;

/// Shared by the router, by whoever hands over, and by the streams of other nodes.
#[derive(Clone, Debug)]
pub(crate) struct Handover {
    /// Counts holds and releases; odd is held.
    wanted: watch::Sender<u64>,
    /// The hold under which the router has nothing in flight.
    settled: watch::Sender<u64>,
    /// Streams of other nodes that are served.
    streams: watch::Sender<usize>,
}

impl Default for Handover {
    fn default() -> Self {
        Self {
            wanted: watch::Sender::new(0),
            settled: watch::Sender::new(0),
            streams: watch::Sender::new(0),
        }
    }
}

impl Handover {
    /// From now until the answer is dropped no entry is proposed.
    pub fn hold(&self) -> Hold {
        self.wanted.send_modify(|count| *count |= 1);
        Hold {
            handover: self.clone(),
            number: *self.wanted.borrow(),
        }
    }

    /// Waits until no other node has a stream to this one.
    pub async fn farewell(&self) {
        let mut streams = self.streams.subscribe();
        // Its sender is this very handle.
        let _ = streams.wait_for(|count| *count == 0).await;
    }

    /// A stream of another node, for as long as the answer lives.
    pub(super) fn serve(&self) -> Served {
        self.streams.send_modify(|count| *count += 1);
        Served(self.clone())
    }

    /// For the router: wakes it when a hold begins or ends.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    pub(super) fn is_held(&self) -> bool {
        *self.wanted.borrow() % 2 == 1
    }

    /// The router has looked, and has nothing in flight.
    pub(super) fn nothing_in_flight(&self) {
        let wanted = *self.wanted.borrow();
        self.settled.send_if_modified(|settled| {
            let news = *settled != wanted;
            *settled = wanted;
            news
        });
    }
}

/// No entry is proposed while it lives.
#[derive(Debug)]
pub(crate) struct Hold {
    handover: Handover,
    number: u64,
}

impl Hold {
    /// Waits until everything that was proposed before is answered.
    pub async fn settled(&self) {
        let mut settled = self.handover.settled.subscribe();
        // Its sender is held here.
        let _ = settled.wait_for(|settled| *settled >= self.number).await;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Of two at the same time the first ends both: the second one's transfer is refused anyway.
        let number = self.number;
        self.handover.wanted.send_if_modified(|wanted| {
            let mine = *wanted == number;
            if mine {
                *wanted += 1;
            }
            mine
        });
    }
}

/// A stream of another node that is served.
#[derive(Debug)]
pub(super) struct Served(Handover);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.streams.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hold_is_settled_when_the_router_says_so_and_ends_when_dropped() {
        let handover = Handover::default();
        // Said before the hold: it counts for nothing.
        handover.nothing_in_flight();
        let hold = handover.hold();
        assert!(handover.is_held());
        {
            let settled = hold.settled();
            tokio::pin!(settled);
            assert!(futures_util::poll!(settled.as_mut()).is_pending());
            handover.nothing_in_flight();
            settled.await;
        }
        drop(hold);
        assert!(!handover.is_held());
    }

    #[tokio::test]
    async fn a_farewell_waits_for_the_last_stream() {
        let handover = Handover::default();
        handover.farewell().await;
        let (first, second) = (handover.serve(), handover.serve());
        let farewell = handover.farewell();
        tokio::pin!(farewell);
        drop(first);
        assert!(futures_util::poll!(farewell.as_mut()).is_pending());
        drop(second);
        farewell.await;
    }
}
