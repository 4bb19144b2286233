//! exec: a program whose environment variables are keys.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

use podkv_api::Store;
use podkv_api::large::keys_below;
use podkv_api::recipes::{Mirror, Snapshot};
use podkv_files::environment::{Environment, Variables, environment};
use podkv_files::folder_prefix;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::args::{ExecArgs, OnChange};
use super::{Exit, Failure};
use crate::files::program::{Program, exit_code};

/// How long to wait for a store that is not up, before asking again.
const RETRY: Duration = Duration::from_secs(1);

pub async fn exec<S: Store>(store: &S, args: ExecArgs) -> Result<Exit, Failure> {
    let prefix = folder_prefix(&args.prefix);
    let mut signals = Signals::listen()?;
    let mirror = tokio::select! {
        mirror = open(store, &prefix) => mirror?,
        signal = signals.ending() => return Ok(ended_by(signal)),
    };
    let mut said = None;
    let mut snapshot = mirror.snapshot();
    let mut variables = tokio::select! {
        variables = next(&mirror, &mut snapshot, &prefix, &args, &mut said) => variables?,
        signal = signals.ending() => return Ok(ended_by(signal)),
    };
    let mut program = start(&args, &variables)?;
    loop {
        tokio::select! {
            biased;
            status = program.wait() => return Ok(Exit::Program(exit_code(status?))),
            signal = signals.any() => program.signal(signal),
            changed = changed(&mirror, &mut snapshot, &prefix, &args, &mut said) => {
                let changed = changed?;
                if changed == variables {
                    continue;
                }
                variables = changed;
                match args.on_change {
                    OnChange::Nothing => {}
                    OnChange::Signal(signal) => program.signal(signal),
                    OnChange::Restart => {
                        let restarted = restart(program, &args, &variables, &mut signals).await?;
                        match restarted {
                            Ok(started) => program = started,
                            Err(exit) => return Ok(exit),
                        }
                    }
                }
            }
        }
    }
}

async fn open<S: Store>(store: &S, prefix: &str) -> Result<Mirror, Failure> {
    let mut said = false;
    loop {
        match Mirror::open(store, keys_below(prefix.to_owned())).await {
            Ok(mirror) => return Ok(mirror),
            Err(error) if !error.is_retryable() => return Err(error.into()),
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    eprintln!("podkv: the program waits for the store: {error}");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// The next state that can be run with, once changes have settled.
async fn changed(
    mirror: &Mirror,
    snapshot: &mut Snapshot,
    prefix: &str,
    args: &ExecArgs,
    said: &mut Option<String>,
) -> Result<Variables, Failure> {
    mirror.changed(snapshot.revision()).await?;
    tokio::time::sleep(args.debounce).await;
    *snapshot = mirror.snapshot();
    next(mirror, snapshot, prefix, args, said).await
}

/// The first state, from `snapshot` on, that can be run with.
async fn next(
    mirror: &Mirror,
    snapshot: &mut Snapshot,
    prefix: &str,
    args: &ExecArgs,
    said: &mut Option<String>,
) -> Result<Variables, Failure> {
    loop {
        let found = environment(prefix, snapshot.iter(), args.upper);
        let why_not = match &found.importing {
            Some(marker) => Some(format!(
                "an import is not finished: {}",
                marker.escape_ascii()
            )),
            None if found.variables.is_empty() && !args.allow_empty => Some(format!(
                "{prefix:?} holds no variable; --allow-empty runs without any"
            )),
            None => None,
        };
        if *said != why_not
            && let Some(why_not) = &why_not
        {
            eprintln!("podkv: waiting: {why_not}");
        }
        *said = why_not;
        if said.is_none() {
            say_refused(&found);
            return Ok(found.variables);
        }
        *snapshot = mirror.changed(snapshot.revision()).await?;
    }
}

fn say_refused(found: &Environment) {
    for (key, why) in &found.refused {
        eprintln!("podkv: no variable: {}: {why}", key.escape_ascii());
    }
}

fn start(args: &ExecArgs, variables: &Variables) -> Result<Program, Failure> {
    let values = variables
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from_vec(value.to_vec())));
    Program::start(&args.command, values).map_err(|error| {
        let command = args
            .command
            .first()
            .map(|word| word.to_string_lossy())
            .unwrap_or_default();
        Failure::Io(format!("{command}: {error}"))
    })
}

/// Ends the program and starts it again, unless podkv is told to end meanwhile.
async fn restart(
    program: Program,
    args: &ExecArgs,
    variables: &Variables,
    signals: &mut Signals,
) -> Result<Result<Program, Exit>, Failure> {
    eprintln!("podkv: the variables changed: the program is restarted");
    let ending = program.end(args.grace);
    tokio::pin!(ending);
    let told = tokio::select! {
        status = &mut ending => {
            status?;
            None
        }
        signal = signals.ending() => Some(signal),
    };
    if let Some(signal) = told {
        // It has been told already.
        let _ = ending.await?;
        return Ok(Err(ended_by(signal)));
    }
    start(args, variables).map(Ok)
}

fn ended_by(signal: Signal) -> Exit {
    match signal {
        Signal::INT => Exit::Interrupted,
        _ => Exit::Terminated,
    }
}

/// The signals that a program would get if podkv were not between.
struct Signals(Vec<(Signal, tokio::signal::unix::Signal)>);

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let kinds = [
            (Signal::TERM, SignalKind::terminate()),
            (Signal::INT, SignalKind::interrupt()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::QUIT, SignalKind::quit()),
            (Signal::USR1, SignalKind::user_defined1()),
            (Signal::USR2, SignalKind::user_defined2()),
        ];
        let listened = kinds
            .into_iter()
            .map(|(which, kind)| Ok((which, signal(kind)?)));
        Ok(Self(listened.collect::<std::io::Result<_>>()?))
    }

    /// The next one.
    async fn any(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (which, listener) in &mut self.0 {
                if listener.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*which);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// The next one that asks for an end.
    async fn ending(&mut self) -> Signal {
        loop {
            let signal = self.any().await;
            if signal == Signal::TERM || signal == Signal::INT || signal == Signal::QUIT {
                return signal;
            }
        }
    }
}
