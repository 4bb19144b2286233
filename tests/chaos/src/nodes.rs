//! The nodes as processes: started, killed, paused, and watched for ends that nobody asked for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};

use crate::Result;
use crate::place::{NODES, Place};

/// The three nodes. Killed when dropped.
pub struct Nodes {
    pub place: Arc<Place>,
    binary: PathBuf,
    logs: PathBuf,
    children: Mutex<[Option<Child>; NODES]>,
}

impl Nodes {
    pub fn new(place: Arc<Place>, binary: &Path, logs: &Path) -> Result<Self> {
        std::fs::create_dir_all(logs)?;
        Ok(Self {
            place,
            binary: binary.to_path_buf(),
            logs: logs.to_path_buf(),
            children: Mutex::default(),
        })
    }

    pub fn log(&self, node: usize) -> PathBuf {
        self.logs.join(format!("podkv-{node}.log"))
    }

    /// Starts a node that does not run.
    pub fn start(&self, node: usize) -> Result<()> {
        self.start_below(node, &[])
    }

    /// The same, by a program that becomes the node.
    pub fn start_below(&self, node: usize, prefix: &[String]) -> Result<()> {
        std::fs::create_dir_all(self.place.data(node))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(node))?;
        let mut command = self.place.command(&self.binary, node, prefix);
        let child = command.stderr(log).spawn()?;
        self.with(|children| children[node] = Some(child));
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self, node: usize) {
        if let Some(mut child) = self.with(|children| children[node].take()) {
            // It may be dead already. What is stopped dies of it, too.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn signal(&self, node: usize, signal: Signal) {
        let id = self.with(|children| children[node].as_ref().map(Child::id));
        let id = id.and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    pub fn is_running(&self, node: usize) -> bool {
        self.with(|children| {
            children[node]
                .as_mut()
                .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
        })
    }

    /// If the node was started and has ended by itself: how, and the last lines of its log.
    pub fn ended(&self, node: usize) -> Option<(ExitStatus, String)> {
        let status = self.with(|children| {
            let status = children[node].as_mut()?.try_wait().ok()??;
            children[node] = None;
            Some(status)
        })?;
        let log = std::fs::read(self.log(node)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().rev().take(8).collect();
        let last: Vec<_> = lines.into_iter().rev().collect();
        let told = format!("podkv-{node} ended with {status}:\n{}", last.join("\n"));
        Some((status, told))
    }

    fn with<T>(&self, use_them: impl FnOnce(&mut [Option<Child>; NODES]) -> T) -> T {
        use_them(&mut self.children.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in 0..NODES {
            self.kill(node);
        }
    }
}
