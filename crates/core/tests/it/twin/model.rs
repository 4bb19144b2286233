//! The naive twin. Clarity over everything: no tables, no indexes, copies everywhere.

use std::collections::BTreeMap;

use podkv_api::*;
use podkv_core::*;

type Keys = BTreeMap<Bytes, KeyValue>;

pub struct Twin {
    pub revision: Revision,
    pub compacted: Revision,
    clock_ms: u64,
    /// All keys, for each revision that there ever was.
    history: BTreeMap<Revision, Keys>,
    events: BTreeMap<Revision, Vec<Event>>,
    /// TTL and deadline.
    pub leases: BTreeMap<LeaseId, (u64, u64)>,
    pub sessions: BTreeMap<SessionId, Session>,
}

#[derive(Clone)]
pub struct Session {
    identity: Bytes,
    ttl_ms: u64,
    expires_at_ms: u64,
    forgotten_below: u64,
    closed: bool,
    results: BTreeMap<u64, (Command, Outcome)>,
}

type Ran<T> = Result<T, Reason>;

impl Twin {
    pub fn new() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            clock_ms: 0,
            history: BTreeMap::from([(1, Keys::new())]),
            events: BTreeMap::new(),
            leases: BTreeMap::new(),
            sessions: BTreeMap::new(),
        }
    }

    pub fn keys(&self) -> &Keys {
        self.history.last_key_value().unwrap().1
    }

    /// All keys as of a revision. Recovery leaves revisions out: they are as the one before.
    fn keys_at(&self, revision: Revision) -> &Keys {
        self.history.range(..=revision).next_back().unwrap().1
    }

    pub fn apply(
        &mut self,
        clock_ms: u64,
        proposals: &[Proposal],
    ) -> (Vec<Outcome>, Vec<RevisionEvents>) {
        self.clock_ms = self.clock_ms.max(clock_ms);
        let before = self.revision;
        let outcomes = proposals.iter().map(|one| self.propose(one)).collect();
        let events = self.events.range(before + 1..);
        let events = events.map(|(revision, events)| RevisionEvents {
            revision: *revision,
            events: events.clone(),
        });
        (outcomes, events.collect())
    }

    fn propose(&mut self, proposal: &Proposal) -> Outcome {
        let Some(stamp) = &proposal.stamp else {
            return self.execute(&proposal.command);
        };
        let (id, at) = (stamp.session.session, stamp.session);
        let clock_ms = self.clock_ms;
        let Some(session) = self.sessions.get_mut(&id).filter(|session| !session.closed) else {
            return self.outcome(Err(Reason::SessionNotFound));
        };
        if session.identity != stamp.identity {
            return self.outcome(Err(Reason::SessionIdentity));
        }
        let known = session.results.get(&at.sequence).cloned();
        match &known {
            Some((command, _)) if *command != proposal.command => {
                return self.outcome(Err(Reason::SessionPayloadMismatch));
            }
            Some(_) => {}
            None => {
                let low = session.forgotten_below.max(at.acknowledged_below).max(1);
                if at.sequence < low || at.sequence - at.acknowledged_below >= SESSION_WINDOW {
                    return self.outcome(Err(Reason::SessionSequence));
                }
            }
        }
        if clock_ms + session.ttl_ms - session.expires_at_ms >= session.ttl_ms / 8 {
            session.expires_at_ms = clock_ms + session.ttl_ms;
        }
        if at.acknowledged_below >= session.forgotten_below + 64 {
            session.forgotten_below = at.acknowledged_below;
            session
                .results
                .retain(|sequence, _| *sequence >= at.acknowledged_below);
        }
        if let Some((_, outcome)) = known {
            return Outcome {
                duplicate: true,
                ..outcome
            };
        }
        let outcome = self.execute(&proposal.command);
        let mut kept = outcome.clone();
        if kept.encode().len() - codec::FRAME_HEADER_BYTES > 1024 {
            kept.result = Ok(Answer::RevisionOnly);
        }
        if let Some(session) = self.sessions.get_mut(&id).filter(|session| !session.closed) {
            session
                .results
                .insert(at.sequence, (proposal.command.clone(), kept));
        }
        outcome
    }

    fn outcome(&self, result: Ran<Answer>) -> Outcome {
        Outcome {
            revision: self.revision,
            duplicate: false,
            result: result.map_err(|reason| self.rejection(reason)),
        }
    }

    fn rejection(&self, reason: Reason) -> Rejection {
        let revision = match reason {
            Reason::Compacted => self.compacted,
            _ => self.revision,
        };
        Rejection { reason, revision }
    }

    fn execute(&mut self, command: &Command) -> Outcome {
        let result = well_formed(command).and_then(|()| self.run(command));
        self.outcome(result)
    }

    fn run(&mut self, command: &Command) -> Ran<Answer> {
        Ok(match command {
            Command::Put(put) => {
                let mut responses = self.write(&[Op::Put(put.clone())])?;
                match responses.pop() {
                    Some(OpResponse::Put(response)) => Answer::Put(response),
                    other => panic!("{other:?}"),
                }
            }
            Command::Delete(delete) => {
                let mut responses = self.write(&[Op::Delete(delete.clone())])?;
                match responses.pop() {
                    Some(OpResponse::Delete(response)) => Answer::Delete(response),
                    other => panic!("{other:?}"),
                }
            }
            Command::Txn(txn) => {
                let mut responses = self.write(&[Op::Txn(txn.clone())])?;
                match responses.pop() {
                    Some(OpResponse::Txn(response)) => Answer::Txn(response),
                    other => panic!("{other:?}"),
                }
            }
            Command::Compact { revision } if *revision > self.revision => {
                return Err(Reason::FutureRevision);
            }
            Command::Compact { revision } if *revision <= self.compacted => {
                return Err(Reason::Compacted);
            }
            Command::Compact { revision } => {
                self.compacted = *revision;
                Answer::Compact(CompactResponse {
                    header: header(self.revision),
                })
            }
            Command::LeaseGrant { id, .. } if self.leases.contains_key(id) => {
                return Err(Reason::LeaseExists);
            }
            Command::LeaseGrant { id, ttl_ms } => {
                let ttl_ms = (*ttl_ms).max(2_000);
                self.leases.insert(*id, (ttl_ms, self.clock_ms + ttl_ms));
                Answer::LeaseGrant(LeaseGrantResponse {
                    header: header(self.revision),
                    lease: *id,
                    ttl_ms,
                })
            }
            Command::LeaseRevoke { id } => {
                self.leases.remove(id).ok_or(Reason::LeaseNotFound)?;
                self.delete_keys(|kv| kv.lease == Some(*id));
                Answer::LeaseRevoke
            }
            Command::LeaseKeepAlive { ids } => {
                let renewed = ids.iter().map(|id| {
                    let (ttl_ms, deadline) = self.leases.get_mut(id)?;
                    *deadline = self.clock_ms + *ttl_ms;
                    Some(LeaseStatus {
                        keys: Vec::new(),
                        ..self.lease_status(*id)
                    })
                });
                Answer::LeaseKeepAlive(renewed.collect())
            }
            Command::Expire { limit } => self.expire(u64::from((*limit).max(1))),
            Command::Sweep { .. } => Answer::Sweep { more: false },
            Command::SetRetention(_)
            | Command::SetFeatureLevel(_)
            | Command::SetDesiredSize(_)
            | Command::Freeze { .. }
            | Command::Thaw { .. }
            | Command::RaiseAlarm(_)
            | Command::ClearAlarm(_) => Answer::Done,
            Command::RaiseRevision { revision } => {
                let keys = self.keys().clone();
                self.revision = self.revision.max(*revision);
                self.compacted = self.revision;
                self.history.insert(self.revision, keys);
                for (ttl_ms, deadline) in self.leases.values_mut() {
                    *deadline = self.clock_ms + *ttl_ms;
                }
                for session in self.sessions.values_mut() {
                    session.expires_at_ms = self.clock_ms + session.ttl_ms;
                    session.closed = true;
                    session.results.clear();
                }
                Answer::Done
            }
            Command::SessionOpen { .. }
            | Command::SessionKeepAlive { .. }
            | Command::SessionClose { .. } => self.run_session(command)?,
            Command::RestoreBegin { .. }
            | Command::RestoreRecords { .. }
            | Command::RestoreEnd { .. }
            | Command::RestoreDiscard { .. } => unreachable!("no program restores a backup"),
            Command::Auth(_) | Command::As { .. } => unreachable!("no program asks who it is"),
        })
    }

    fn run_session(&mut self, command: &Command) -> Ran<Answer> {
        let clock_ms = self.clock_ms;
        Ok(match command {
            Command::SessionOpen {
                id,
                ttl_ms,
                identity,
            } => {
                let ttl_ms = (*ttl_ms).max(2_000);
                let session = self.sessions.entry(*id).or_insert(Session {
                    identity: identity.clone(),
                    ttl_ms,
                    expires_at_ms: 0,
                    forgotten_below: 0,
                    closed: false,
                    results: BTreeMap::new(),
                });
                if session.closed || session.identity != *identity {
                    return Err(Reason::SessionExists);
                }
                session.ttl_ms = ttl_ms;
                session.expires_at_ms = clock_ms + ttl_ms;
                Answer::SessionOpen { ttl_ms }
            }
            Command::SessionKeepAlive { ids } => {
                let renewed = ids.iter().map(|id| {
                    let session = self
                        .sessions
                        .get_mut(id)
                        .filter(|session| !session.closed)?;
                    session.expires_at_ms = clock_ms + session.ttl_ms;
                    Some(session.ttl_ms)
                });
                Answer::SessionKeepAlive(renewed.collect())
            }
            Command::SessionClose { id } => {
                let session = self.sessions.get_mut(id).filter(|session| !session.closed);
                let session = session.ok_or(Reason::SessionNotFound)?;
                session.closed = true;
                session.results.clear();
                Answer::SessionClose
            }
            other => panic!("{other:?}"),
        })
    }

    /// Everything with a deadline: leases, then sessions, then keys at the same moment.
    fn due(&self) -> Vec<(u64, u8, Due)> {
        let leases = self.leases.iter();
        let leases = leases.map(|(id, (_, at))| (*at, 1, Due::Lease(*id)));
        let sessions = self.sessions.iter();
        let sessions = sessions.map(|(id, session)| (session.expires_at_ms, 2, Due::Session(*id)));
        let keys = self.keys().values();
        let keys = keys.filter_map(|kv| Some((kv.expires_at_ms?, 3, Due::Key(kv.key.clone()))));
        let mut due: Vec<_> = leases.chain(sessions).chain(keys).collect();
        due.sort_by_key(|(at, kind, _)| (*at, *kind));
        due
    }

    fn expire(&mut self, limit: u64) -> Answer {
        let mut removed = 0;
        while removed < limit
            && let Some((at, _, due)) = self.due().into_iter().next()
            && at <= self.clock_ms
        {
            removed += 1;
            match due {
                Due::Lease(id) => {
                    self.leases.remove(&id);
                    removed += self.delete_keys(|kv| kv.lease == Some(id));
                }
                Due::Session(id) => drop(self.sessions.remove(&id)),
                Due::Key(key) => drop(self.delete_keys(|kv| kv.key == key)),
            }
        }
        let more = self.due().iter().any(|(at, _, _)| *at <= self.clock_ms);
        Answer::Expire { removed, more }
    }

    fn delete_keys(&mut self, which: impl Fn(&KeyValue) -> bool) -> u64 {
        let doomed: Vec<Op> = self
            .keys()
            .values()
            .filter(|kv| which(kv))
            .map(|kv| Op::Delete(Delete::new(KeyRange::key(kv.key.clone()))))
            .collect();
        self.write(&doomed).unwrap();
        doomed.len() as u64
    }

    /// Runs operations as one transaction.
    fn write(&mut self, ops: &[Op]) -> Ran<Vec<OpResponse>> {
        let before = self.keys().clone();
        let path = decide(&before, ops);
        self.refuse(&before, &path)?;
        let mut run = Run {
            at: self.revision + 1,
            clock_ms: self.clock_ms,
            keys: before,
            events: Vec::new(),
            twin: self,
        };
        let mut responses = run.execute(&path);
        let Run { keys, events, .. } = run;
        if !events.is_empty() {
            self.revision += 1;
            self.history.insert(self.revision, keys);
            self.events.insert(self.revision, events);
        }
        for response in &mut responses {
            set_header(response, self.revision);
        }
        Ok(responses)
    }

    /// All puts first, then all ranges.
    fn refuse(&self, before: &Keys, path: &[Chosen]) -> Ran<()> {
        // A put by itself has its reasons in the other order.
        let in_txn = matches!(path, [Chosen::Txn(..)]);
        self.refuse_puts(before, path, in_txn)?;
        self.refuse_ranges(path)
    }

    fn refuse_puts(&self, before: &Keys, path: &[Chosen], in_txn: bool) -> Ran<()> {
        for chosen in path {
            match chosen {
                Chosen::Txn(_, ops) => self.refuse_puts(before, ops, in_txn)?,
                Chosen::Op(Op::Put(put)) => {
                    let lease = match put.lease {
                        Some(id) if !self.leases.contains_key(&id) => Err(Reason::LeaseNotFound),
                        _ => Ok(()),
                    };
                    let must_exist = put.ignore_value || put.ignore_lease;
                    let key = match must_exist && !before.contains_key(&put.key) {
                        true => Err(Reason::KeyNotFound),
                        false => Ok(()),
                    };
                    match in_txn {
                        true => key.and(lease)?,
                        false => lease.and(key)?,
                    }
                }
                Chosen::Op(_) => {}
            }
        }
        Ok(())
    }

    fn refuse_ranges(&self, path: &[Chosen]) -> Ran<()> {
        for chosen in path {
            match chosen {
                Chosen::Txn(_, ops) => self.refuse_ranges(ops)?,
                Chosen::Op(Op::Range(range)) => self.readable(range.revision)?,
                Chosen::Op(_) => {}
            }
        }
        Ok(())
    }

    fn readable(&self, revision: Revision) -> Ran<()> {
        if revision > self.revision {
            return Err(Reason::FutureRevision);
        }
        if revision != 0 && revision < self.compacted {
            return Err(Reason::Compacted);
        }
        Ok(())
    }

    pub fn range(&self, range: &KeyRange, revision: Revision) -> Vec<KeyValue> {
        inside(self.keys_at(revision), range)
    }

    pub fn read(&self, request: &Range) -> Result<(Vec<KeyValue>, u64, bool), Rejection> {
        self.readable(request.revision)
            .map_err(|reason| self.rejection(reason))?;
        let keys = match request.revision {
            0 => self.keys(),
            revision => self.keys_at(revision),
        };
        Ok(read(keys, request))
    }

    pub fn changes(&self, from: Revision, range: &KeyRange) -> Ran<Vec<RevisionEvents>> {
        if from < self.compacted {
            return Err(Reason::Compacted);
        }
        let mut found = Vec::new();
        for (revision, events) in self.events.range(from..) {
            let events: Vec<Event> = events
                .iter()
                .filter(|event| range.contains(&event.kv.key))
                .cloned()
                .map(|event| Event {
                    prev_kv: event.prev_kv.filter(|_| *revision > self.compacted),
                    ..event
                })
                .collect();
            if !events.is_empty() {
                found.push(RevisionEvents {
                    revision: *revision,
                    events,
                });
            }
        }
        Ok(found)
    }

    pub fn lease_status(&self, id: LeaseId) -> LeaseStatus {
        let (ttl_ms, deadline) = self.leases[&id];
        let keys = self.keys().values();
        LeaseStatus {
            header: header(self.revision),
            lease: id,
            granted_ttl_ms: ttl_ms,
            remaining_ms: deadline.saturating_sub(self.clock_ms),
            keys: keys
                .filter(|kv| kv.lease == Some(id))
                .map(|kv| kv.key.clone())
                .collect(),
        }
    }

    pub fn next_deadline(&self) -> Option<u64> {
        self.due().first().map(|(at, _, _)| *at)
    }

    pub fn open_sessions(&self) -> u64 {
        self.sessions.values().filter(|one| !one.closed).count() as u64
    }

    pub fn deadlines(&self) -> usize {
        self.due().len()
    }

    pub fn attached(&self) -> usize {
        self.keys().values().filter(|kv| kv.lease.is_some()).count()
    }

    pub fn results_left(&self) -> usize {
        self.sessions.values().map(|one| one.results.len()).sum()
    }

    /// How many changes, and how many versions and tombstones, a full sweep leaves.
    pub fn history_left(&self) -> (usize, usize) {
        let events: Vec<&Event> = self
            .events
            .range(self.compacted..)
            .flat_map(|e| e.1)
            .collect();
        // What the compacted revision itself superseded is not to be seen from it on.
        let since = self.events.range(self.compacted + 1..).flat_map(|e| e.1);
        let superseded = since.filter(|event| event.prev_kv.is_some()).count();
        let tombstones = events
            .iter()
            .filter(|event| event.kind == EventKind::Delete)
            .count();
        (events.len(), superseded + tombstones)
    }
}

enum Due {
    Lease(LeaseId),
    Session(SessionId),
    Key(Bytes),
}

/// What a transaction does once its compares are decided.
enum Chosen {
    Op(Op),
    Txn(bool, Vec<Chosen>),
}

fn decide(before: &Keys, ops: &[Op]) -> Vec<Chosen> {
    let decide_one = |op: &Op| match op {
        Op::Txn(txn) => {
            let succeeded = txn.compare.iter().all(|compare| holds(before, compare));
            let ops = if succeeded { &txn.then } else { &txn.or_else };
            Chosen::Txn(succeeded, decide(before, ops))
        }
        op => Chosen::Op(op.clone()),
    };
    ops.iter().map(decide_one).collect()
}

fn holds(before: &Keys, compare: &Compare) -> bool {
    let found = inside(before, &compare.range);
    if found.is_empty() {
        return match compare.target {
            CompareTarget::Value(_) => false,
            _ => holds_for(compare, &empty(Bytes::new())),
        };
    }
    found.iter().all(|kv| holds_for(compare, kv))
}

fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match &compare.target {
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Version(version) => kv.version.cmp(version),
        CompareTarget::CreateRevision(revision) => kv.create_revision.cmp(revision),
        CompareTarget::ModRevision(revision) => kv.mod_revision.cmp(revision),
        CompareTarget::Lease(lease) => {
            let number = |lease: Option<LeaseId>| lease.map_or(0, |lease| lease.0);
            number(kv.lease).cmp(&number(*lease))
        }
    };
    match compare.op {
        CompareOp::Equal => order.is_eq(),
        CompareOp::NotEqual => order.is_ne(),
        CompareOp::Greater => order.is_gt(),
        CompareOp::Less => order.is_lt(),
    }
}

struct Run<'a> {
    at: Revision,
    clock_ms: u64,
    keys: Keys,
    events: Vec<Event>,
    twin: &'a Twin,
}

impl Run<'_> {
    fn execute(&mut self, path: &[Chosen]) -> Vec<OpResponse> {
        let mut responses = Vec::new();
        for chosen in path {
            responses.push(match chosen {
                Chosen::Op(Op::Put(put)) => OpResponse::Put(self.put(put)),
                Chosen::Op(Op::Delete(delete)) => OpResponse::Delete(self.delete(delete)),
                Chosen::Op(Op::Range(request)) => {
                    let keys = match request.revision {
                        0 => &self.keys,
                        revision => self.twin.keys_at(revision),
                    };
                    let (kvs, count, more) = read(keys, request);
                    OpResponse::Range(RangeResponse {
                        header: header(0),
                        kvs,
                        count,
                        more,
                    })
                }
                Chosen::Op(op) => panic!("{op:?}"),
                Chosen::Txn(succeeded, path) => OpResponse::Txn(TxnResponse {
                    header: header(0),
                    succeeded: *succeeded,
                    responses: self.execute(path),
                }),
            });
        }
        responses
    }

    fn put(&mut self, put: &Put) -> PutResponse {
        let old = self.keys.get(&put.key).cloned();
        let mut kv = KeyValue {
            value: put.value.clone(),
            create_revision: self.at,
            mod_revision: self.at,
            version: 1,
            lease: put.lease,
            expires_at_ms: put.ttl_ms.map(|ttl_ms| self.clock_ms + ttl_ms),
            ..empty(put.key.clone())
        };
        if let Some(old) = &old {
            kv.create_revision = old.create_revision;
            kv.version = old.version + 1;
            if put.ignore_value {
                kv.value = old.value.clone();
            }
            if put.ignore_lease {
                kv.lease = old.lease;
                kv.expires_at_ms = old.expires_at_ms;
            }
        }
        self.keys.insert(put.key.clone(), kv.clone());
        self.events.push(Event {
            kind: EventKind::Put,
            kv,
            prev_kv: old.clone(),
        });
        PutResponse {
            header: header(0),
            prev_kv: old.filter(|_| put.prev_kv),
        }
    }

    fn delete(&mut self, delete: &Delete) -> DeleteResponse {
        let doomed = inside(&self.keys, &delete.range);
        for kv in &doomed {
            self.keys.remove(&kv.key);
            self.events.push(Event {
                kind: EventKind::Delete,
                kv: KeyValue {
                    mod_revision: self.at,
                    ..empty(kv.key.clone())
                },
                prev_kv: Some(kv.clone()),
            });
        }
        DeleteResponse {
            header: header(0),
            deleted: doomed.len() as u64,
            prev_kvs: if delete.prev_kv { doomed } else { Vec::new() },
        }
    }
}

fn inside(keys: &Keys, range: &KeyRange) -> Vec<KeyValue> {
    let found = keys.values().filter(|kv| range.contains(&kv.key));
    found.cloned().collect()
}

fn read(keys: &Keys, request: &Range) -> (Vec<KeyValue>, u64, bool) {
    let mut kvs = inside(keys, &request.range);
    let count = kvs.len() as u64;
    if request.count_only {
        return (Vec::new(), count, false);
    }
    if request.reverse {
        kvs.reverse();
    }
    let limit = match request.limit {
        0 => usize::MAX,
        limit => limit as usize,
    };
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    (kvs, count, more)
}

fn empty(key: Bytes) -> KeyValue {
    KeyValue {
        key,
        value: Bytes::new(),
        create_revision: 0,
        mod_revision: 0,
        version: 0,
        lease: None,
        expires_at_ms: None,
    }
}

fn header(revision: Revision) -> Header {
    Header {
        revision,
        ..Header::default()
    }
}

fn set_header(response: &mut OpResponse, revision: Revision) {
    match response {
        OpResponse::Put(response) => response.header = header(revision),
        OpResponse::Delete(response) => response.header = header(revision),
        OpResponse::Range(response) => response.header = header(revision),
        OpResponse::Txn(response) => {
            response.header = header(revision);
            for response in &mut response.responses {
                set_header(response, revision);
            }
        }
    }
}

// What apply refuses whatever the state is.

fn well_formed(command: &Command) -> Ran<()> {
    let ttl = |ttl_ms: u64| match ttl_ms {
        0 => Err(Reason::InvalidTtl),
        _ => Ok(()),
    };
    match command {
        Command::Put(put) => well_formed_op(&Op::Put(put.clone())),
        Command::Delete(delete) => well_formed_op(&Op::Delete(delete.clone())),
        Command::Txn(txn) => {
            well_formed_op(&Op::Txn(txn.clone()))?;
            match writes_twice(&txn.then) || writes_twice(&txn.or_else) {
                true => Err(Reason::DuplicateKey),
                false => Ok(()),
            }
        }
        Command::LeaseGrant { id, .. } if id.0 == 0 => Err(Reason::InvalidArgument),
        Command::LeaseGrant { ttl_ms, .. } | Command::SessionOpen { ttl_ms, .. } => ttl(*ttl_ms),
        _ => Ok(()),
    }
}

fn well_formed_op(op: &Op) -> Ran<()> {
    let range = |range: &KeyRange| match range.is_single() && range.start.is_empty() {
        true => Err(Reason::EmptyKey),
        false => Ok(()),
    };
    match op {
        Op::Put(put) => {
            range(&KeyRange::key(put.key.clone()))?;
            // The programs make no other mistakes than these.
            if put.lease == Some(LeaseId(0)) {
                return Err(Reason::InvalidArgument);
            }
            match put.ttl_ms {
                Some(0) => Err(Reason::InvalidTtl),
                _ => Ok(()),
            }
        }
        Op::Delete(delete) => range(&delete.range),
        Op::Range(request) => range(&request.range),
        Op::Txn(txn) => {
            for compare in &txn.compare {
                range(&compare.range)?;
            }
            let mut ops = txn.then.iter().chain(&txn.or_else);
            ops.try_for_each(well_formed_op)
        }
    }
}

/// True if any two operations that may both run write one key, unless both delete.
fn writes_twice(ops: &[Op]) -> bool {
    let inside = ops.iter().any(|op| match op {
        Op::Txn(txn) => writes_twice(&txn.then) || writes_twice(&txn.or_else),
        _ => false,
    });
    let writes: Vec<Vec<Op>> = ops.iter().map(writes).collect();
    let pairs = writes.iter().enumerate().any(|(at, one)| {
        let others = writes.iter().skip(at + 1).flatten();
        others
            .into_iter()
            .any(|other| one.iter().any(|one| collide(one, other)))
    });
    inside || pairs
}

fn writes(op: &Op) -> Vec<Op> {
    match op {
        Op::Range(_) => Vec::new(),
        Op::Txn(txn) => txn
            .then
            .iter()
            .chain(&txn.or_else)
            .flat_map(writes)
            .collect(),
        op => vec![op.clone()],
    }
}

fn collide(one: &Op, other: &Op) -> bool {
    match (one, other) {
        (Op::Put(one), Op::Put(other)) => one.key == other.key,
        (Op::Put(put), Op::Delete(delete)) | (Op::Delete(delete), Op::Put(put)) => {
            delete.range.contains(&put.key)
        }
        _ => false,
    }
}
