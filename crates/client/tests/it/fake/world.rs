//! What the nodes share: a store with history, sessions and leases, and what was seen.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use podkv_api::{Error, KeyRange, KeyValue, Reason};
use podkv_proto::convert;
use podkv_proto::v1;
use podkv_proto::v1::pipe_operation::Operation;
use podkv_proto::v1::pipe_result::Result as Answer;
use tokio::sync::watch;

/// Changes of one revision: key and value, `None` for a delete.
type Changes = Vec<(Bytes, Option<Bytes>)>;

/// What all nodes did, in order.
#[derive(Default)]
pub struct Seen {
    /// Stamps of writes, as they arrived.
    pub stamps: Vec<v1::SessionStamp>,
    pub operations: usize,
    pub most_unanswered: usize,
    pub most_in_a_message: usize,
    pub pipes: usize,
    pub keep_alives: Vec<i64>,
    pub opens: Vec<Bytes>,
    pub closes: usize,
    pub session_keep_alives: usize,
    pub watches: Vec<v1::WatchRequest>,
    pub lists: Vec<v1::RangeRequest>,
    /// By node.
    pub writes_at: Vec<usize>,
    pub reads_at: Vec<usize>,
    pub statuses: usize,
    /// Data that came to its end.
    pub restores: Vec<Vec<u8>>,
}

pub(super) struct SessionState {
    results: HashMap<u64, Answer>,
    acknowledged_below: u64,
}

impl SessionState {
    pub(super) fn new() -> Self {
        Self {
            results: HashMap::new(),
            acknowledged_below: 1,
        }
    }
}

pub struct State {
    /// By revision; revision 1 is the empty store.
    pub(super) history: Vec<Changes>,
    pub(super) compacted: u64,
    pub(super) sessions: HashMap<Bytes, SessionState>,
    pub leases: HashSet<i64>,
    pub leader: usize,
    pub term: u64,
    pub window: u32,
    pub seen: Seen,
}

pub struct World {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
}

impl World {
    pub fn new(nodes: usize) -> Self {
        let state = State {
            history: vec![Vec::new()],
            compacted: 0,
            sessions: HashMap::new(),
            leases: HashSet::new(),
            leader: 0,
            term: 1,
            window: 1000,
            seen: Seen {
                writes_at: vec![0; nodes],
                reads_at: vec![0; nodes],
                ..Seen::default()
            },
        };
        Self {
            state: Mutex::new(state),
            revision: watch::Sender::new(1),
        }
    }

    /// Tells of each new revision.
    pub(super) fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn revision(&self) -> u64 {
        self.state().history.len() as u64
    }

    /// A write from elsewhere.
    pub fn write(&self, changes: &[(&str, Option<&str>)]) -> u64 {
        let changes = changes.iter().map(|(key, value)| {
            let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
            (Bytes::copy_from_slice(key.as_bytes()), value)
        });
        let revision = self.state().commit(changes.collect());
        self.revision.send_replace(revision);
        revision
    }

    pub fn compact(&self, revision: u64) {
        self.state().compacted = revision;
    }

    /// Forgets every session, as after their TTL.
    pub fn expire_sessions(&self) {
        self.state().sessions.clear();
    }

    /// The latest value.
    pub fn value(&self, key: &str) -> Option<KeyValue> {
        let state = self.state();
        let revision = state.history.len() as u64;
        let kvs = state.at(revision, &KeyRange::key(key.to_owned()));
        kvs.into_iter().next()
    }

    /// How many keys that begin with `prefix` a revision changed.
    pub fn changes(&self, revision: u64, prefix: &str) -> usize {
        let state = self.state();
        let changes = &state.history[revision as usize - 1];
        let matching = changes
            .iter()
            .filter(|(key, _)| key.starts_with(prefix.as_bytes()));
        matching.count()
    }

    pub(super) fn apply(&self, operation: &Operation) -> Result<Answer, Error> {
        let result = self.state().apply(operation);
        self.revision.send_replace(self.revision());
        result
    }
}

impl State {
    fn commit(&mut self, changes: Changes) -> u64 {
        self.history.push(changes);
        self.history.len() as u64
    }

    /// The keys of a range as of a revision.
    pub(super) fn at(&self, revision: u64, range: &KeyRange) -> Vec<KeyValue> {
        let mut keys: BTreeMap<Bytes, KeyValue> = BTreeMap::new();
        for (place, changes) in self.history.iter().enumerate().take(revision as usize) {
            for (key, value) in changes {
                let now = place as u64 + 1;
                match value {
                    None => drop(keys.remove(key)),
                    Some(value) => {
                        let kv = keys.entry(key.clone()).or_insert_with(|| KeyValue {
                            key: key.clone(),
                            value: Bytes::new(),
                            create_revision: now,
                            mod_revision: now,
                            version: 0,
                            lease: None,
                            expires_at_ms: None,
                        });
                        kv.value = value.clone();
                        kv.mod_revision = now;
                        kv.version += 1;
                    }
                }
            }
        }
        keys.retain(|key, _| range.contains(key));
        keys.into_values().collect()
    }

    fn check(&self, revision: u64) -> Result<u64, Error> {
        let latest = self.history.len() as u64;
        if revision > latest {
            return Err(Error::new(Reason::FutureRevision, "future"));
        }
        if revision != 0 && revision < self.compacted {
            return Err(Error::compacted(self.compacted));
        }
        Ok(if revision == 0 { latest } else { revision })
    }

    fn apply(&mut self, operation: &Operation) -> Result<Answer, Error> {
        let Some(stamp) = stamp(operation) else {
            return self.read(operation);
        };
        self.seen.stamps.push(stamp.clone());
        let session = self
            .sessions
            .get_mut(&stamp.session_id)
            .ok_or_else(|| Error::new(Reason::SessionNotFound, "no such session"))?;
        session.acknowledged_below = session.acknowledged_below.max(stamp.acknowledged_below);
        let below = session.acknowledged_below;
        session.results.retain(|sequence, _| *sequence >= below);
        if stamp.sequence < below || stamp.sequence - below >= u64::from(self.window) {
            return Err(Error::new(Reason::SessionSequence, "out of the window"));
        }
        if let Some(first) = session.results.get(&stamp.sequence) {
            return Ok(first.clone());
        }
        let answer = self.execute(operation)?;
        if let Some(session) = self.sessions.get_mut(&stamp.session_id) {
            session.results.insert(stamp.sequence, answer.clone());
        }
        Ok(answer)
    }

    fn execute(&mut self, operation: &Operation) -> Result<Answer, Error> {
        match operation {
            Operation::Put(put) => {
                if put.lease != 0 && !self.leases.contains(&put.lease) {
                    return Err(Error::new(Reason::LeaseNotFound, "no such lease"));
                }
                let revision = self.commit(vec![(put.key.clone(), Some(put.value.clone()))]);
                Ok(Answer::Put(v1::PutResponse {
                    header: header_at(revision),
                    prev_kv: None,
                }))
            }
            Operation::Delete(delete) => {
                let range = convert::key_range(delete.range.clone())?;
                let keys = self.at(self.history.len() as u64, &range);
                let changes: Changes = keys.into_iter().map(|kv| (kv.key, None)).collect();
                let deleted = changes.len() as u64;
                let revision = self.commit(changes);
                Ok(Answer::Delete(v1::DeleteResponse {
                    header: header_at(revision),
                    deleted,
                    prev_kvs: Vec::new(),
                }))
            }
            Operation::Txn(txn) => {
                let puts = txn
                    .then
                    .iter()
                    .filter_map(|operation| match &operation.operation {
                        Some(v1::operation::Operation::Put(put)) => {
                            Some((put.key.clone(), Some(put.value.clone())))
                        }
                        _ => None,
                    });
                let revision = self.commit(puts.collect());
                Ok(Answer::Txn(v1::TxnResponse {
                    header: header_at(revision),
                    succeeded: true,
                    responses: Vec::new(),
                }))
            }
            Operation::Get(_) | Operation::Range(_) => self.read(operation),
        }
    }

    fn read(&self, operation: &Operation) -> Result<Answer, Error> {
        let latest = self.history.len() as u64;
        match operation {
            Operation::Get(get) => {
                let revision = self.check(get.revision)?;
                let kvs = self.at(revision, &KeyRange::key(get.key.clone()));
                Ok(Answer::Get(v1::GetResponse {
                    header: header_at(latest),
                    kv: kvs.into_iter().next().map(Into::into),
                }))
            }
            Operation::Range(request) => self.range(request).map(Answer::Range),
            Operation::Txn(_) => Ok(Answer::Txn(v1::TxnResponse {
                header: header_at(latest),
                succeeded: true,
                responses: Vec::new(),
            })),
            _ => Err(Error::new(
                Reason::InvalidArgument,
                "a write without a stamp",
            )),
        }
    }

    pub(super) fn range(&self, request: &v1::RangeRequest) -> Result<v1::RangeResponse, Error> {
        let revision = self.check(request.revision)?;
        let mut kvs = self.at(revision, &convert::key_range(request.range.clone())?);
        if request.reverse {
            kvs.reverse();
        }
        let count = kvs.len() as u64;
        let limit = if request.limit == 0 {
            u64::MAX
        } else {
            request.limit
        };
        kvs.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let more = count > kvs.len() as u64 && !request.count_only;
        if request.count_only {
            kvs.clear();
        }
        Ok(v1::RangeResponse {
            header: header_at(self.history.len() as u64),
            kvs: kvs.into_iter().map(Into::into).collect(),
            count,
            more,
        })
    }
}

pub(super) fn stamp(operation: &Operation) -> Option<v1::SessionStamp> {
    match operation {
        Operation::Put(put) => put.session.clone(),
        Operation::Delete(delete) => delete.session.clone(),
        Operation::Txn(txn) => txn.session.clone(),
        Operation::Get(_) | Operation::Range(_) => None,
    }
}

fn header_at(revision: u64) -> Option<v1::Header> {
    Some(v1::Header {
        revision,
        ..v1::Header::default()
    })
}

pub(super) fn answer_header(answer: &mut Answer) -> &mut Option<v1::Header> {
    match answer {
        Answer::Put(put) => &mut put.header,
        Answer::Delete(delete) => &mut delete.header,
        Answer::Txn(txn) => &mut txn.header,
        Answer::Get(get) => &mut get.header,
        Answer::Range(range) => &mut range.header,
        Answer::Error(_) => unreachable!("errors have no header"),
    }
}
