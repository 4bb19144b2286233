//! Programs on which podkv once differed, each with what it is about, and those that are too particular for chance.

use std::path::Path;

use podkv_compat::compare::differ;
use podkv_compat::program::Program;
use podkv_compat::run::PATIENCE;
use podkv_compat::servers::{Etcd, Podkv};

fn scripts() -> Vec<(String, Program)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut scripts: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(path).unwrap();
            let program = text
                .parse()
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, program)
        })
        .collect();
    scripts.sort_by(|(one, _), (other, _)| one.cmp(other));
    scripts
}

/// `SCRIPT=name` runs one alone.
#[tokio::test]
async fn podkv_answers_scripts_as_etcd() {
    let only = std::env::var("SCRIPT").ok();
    let mut scripts = scripts();
    scripts.retain(|(name, _)| only.as_ref().is_none_or(|only| only == name));
    assert!(!scripts.is_empty());
    // First, while the stores are new.
    scripts.sort_by_key(|(_, program)| !program.fresh);
    let (mut etcd, mut podkv) = tokio::join!(Etcd::start(), Podkv::start());
    let mut failed = Vec::new();
    for (index, (name, program)) in scripts.iter().enumerate() {
        if program.fresh && index > 0 {
            (etcd, podkv) = tokio::join!(Etcd::start(), Podkv::start());
        }
        let stores = [etcd.link().await, podkv.link().await];
        if let Some(difference) = differ(&stores, program, PATIENCE).await.unwrap() {
            failed.push(format!("{name}: {difference}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
