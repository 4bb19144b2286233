//! Links that somebody puts into a target, to have a projector with more rights write or delete elsewhere.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use podkv_files::{Error, Target, TargetOptions};

use crate::support::{NoneLarge, PREFIX, check_seen, open, options, shown, tree, write};

const FILES: &[(&str, &str)] = &[("a", "1"), ("b/c", "2")];

/// A folder with a file in it that has to stay as it is.
struct Outside(tempfile::TempDir);

impl Outside {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("c"), "precious").unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn check(&self) {
        let names: Vec<_> = std::fs::read_dir(self.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing was added or removed");
        assert_eq!(
            std::fs::read_to_string(self.path().join("c")).unwrap(),
            "precious"
        );
    }
}

#[test]
fn the_target_itself_is_no_link() {
    let (outside, dir) = (Outside::new(), tempfile::tempdir().unwrap());
    symlink(outside.path(), dir.path().join("target")).unwrap();
    let error = open(&dir.path().join("target")).unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
    outside.check();
}

#[test]
fn the_marker_is_no_link() {
    let (outside, dir) = (Outside::new(), tempfile::tempdir().unwrap());
    symlink(outside.path().join("c"), dir.path().join("..podkv")).unwrap();
    let adopt = TargetOptions {
        adopt: true,
        ..options()
    };
    let error = Target::open(dir.path(), PREFIX, &adopt).unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
    outside.check();
}

#[test]
fn data_that_leads_elsewhere_is_replaced() {
    for lead in ["", "/.."] {
        let (outside, dir) = (Outside::new(), tempfile::tempdir().unwrap());
        let mut target = open(dir.path()).unwrap();
        write(&mut target, FILES);
        drop(target);
        std::fs::remove_file(dir.path().join("..data")).unwrap();
        symlink(
            format!("{}{lead}", outside.path().display()),
            dir.path().join("..data"),
        )
        .unwrap();
        let mut target = open(dir.path()).unwrap();
        write(&mut target, FILES);
        target.sweep(Instant::now()).unwrap();
        check_seen(dir.path(), FILES);
        outside.check();
    }
}

#[test]
fn a_folder_that_became_a_link_is_neither_read_nor_emptied() {
    let (outside, dir) = (Outside::new(), tempfile::tempdir().unwrap());
    let mut target = open(dir.path()).unwrap();
    write(&mut target, FILES);
    let folder = dir.path().join(shown(dir.path()));
    std::fs::remove_dir_all(folder.join("b")).unwrap();
    symlink(outside.path(), folder.join("b")).unwrap();
    // While it runs: the link is not linked to, so that the file is written.
    let written = write(&mut target, &[("a", "new"), ("b/c", "2")]);
    assert_eq!(written.count.linked, 0);
    target.sweep(Instant::now()).unwrap();
    check_seen(dir.path(), &[("a", "new"), ("b/c", "2")]);
    drop(target);

    // While it does not.
    let folder = dir.path().join(shown(dir.path()));
    std::fs::remove_dir_all(folder.join("b")).unwrap();
    symlink(outside.path(), folder.join("b")).unwrap();
    let mut target = open(dir.path()).unwrap();
    assert_eq!(
        target.about(),
        None,
        "what it shows is not as it was written"
    );
    write(&mut target, FILES);
    target.sweep(Instant::now()).unwrap();
    check_seen(dir.path(), FILES);
    outside.check();
}

#[test]
fn a_file_that_became_a_link_is_not_handed_on() {
    let (outside, dir) = (Outside::new(), tempfile::tempdir().unwrap());
    let mut target = open(dir.path()).unwrap();
    write(&mut target, FILES);
    let file = dir.path().join(shown(dir.path())).join("b/c");
    std::fs::remove_file(&file).unwrap();
    symlink(outside.path().join("c"), &file).unwrap();
    write(&mut target, &[("a", "new"), ("b/c", "2")]);
    check_seen(dir.path(), &[("a", "new"), ("b/c", "2")]);
    let made = dir.path().join(shown(dir.path())).join("b/c");
    assert!(std::fs::symlink_metadata(made).unwrap().is_file());
    outside.check();
}

#[test]
fn a_link_for_a_name_at_the_top_is_in_the_way() {
    let (outside, dir) = (Outside::new(), tempfile::tempdir().unwrap());
    let mut target = open(dir.path()).unwrap();
    symlink(outside.path().join("c"), dir.path().join("a")).unwrap();
    let error = target
        .write(&tree(FILES), "c1", 7, &mut NoneLarge)
        .unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    outside.check();
}

#[test]
fn an_old_folder_that_became_a_link_is_not_emptied() {
    let (outside, dir) = (Outside::new(), tempfile::tempdir().unwrap());
    let mut target = open(dir.path()).unwrap();
    write(&mut target, FILES);
    symlink(outside.path(), dir.path().join("..2026_01_01_00_00_00.1")).unwrap();
    drop(target);
    let mut target = open(dir.path()).unwrap();
    // It stays, and is said.
    assert!(target.sweep(Instant::now()).is_err());
    outside.check();
}
