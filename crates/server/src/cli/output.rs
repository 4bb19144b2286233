//! What the commands print.
//!
//! Text is for people and pipes: bytes as they are. JSON is one value a line: a key or value that is not
//! UTF-8 stands as base64 under a name of its own, so that nothing is lost and nothing is guessed.

use std::io::{self, Write};

use base64::Engine as _;
use podkv_api::large::Manifest;
use podkv_api::{
    Alarm, DesiredSize, Event, EventKind, Header, KeyValue, Member, MemberRole, NodeStatus,
    OpResponse, Retention, TxnResponse,
};
use serde_json::{Map, Value, json};

use super::args::Output;

/// Writes to standard output. A closed pipe ends the command quietly: `podkv range | head`.
pub struct Printer {
    output: Output,
    out: io::BufWriter<io::Stdout>,
}

impl Printer {
    pub fn new(output: Output) -> Self {
        Self {
            output,
            out: io::BufWriter::new(io::stdout()),
        }
    }

    pub fn is_json(&self) -> bool {
        self.output == Output::Json
    }

    pub fn json(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.out, "{value}")
    }

    pub fn line(&mut self, text: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// A value alone, as it is. Of a large one, how long it is: what its key holds says nothing to people.
    pub fn value(&mut self, kv: &KeyValue) -> io::Result<()> {
        if let Ok(Some(manifest)) = Manifest::decode(&kv.value) {
            let sha256 = hex(&manifest.sha256);
            return self.line(format_args!(
                "(large: {} bytes, sha256:{sha256})",
                manifest.bytes
            ));
        }
        self.out.write_all(&kv.value)?;
        self.out.write_all(b"\n")
    }

    /// Key, tab, value.
    pub fn key_value(&mut self, kv: &KeyValue) -> io::Result<()> {
        if self.is_json() {
            return self.json(&Value::Object(key_value(kv)));
        }
        self.out.write_all(&kv.key)?;
        self.out.write_all(b"\t")?;
        self.value(kv)
    }

    pub fn key(&mut self, kv: &KeyValue) -> io::Result<()> {
        if self.is_json() {
            return self.json(&Value::Object(key_value(kv)));
        }
        self.out.write_all(&kv.key)?;
        self.out.write_all(b"\n")
    }

    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        let kind = match event.kind {
            EventKind::Put => "PUT",
            EventKind::Delete => "DELETE",
        };
        if self.is_json() {
            let mut object = key_value(&event.kv);
            object.insert("event".into(), json!(kind));
            if let Some(before) = &event.prev_kv {
                object.insert("before".into(), Value::Object(key_value(before)));
            }
            return self.json(&Value::Object(object));
        }
        write!(self.out, "{} {kind} ", event.kv.mod_revision)?;
        self.key_value(&event.kv)
    }

    pub fn txn(&mut self, response: &TxnResponse) -> io::Result<()> {
        if self.is_json() {
            return self.json(&txn(response));
        }
        self.line(if response.succeeded {
            "SUCCESS"
        } else {
            "FAILURE"
        })?;
        self.txn_text(response)
    }

    fn txn_text(&mut self, response: &TxnResponse) -> io::Result<()> {
        for response in &response.responses {
            match response {
                OpResponse::Put(_) => self.line("put")?,
                OpResponse::Delete(deleted) => {
                    self.line(format_args!("deleted {}", deleted.deleted))?
                }
                OpResponse::Range(range) => {
                    for kv in &range.kvs {
                        self.key_value(kv)?;
                    }
                }
                OpResponse::Txn(nested) => self.txn_text(nested)?,
            }
        }
        Ok(())
    }

    /// Bytes and nothing else.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

pub fn header(header: &Header) -> Value {
    json!({
        "cluster_id": header.cluster.to_string(),
        "incarnation": header.incarnation.0,
        "member_id": header.member.to_string(),
        "term": header.term,
        "revision": header.revision,
    })
}

pub fn key_value(kv: &KeyValue) -> Map<String, Value> {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", &kv.key);
    insert_bytes(&mut object, "value", &kv.value);
    if let Ok(Some(manifest)) = Manifest::decode(&kv.value) {
        let large = json!({
            "bytes": manifest.bytes, "chunks": manifest.chunks(), "sha256": hex(&manifest.sha256),
        });
        object.insert("large".into(), large);
    }
    object.insert("create_revision".into(), json!(kv.create_revision));
    object.insert("mod_revision".into(), json!(kv.mod_revision));
    object.insert("version".into(), json!(kv.version));
    if let Some(lease) = kv.lease {
        object.insert("lease".into(), json!(lease.to_string()));
    }
    if let Some(expires_at_ms) = kv.expires_at_ms {
        object.insert("expires_at_ms".into(), json!(expires_at_ms));
    }
    object
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn prefix(prefix: &[u8]) -> Map<String, Value> {
    let mut object = Map::new();
    insert_bytes(&mut object, "prefix", prefix);
    object
}

pub fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.into(), json!(text)),
        Err(_) => {
            let text = base64::engine::general_purpose::STANDARD.encode(bytes);
            object.insert(format!("{name}_base64"), json!(text))
        }
    };
}

/// The bytes under `name` or `name_base64`.
pub fn bytes_of(object: &Map<String, Value>, name: &str) -> Option<Vec<u8>> {
    if let Some(text) = object.get(name).and_then(Value::as_str) {
        return Some(text.as_bytes().to_vec());
    }
    let text = object.get(&format!("{name}_base64"))?.as_str()?;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

fn txn(response: &TxnResponse) -> Value {
    let responses: Vec<Value> = response
        .responses
        .iter()
        .map(|response| match response {
            OpResponse::Put(_) => json!({"put": {}}),
            OpResponse::Delete(deleted) => json!({"delete": {"deleted": deleted.deleted}}),
            OpResponse::Range(range) => {
                let kvs: Vec<_> = range.kvs.iter().map(key_value).map(Value::Object).collect();
                json!({"range": {"kvs": kvs, "count": range.count, "more": range.more}})
            }
            OpResponse::Txn(nested) => json!({"txn": txn(nested)}),
        })
        .collect();
    json!({"header": header(&response.header), "succeeded": response.succeeded, "responses": responses})
}

pub fn role(role: Option<MemberRole>) -> &'static str {
    match role {
        Some(MemberRole::Voter) => "voter",
        Some(MemberRole::Learner) => "learner",
        None => "none",
    }
}

pub fn member(member: &Member) -> Value {
    json!({
        "id": member.id.to_string(),
        "name": member.name,
        "role": role(Some(member.role)),
        "peer_address": member.peer_address,
        "client_address": member.client_address,
    })
}

pub fn status(endpoint: &str, status: &NodeStatus) -> Value {
    json!({
        "endpoint": endpoint,
        "header": header(&status.header),
        "name": status.name,
        "version": status.version,
        "role": role(status.role),
        "leader_id": status.leader.map(|id| id.to_string()),
        "committed_index": status.committed_index,
        "applied_index": status.applied_index,
        "first_log_index": status.first_log_index,
        "last_log_index": status.last_log_index,
        "snapshot_index": status.snapshot_index,
        "compacted_revision": status.compacted_revision,
        "keys": status.keys,
        "disk_bytes": status.disk_bytes,
        "durable": status.durable,
        "lease_reads": status.lease_reads,
        "clock_ms": status.clock_ms,
        "retention": retention(&status.retention),
        "feature_level": status.feature_level,
        "desired_size": status.desired_size.as_ref().map(desired_size),
        "alarms": status.alarms.iter().map(alarm).collect::<Vec<_>>(),
    })
}

fn alarm(alarm: &Alarm) -> Value {
    json!({
        "member_id": alarm.member.to_string(),
        "kind": alarm.kind.name(),
    })
}

pub fn desired_size(size: &DesiredSize) -> Value {
    json!({
        "source": size.source,
        "generation": size.generation,
        "start": size.start,
        "replicas": size.replicas,
    })
}

/// `null` is no bound.
pub fn retention(retention: &Retention) -> Value {
    json!({
        "keep_ms": retention.keep_ms,
        "max_revisions": retention.max_revisions,
    })
}

/// Columns as wide as their widest cell.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_text_survive_json() {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", b"\xff\x00");
        insert_bytes(&mut object, "value", b"text");
        assert_eq!(bytes_of(&object, "key").unwrap(), b"\xff\x00");
        assert_eq!(bytes_of(&object, "value").unwrap(), b"text");
        assert_eq!(bytes_of(&object, "other"), None);
    }

    #[test]
    fn tables_align() {
        let rows = [
            vec!["a".to_string(), "b".into()],
            vec!["long".into(), "c".into()],
        ];
        assert_eq!(table(&rows), "a     b\nlong  c");
    }
}
