//! The namespaces that a run has to itself, and whether this machine gives them.
//!
//! Network, mounts and processes. When the first process in them ends, all end; when whoever started it dies, it is
//! killed: nothing of a run outlives it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

const TOOLS: [&str; 5] = ["ip", "nft", "nsenter", "unshare", "setpriv"];

/// Why no rehearsal is possible here; `None` if one is.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root, for namespaces and addresses of its own".into());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |tool: &&str| std::env::split_paths(&paths).any(|folder| folder.join(tool).exists());
    let absent: Vec<_> = TOOLS
        .iter()
        .filter(|tool| !is_there(tool))
        .copied()
        .collect();
    if !absent.is_empty() {
        return Some(format!(
            "these are missing: {} (Debian: apt-get install iproute2 nftables util-linux)",
            absent.join(", ")
        ));
    }
    let tried = command("true", []).stdin(Stdio::null()).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "this machine gives no namespaces: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("unshare does not run: {error}")),
    }
}

/// Runs a program in new namespaces. Wait for it on the thread that spawned it: when that thread ends, so does it.
pub fn command<'a>(
    program: impl AsRef<std::ffi::OsStr>,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child=KILL"])
        .args(["--mount-proc", "--"])
        .arg(program)
        .args(arguments);
    command
}

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
        .to_path_buf()
}

/// What `make manifests` checks, as JSON.
pub fn render(components: &[&str]) -> Result<String> {
    let program = root().join(".ci/manifests");
    let output = Command::new(&program)
        .arg("--render")
        .args(components)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("the manifests cannot be rendered: {}", complaint.trim()).into())
}
