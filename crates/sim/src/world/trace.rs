//! A fingerprint of everything that happened in a run: each byte on the network, each step of a disk, each fault, with
//! its moment. Two runs of one seed have the same, or the world is not deterministic.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use super::clock::Clock;

/// FNV-1a, 64 bits.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// Clones are the same trace.
#[derive(Clone)]
pub struct Trace {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

struct State {
    hash: u64,
    events: u64,
    line: String,
    /// To find out where two runs part.
    file: Option<std::io::BufWriter<std::fs::File>>,
}

impl Trace {
    pub fn new(clock: Clock, file: Option<std::fs::File>) -> Self {
        let state = State {
            hash: OFFSET,
            events: 0,
            line: String::new(),
            file: file.map(std::io::BufWriter::new),
        };
        Self {
            clock,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Notes an event. `bytes` are part of the fingerprint, and of the file only by their sum.
    pub fn note(&self, what: std::fmt::Arguments<'_>, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State {
            hash,
            events,
            line,
            file,
        } = &mut *state;
        line.clear();
        // Writing to a string does not fail.
        let _ = write!(line, "{} {what}", self.clock.now());
        let own = fold(OFFSET, bytes);
        *hash = fold(fold(*hash, line.as_bytes()), &own.to_le_bytes());
        *events += 1;
        if let Some(file) = file {
            // It is for debugging: a full disk must not change the run.
            let _ = writeln!(file, "{line} {own:016x}");
        }
    }

    pub fn hash(&self) -> u64 {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .hash
    }

    pub fn events(&self) -> u64 {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .events
    }
}

fn fold(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}
