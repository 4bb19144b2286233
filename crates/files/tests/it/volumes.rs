//! Volumes that are full or read-only. Mounts need root: without it these say loudly that they did nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use podkv_files::Error;

use crate::support::{NoneLarge, check_seen, open, tree, write};

/// A small file system of its own, unmounted at the end.
struct Mount(
    PathBuf,
    #[expect(dead_code, reason = "removed after the mount")] tempfile::TempDir,
);

impl Mount {
    fn new(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path())
            .output();
        match done {
            Ok(output) if output.status.success() => Some(Self(dir.path().to_owned(), dir)),
            failed => {
                eprintln!(
                    "SKIPPED: no file system can be mounted here ({failed:?}); run this as root"
                );
                None
            }
        }
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn remount(&self, options: &str) {
        let done = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.0)
            .status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_the_last_state_and_is_tried_again() {
    let Some(mount) = Mount::new("size=128k") else {
        return;
    };
    let mut target = open(mount.path()).unwrap();
    write(&mut target, &[("a", "1"), ("b/c", "2")]);
    let large = "x".repeat(256 << 10);
    let error = target
        .write(
            &tree(&[("a", "2"), ("large", &large)]),
            "c1",
            8,
            &mut NoneLarge,
        )
        .unwrap_err();
    let Error::Io { source, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error}");
    check_seen(mount.path(), &[("a", "1"), ("b/c", "2")]);
    // What was written of it is gone, so there is room for what fits.
    let fits = "x".repeat(64 << 10);
    write(&mut target, &[("a", "2"), ("large", &fits)]);
    check_seen(mount.path(), &[("a", "2"), ("large", &fits)]);
}

#[test]
fn without_inodes_it_is_the_same() {
    let Some(mount) = Mount::new("nr_inodes=12") else {
        return;
    };
    let mut target = open(mount.path()).unwrap();
    write(&mut target, &[("a", "1")]);
    let many: Vec<(String, String)> = (0..20).map(|n| (format!("f{n:02}"), "x".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert!(target.write(&tree(&many), "c1", 8, &mut NoneLarge).is_err());
    check_seen(mount.path(), &[("a", "1")]);
    write(&mut target, &[("a", "2")]);
    check_seen(mount.path(), &[("a", "2")]);
}

#[test]
fn a_read_only_target_says_so() {
    let Some(mount) = Mount::new("size=1m") else {
        return;
    };
    mount.remount("ro");
    let error = open(mount.path()).unwrap_err();
    let Error::Io { source, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        source.kind(),
        std::io::ErrorKind::ReadOnlyFilesystem,
        "{error}"
    );
    mount.remount("rw");
    let mut target = open(mount.path()).unwrap();
    write(&mut target, &[("a", "1")]);
    mount.remount("ro");
    let error = target
        .write(&tree(&[("a", "2")]), "c1", 8, &mut NoneLarge)
        .unwrap_err();
    let Error::Io { source, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        source.kind(),
        std::io::ErrorKind::ReadOnlyFilesystem,
        "{error}"
    );
    check_seen(mount.path(), &[("a", "1")]);
    mount.remount("rw");
    write(&mut target, &[("a", "2")]);
    check_seen(mount.path(), &[("a", "2")]);
}
