//! load, dump, snapshot save: long work, with a progress bar.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use podkv_api::large::{Manifest, keys_below};
use podkv_api::{Error, Put, Range, Reason, Store};
use podkv_client::Client;
use serde_json::{Value, json};

use super::data::record;
use super::output::{Printer, key_value};
use super::{Exit, Failure};

/// A bar on standard error; nothing where that is no terminal.
pub(super) fn progress(total: Option<u64>, unit: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let template = match (total, unit) {
        (Some(_), "bytes") => "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}",
        (Some(_), _) => "{bar:40} {pos}/{len} {per_sec} {eta}",
        (None, _) => "{spinner} {pos} {per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Writes every record of a file, `concurrency` at a time. Each is applied exactly once.
pub async fn load(
    store: &impl Store,
    printer: &mut Printer,
    file: &Path,
    prefix: &str,
    concurrency: usize,
) -> Result<Exit, Failure> {
    let (reader, bytes): (Box<dyn BufRead>, Option<u64>) = if file == Path::new("-") {
        (Box::new(BufReader::new(std::io::stdin())), None)
    } else {
        let opened = std::fs::File::open(file).map_err(|error| Failure::file(file, error))?;
        let bytes = opened
            .metadata()
            .map_err(|error| Failure::file(file, error))?
            .len();
        (Box::new(BufReader::new(opened)), Some(bytes))
    };
    let bar = progress(bytes, "bytes");
    let mut lines = reader.split(b'\n').enumerate();
    let mut running = futures_util::stream::FuturesUnordered::new();
    let mut loaded = 0_u64;
    loop {
        while running.len() < concurrency.max(1) {
            let Some((number, line)) = lines.next() else {
                break;
            };
            let line = line.map_err(|error| Failure::file(file, error))?;
            bar.inc(line.len() as u64 + 1);
            if line.is_empty() {
                continue;
            }
            let (key, value) = record(&line).ok_or_else(|| {
                let text = format!(
                    "line {} of {}: expected KEY, tab, VALUE, or JSON with key and value",
                    number + 1,
                    file.display()
                );
                Error::new(Reason::InvalidArgument, text)
            })?;
            let key = [prefix.as_bytes(), &key].concat();
            running.push(store.put(Put::new(key, value)));
        }
        match running.next().await {
            Some(result) => {
                result?;
                loaded += 1;
            }
            None => break,
        }
    }
    bar.finish_and_clear();
    if printer.is_json() {
        printer.json(&json!({"loaded": loaded}))?
    } else {
        printer.line(format_args!("loaded {loaded}"))?
    }
    Ok(Exit::Ok)
}

pub async fn dump(
    store: &impl Store,
    printer: &mut Printer,
    prefix: String,
) -> Result<Exit, Failure> {
    let mut chunks = store.range_stream(Range::new(keys_below(prefix))).await?;
    let mut large = 0_u64;
    while let Some(chunk) = chunks.next().await {
        for kv in &chunk?.kvs {
            // No line could hold it, and what its key holds is nothing without its chunks.
            if !matches!(Manifest::decode(&kv.value), Ok(None)) {
                large += 1;
                continue;
            }
            printer.json(&Value::Object(key_value(kv)))?;
        }
    }
    if large > 0 {
        eprintln!("podkv: large values are left out: {large}; `podkv snapshot save` holds them");
    }
    Ok(Exit::Ok)
}

/// Saves a snapshot: to a temporary file beside the target, synced, then renamed, so that a file under the
/// final name is always whole.
pub async fn snapshot_save(
    client: &Client,
    printer: &mut Printer,
    file: &Path,
) -> Result<Exit, Failure> {
    let failed = |error| Failure::file(file, error);
    let mut snapshot = client.snapshot().await?;
    let part = file.with_extension("part");
    let mut out = std::fs::File::create(&part).map_err(failed)?;
    let bar = progress(Some(snapshot.total_bytes), "bytes");
    while let Some(chunk) = snapshot.data.next().await {
        let chunk = chunk?;
        out.write_all(&chunk).map_err(failed)?;
        bar.inc(chunk.len() as u64);
    }
    out.sync_all().map_err(failed)?;
    std::fs::rename(&part, file).map_err(failed)?;
    bar.finish_and_clear();
    let header = snapshot.header;
    if printer.is_json() {
        printer.json(
            &json!({"header": super::output::header(&header), "bytes": snapshot.total_bytes}),
        )?;
    } else {
        printer.line(format_args!(
            "saved revision {} of cluster {}, {} bytes, to {}",
            header.revision,
            header.cluster,
            snapshot.total_bytes,
            file.display()
        ))?;
    }
    Ok(Exit::Ok)
}
