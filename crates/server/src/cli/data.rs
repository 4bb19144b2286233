//! get, put, del, range, watch, txn, compact.

use std::io::Read as _;

use bytes::Bytes;
use futures_util::StreamExt as _;
use podkv_api::large::keys_below;
use podkv_api::{
    Compare, Consistency, Delete, Error, KeyRange, LeaseId, Op, Put, Range, Reason, Store, Txn,
    Watch, WatchMessage,
};
use serde_json::{Value, json};

use super::args::{KeysArgs, PutArgs, ReadArgs};
use super::output::{Printer, header, key_value};
use super::txn::{parse_action, parse_compare};
use super::{Exit, Failure, large};

impl ReadArgs {
    pub fn consistency(&self) -> Consistency {
        match (self.local, self.max_staleness) {
            (true, _) => Consistency::Local,
            (false, Some(max_staleness)) => Consistency::Bounded(max_staleness),
            (false, None) => Consistency::Linearizable,
        }
    }
}

impl KeysArgs {
    pub fn range(&self) -> KeyRange {
        match &self.end {
            Some(end) => KeyRange::between(self.key.clone(), end.clone()),
            None if self.prefix => KeyRange::prefix(self.key.clone()),
            None if self.from => KeyRange::from(self.key.clone()),
            None => KeyRange::key(self.key.clone()),
        }
    }
}

pub async fn put(
    store: &impl Store,
    printer: &mut Printer,
    args: PutArgs,
) -> Result<Exit, Failure> {
    let mut put = Put::new(args.key, "");
    put.lease = args.lease.map(LeaseId);
    put.prev_kv = args.prev;
    if let Some(ttl) = args.ttl {
        put = put.ttl(ttl);
    }
    put.value = match (args.value, args.file) {
        (Some(value), None) if value != "-" => value.into(),
        // Of which it is not known how long it is.
        (_, file) if !args.prev => return large::put(store, printer, put, file).await,
        (_, Some(file)) => std::fs::read(&file)
            .map_err(|error| Failure::file(&file, error))?
            .into(),
        _ => {
            let mut value = Vec::new();
            std::io::stdin().read_to_end(&mut value)?;
            value.into()
        }
    };
    let response = store.put(put).await?;
    if printer.is_json() {
        let before = response.prev_kv.as_ref().map(key_value);
        printer.json(&json!({"header": header(&response.header), "before": before}))?;
    } else if let Some(before) = &response.prev_kv {
        printer.value(before)?;
    } else if !args.prev {
        printer.line(format_args!("revision {}", response.header.revision))?;
    }
    Ok(Exit::Ok)
}

pub async fn delete(
    store: &impl Store,
    printer: &mut Printer,
    keys: KeysArgs,
    prev: bool,
) -> Result<Exit, Failure> {
    let mut delete = Delete::new(keys.range());
    delete.prev_kv = prev;
    let response = store.delete(delete).await?;
    if printer.is_json() {
        let before: Vec<_> = response.prev_kvs.iter().map(key_value).collect();
        printer.json(&json!({"header": header(&response.header), "deleted": response.deleted, "before": before}))?;
    } else {
        for kv in &response.prev_kvs {
            printer.key_value(kv)?;
        }
        printer.line(format_args!("deleted {}", response.deleted))?;
    }
    Ok(Exit::Ok)
}

pub struct RangeOptions {
    pub limit: u64,
    pub reverse: bool,
    pub keys_only: bool,
    pub count_only: bool,
}

pub async fn range(
    store: &impl Store,
    printer: &mut Printer,
    keys: KeysArgs,
    read: ReadArgs,
    options: RangeOptions,
) -> Result<Exit, Failure> {
    // Without a key there is only one sensible reading: everything.
    let range = if keys.key.is_empty() && keys.end.is_none() {
        keys_below("")
    } else {
        keys.range()
    };
    let mut request = Range::new(range)
        .at(read.revision)
        .consistency(read.consistency())
        .limit(options.limit);
    request.reverse = options.reverse;
    request.keys_only = options.keys_only;
    request.count_only = options.count_only;
    let mut chunks = store.range_stream(request).await?;
    let mut count = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        for kv in &chunk.kvs {
            if options.keys_only {
                printer.key(kv)?
            } else {
                printer.key_value(kv)?
            }
        }
        count = count.max(chunk.count);
    }
    if options.count_only {
        if printer.is_json() {
            printer.json(&json!({"count": count}))?
        } else {
            printer.line(count)?
        }
    }
    Ok(Exit::Ok)
}

pub struct WatchOptions {
    pub revision: u64,
    pub list: bool,
    pub prev: bool,
    pub count: Option<u64>,
}

pub async fn watch(
    store: &impl Store,
    printer: &mut Printer,
    keys: KeysArgs,
    options: WatchOptions,
) -> Result<Exit, Failure> {
    let range = if keys.key.is_empty() && keys.end.is_none() {
        keys_below("")
    } else {
        keys.range()
    };
    let mut request = Watch::new(range);
    request.start_revision = options.revision;
    request.list = options.list;
    request.prev_kv = options.prev;
    let mut messages = store.watch(request).await?;
    let mut left = options.count;
    while let Some(message) = messages.next().await {
        match message? {
            WatchMessage::List { kvs, .. } => {
                for kv in &kvs {
                    printer.key_value(kv)?;
                }
            }
            WatchMessage::Events { events, .. } => {
                for event in &events {
                    printer.event(event)?;
                    if let Some(left) = &mut left {
                        *left = left.saturating_sub(1);
                    }
                }
            }
            WatchMessage::Created { .. }
            | WatchMessage::Listed { .. }
            | WatchMessage::Bookmark { .. } => {}
        }
        printer.flush()?;
        if left == Some(0) {
            return Ok(Exit::Ok);
        }
    }
    Err(Error::new(Reason::WatchLost, "the watch ended").into())
}

pub async fn txn(
    store: &impl Store,
    printer: &mut Printer,
    compares: &[String],
    then: &[String],
    or_else: &[String],
) -> Result<Exit, Failure> {
    let compares: Vec<Compare> = compares
        .iter()
        .map(|text| parse_compare(text))
        .collect::<Result<_, _>>()?;
    let then: Vec<Op> = then
        .iter()
        .map(|text| parse_action(text))
        .collect::<Result<_, _>>()?;
    let or_else: Vec<Op> = or_else
        .iter()
        .map(|text| parse_action(text))
        .collect::<Result<_, _>>()?;
    let response = store
        .txn(Txn::new().when(compares).then(then).or_else(or_else))
        .await?;
    printer.txn(&response)?;
    Ok(if response.succeeded {
        Exit::Ok
    } else {
        Exit::Conflict
    })
}

pub async fn compact(
    store: &impl Store,
    printer: &mut Printer,
    revision: u64,
) -> Result<Exit, Failure> {
    let response = store.compact(revision).await?;
    if printer.is_json() {
        printer.json(&json!({"header": header(&response.header)}))?;
    } else {
        printer.line(format_args!("compacted to revision {revision}"))?;
    }
    Ok(Exit::Ok)
}

/// What a line of `load` says.
pub fn record(line: &[u8]) -> Option<(Bytes, Bytes)> {
    if line.first() == Some(&b'{') {
        let object: serde_json::Map<String, Value> = serde_json::from_slice(line).ok()?;
        let key = super::output::bytes_of(&object, "key")?;
        let value = super::output::bytes_of(&object, "value")?;
        return Some((key.into(), value.into()));
    }
    let tab = line.iter().position(|byte| *byte == b'\t')?;
    Some((
        Bytes::copy_from_slice(&line[..tab]),
        Bytes::copy_from_slice(&line[tab + 1..]),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_tabs_or_json() {
        let (key, value) = record(b"a b\tc\td").unwrap();
        assert_eq!((&key[..], &value[..]), (&b"a b"[..], &b"c\td"[..]));
        let (key, value) = record(br#"{"key":"a","value_base64":"/w=="}"#).unwrap();
        assert_eq!((&key[..], &value[..]), (&b"a"[..], &b"\xff"[..]));
        assert!(record(b"no tab").is_none());
        assert!(record(br#"{"key":"a"}"#).is_none());
    }
}
