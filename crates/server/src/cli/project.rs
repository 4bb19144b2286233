//! project: a directory that follows a prefix.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use podkv_api::Store;
use podkv_files::{Error, ProjectOptions, Projection, Status, TargetOptions};
use tokio::sync::watch;

use super::args::ProjectArgs;
use super::output::Printer;
use super::{Exit, Failure};
use crate::files::hook::Hook;
use crate::files::page::{HookCounts, Page, json};
use crate::signals::Stop;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => Failure::Store(error),
            other => Failure::Io(other.to_string()),
        }
    }
}

pub async fn project<S: Store>(
    store: &S,
    printer: &mut Printer,
    args: ProjectArgs,
) -> Result<Exit, Failure> {
    let mut stop = Stop::listen()?;
    let options = ProjectOptions {
        allow_empty: args.allow_empty,
        debounce: args.debounce,
        ..ProjectOptions::default()
    };
    let mut said = Said::default();
    let waiting = |error: &Error| said.problem(Some(&error.to_string()), "waiting");
    let (prefix, dir) = (args.prefix.as_str(), args.dir.as_path());
    let opening = Projection::open(store, prefix, dir, target_options(&args), options, waiting);
    let projection = tokio::select! {
        projection = opening => projection?,
        exit = stop.exit() => return Ok(exit),
    };
    let hooks = Arc::new(HookCounts::default());
    let page = match &args.metrics {
        Some(address) => Some(Page::listen(address, projection.status(), hooks.clone()).await?),
        None => None,
    };
    let told = tell(projection.status(), said, args.status.as_deref());
    let hooked = run_hooks(projection.status(), args.hook(), args.hook_timeout, &hooks);
    let status = projection.status();
    let ended = async {
        if args.once {
            tokio::select! {
                done = projection.once() => done.map(|()| Exit::Ok).map_err(Failure::from),
                exit = stop.exit() => Ok(exit),
            }
        } else {
            let done = projection.run(stop.requested()).await;
            done.map(|()| Exit::Ok).map_err(Failure::from)
        }
    };
    let exit = tokio::select! {
        exit = ended => exit,
        failed = told => Err(failed),
        () = hooked => Ok(Exit::Ok),
    };
    if let Some(page) = page {
        page.close().await;
    }
    let last = status.borrow().clone();
    if let Some(file) = &args.status {
        write_status(file, &last).await?;
    }
    if exit.is_ok() {
        print(printer, &last)?;
    }
    exit
}

fn target_options(args: &ProjectArgs) -> TargetOptions {
    let (user, group) = args
        .owner
        .map_or((None, None), |owner| (owner.user, owner.group));
    TargetOptions {
        file_mode: args.mode,
        // Who may read a file may look into its folder, and podkv has to write into it.
        folder_mode: args.mode | 0o700 | ((args.mode & 0o444) >> 2),
        user,
        group,
        adopt: args.adopt,
        linger: args.linger,
    }
}

fn print(printer: &mut Printer, status: &Status) -> std::io::Result<()> {
    if printer.is_json() {
        return printer.json(&json(status));
    }
    match &status.shown {
        Some(about) => printer.line(format_args!(
            "{} files, revision {}",
            about.files, status.revision
        )),
        None => Ok(()),
    }
}

/// What was said already, so that it is said once.
#[derive(Default)]
struct Said {
    problem: Option<String>,
    refused: Vec<String>,
}

impl Said {
    /// `state` is that of the directory, as long as there is a problem.
    fn problem(&mut self, problem: Option<&str>, state: &str) {
        if self.problem.as_deref() == problem {
            return;
        }
        match problem {
            Some(problem) => eprintln!("podkv: {state}: {problem}"),
            None => eprintln!("podkv: it follows"),
        }
        self.problem = problem.map(ToOwned::to_owned);
    }

    fn refused(&mut self, status: &Status) {
        let refused: Vec<String> = status.refused.iter().map(ToString::to_string).collect();
        for text in &refused {
            if self.refused.binary_search(text).is_err() {
                eprintln!("podkv: no file: {text}");
            }
        }
        self.refused = refused;
        self.refused.sort();
    }
}

/// Says on standard error what changes, and keeps the status file. Ends only with a failure.
async fn tell(mut status: watch::Receiver<Status>, mut said: Said, file: Option<&Path>) -> Failure {
    loop {
        let now = status.borrow_and_update().clone();
        let state = match now.shown {
            Some(_) => "the last state stays",
            None => "nothing is shown yet",
        };
        said.problem(now.problem.as_deref(), state);
        said.refused(&now);
        if let Some(file) = file
            && let Err(failed) = write_status(file, &now).await
        {
            return failed;
        }
        if status.changed().await.is_err() {
            // The projection has ended, and says why itself.
            return std::future::pending().await;
        }
    }
}

/// Whole or not at all: to a file beside it, then renamed.
async fn write_status(file: &Path, status: &Status) -> Result<(), Failure> {
    let (file, text) = (file.to_owned(), format!("{}\n", json(status)));
    let written = tokio::task::spawn_blocking(move || {
        let part = file.with_extension("part");
        let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &file));
        written.map_err(|error| Failure::file(&file, error))
    });
    written
        .await
        .map_err(|error| Failure::Io(error.to_string()))?
}

/// Runs the hook after each swap; swaps during a run are one more. Never ends.
async fn run_hooks(
    mut status: watch::Receiver<Status>,
    hook: Option<Hook>,
    limit: Duration,
    counts: &HookCounts,
) {
    let Some(hook) = hook else {
        return std::future::pending().await;
    };
    let mut seen = 0;
    loop {
        match status.wait_for(|status| status.swaps > seen).await {
            Ok(status) => seen = status.swaps,
            Err(_) => return std::future::pending().await,
        }
        counts.runs.fetch_add(1, Ordering::Relaxed);
        if let Err(why) = hook.run(limit).await {
            counts.failures.fetch_add(1, Ordering::Relaxed);
            eprintln!("podkv: after the change: {why}");
        }
    }
}
