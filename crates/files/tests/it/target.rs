//! One directory: what it shows, what it leaves alone, and what is left of a process that was killed.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::time::{Duration, Instant};

use podkv_files::{Error, Target, TargetOptions};

use crate::support::{
    NoneLarge, PREFIX, check_seen, inode, open, options, own_names, shown, tree, write,
};

const FILES: &[(&str, &str)] = &[("a", "1"), ("b/c", "2"), ("b/d/e", "3"), ("b-", "4")];

#[test]
fn a_tree_is_shown_and_swapped() {
    let dir = tempfile::tempdir().unwrap();
    let mut target = open(dir.path()).unwrap();
    let written = write(&mut target, FILES);
    assert!(written.swapped);
    assert_eq!((written.count.written, written.count.linked), (4, 0));
    check_seen(dir.path(), FILES);

    let before = shown(dir.path());
    let (kept, changed) = (dir.path().join("b/d/e"), dir.path().join("a"));
    let (kept_inode, changed_inode) = (inode(&kept), inode(&changed));
    let next = &[("a", "new"), ("b/d/e", "3"), ("f", "5")];
    let written = write(&mut target, next);
    assert_eq!((written.count.written, written.count.linked), (2, 1));
    check_seen(dir.path(), next);
    assert_eq!(inode(&kept), kept_inode, "linked");
    assert_ne!(inode(&changed), changed_inode, "written anew, not in place");

    // Who had the folder open still reads it, until it is swept.
    assert!(dir.path().join(&before).join("b/c").exists());
    target.sweep(Instant::now()).unwrap();
    assert_eq!(
        own_names(dir.path()),
        [shown(dir.path()).as_str(), "..data", "..podkv"]
    );
}

#[test]
fn a_folder_lingers_for_its_readers() {
    let dir = tempfile::tempdir().unwrap();
    let linger = Duration::from_secs(3600);
    let mut target = Target::open(
        dir.path(),
        PREFIX,
        &TargetOptions {
            linger,
            ..options()
        },
    )
    .unwrap();
    write(&mut target, &[("a", "1")]);
    let before = shown(dir.path());
    write(&mut target, &[("a", "2")]);
    target.sweep(Instant::now()).unwrap();
    assert!(dir.path().join(&before).exists());
    assert!(target.sweep_due().unwrap() > Instant::now());
    target.sweep(Instant::now() + linger).unwrap();
    assert!(!dir.path().join(&before).exists());
    assert_eq!(target.sweep_due(), None);
}

#[test]
fn what_is_right_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut target = open(dir.path()).unwrap();
    let first = write(&mut target, FILES);
    let folder = shown(dir.path());
    assert!(!write(&mut target, FILES).swapped);
    drop(target);

    let mut target = open(dir.path()).unwrap();
    assert_eq!(target.about(), Some(&first.about));
    assert!(!write(&mut target, FILES).swapped);
    assert_eq!(shown(dir.path()), folder);

    // One change after a restart writes one file.
    let written = write(
        &mut target,
        &[("a", "new"), ("b/c", "2"), ("b/d/e", "3"), ("b-", "4")],
    );
    assert_eq!((written.count.written, written.count.linked), (1, 3));
    assert_ne!(written.about.digest, first.about.digest);
}

#[test]
fn what_was_changed_behind_its_back_is_mended_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut target = open(dir.path()).unwrap();
    write(&mut target, FILES);
    drop(target);
    std::fs::write(dir.path().join("b/c"), "spoiled").unwrap();
    std::fs::set_permissions(dir.path().join("a"), std::fs::Permissions::from_mode(0o600)).unwrap();

    let mut target = open(dir.path()).unwrap();
    let written = write(&mut target, FILES);
    assert_eq!((written.count.written, written.count.linked), (2, 2));
    check_seen(dir.path(), FILES);
}

#[test]
fn modes_are_as_asked_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let strict = TargetOptions {
        file_mode: 0o440,
        folder_mode: 0o750,
        ..options()
    };
    let mut target = Target::open(dir.path(), PREFIX, &strict).unwrap();
    write(&mut target, FILES);
    let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("a"), mode("b/d/e"), mode("b/d"), mode("..data")),
        (0o440, 0o440, 0o750, 0o750)
    );
    drop(target);
    // Another mode is another file, though its contents are the same.
    let mut target = Target::open(
        dir.path(),
        PREFIX,
        &TargetOptions {
            file_mode: 0o444,
            ..strict
        },
    )
    .unwrap();
    assert_eq!(write(&mut target, FILES).count.written, 4);
    assert_eq!(mode("a"), 0o444);
}

/// Every state that a kill can leave between two steps of a swap.
#[test]
fn a_swap_that_was_cut_is_finished_or_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut target = open(dir.path()).unwrap();
    write(&mut target, FILES);
    let folder = shown(dir.path());
    drop(target);

    // A folder half written, a link not yet renamed.
    std::fs::create_dir(at("..2026_11_22_19_04_05.1")).unwrap();
    std::fs::write(at("..2026_11_22_19_04_05.1/half"), "ha").unwrap();
    symlink("..2026_11_22_19_04_05.1", at("..data_tmp")).unwrap();
    // Swapped, and the links not yet made; one of a name that is gone.
    std::fs::remove_file(at("a")).unwrap();
    symlink("..data/gone", at("gone")).unwrap();

    let mut target = open(dir.path()).unwrap();
    assert!(!write(&mut target, FILES).swapped);
    target.sweep(Instant::now()).unwrap();
    check_seen(dir.path(), FILES);
    assert_eq!(
        own_names(dir.path()),
        [folder.as_str(), "..data", "..podkv"]
    );
}

#[test]
fn a_directory_of_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "precious").unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    assert_eq!(
        own_names(dir.path()),
        Vec::<String>::new(),
        "nothing was made"
    );

    let mut target = Target::open(
        dir.path(),
        PREFIX,
        &TargetOptions {
            adopt: true,
            ..options()
        },
    )
    .unwrap();
    write(&mut target, &[("mine", "podkv's"), ("other", "1")]);
    check_seen(dir.path(), &[("mine", "podkv's"), ("other", "1")]);
    let aside = own_names(dir.path())
        .into_iter()
        .find(|name| name.starts_with("..adopted_"))
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(dir.path().join(aside).join("mine")).unwrap(),
        "precious"
    );
}

#[test]
fn a_volume_with_lost_and_found_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    open(dir.path()).unwrap();
}

#[test]
fn another_prefix_is_another_projection() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let error = Target::open(dir.path(), "other/", &options()).unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    Target::open(
        dir.path(),
        "other/",
        &TargetOptions {
            adopt: true,
            ..options()
        },
    )
    .unwrap();
}

#[test]
fn two_projections_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    drop(first);
    open(dir.path()).unwrap();
}

#[test]
fn what_is_in_the_way_later_leaves_the_last_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut target = open(dir.path()).unwrap();
    write(&mut target, &[("a", "1")]);
    std::fs::write(dir.path().join("new"), "somebody's").unwrap();
    let error = target
        .write(&tree(&[("a", "2"), ("new", "2")]), "c1", 8, &mut NoneLarge)
        .unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    check_seen(dir.path(), &[("a", "1"), ("new", "somebody's")]);
    std::fs::remove_file(dir.path().join("new")).unwrap();
    write(&mut target, &[("a", "2"), ("new", "2")]);
    check_seen(dir.path(), &[("a", "2"), ("new", "2")]);
}
