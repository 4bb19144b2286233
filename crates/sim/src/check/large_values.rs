//! Promise: a large value is whole or absent, never half; what no key names any more goes, and nothing else.
//!
//! The replicas' history tells every write of an upload: its chunks, its record, and the manifest that makes it the value of a
//! key. So it is looked at as of **every** revision, not only when somebody happened to read:
//!
//! - a key whose value is a manifest has the record that says the same, and chunks whose length and hash are right;
//! - no record and no chunk goes while its key names it;
//! - at the end there are no others.
//!
//! And what clients were told is held against that: an acknowledged put or delete is there, at its revision; one that was
//! refused for certain never is; a content is committed once; a read came to the content of its key at the revision that it
//! named, which was not known to be over when the read began; and no read ended with a value that is corrupt.
//!
//! *Why this is sound:* no two puts write the same content, so a hash tells whose it is. The names and the bytes of a manifest
//! are read here anew, from their description in `podkv_api::large`, not by its code.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sha2::{Digest as _, Sha256};

use super::{Evidence, Findings};
use crate::history::{Content, Event, KeyValue, LargeAction, LargeCall, LargeOutcome, Revision};
use crate::recorder::{NO_TEXT, hex};

pub const NAME: &str = "large values";

const OWN: &str = "\0podkv/large/";
const RECORD: &str = "\0podkv/large/record/";
const CHUNK: &str = "\0podkv/large/chunk/";
const UPLOAD_DIGITS: usize = 32;
const NUMBER_DIGITS: usize = 8;
/// "\x89podkv\r\n", and version 1.
const MAGIC: &str = "89706f646b760d0a01";

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    walk(evidence, &mut findings);
    let written = written(evidence, &mut findings);
    for call in &evidence.history.large {
        findings.looked_at += 1;
        match (&call.action, &call.outcome) {
            (LargeAction::Put(content), outcome) => {
                put(call, content, outcome, &written, &mut findings)
            }
            (LargeAction::Delete, LargeOutcome::Wrote { revision }) => {
                if let Some(kv) = evidence.at(&call.key, *revision) {
                    let what = format!(
                        "call {} deleted {:?} at {revision}, which holds {kv:?}",
                        call.id, call.key
                    );
                    findings.violation(NAME, what);
                }
            }
            (LargeAction::Get, _) => read(evidence, call, &mut findings),
            (LargeAction::Delete, _) => {}
        }
    }
    findings
}

/// What a key holds that names an upload.
struct Manifest<'h> {
    upload: &'h str,
    content: Content,
    chunk_bytes: u64,
}

impl<'h> Manifest<'h> {
    fn of(value: &'h str) -> Option<Self> {
        let rest = value.strip_prefix(NO_TEXT)?.strip_prefix(MAGIC)?;
        let (upload, rest) = rest.split_at_checked(UPLOAD_DIGITS)?;
        let (bytes, rest) = rest.split_at_checked(16)?;
        let (chunk_bytes, sha256) = rest.split_at_checked(8)?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some(Self {
            upload,
            content: Content {
                bytes: number(bytes)?,
                sha256: sha256.into(),
            },
            chunk_bytes: number(chunk_bytes)?,
        })
    }

    fn record(&self, key: &str) -> String {
        format!("{RECORD}{}/{key}", self.upload)
    }

    fn chunk(&self, number: u64, key: &str) -> String {
        format!("{CHUNK}{}/{number:08x}/{key}", self.upload)
    }

    fn chunks(&self) -> u64 {
        self.content.bytes.div_ceil(self.chunk_bytes.max(1))
    }
}

/// Of a name that is kept for a large value: the upload, and whose.
fn owner(name: &str) -> Option<(&str, &str)> {
    let (upload, rest) = if let Some(rest) = name.strip_prefix(RECORD) {
        rest.split_at_checked(UPLOAD_DIGITS)?
    } else {
        let (upload, rest) = name.strip_prefix(CHUNK)?.split_at_checked(UPLOAD_DIGITS)?;
        (upload, rest.get(1 + NUMBER_DIGITS..)?)
    };
    Some((upload, rest.strip_prefix('/')?))
}

/// Every revision, one after the other.
fn walk(evidence: &Evidence<'_>, findings: &mut Findings) {
    let mut state: BTreeMap<&str, &KeyValue> = BTreeMap::new();
    for change in evidence.changes {
        for event in &change.events {
            match event {
                Event::Put(kv) => state.insert(&kv.key, kv),
                Event::Delete { key } => state.remove(key.as_str()),
            };
        }
        for event in &change.events {
            if let Some(what) = broken_by(&state, event, findings) {
                findings.violation(NAME, format!("revision {}: {what}", change.revision));
            }
        }
    }
    let left = state
        .range(OWN..)
        .take_while(|(name, _)| name.starts_with(OWN));
    for (name, _) in left {
        let named = owner(name).is_some_and(|(upload, key)| names(&state, key, upload));
        if !named {
            findings.violation(NAME, format!("{name:?} is left, and no key names it"));
        }
    }
}

/// What this event made wrong, in the state that its revision left.
fn broken_by(
    state: &BTreeMap<&str, &KeyValue>,
    event: &Event,
    findings: &mut Findings,
) -> Option<String> {
    match event {
        Event::Put(kv) if !kv.key.starts_with(OWN) => {
            let manifest = Manifest::of(&kv.value)?;
            // Of two events for a key, the second is the one that stands.
            let stands = state
                .get(kv.key.as_str())
                .is_some_and(|held| held.value == kv.value);
            findings.looked_at += u64::from(stands);
            stands.then(|| not_whole(state, kv, &manifest)).flatten()
        }
        Event::Delete { key: name } => {
            let (upload, key) = owner(name)?;
            names(state, key, upload).then(|| format!("{name:?} goes, and {key:?} names it"))
        }
        Event::Put(_) => None,
    }
}

fn names(state: &BTreeMap<&str, &KeyValue>, key: &str, upload: &str) -> bool {
    let manifest = state.get(key).and_then(|kv| Manifest::of(&kv.value));
    manifest.is_some_and(|manifest| manifest.upload == upload)
}

fn not_whole(
    state: &BTreeMap<&str, &KeyValue>,
    kv: &KeyValue,
    manifest: &Manifest<'_>,
) -> Option<String> {
    let key = &kv.key;
    let record = state.get(manifest.record(key).as_str());
    if record.is_none_or(|record| record.value != kv.value) {
        return Some(format!(
            "{key:?} names an upload, and its record is {record:?}"
        ));
    }
    let mut hash = Sha256::new();
    let mut bytes = 0;
    for number in 0..manifest.chunks() {
        let Some(chunk) = state.get(manifest.chunk(number, key).as_str()) else {
            return Some(format!(
                "{key:?} lacks chunk {number} of {}",
                manifest.chunks()
            ));
        };
        hash.update(&chunk.value);
        bytes += chunk.value.len() as u64;
    }
    let found = Content {
        bytes,
        sha256: hex(&hash.finalize()),
    };
    (found != manifest.content)
        .then(|| format!("{key:?} must be {:?}, and is {found:?}", manifest.content))
}

/// Where each content was committed, and that nothing else was.
fn written<'h>(
    evidence: &Evidence<'h>,
    findings: &mut Findings,
) -> HashMap<Content, Vec<(Revision, &'h str)>> {
    let calls = &evidence.history.large;
    let keys: BTreeSet<&str> = calls.iter().map(|call| call.key.as_str()).collect();
    let puts = calls.iter().filter_map(|call| match &call.action {
        LargeAction::Put(content) => Some((content, call.key.as_str())),
        _ => None,
    });
    let puts: HashMap<&Content, &str> = puts.collect();
    let mut written: HashMap<Content, Vec<_>> = HashMap::new();
    for change in evidence.changes {
        for event in &change.events {
            let Event::Put(kv) = event else { continue };
            if !keys.contains(kv.key.as_str()) {
                continue;
            }
            let content = content_of(kv);
            if puts.get(&content) != Some(&kv.key.as_str()) {
                let what = format!(
                    "revision {}: nobody put {content:?} to {:?}",
                    change.revision, kv.key
                );
                findings.violation(NAME, what);
            }
            written
                .entry(content)
                .or_default()
                .push((change.revision, &*kv.key));
        }
    }
    written
}

fn content_of(kv: &KeyValue) -> Content {
    match Manifest::of(&kv.value) {
        Some(manifest) => manifest.content,
        None => Content {
            bytes: kv.value.len() as u64,
            sha256: hex(&Sha256::digest(&kv.value)),
        },
    }
}

fn put(
    call: &LargeCall,
    content: &Content,
    outcome: &LargeOutcome,
    written: &HashMap<Content, Vec<(Revision, &str)>>,
    findings: &mut Findings,
) {
    let places = written.get(content).map_or(&[][..], Vec::as_slice);
    let is_right = match outcome {
        LargeOutcome::Wrote { revision } => places == [(*revision, call.key.as_str())],
        LargeOutcome::Unknown { .. } => places.len() <= 1,
        _ => places.is_empty(),
    };
    if !is_right {
        let what = format!(
            "call {} put to {:?}: {outcome:?}; it is at {places:?}",
            call.id, call.key
        );
        findings.violation(NAME, what);
    }
}

fn read(evidence: &Evidence<'_>, call: &LargeCall, findings: &mut Findings) {
    let known = evidence.known_before(call.invoked);
    let lives = evidence.keys.get(call.key.as_str());
    let lives = lives.map_or(&[][..], Vec::as_slice);
    let wrong = match &call.outcome {
        LargeOutcome::Found { content, modified } => {
            let at = lives.iter().position(|(revision, _)| revision == modified);
            let held = at.and_then(|at| lives[at].1);
            let over = at
                .and_then(|at| lives.get(at + 1))
                .map(|(revision, _)| *revision);
            if held.map(content_of).as_ref() != Some(content) {
                Some(format!(
                    "was {content:?} of revision {modified}, where it is {held:?}"
                ))
            } else {
                let is_stale = over.is_some_and(|over| over <= known);
                is_stale
                    .then(|| format!("was that of {modified}, which was over: {known} was known"))
            }
        }
        LargeOutcome::NotFound => {
            let since = lives.partition_point(|(revision, _)| *revision <= known);
            let before = since.checked_sub(1).and_then(|at| lives[at].1);
            let is_absent_later = lives[since..].iter().any(|(_, left)| left.is_none());
            (before.is_some() && !is_absent_later)
                .then(|| format!("found nothing, and there was {before:?} ever since {known}"))
        }
        LargeOutcome::Refused { reason } | LargeOutcome::Unknown { reason } => {
            reason.starts_with("Corrupt").then(|| reason.clone())
        }
        LargeOutcome::Wrote { .. } => Some("is no answer to a read".into()),
    };
    if let Some(wrong) = wrong {
        findings.violation(
            NAME,
            format!("the read {} of {:?} {wrong}", call.id, call.key),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Change, History, Replica};

    /// A store in which one key is put, read, overwritten and collected.
    struct World {
        history: History,
        changes: Vec<Change>,
        keys: BTreeMap<String, KeyValue>,
        now: u64,
    }

    fn content(text: &str) -> Content {
        Content {
            bytes: text.len() as u64,
            sha256: hex(&Sha256::digest(text)),
        }
    }

    fn delete(key: &str) -> Event {
        Event::Delete { key: key.into() }
    }

    impl World {
        fn commit(&mut self, events: Vec<Event>) -> Revision {
            let revision = 2 + self.changes.len() as u64;
            for event in &events {
                match event {
                    Event::Put(kv) => self.keys.insert(kv.key.clone(), kv.clone()),
                    Event::Delete { key } => self.keys.remove(key),
                };
            }
            self.changes.push(Change { revision, events });
            revision
        }

        fn event(&self, key: &str, value: &str) -> Event {
            Event::Put(KeyValue {
                key: key.into(),
                value: value.into(),
                created: 2,
                modified: 2 + self.changes.len() as u64,
                version: 1,
                lease: None,
                has_ttl: false,
            })
        }

        fn call(&mut self, action: LargeAction, outcome: LargeOutcome) {
            self.now += 10;
            self.history.large.push(LargeCall {
                id: self.now,
                client: 1,
                invoked: self.now,
                returned: self.now + 5,
                key: "large/a".into(),
                action,
                outcome,
            });
        }

        /// In chunks of four bytes.
        fn put(&mut self, upload: u8, text: &str) {
            let upload = format!("{upload:032x}");
            let record = format!("{RECORD}{upload}/large/a");
            self.commit(vec![self.event(&record, "")]);
            for (number, chunk) in text.as_bytes().chunks(4).enumerate() {
                let name = format!("{CHUNK}{upload}/{number:08x}/large/a");
                let chunk = std::str::from_utf8(chunk).unwrap();
                self.commit(vec![self.event(&name, chunk)]);
            }
            let content = content(text);
            let manifest = format!(
                "{NO_TEXT}{MAGIC}{upload}{:016x}{:08x}{}",
                content.bytes, 4, content.sha256
            );
            let events = vec![
                self.event("large/a", &manifest),
                self.event(&record, &manifest),
            ];
            let revision = self.commit(events);
            self.call(LargeAction::Put(content), LargeOutcome::Wrote { revision });
        }

        fn get(&mut self) {
            let kv = self.keys.get("large/a").unwrap();
            let found = LargeOutcome::Found {
                content: content_of(kv),
                modified: kv.modified,
            };
            self.call(LargeAction::Get, found);
        }

        /// Everything of an upload goes.
        fn collect(&mut self, upload: u8) {
            let upload = format!("{upload:032x}");
            let names: Vec<String> = self.keys.keys().cloned().collect();
            for name in names.iter().filter(|name| name.contains(&upload)) {
                self.commit(vec![delete(name)]);
            }
        }
    }

    fn history(damage: impl FnOnce(&mut History)) -> History {
        let mut world = World {
            history: History::default(),
            changes: Vec::new(),
            keys: BTreeMap::new(),
            now: 0,
        };
        world.put(1, "the first value");
        world.get();
        world.put(2, "the second");
        world.collect(1);
        world.get();
        let mut history = world.history;
        history.replicas.push(Replica {
            node: "podkv-0".into(),
            revision: 1 + world.changes.len() as u64,
            changes: world.changes,
            keys: world.keys.into_values().collect(),
            digests: Vec::new(),
        });
        damage(&mut history);
        history
    }

    fn found(damage: impl FnOnce(&mut History)) -> Vec<String> {
        let history = history(damage);
        let findings = check(&Evidence::of(&history).unwrap());
        assert!(findings.looked_at >= 4);
        let violations = findings.violations.into_iter();
        violations.map(|violation| violation.what).collect()
    }

    fn finds(text: &str, damage: impl FnOnce(&mut History)) {
        let found = found(damage);
        assert!(
            found.iter().any(|what| what.contains(text)),
            "{text}: {found:?}"
        );
    }

    fn changes(history: &mut History) -> &mut Vec<Change> {
        &mut history.replicas[0].changes
    }

    #[test]
    fn what_is_whole_passes() {
        assert_eq!(found(|_| {}), [""; 0]);
    }

    #[test]
    fn half_a_value_is_found() {
        // A chunk that was never written.
        finds("lacks chunk 1", |history| {
            changes(history).remove(2);
        });
        // One that is another.
        finds("must be", |history| {
            if let Event::Put(kv) = &mut changes(history)[2].events[0] {
                kv.value = "none".into();
            }
        });
        // A manifest without its record.
        finds("its record is", |history| {
            changes(history)[5].events.pop();
        });
    }

    #[test]
    fn a_collector_that_takes_what_is_named_is_found() {
        finds("names it", |history| {
            let named = format!("{CHUNK}{:032x}/00000000/large/a", 2);
            changes(history).last_mut().unwrap().events = vec![delete(&named)];
        });
    }

    #[test]
    fn garbage_that_stays_is_found() {
        finds("is left", |history| {
            changes(history).pop();
        });
    }

    #[test]
    fn answers_that_are_not_true_are_found() {
        // A read of the first value after the second was known.
        finds("which was over", |history| {
            let early = history.large[1].outcome.clone();
            history.large[3].outcome = early;
        });
        finds("where it is", |history| {
            if let LargeOutcome::Found { content, .. } = &mut history.large[1].outcome {
                content.bytes -= 1;
            }
        });
        finds("found nothing", |history| {
            history.large[3].outcome = LargeOutcome::NotFound;
        });
        finds("Corrupt", |history| {
            let reason = "Corrupt: chunk 1 is missing".into();
            history.large[3].outcome = LargeOutcome::Refused { reason };
        });
        // An acknowledged put that is not there, and a refused one that is.
        finds("it is at []", |history| {
            history.large[0].action = LargeAction::Put(content("another"));
        });
        finds("put to", |history| {
            let reason = "LockLost".into();
            history.large[0].outcome = LargeOutcome::Refused { reason };
        });
    }
}
