//! import: from files, manifests, or another store. What is done is in `podkv-files` and `etcd/import`; here is what a
//! person sees of it.

use std::io::Read as _;
use std::path::Path;

use podkv_api::{Bytes, Error, Limits, Reason, Store};
use podkv_client::{Client, TlsOptions};
use podkv_files::import::{Changes, apply, compare};
use podkv_files::input::Inputs;
use podkv_files::manifest::read_manifests;
use podkv_files::source::read_directory;
use podkv_files::{IMPORT_MARKER, folder_prefix};
use serde_json::{Value, json};

use super::args::{ImportEtcdArgs, ImportHow};
use super::bulk::progress;
use super::output::Printer;
use super::{Exit, Failure, restore};
use crate::etcd::import::{self, From, Progress, Source};
use crate::signals::Stop;

const PASSWORD: &str = "PODKV_FROM_PASSWORD";

pub async fn dir(
    client: &Client,
    printer: &mut Printer,
    dir: &Path,
    prefix: &str,
    how: ImportHow,
) -> Result<Exit, Failure> {
    let limits = Limits::default();
    let (dir, most) = (dir.to_owned(), limits.max_request_bytes - KEY_ROOM_BYTES);
    let read = tokio::task::spawn_blocking(move || read_directory(&dir, most));
    let tree = read
        .await
        .map_err(|error| Failure::Io(error.to_string()))??;
    write(client, printer, prefix, &tree, how, &limits).await
}

pub async fn manifest(
    client: &Client,
    printer: &mut Printer,
    file: &Path,
    prefix: &str,
    by_name: bool,
    how: ImportHow,
) -> Result<Exit, Failure> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else {
        std::fs::read_to_string(file).map_err(|error| Failure::file(file, error))?
    };
    let tree = read_manifests(&text, by_name)?;
    write(client, printer, prefix, &tree, how, &Limits::default()).await
}

/// Of a request, what is left for the key and what stands around it.
const KEY_ROOM_BYTES: usize = 8 << 10;

async fn write(
    store: &impl Store,
    printer: &mut Printer,
    prefix: &str,
    tree: &Inputs,
    how: ImportHow,
    limits: &Limits,
) -> Result<Exit, Failure> {
    let mut stop = Stop::listen()?;
    let changes = compare(store, prefix, tree, how.delete).await?;
    if how.dry_run {
        return planned(printer, &changes, limits);
    }
    let steps = changes.steps(limits).len();
    let bar = progress(Some(steps as u64), "steps");
    let mut done_steps = 0;
    let applying = apply(store, &changes, limits, |done, _| {
        bar.set_position(done as u64);
        done_steps = done;
    });
    let applied = tokio::select! {
        applied = applying => applied,
        exit = stop.exit() => {
            say_unfinished(prefix, done_steps, steps);
            return Ok(exit);
        }
    };
    bar.finish_and_clear();
    let revision = applied.inspect_err(|_| say_unfinished(prefix, done_steps, steps))?;
    let (written, deleted) = (changes.puts().count(), changes.deletes().count());
    let unchanged = changes.unchanged;
    if printer.is_json() {
        printer.json(&json!({
            "written": written, "deleted": deleted, "unchanged": unchanged, "steps": steps, "revision": revision,
        }))?;
    } else {
        let at = revision.map_or_else(String::new, |revision| format!(", revision {revision}"));
        let how = match steps {
            0 | 1 => String::new(),
            steps => format!(", in {steps} transactions"),
        };
        printer.line(format_args!(
            "written {written}, deleted {deleted}, unchanged {unchanged}{how}{at}"
        ))?;
    }
    Ok(Exit::Ok)
}

fn say_unfinished(prefix: &str, done: usize, steps: usize) {
    if done > 0 && done < steps {
        let folder = folder_prefix(prefix);
        eprintln!(
            "podkv: {done} of {steps} transactions are done. Projections wait while {folder}{IMPORT_MARKER} is there; run it again"
        );
    }
}

fn planned(printer: &mut Printer, changes: &Changes, limits: &Limits) -> Result<Exit, Failure> {
    let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    if printer.is_json() {
        let puts: Vec<Value> = changes.puts().map(|key| json!(text(key))).collect();
        let deletes: Vec<Value> = changes.deletes().map(|key| json!(text(key))).collect();
        printer.json(&json!({
            "put": puts, "delete": deletes, "unchanged": changes.unchanged, "steps": changes.steps(limits).len(),
        }))?;
        return Ok(Exit::Ok);
    }
    for key in changes.puts() {
        printer.line(format_args!("put {}", text(key)))?;
    }
    for key in changes.deletes() {
        printer.line(format_args!("delete {}", text(key)))?;
    }
    let steps = changes.steps(limits).len();
    printer.line(format_args!(
        "unchanged {}, transactions {steps}",
        changes.unchanged
    ))?;
    Ok(Exit::Ok)
}

pub async fn etcd(
    client: &Client,
    printer: &mut Printer,
    args: ImportEtcdArgs,
) -> Result<Exit, Failure> {
    let mut stop = Stop::listen()?;
    let source = Source::connect(from(&args)?).await?;
    let bar = progress(None, "keys");
    let copying = import::copy(&source, &args.file, |keys| bar.set_position(keys));
    let copied = tokio::select! {
        revision = copying => revision?,
        exit = stop.exit() => return Ok(exit),
    };
    bar.finish_and_clear();
    tokio::select! {
        restored = restore::restore(client, printer, &args.file) => restored?,
        exit = stop.exit() => return Ok(exit),
    };
    if !args.follow {
        return finished(printer, copied);
    }
    printer.flush()?;
    let bar = progress(None, "revisions");
    let level = |now: Progress| {
        bar.set_position(now.here);
        bar.set_message(match now.there - now.here {
            0 => "level; Ctrl-C ends it".to_owned(),
            behind => format!("{behind} revisions behind"),
        });
    };
    let ended = stop.requested();
    let here = import::follow(&source, client, copied, ended, level).await?;
    bar.finish_and_clear();
    finished(printer, here)
}

fn finished(printer: &mut Printer, revision: u64) -> Result<Exit, Failure> {
    if printer.is_json() {
        printer.json(&json!({"etcd_revision": revision}))?;
    } else {
        printer.line(format_args!(
            "everything up to etcd's revision {revision} is here"
        ))?;
    }
    Ok(Exit::Ok)
}

fn from(args: &ImportEtcdArgs) -> Result<From, Failure> {
    let user = match &args.from_user {
        None => None,
        Some(name) => {
            let password = std::env::var(PASSWORD).map_err(|_| {
                let text = format!("--from-user is set, and {PASSWORD} is not");
                Error::new(Reason::Configuration, text)
            })?;
            Some((name.clone(), password))
        }
    };
    let tls = args.from_ca.clone().map(|ca| TlsOptions {
        ca,
        cert: args.from_cert.clone(),
        key: args.from_key.clone(),
        server_name: None,
    });
    Ok(From {
        address: args.from.clone(),
        tls,
        user,
    })
}
