//! A program that podkv runs, with everything that it starts.
//!
//! It is the first of a process group of its own, and what ends it ends the group: a shell script's children do not stay
//! behind. On a terminal it shares podkv's group instead, or it could not read from it; there Ctrl-C reaches both anyway.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};

/// A running program. Dropping it kills it, without its children: [`Program::end`] is the way.
#[derive(Debug)]
pub struct Program {
    child: Child,
    pid: Pid,
    has_group: bool,
}

impl Program {
    /// Starts `command` with `variables` beside podkv's own environment.
    pub fn start(
        command: &[OsString],
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> std::io::Result<Self> {
        let no_command = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
        let (program, arguments) = command.split_first().ok_or_else(no_command)?;
        let mut child = Command::new(program);
        child
            .args(arguments)
            .envs(variables)
            .stdin(Stdio::inherit())
            .kill_on_drop(true);
        let has_group = !std::io::stdin().is_terminal();
        if has_group {
            child.process_group(0);
        }
        let child = child.spawn()?;
        let raw = child.id().and_then(|id| i32::try_from(id).ok());
        // A child that was not waited for has a positive id.
        let pid = raw.and_then(Pid::from_raw).ok_or_else(no_command)?;
        Ok(Self {
            child,
            pid,
            has_group,
        })
    }

    /// Sends a signal to the group. One that has ended already is no error.
    pub fn signal(&self, signal: Signal) {
        let _ = match self.has_group {
            true => kill_process_group(self.pid, signal),
            false => kill_process(self.pid, signal),
        };
    }

    /// Waits until it ends by itself.
    pub async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.kill_the_rest();
        Ok(status)
    }

    /// SIGTERM; after `grace` SIGKILL. Returns when it has ended.
    pub async fn end(mut self, grace: Duration) -> std::io::Result<ExitStatus> {
        self.signal(Signal::TERM);
        if let Ok(status) = tokio::time::timeout(grace, self.child.wait()).await {
            self.kill_the_rest();
            return status;
        }
        self.signal(Signal::KILL);
        let status = self.child.wait().await;
        self.kill_the_rest();
        status
    }

    /// What it started and left behind.
    fn kill_the_rest(&self) {
        if self.has_group {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }
}

/// The code that a shell would give it: 128 and the number of the signal that ended it.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Signals that are sent on purpose, by name.
pub fn signal_of(name: &str) -> Option<Signal> {
    Some(match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "TERM" => Signal::TERM,
        "WINCH" => Signal::WINCH,
        "KILL" => Signal::KILL,
        _ => return None,
    })
}
