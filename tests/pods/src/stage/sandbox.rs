//! The container runtime: what a process does between the moment when it has namespaces of its own and the moment
//! when it is `podkv`, or another program.
//!
//! The kubelet runs `nsenter --net … unshare --mount --uts --pid --fork podkv-rehearse sandbox SPEC`. This process
//! is then process 1 of the pod. It builds a root that holds only what an image and a kubelet would put there,
//! makes it read-only, gives up what the manifest says, and becomes the program.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, mount_remount, unmount,
};
use serde::{Deserialize, Serialize};

use crate::Result;

/// Where the image has the program.
pub const ENTRYPOINT: &str = "/usr/local/bin/podkv";
/// Folders of the host that stand for the image: libraries, and `setpriv`.
const IMAGE: [&str; 6] = ["usr", "bin", "sbin", "lib", "lib32", "lib64"];
const DEVICES: [&str; 4] = ["null", "zero", "random", "urandom"];

#[derive(Debug, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// A container that is to be.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// An empty folder; the root is built on it.
    pub root: PathBuf,
    pub host_name: String,
    /// Of podkv's image.
    pub binary: Option<PathBuf>,
    /// The program and its arguments.
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    /// Whole files, by their path in the container.
    pub files: BTreeMap<PathBuf, String>,
    pub mounts: Vec<Mount>,
    pub rights: Rights,
}

/// What the manifest lets a container do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rights {
    pub user: u32,
    pub group: u32,
    pub supplementary_groups: Vec<u32>,
    pub read_only_root: bool,
    pub drop_capabilities: bool,
    pub no_new_privileges: bool,
}

/// Becomes the container's program. Returns only if that fails.
pub fn enter(spec: &Path) -> Result<()> {
    let spec: Spec = serde_json::from_slice(&fs::read(spec)?)?;
    build_root(&spec)?;
    rustix::system::sethostname(spec.host_name.as_bytes())?;
    std::env::set_current_dir(&spec.root)?;
    // The old root is laid under the new one, and let go.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    let rights = &spec.rights;
    if rights.read_only_root {
        mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, "")?;
    }
    let mut command = Command::new("/usr/bin/setpriv");
    command
        .arg(format!("--reuid={}", rights.user))
        .arg(format!("--regid={}", rights.group));
    let groups: Vec<_> = rights
        .supplementary_groups
        .iter()
        .map(ToString::to_string)
        .collect();
    match groups.is_empty() {
        true => command.arg("--clear-groups"),
        false => command.arg(format!("--groups={}", groups.join(","))),
    };
    if rights.drop_capabilities {
        command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    }
    if rights.no_new_privileges {
        command.arg("--no-new-privs");
    }
    command
        .arg("--")
        .args(&spec.command)
        .env_clear()
        .envs(&spec.environment);
    Err(command.exec().into())
}

fn build_root(spec: &Spec) -> Result<()> {
    let none = None::<&CStr>;
    let root = &spec.root;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    mount("pod", root, "tmpfs", MountFlags::empty(), none)?;
    for folder in IMAGE {
        let (host, inside) = (Path::new("/").join(folder), root.join(folder));
        let Ok(kind) = fs::symlink_metadata(&host) else {
            continue;
        };
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&host)?, &inside)?;
        } else {
            fs::create_dir(&inside)?;
            mount_bind_recursive(&host, &inside)?;
            mount_remount(&inside, MountFlags::BIND | MountFlags::RDONLY, "")?;
        }
    }
    // The program, over whatever the host has there.
    let programs = root.join("usr/local");
    mount("image", &programs, "tmpfs", MountFlags::empty(), none)?;
    fs::create_dir(programs.join("bin"))?;
    if let Some(binary) = &spec.binary {
        bind_file(binary, &root.join(ENTRYPOINT.trim_start_matches('/')))?;
    }

    fs::create_dir(root.join("dev"))?;
    for device in DEVICES {
        bind_file(
            &Path::new("/dev").join(device),
            &root.join("dev").join(device),
        )?;
    }
    fs::create_dir(root.join("proc"))?;
    mount("proc", root.join("proc"), "proc", MountFlags::empty(), none)?;
    for (path, text) in &spec.files {
        let path = inside(root, path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, text)?;
    }
    for mount in &spec.mounts {
        let target = inside(root, &mount.target);
        fs::create_dir_all(&target)?;
        mount_bind(&mount.source, &target)?;
        if mount.read_only {
            mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, "")?;
        }
    }
    Ok(())
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn bind_file(source: &Path, target: &Path) -> Result<()> {
    fs::write(target, "")?;
    Ok(mount_bind(source, target)?)
}
