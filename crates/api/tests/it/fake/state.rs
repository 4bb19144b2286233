//! What the fake store holds: the data model, without network or waiting.

use std::collections::BTreeMap;

use podkv_api::*;
use tokio::time::{Duration, Instant};

pub struct LeaseState {
    pub ttl: Duration,
    pub deadline: Instant,
}

/// Keeps the whole log, so any revision can be rebuilt; `compacted` only forbids to read it.
pub struct State {
    pub revision: Revision,
    pub compacted: Revision,
    pub keys: BTreeMap<Bytes, KeyValue>,
    pub log: BTreeMap<Revision, Vec<Event>>,
    /// When each revision was made, for tests about time.
    pub made_at: BTreeMap<Revision, Instant>,
    pub leases: BTreeMap<LeaseId, LeaseState>,
    pub last_lease: i64,
}

impl State {
    pub fn new() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: BTreeMap::new(),
            made_at: BTreeMap::new(),
            leases: BTreeMap::new(),
            last_lease: 0x0694_d81f_0000_0000,
        }
    }

    pub fn header(&self) -> Header {
        Header {
            cluster: ClusterId(7),
            revision: self.revision,
            ..Header::default()
        }
    }

    /// The keys as of a revision.
    pub fn keys_at(&self, revision: Revision) -> BTreeMap<Bytes, KeyValue> {
        let mut keys = BTreeMap::new();
        for event in self.log.range(..=revision).flat_map(|(_, events)| events) {
            apply(&mut keys, event);
        }
        keys
    }

    pub fn txn(&mut self, txn: &Txn) -> Result<TxnResponse> {
        let mut work = Work {
            keys: self.keys.clone(),
            events: Vec::new(),
            revision: self.revision + 1,
        };
        let mut answer = self.run(txn, &mut work)?;
        if !work.events.is_empty() {
            self.keys = work.keys;
            self.commit(work.events);
        }
        answer.header = self.header();
        Ok(answer)
    }

    fn run(&self, txn: &Txn, work: &mut Work) -> Result<TxnResponse> {
        let succeeded = txn.compare.iter().all(|compare| holds(&self.keys, compare));
        let ops = if succeeded { &txn.then } else { &txn.or_else };
        let mut responses = Vec::new();
        for op in ops {
            responses.push(match op {
                Op::Put(put) => OpResponse::Put(self.put(put, work)?),
                Op::Delete(delete) => OpResponse::Delete(self.delete(delete, work)),
                Op::Range(range) => OpResponse::Range(select(&work.keys, range, self.header())),
                Op::Txn(txn) => OpResponse::Txn(self.run(txn, work)?),
            });
        }
        Ok(TxnResponse {
            header: self.header(),
            succeeded,
            responses,
        })
    }

    fn put(&self, put: &Put, work: &mut Work) -> Result<PutResponse> {
        if put.ttl_ms.is_some() {
            return Err(Error::new(
                Reason::Unsupported,
                "the fake has no TTLs on puts",
            ));
        }
        if work.events.iter().any(|event| event.kv.key == put.key) {
            return Err(Error::new(Reason::DuplicateKey, "written twice"));
        }
        if let Some(lease) = put.lease
            && !self.leases.contains_key(&lease)
        {
            return Err(Error::new(Reason::LeaseNotFound, "no such lease"));
        }
        let before = work.keys.get(&put.key).cloned();
        if (put.ignore_lease || put.ignore_value) && before.is_none() {
            return Err(Error::new(Reason::KeyNotFound, "nothing to keep"));
        }
        let kept = |keep: bool| before.as_ref().filter(|_| keep);
        let kv = KeyValue {
            key: put.key.clone(),
            value: kept(put.ignore_value).map_or(put.value.clone(), |kv| kv.value.clone()),
            create_revision: before
                .as_ref()
                .map_or(work.revision, |kv| kv.create_revision),
            mod_revision: work.revision,
            version: before.as_ref().map_or(1, |kv| kv.version + 1),
            lease: kept(put.ignore_lease).map_or(put.lease, |kv| kv.lease),
            expires_at_ms: None,
        };
        work.push(Event {
            kind: EventKind::Put,
            kv,
            prev_kv: before.clone(),
        });
        Ok(PutResponse {
            header: self.header(),
            prev_kv: before.filter(|_| put.prev_kv),
        })
    }

    fn delete(&self, delete: &Delete, work: &mut Work) -> DeleteResponse {
        let found: Vec<_> = work
            .keys
            .values()
            .filter(|kv| delete.range.contains(&kv.key))
            .cloned()
            .collect();
        for kv in &found {
            let revision = work.revision;
            work.push(deletion(kv, revision));
        }
        DeleteResponse {
            header: self.header(),
            deleted: found.len() as u64,
            prev_kvs: if delete.prev_kv { found } else { Vec::new() },
        }
    }

    pub fn grant(&mut self, ttl: Duration) -> LeaseGrantResponse {
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        self.leases.insert(
            lease,
            LeaseState {
                ttl,
                deadline: Instant::now() + ttl,
            },
        );
        LeaseGrantResponse {
            header: self.header(),
            lease,
            ttl_ms: ttl.as_millis() as u64,
        }
    }

    pub fn keep_alive(&mut self, lease: LeaseId) -> Result<LeaseStatus> {
        match self.leases.get_mut(&lease) {
            Some(state) => state.deadline = Instant::now() + state.ttl,
            None => return Err(Error::new(Reason::LeaseNotFound, "no such lease")),
        }
        self.lease_status(lease)
    }

    pub fn lease_status(&self, lease: LeaseId) -> Result<LeaseStatus> {
        let Some(state) = self.leases.get(&lease) else {
            return Err(Error::new(Reason::LeaseNotFound, "no such lease"));
        };
        Ok(LeaseStatus {
            header: self.header(),
            lease,
            granted_ttl_ms: state.ttl.as_millis() as u64,
            remaining_ms: state.deadline.duration_since(Instant::now()).as_millis() as u64,
            keys: self.keys_of(lease).into_iter().map(|kv| kv.key).collect(),
        })
    }

    fn keys_of(&self, lease: LeaseId) -> Vec<KeyValue> {
        self.keys
            .values()
            .filter(|kv| kv.lease == Some(lease))
            .cloned()
            .collect()
    }

    /// Ends a lease and deletes its keys, all in one revision.
    pub fn revoke(&mut self, lease: LeaseId) -> Result<()> {
        if self.leases.remove(&lease).is_none() {
            return Err(Error::new(Reason::LeaseNotFound, "no such lease"));
        }
        let revision = self.revision + 1;
        let events: Vec<_> = self
            .keys_of(lease)
            .iter()
            .map(|kv| deletion(kv, revision))
            .collect();
        for event in &events {
            self.keys.remove(&event.kv.key);
        }
        if !events.is_empty() {
            self.commit(events);
        }
        Ok(())
    }

    pub fn expire_due(&mut self) {
        let now = Instant::now();
        let due = self
            .leases
            .iter()
            .filter(|(_, state)| state.deadline <= now);
        for lease in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.revoke(lease).expect("it is there");
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.leases.values().map(|state| state.deadline).min()
    }

    fn commit(&mut self, events: Vec<Event>) {
        self.revision += 1;
        self.made_at.insert(self.revision, Instant::now());
        self.log.insert(self.revision, events);
    }
}

/// A transaction under way.
struct Work {
    keys: BTreeMap<Bytes, KeyValue>,
    events: Vec<Event>,
    revision: Revision,
}

impl Work {
    fn push(&mut self, event: Event) {
        apply(&mut self.keys, &event);
        self.events.push(event);
    }
}

fn deletion(kv: &KeyValue, revision: Revision) -> Event {
    let tombstone = KeyValue {
        key: kv.key.clone(),
        value: Bytes::new(),
        create_revision: 0,
        mod_revision: revision,
        version: 0,
        lease: None,
        expires_at_ms: None,
    };
    Event {
        kind: EventKind::Delete,
        kv: tombstone,
        prev_kv: Some(kv.clone()),
    }
}

pub fn apply(keys: &mut BTreeMap<Bytes, KeyValue>, event: &Event) {
    match event.kind {
        EventKind::Put => keys.insert(event.kv.key.clone(), event.kv.clone()),
        EventKind::Delete => keys.remove(&event.kv.key),
    };
}

pub fn select(keys: &BTreeMap<Bytes, KeyValue>, range: &Range, header: Header) -> RangeResponse {
    let mut kvs: Vec<_> = keys
        .values()
        .filter(|kv| range.range.contains(&kv.key))
        .cloned()
        .collect();
    let count = kvs.len() as u64;
    if range.reverse {
        kvs.reverse();
    }
    let limit = if range.limit == 0 {
        kvs.len()
    } else {
        range.limit as usize
    };
    let more = kvs.len() > limit;
    kvs.truncate(if range.count_only { 0 } else { limit });
    if range.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse {
        header,
        kvs,
        count,
        more,
    }
}

fn holds(keys: &BTreeMap<Bytes, KeyValue>, compare: &Compare) -> bool {
    let mut found: Vec<_> = keys
        .values()
        .filter(|kv| compare.range.contains(&kv.key))
        .map(Some)
        .collect();
    if found.is_empty() {
        // A single key that is absent has zeros; an empty range has no key against it.
        match compare.range.is_single() {
            true => found.push(None),
            false => return !matches!(compare.target, CompareTarget::Value(_)),
        }
    }
    found.into_iter().all(|kv| holds_for(kv, compare))
}

fn holds_for(kv: Option<&KeyValue>, compare: &Compare) -> bool {
    let number = |of: fn(&KeyValue) -> u64| kv.map_or(0, of);
    let order = match &compare.target {
        CompareTarget::Value(value) => match kv {
            Some(kv) => kv.value.cmp(value),
            None => return false,
        },
        CompareTarget::Version(version) => number(|kv| kv.version).cmp(version),
        CompareTarget::CreateRevision(revision) => number(|kv| kv.create_revision).cmp(revision),
        CompareTarget::ModRevision(revision) => number(|kv| kv.mod_revision).cmp(revision),
        CompareTarget::Lease(lease) => kv.and_then(|kv| kv.lease).cmp(lease),
    };
    match compare.op {
        CompareOp::Equal => order.is_eq(),
        CompareOp::NotEqual => order.is_ne(),
        CompareOp::Greater => order.is_gt(),
        CompareOp::Less => order.is_lt(),
    }
}
