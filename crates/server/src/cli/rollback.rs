//! rollback: a prefix as it was.

use podkv_api::{Bytes, Limits, Store};
use podkv_files::rollback::{Difference, compare};
use serde_json::{Value, json};

use super::output::Printer;
use super::{Exit, Failure};

pub async fn rollback(
    store: &impl Store,
    printer: &mut Printer,
    prefix: &str,
    to: u64,
    dry_run: bool,
) -> Result<Exit, Failure> {
    if dry_run {
        let difference = compare(store, prefix, to).await?;
        return planned(printer, &difference);
    }
    let limits = Limits::default();
    let (done, revision) = podkv_files::rollback::rollback(store, prefix, to, &limits).await?;
    let (written, deleted) = (done.puts().count(), done.deletes().count());
    let unchanged = done.unchanged;
    if printer.is_json() {
        printer.json(&json!({
            "written": written, "deleted": deleted, "unchanged": unchanged, "revision": revision,
        }))?;
    } else {
        let at = revision.map_or_else(String::new, |revision| format!(", revision {revision}"));
        printer.line(format_args!(
            "written {written}, deleted {deleted}, unchanged {unchanged}{at}"
        ))?;
    }
    Ok(Exit::Ok)
}

fn planned(printer: &mut Printer, difference: &Difference) -> Result<Exit, Failure> {
    let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    if printer.is_json() {
        let puts: Vec<Value> = difference.puts().map(|key| json!(text(key))).collect();
        let deletes: Vec<Value> = difference.deletes().map(|key| json!(text(key))).collect();
        printer
            .json(&json!({"put": puts, "delete": deletes, "unchanged": difference.unchanged}))?;
        return Ok(Exit::Ok);
    }
    for key in difference.puts() {
        printer.line(format_args!("put {}", text(key)))?;
    }
    for key in difference.deletes() {
        printer.line(format_args!("delete {}", text(key)))?;
    }
    printer.line(format_args!("unchanged {}", difference.unchanged))?;
    Ok(Exit::Ok)
}
