//! What is fuzzed: every decoder, programs of commands, the handlers of both APIs.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs ─► libFuzzer ─► Target::run(bytes) ◄─ tests/corpus.rs ◄─ fuzz/corpus/NAME, and mutations
//!        make fuzz: for minutes                   panics, or not        cargo test: for seconds, on every run of CI
//! ```
//!
//! A body takes bytes and panics if a promise is broken. Where structure reaches deeper than bytes would, it reads one
//! out of them (`commands.rs`, `messages.rs`). What crates keep private they show in a module `fuzzing` behind a feature
//! of that name: bytes in, bytes out, so that no private type can be leaned on.
//!
//! A finding becomes a file of the corpus, named for what it found: every run of the tests replays it.
#![expect(
    clippy::panic,
    clippy::expect_used,
    reason = "a body panics if a promise is broken: that is its answer"
)]

mod api;
mod apply;
mod backup;
mod commands;
mod convert;
mod doors;
mod formats;
mod messages;

/// One thing that is fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Also of its folder in `fuzz/corpus`, and of its file in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Panics if a promise is broken.
    pub run: fn(&[u8]),
    /// How many mutations of its corpus the tests try. Some are slow: they have a node.
    pub mutations: usize,
}

const fn target(name: &'static str, run: fn(&[u8]), mutations: usize) -> Target {
    Target {
        name,
        run,
        mutations,
    }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("core_formats", formats::core, 20_000),
    target("node_formats", formats::node, 20_000),
    target("backup", backup::run, 5_000),
    target("keys", formats::keys, 20_000),
    target("apply", apply::run, 1_500),
    target("convert", convert::native, 10_000),
    target("etcd", convert::etcd, 10_000),
    target("json", convert::json, 10_000),
    target("token", doors::token, 5_000),
    target("settings", doors::settings, 3_000),
    target("manifest", doors::manifest, 3_000),
    target("names", doors::names, 5_000),
    target("api", api::run, 3),
];

/// Runs a target by its name.
///
/// # Panics
/// If a promise is broken, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").run)(data);
}
