//! `podkv put`, a process for each write, through the virtual address. Nobody runs it again if it fails.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use super::Notes;
use crate::stage::Stage;

/// A process takes some ten milliseconds of the machine.
const PACE: Duration = Duration::from_millis(150);

pub(super) struct Command {
    binary: PathBuf,
    endpoint: String,
    ca: Option<PathBuf>,
}

impl Command {
    pub fn new(stage: &Stage) -> Self {
        Self {
            binary: stage.binary.clone(),
            endpoint: format!("{}:2379", stage.service_name("podkv")),
            ca: stage.tls().map(|tls| tls.ca),
        }
    }

    async fn put(&self, key: &str, value: &str) -> Result<(), String> {
        let mut command = tokio::process::Command::new(&self.binary);
        command.args(["--endpoints", &self.endpoint]);
        if let Some(ca) = &self.ca {
            command.arg("--tls-ca").arg(ca);
        }
        let output = command
            .args(["put", key, value])
            .env_clear()
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!(
                "{}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    }
}

pub(super) async fn write(command: Command, prefix: String, mut notes: Notes) {
    let mut number = 0_u64;
    while notes.next(PACE).await {
        number += 1;
        let (key, value) = (format!("{prefix}/{number}"), format!("{number}"));
        match command.put(&key, &value).await {
            Ok(()) => notes.acknowledged(key, value, false),
            Err(why) => notes.failed(key, value, why),
        }
    }
}
