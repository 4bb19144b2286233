//! The "never" rules of `ARCHITECTURE.md`, as far as a test can see them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What `cargo tree` says.
fn tree(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--prefix", "none"])
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The crates that `package` is built with, itself included.
fn dependencies(package: &str, arguments: &[&str]) -> BTreeSet<String> {
    let normal = ["--edges", "normal", "--package", package];
    tree(&[&normal, arguments].concat())
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(String::from)
        .collect()
}

fn assert_without(package: &str, arguments: &[&str], forbidden: &[&str]) {
    let dependencies = dependencies(package, arguments);
    for name in forbidden {
        assert!(
            !dependencies.contains(*name),
            "{package} {arguments:?} is built with {name}"
        );
    }
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    rust_files(&root().join(folder), &mut files);
    files
        .into_iter()
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect()
}

/// Lines that are no comment.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn core_is_pure() {
    let forbidden = [
        "tokio",
        "rand",
        "getrandom",
        "openraft",
        "rocksdb",
        "tonic",
        "podkv-node",
        "podkv-client",
        "podkv-proto",
    ];
    assert_without("podkv-core", &[], &forbidden);
}

#[test]
fn api_knows_no_implementation() {
    assert_without(
        "podkv-api",
        &[],
        &[
            "tonic",
            "prost",
            "openraft",
            "rocksdb",
            "podkv-core",
            "podkv-node",
            "podkv-client",
        ],
    );
    assert_without("podkv-api", &["--no-default-features"], &["tokio", "rand"]);
}

#[test]
fn client_never_sees_core_or_node() {
    assert_without(
        "podkv-client",
        &[],
        &["podkv-core", "podkv-node", "openraft", "rocksdb"],
    );
}

#[test]
fn files_need_nothing_but_a_store() {
    assert_without(
        "podkv-files",
        &[],
        &[
            "tonic",
            "prost",
            "openraft",
            "rocksdb",
            "podkv-core",
            "podkv-node",
            "podkv-client",
        ],
    );
}

#[test]
fn checkers_share_no_code_with_what_they_check() {
    for (path, text) in sources("crates/sim/src/check") {
        for line in code_lines(&text) {
            assert!(
                !line.contains("podkv_"),
                "{} leans on podkv: {line}",
                path.display()
            );
        }
    }
}

/// Also when everything is built together, and features of one crate are those of all.
#[test]
fn what_ships_cannot_be_given_bugs() {
    let planted = |tree: &str| {
        let nodes = tree.lines().filter(|line| line.starts_with("podkv-node "));
        nodes.filter(|line| line.contains("planted")).count()
    };
    let features = ["--format", "{p} {f}"];
    assert_eq!(
        planted(&tree(&[&features[..], &["--workspace"]].concat())),
        0
    );
    let sim = ["--package", "podkv-sim", "--features", "planted"];
    assert_ne!(planted(&tree(&[&features[..], &sim].concat())), 0);
}

/// What is private is shown to `tests/fuzz`, and to nobody else.
#[test]
fn only_what_is_fuzzed_is_built_for_it() {
    let fuzzing = |package: &str| {
        let tree = tree(&[
            "--edges",
            "normal",
            "--package",
            package,
            "--format",
            "{p} {f}",
        ]);
        tree.lines()
            .filter(|line| line.starts_with("podkv-") && line.contains("fuzzing"))
            .count()
    };
    for package in ["podkv", "podkv-server", "podkv-tests"] {
        assert_eq!(fuzzing(package), 0, "{package}");
    }
    assert_ne!(fuzzing("podkv-fuzz"), 0);
}

#[test]
fn what_ships_has_no_fail_points() {
    let with_them = |what: &[&str]| {
        let nodes = tree(&[&["--format", "{p} {f}"], what].concat());
        let nodes = nodes.lines().filter(|line| line.starts_with("podkv-node "));
        nodes.filter(|line| line.contains("fail-points")).count()
    };
    assert_eq!(with_them(&["--workspace"]), 0);
    let named = ["--package", "podkv-server", "--features", "fail-points"];
    assert_ne!(with_them(&named), 0);
}

#[test]
fn certificates_are_made_by_the_binary_alone() {
    for package in ["podkv-client", "podkv-node"] {
        assert_without(
            package,
            &["--no-default-features"],
            &["rcgen", "aws-lc-rs", "aws-lc-sys"],
        );
    }
}

#[test]
fn without_its_feature_the_node_needs_no_cplusplus() {
    assert_without(
        "podkv-node",
        &["--no-default-features", "--features", "testing"],
        &["rocksdb", "librocksdb-sys"],
    );
    assert_without(
        "podkv-tests",
        &["--no-default-features"],
        &["rocksdb", "librocksdb-sys"],
    );
    assert_without("podkv-compat", &[], &["rocksdb", "librocksdb-sys"]);
    assert_without(
        "podkv-fuzz",
        &[],
        &["rocksdb", "librocksdb-sys", "libfuzzer-sys"],
    );
}

#[test]
fn openraft_stays_in_its_folder() {
    for (path, text) in sources("crates") {
        if path.starts_with(root().join("crates/node/src/raft")) {
            continue;
        }
        let named = code_lines(&text).any(|line| line.contains("openraft::"));
        assert!(
            !named,
            "{} names openraft; its one adapter is crates/node/src/raft",
            path.display()
        );
    }
}

#[test]
fn rustls_stays_in_its_crate() {
    for (path, text) in sources("crates") {
        // The API server of Kubernetes has a CA of its own, and no certificate of ours is shown to it.
        let homes = ["crates/tls", "crates/pod/src/kubernetes"];
        if homes
            .iter()
            .any(|home| path.display().to_string().contains(home))
        {
            continue;
        }
        let named = code_lines(&text).any(|line| line.contains("rustls::"));
        assert!(
            !named,
            "{} names rustls; its home is crates/tls",
            path.display()
        );
    }
}

#[test]
fn etcd_stays_in_its_folder() {
    for (path, text) in sources("crates") {
        let is_home = path.starts_with(root().join("crates/server/src/etcd"))
            || path.starts_with(root().join("crates/proto"))
            || is_test_code(&path);
        // The one place that mounts it, and shows it to tools.
        let is_door = path.ends_with("crates/server/src/api/mod.rs");
        for line in code_lines(&text) {
            assert!(
                is_home || is_door || !line.contains("podkv_proto::etcd"),
                "{} knows etcd: {line}",
                path.display()
            );
        }
    }
}

#[test]
fn bincode_stays_in_core() {
    for (path, text) in sources("crates") {
        if path.starts_with(root().join("crates/core")) {
            continue;
        }
        // Records of the node derive through core's re-export.
        let named = code_lines(&text)
            .any(|line| line.contains("bincode::") && !line.contains("podkv_core::bincode"));
        assert!(
            !named,
            "{} names bincode; core's codec is its one home",
            path.display()
        );
    }
}

/// Code that is only there to test: under `tests`, or a file named for it.
fn is_test_code(path: &Path) -> bool {
    let named = |name: &str| {
        name == "tests" || name.ends_with("tests.rs") || ["suite.rs", "random.rs"].contains(&name)
    };
    path.components()
        .any(|part| part.as_os_str().to_str().is_some_and(named))
}

#[test]
fn no_file_outgrows_a_reader() {
    for folder in ["crates", "tests", "benches"] {
        for (path, text) in sources(folder) {
            let is_test = folder == "crates" && is_test_code(&path);
            let code = text
                .split("#[cfg(test)]\nmod tests")
                .next()
                .unwrap()
                .lines()
                .count();
            assert!(
                is_test || code <= 640,
                "{} has {code} lines without its tests: it has found a second job",
                path.display()
            );
        }
    }
}

#[test]
fn crate_names_say_something() {
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            !["utils", "util", "common", "types", "misc", "helpers"].contains(&name.as_str()),
            "{name}"
        );
    }
}
