//! Every target over its corpus, and over some thousands of mutations of it, from a seed. No libFuzzer, so no coverage to
//! go by; but what was found once is tried on every run, and so is what lies beside it.

use std::fs;
use std::path::{Path, PathBuf};

use podkv_fuzz::{TARGETS, Target};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The same mutations on every run.
const SEED: u64 = 7;
const MAX_BYTES: usize = 4096;

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target.name)
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: PathBuf| (path.clone(), fs::read(path).unwrap());
    files.into_iter().map(read).collect()
}

fn check(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for (path, bytes) in &corpus {
        tried(target, bytes, || {
            format!("{} {}", target.name, path.display())
        });
    }
    let mut random = StdRng::seed_from_u64(SEED);
    for number in 0..target.mutations {
        let bytes = mutated(&mut random, &corpus);
        tried(target, &bytes, || keep(target, number, &bytes));
    }
}

/// Says which input it was, if it is one that breaks a promise.
fn tried(target: &Target, bytes: &[u8], which: impl Fn() -> String) {
    struct Tell<F: Fn() -> String>(F);
    impl<F: Fn() -> String> Drop for Tell<F> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("found by {}", (self.0)());
            }
        }
    }
    let tell = Tell(which);
    (target.run)(bytes);
    drop(tell);
}

/// Puts down a finding, so that it can be looked at.
fn keep(target: &Target, number: usize, bytes: &[u8]) -> String {
    let path = std::env::temp_dir().join(format!("podkv-fuzz-{}-{number}", target.name));
    match fs::write(&path, bytes) {
        Ok(()) => format!("mutation {number}: {}", path.display()),
        Err(error) => format!("mutation {number}, {error}: {bytes:02x?}"),
    }
}

fn mutated(random: &mut StdRng, corpus: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    let of = |random: &mut StdRng| &corpus[random.random_range(0..corpus.len())].1;
    let mut bytes = of(random).clone();
    for _ in 0..random.random_range(1..=6) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..8) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random()),
            2 => {
                let other = of(random);
                let from = random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            3 => {
                let more: Vec<u8> = (0..random.random_range(1..64))
                    .map(|_| random.random())
                    .collect();
                bytes.splice(at..at, more);
            }
            4 if at < bytes.len() => drop(bytes.remove(at)),
            5 if at < bytes.len() => {
                bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][random.random_range(0..6)]
            }
            6 if at < bytes.len() => bytes[at] = random.random(),
            _ if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            _ => bytes.push(random.random()),
        }
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { check(stringify!($name)); })*
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

targets! {
    core_formats node_formats backup keys apply convert etcd json token settings manifest names api
}

/// A target that is forgotten somewhere is fuzzed by nobody.
#[test]
fn every_target_is_everywhere() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, NAMES);
    let of_cargo_fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(of_cargo_fuzz.join("Cargo.toml")).unwrap();
    let mut bytes = 0;
    for target in TARGETS {
        let name = target.name;
        let text =
            fs::read_to_string(of_cargo_fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(text.contains(&format!("run({name:?}")), "{text}");
        assert!(manifest.contains(&format!(
            "name = {name:?}\npath = \"fuzz_targets/{name}.rs\""
        )));
        bytes += corpus(target)
            .iter()
            .map(|(_, bytes)| bytes.len())
            .sum::<usize>();
    }
    assert!(
        bytes < 200 << 10,
        "the corpora have {bytes} bytes: minimise them"
    );
}
