//! Generates code from the protos. `protox` compiles them, so that no `protoc` is needed.
//!
//! `proto` beside this file is a link to the workspace's folder, because others read it there;
//! `cargo package` follows it and packs the files, so the published crate builds as well.

use std::error::Error;
use std::path::Path;

use prost::Message;

const INCLUDE: &str = "proto";
const CLIENT_FACING: [&str; 7] = [
    "podkv/v1/auth.proto",
    "podkv/v1/kv.proto",
    "podkv/v1/watch.proto",
    "podkv/v1/lease.proto",
    "podkv/v1/session.proto",
    "podkv/v1/cluster.proto",
    "podkv/v1/snapshot.proto",
];
const INTERNAL: [&str; 2] = ["podkv/peer/v1/peer.proto", "google/rpc/status.proto"];
const ETCD: [&str; 3] = ["etcd/rpc.proto", "etcd/lock.proto", "etcd/election.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={INCLUDE}");

    let with_etcd = std::env::var_os("CARGO_FEATURE_ETCD").is_some();
    let etcd: &[&str] = if with_etcd { &ETCD } else { &[] };
    let all = protox::compile(CLIENT_FACING.iter().chain(&INTERNAL).chain(etcd), [INCLUDE])?;
    tonic_prost_build::configure()
        // A value is copied once, off the wire; everything after that shares it.
        .bytes(".")
        // No `connect`: how to dial is the business of those who own connections.
        .build_transport(false)
        .compile_fds(all)?;

    // What the reflection service shows to clients: their own services, not the peers'.
    describe("podkv.v1.bin", &CLIENT_FACING)?;
    if with_etcd {
        describe("etcd.bin", &ETCD)?;
    }
    Ok(())
}

fn describe(name: &str, files: &[&str]) -> Result<(), Box<dyn Error>> {
    let described = protox::Compiler::new([INCLUDE])?
        .include_imports(true)
        .open_files(files)?
        .file_descriptor_set();
    let out_dir = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out_dir).join(name), described.encode_to_vec())?;
    Ok(())
}
