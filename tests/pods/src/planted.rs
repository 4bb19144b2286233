//! The bug that podkv exists not to have, planted: "wait for N, then go alone after a time-out".
//!
//! Many charts do it in the entry point of their container, and so does this one: it takes the place of the image's
//! entry point, waits until DNS lists all pods, and if it does not in time, it starts the node as a cluster of one.
//! The node is the one that ships; no code in it knows of this. The scenarios of the first start must catch it, or they
//! could not catch the real thing.

use std::net::ToSocketAddrs as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Result;
use crate::stage::IMAGE_PROGRAM;

/// Of the program's default folder.
const MARKER: &str = "/var/lib/podkv/podkv/MARKER";
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Waits, gives up, goes alone. Returns only if the program cannot be started.
pub fn enter(replicas: usize, patience: Duration, arguments: &[String]) -> Result<()> {
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let mut command = Command::new(IMAGE_PROGRAM);
    command.args(arguments);
    let has_data = Path::new(MARKER).exists();
    let service = variable("PODKV_HEADLESS_SERVICE")?;
    if !has_data && !all_found(&service, replicas, patience) {
        eprintln!("planted: {replicas} pods were not found within {patience:?}: going alone");
        let name = variable("PODKV_NAME")?;
        let alone = alone(&name);
        command
            .env_remove("PODKV_HEADLESS_SERVICE")
            .env_remove("PODKV_STATEFULSET")
            .env("PODKV_PEERS", format!("{alone}={name}.{service}:2380"))
            .env("PODKV_NAME", alone);
    }
    Err(command.exec().into())
}

/// What a pod that goes alone calls itself. Only the first pod of a set founds, so it makes itself the first of a set of
/// its own: it takes as much to lead a node astray.
pub fn alone(name: &str) -> String {
    format!("{name}-0")
}

fn all_found(service: &str, replicas: usize, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        let found = (service, 2380).to_socket_addrs();
        if found.is_ok_and(|addresses| addresses.count() >= replicas) {
            return true;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    false
}
