//! Signals: SIGTERM, as a kubelet or a script sends it, and SIGINT, as Ctrl-C does.

use podkv_api::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Exit;

/// The signals that ask for an end.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Error::internal("signals cannot be listened for").with_source(error)
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for one, and says what to exit with for having been ended by it.
    pub async fn exit(&mut self) -> Exit {
        tokio::select! {
            _ = self.terminate.recv() => Exit::Terminated,
            _ = self.interrupt.recv() => Exit::Interrupted,
        }
    }

    /// Returns when one has come since the last time.
    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
