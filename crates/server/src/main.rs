//! The `podkv` binary.

use clap::Parser as _;

/// For RocksDB as well: the crate's `override` feature puts it in the place of `malloc`. What one thread takes, another
/// gives back, all the time; with the C library's a write costs more then.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const _: () = assert!(
    !podkv_node::CAN_BE_PLANTED,
    "podkv-node's feature `planted` is for the simulation: it puts bugs into the node"
);

// Features of one crate are those of all that are built together: nobody gets these without asking for them.
const _: () = assert!(
    podkv_node::HAS_FAIL_POINTS == cfg!(feature = "fail-points"),
    "podkv-node's feature `fail-points` is for tests of crashes: it ends the node at places that the environment names"
);

fn main() -> std::process::ExitCode {
    let cli = podkv_server::cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("podkv: no runtime: {error}");
            return std::process::ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(podkv_server::cli::run(cli));
    if exit.is_by_signal() {
        // What blocks (a recovery that reads a long log) is not waited for: it can end anywhere.
        runtime.shutdown_background();
    }
    exit.into()
}
