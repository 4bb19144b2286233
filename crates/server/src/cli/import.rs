//! import: from another store. What it does is in `etcd/import`; here is what a person sees of it.

use podkv_api::{Error, Reason};
use podkv_client::{Client, TlsOptions};
use serde_json::json;

use super::args::ImportEtcdArgs;
use super::bulk::progress;
use super::output::Printer;
use super::{Exit, Failure, restore};
use crate::etcd::import::{self, From, Progress, Source};
use crate::signals::Stop;

const PASSWORD: &str = "PODKV_FROM_PASSWORD";

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
