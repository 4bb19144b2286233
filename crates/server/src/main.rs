//! The `podkv` binary.

use clap::Parser as _;

/// For RocksDB as well: the crate's `override` feature puts it in the place of `malloc`. What one thread takes, another
/// gives back, all the time; the C library's costs a tenth more of a write then, and keeps more memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
