//! The command line: parse, call, print, exit with a code that scripts can use.

pub mod args;
mod auth;
mod bulk;
mod cert;
mod cluster;
mod data;
mod doctor;
mod exec;
mod exit;
mod hold;
mod import;
mod large;
mod output;
mod project;
mod recover;
mod restore;
mod resync;
mod rollback;
mod tls;
mod txn;

use std::path::Path;

use clap::CommandFactory as _;
use podkv_api::Error;
use podkv_client::Client;

pub use self::args::Cli;
pub use self::exit::Exit;

use self::args::{Command, ImportCommand, SnapshotCommand};
use self::data::{RangeOptions, WatchOptions};
use self::hold::{ElectOptions, LockOptions};
use self::output::Printer;
use crate::signals::Stop;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    Store(Error),
    /// Standard input or output, or a file.
    Io(String),
    /// The reader of our output has gone: `podkv range | head`. Not our failure.
    ClosedPipe,
}

impl Failure {
    fn file(path: &Path, error: std::io::Error) -> Self {
        Failure::Io(format!("{}: {error}", path.display()))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Store(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => Failure::Io(error.to_string()),
        }
    }
}

/// Runs a parsed command to its end, or until a signal.
///
/// Most commands have nothing to end with, and a signal would just kill them. But the first process of a container is
/// not killed by signals that it does not handle: `podkv watch` in a pod would outlive its grace.
pub async fn run(cli: Cli) -> Exit {
    let ends_by_itself = matches!(
        cli.command,
        Command::Serve(_)
            | Command::Dev(_)
            | Command::Lock { .. }
            | Command::Elect { .. }
            | Command::Lease(_)
            | Command::Import(_)
            | Command::Project(_)
            | Command::Exec(_)
    );
    match Stop::listen() {
        Ok(mut stop) if !ends_by_itself => tokio::select! {
            biased;
            exit = finish(cli) => exit,
            exit = stop.exit() => exit,
        },
        _ => finish(cli).await,
    }
}

async fn finish(cli: Cli) -> Exit {
    let result = match cli.command {
        Command::Serve(mut args) => {
            tls::serve_flags(&cli.client.tls, &mut args.settings.0);
            crate::serve::run(args).await.map_err(Failure::from)
        }
        Command::Cert(command) => cert::run(command).await,
        Command::Dev(args) => crate::dev::run(args).await,
        Command::Doctor(args) => doctor::run(cli.client, args).await,
        Command::Recover(args) => {
            let mut printer = Printer::new(cli.client.output);
            let done = recover::run(&mut printer, args).await;
            printer.flush().map_err(Failure::from).and(done)
        }
        Command::Resync(args) => {
            let mut printer = Printer::new(cli.client.output);
            let done = resync::run(&mut printer, args).await;
            printer.flush().map_err(Failure::from).and(done)
        }
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "podkv", &mut std::io::stdout());
            Ok(Exit::Ok)
        }
        Command::Snapshot(SnapshotCommand::Check { file }) => {
            let mut printer = Printer::new(cli.client.output);
            let checked = restore::check(&mut printer, &file).await;
            printer.flush().map_err(Failure::from).and(checked)
        }
        command => with_client(cli.client, command).await,
    };
    match result {
        Ok(exit) => exit,
        Err(Failure::ClosedPipe) => Exit::Ok,
        Err(Failure::Io(text)) => {
            eprintln!("podkv: {text}");
            Exit::Failed
        }
        Err(Failure::Store(error)) => {
            eprintln!("podkv: {error} [{}]", error.reason().name());
            Exit::from(&error)
        }
    }
}

async fn with_client(args: args::ClientArgs, command: Command) -> Result<Exit, Failure> {
    let mut printer = Printer::new(args.output);
    let credentials = auth::credentials(&args)?;
    let builder = Client::builder()
        .endpoints(args.endpoints)
        .deadline(args.timeout);
    let builder = match tls::options(args.tls, |name| std::env::var(name).ok()) {
        Some(options) => builder.tls(options),
        None => builder,
    };
    let builder = match credentials {
        Some((name, password)) => builder.user(name, password),
        None => builder,
    };
    let client = builder.connect().await?;
    let exit = dispatch(&client, &mut printer, command).await;
    client.close().await;
    printer.flush()?;
    exit
}

async fn dispatch(
    client: &Client,
    printer: &mut Printer,
    command: Command,
) -> Result<Exit, Failure> {
    match command {
        Command::Get { key, read, out } => large::get(client, printer, key, read, out).await,
        Command::Put(args) => data::put(client, printer, args).await,
        Command::Del { keys, prev } => data::delete(client, printer, keys, prev).await,
        Command::Range {
            keys,
            read,
            limit,
            reverse,
            keys_only,
            count_only,
        } => {
            let options = RangeOptions {
                limit,
                reverse,
                keys_only,
                count_only,
            };
            data::range(client, printer, keys, read, options).await
        }
        Command::Watch {
            keys,
            revision,
            list,
            prev,
            count,
        } => {
            data::watch(
                client,
                printer,
                keys,
                WatchOptions {
                    revision,
                    list,
                    prev,
                    count,
                },
            )
            .await
        }
        Command::Txn {
            compares,
            then,
            or_else,
        } => data::txn(client, printer, &compares, &then, &or_else).await,
        Command::Compact { revision } => data::compact(client, printer, revision).await,
        Command::Resize { replicas, start } => {
            cluster::resize(client, printer, start, replicas).await
        }
        Command::Freeze { prefix } => cluster::freeze(client, printer, prefix).await,
        Command::Thaw { prefix } => cluster::thaw(client, printer, &prefix).await,
        Command::Rollback {
            prefix,
            to,
            dry_run,
        } => rollback::rollback(client, printer, &prefix, to, dry_run).await,
        Command::Retention {
            keep,
            max_revisions,
        } => cluster::retention(client, printer, keep, max_revisions).await,
        Command::Lease(command) => hold::lease(client, printer, command).await,
        Command::Lock {
            name,
            ttl,
            try_lock,
            command,
        } => {
            hold::lock(
                client,
                printer,
                &name,
                LockOptions {
                    ttl,
                    try_lock,
                    command,
                },
            )
            .await
        }
        Command::Elect {
            name,
            value,
            ttl,
            observe,
        } => {
            hold::elect(
                client,
                printer,
                &name,
                ElectOptions {
                    ttl,
                    value,
                    observe,
                },
            )
            .await
        }
        Command::Member(command) => cluster::member(client, printer, command).await,
        Command::Alarm(command) => cluster::alarm(client, printer, command).await,
        Command::User(command) => auth::user(client, printer, command).await,
        Command::Role(command) => auth::role(client, printer, command).await,
        Command::Auth(command) => auth::auth(client, printer, command).await,
        Command::Status => cluster::status(client, printer).await,
        Command::Load {
            file,
            prefix,
            concurrency,
        } => bulk::load(client, printer, &file, &prefix, concurrency).await,
        Command::Dump { prefix } => bulk::dump(client, printer, prefix).await,
        Command::Snapshot(SnapshotCommand::Save { file }) => {
            bulk::snapshot_save(client, printer, &file).await
        }
        Command::Snapshot(SnapshotCommand::Restore { file }) => {
            restore::restore(client, printer, &file).await
        }
        Command::Snapshot(SnapshotCommand::Discard) => restore::discard(client, printer).await,
        // It asks no cluster: `run` has taken it.
        Command::Snapshot(SnapshotCommand::Check { .. }) => Ok(Exit::Usage),
        Command::Import(ImportCommand::Etcd(args)) => import::etcd(client, printer, args).await,
        Command::Import(ImportCommand::Dir { dir, prefix, how }) => {
            import::dir(client, printer, &dir, &prefix, how).await
        }
        Command::Import(ImportCommand::Manifest {
            file,
            prefix,
            by_name,
            how,
        }) => import::manifest(client, printer, &file, &prefix, by_name, how).await,
        Command::Project(args) => project::project(client, printer, args).await,
        Command::Exec(args) => exec::exec(client, args).await,
        // `run` has taken these.
        Command::Serve(_)
        | Command::Dev(_)
        | Command::Cert(_)
        | Command::Recover(_)
        | Command::Resync(_)
        | Command::Doctor(_)
        | Command::Completion { .. } => Ok(Exit::Usage),
    }
}

/// Waits for Ctrl-C or SIGTERM. Without a handler they never come here, and the process just ends.
pub(crate) async fn interrupted() {
    match Stop::listen() {
        Ok(mut stop) => stop.requested().await,
        Err(_) => std::future::pending().await,
    }
}
