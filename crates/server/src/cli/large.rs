//! get and put of values of any length: piece by piece, with a progress bar.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use podkv_api::large::MAX_LARGE_BYTES;
use podkv_api::recipes::large::{LargeOptions, open, put_stream};
use podkv_api::{Error, KeyRange, Put, Range, Reason, Store};
use podkv_files::input::{pieces, write_file};
use serde_json::{Value, json};

use super::args::{OutArgs, ReadArgs};
use super::bulk::progress;
use super::output::{Printer, header, key_value};
use super::{Exit, Failure};

pub async fn get(
    store: &impl Store,
    printer: &mut Printer,
    key: String,
    read: ReadArgs,
    out: OutArgs,
) -> Result<Exit, Failure> {
    let range = Range::new(KeyRange::key(key))
        .at(read.revision)
        .consistency(read.consistency());
    let mut response = store.range(range).await?;
    let Some(kv) = response.kvs.pop() else {
        return Ok(Exit::NotFound);
    };
    if out.out.is_none() && printer.is_json() {
        printer.json(&Value::Object(key_value(&kv)))?;
        return Ok(Exit::Ok);
    }
    let at = match read.revision {
        0 => response.header.revision,
        revision => revision,
    };
    let described = key_value(&kv);
    let mut stream = open(store, kv, at, &LargeOptions::default()).await?;
    let bytes = stream.bytes();
    let Some(file) = &out.out else {
        while let Some(piece) = stream.next().await {
            printer.raw(&piece?)?;
        }
        printer.raw(b"\n")?;
        return Ok(Exit::Ok);
    };
    let bar = progress(Some(bytes), "bytes");
    write_file(file, out.mode, stream, |length| bar.inc(length)).await?;
    bar.finish_and_clear();
    if printer.is_json() {
        let mut described = described;
        // They are in the file.
        described.retain(|name, _| !name.starts_with("value"));
        described.insert("bytes".into(), json!(bytes));
        printer.json(&Value::Object(described))?;
    }
    Ok(Exit::Ok)
}

/// Writes a file, or standard input, as the value of `put`.
pub async fn put(
    store: &impl Store,
    printer: &mut Printer,
    put: Put,
    file: Option<PathBuf>,
) -> Result<Exit, Failure> {
    let (file, path, length) = match file {
        Some(path) => {
            let failed = |error| Failure::file(&path, error);
            let file = File::open(&path).map_err(failed)?;
            let length = file.metadata().map_err(failed)?.len();
            if length > MAX_LARGE_BYTES {
                // It would be found only when that much is sent.
                let text = format!(
                    "{} has {length} bytes, and a value has {MAX_LARGE_BYTES} at most",
                    path.display()
                );
                return Err(Error::new(Reason::RequestTooLarge, text).into());
            }
            (file, path, Some(length))
        }
        None => {
            let input = std::io::stdin().as_fd().try_clone_to_owned()?;
            (input.into(), Path::new("standard input").to_owned(), None)
        }
    };
    let bar = progress(length, "bytes");
    let source = pieces(file, &path, |length| bar.inc(length));
    let written = put_stream(store, put, source, &LargeOptions::default()).await?;
    bar.finish_and_clear();
    if printer.is_json() {
        printer.json(&json!({
            "header": header(&written.header), "before": null,
            "bytes": written.bytes, "chunks": written.chunks,
        }))?;
    } else {
        printer.line(format_args!("revision {}", written.header.revision))?;
    }
    Ok(Exit::Ok)
}
