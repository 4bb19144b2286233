//! Disks that fail and disks that are slow, as a node meets them: `strace` stands between it and the kernel, and answers
//! its calls with an error, or late.
//!
//! The node is started below strace and keeps its own process id (`-D`). Calls that nobody asked about go by strace
//! (`--seccomp-bpf`), so the node is as fast as ever where its disk is not concerned.

use std::process::{Command, Stdio};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

/// How the program is called, before what it is to do.
const STRACE: [&str; 7] = [
    "strace",
    "-D",
    "-f",
    "--seccomp-bpf",
    "-qq",
    "-o",
    "/dev/null",
];

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sickness {
    /// From the nth on, every sync fails.
    FailingSyncs { from: u32 },
    /// From the nth on, every read fails.
    FailingReads { from: u32 },
    /// Every sync takes so much longer.
    Slow(Duration),
}

impl Sickness {
    /// One that a node dies of, at any point of its life.
    pub fn failing(rng: &mut StdRng) -> Self {
        let from = rng.random_range(1..400);
        match rng.random_bool(0.7) {
            true => Self::FailingSyncs { from },
            false => Self::FailingReads { from: from / 4 + 1 },
        }
    }

    /// Slower than the disks that podkv is meant for, and shorter than half of any election time-out.
    pub fn slow(rng: &mut StdRng) -> Self {
        Self::Slow(Duration::from_millis(rng.random_range(20..80)))
    }

    /// What the node's command begins with.
    pub fn prefix(self) -> Vec<String> {
        let (calls, what) = match self {
            Self::FailingSyncs { from } => ("fsync,fdatasync", format!("error=EIO:when={from}+")),
            Self::FailingReads { from } => ("pread64", format!("error=EIO:when={from}+")),
            Self::Slow(by) => ("fsync,fdatasync", format!("delay_enter={}", by.as_micros())),
        };
        let trace = format!("trace={calls}");
        let inject = format!("inject={calls}:{what}");
        let mut prefix: Vec<_> = STRACE.map(String::from).into();
        prefix.extend(["-e".into(), trace, "-e".into(), inject]);
        prefix
    }
}

/// Why there can be no sick disks here; `None` if there can.
pub fn missing() -> Option<String> {
    let [program, options @ ..] = STRACE;
    let tried = Command::new(program)
        .args(options)
        .args(["-e", "trace=fsync", "true"])
        .stdin(Stdio::null())
        .output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "strace does not work here: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("strace is missing: {error}")),
    }
}
