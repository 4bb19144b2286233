//! What a request must be, whatever the state is.
//!
//! [`check`] runs before a request is proposed, with the limits of the node. Limits are local
//! settings, so apply must not depend on them; it repeats only what holds everywhere
//! ([`well_formed`]), and so stays total on commands that came another way.

use std::collections::{BTreeMap, BTreeSet};

use podkv_api::{
    Bytes, DesiredSize, Error, KeyRange, Limits, Op, Put, Range, RangeEnd, Reason, Txn,
};

use crate::auth::{AuthChange, Caller};
use crate::backup::BackupRecord;
use crate::command::Command;
use crate::freeze::MAX_FROZEN_PREFIX_BYTES;
use crate::meta::FEATURE_LEVEL;
use crate::record::MAX_TXN_DEPTH;

type Checked = Result<(), Error>;

/// Checks a command against the limits of this node and against all that makes sense without
/// looking at the state. Done before proposing.
pub fn check(command: &Command, limits: &Limits) -> Checked {
    // Not who asks: what fits from one caller fits from another.
    let bytes = command.asked().size();
    if bytes > limits.max_request_bytes {
        return Err(Error::new(
            Reason::RequestTooLarge,
            format!(
                "the request has {bytes} bytes; at most {} are accepted",
                limits.max_request_bytes
            ),
        ));
    }
    Checker { limits }.command(command)
}

/// What apply relies on.
pub(crate) fn well_formed(command: &Command) -> Checked {
    const NO_LIMITS: Limits = Limits {
        max_request_bytes: usize::MAX,
        max_txn_ops: usize::MAX,
        max_txn_depth: MAX_TXN_DEPTH,
        max_key_bytes: usize::MAX,
    };
    Checker { limits: &NO_LIMITS }.command(command)
}

/// The longest identity that a session is bound to.
const MAX_IDENTITY_BYTES: usize = 4096;

struct Checker<'a> {
    limits: &'a Limits,
}

impl Checker<'_> {
    fn command(&self, command: &Command) -> Checked {
        match command {
            Command::Put(put) => self.put(put),
            Command::Delete(delete) => self.key_range(&delete.range),
            Command::Txn(txn) => {
                self.txn(txn, 1)?;
                written(txn).map(drop)
            }
            Command::LeaseGrant { id, ttl_ms } => {
                if id.0 == 0 {
                    return Err(invalid("the lease id is 0, which means no lease"));
                }
                ttl("the lease", *ttl_ms)
            }
            Command::SessionOpen {
                ttl_ms, identity, ..
            } => {
                if identity.len() > MAX_IDENTITY_BYTES {
                    return Err(invalid(format!(
                        "the identity has {} bytes; at most {MAX_IDENTITY_BYTES} are accepted",
                        identity.len()
                    )));
                }
                ttl("the session", *ttl_ms)
            }
            Command::RestoreRecords { records, .. } => backup_records(records),
            Command::RestoreBegin { revision, .. } | Command::RaiseRevision { revision } => {
                countable("the revision", *revision)
            }
            Command::SetDesiredSize(size) => desired_size(size),
            Command::Auth(change) => self.auth(change),
            Command::As { caller, command } => {
                if matches!(**command, Command::As { .. }) {
                    return Err(invalid("a command has one caller"));
                }
                if let Caller::User { name, .. } = caller {
                    auth_name("the caller", name)?;
                }
                self.command(command)
            }
            // An empty one is every key.
            Command::Freeze { prefix } | Command::Thaw { prefix } => {
                self.key_length(prefix, MAX_FROZEN_PREFIX_BYTES)
            }
            Command::SetFeatureLevel(level) if *level > FEATURE_LEVEL => Err(invalid(format!(
                "the feature level is {level}; this release understands {FEATURE_LEVEL} at most"
            ))),
            Command::RaiseAlarm(_)
            | Command::ClearAlarm(_)
            | Command::Compact { .. }
            | Command::LeaseRevoke { .. }
            | Command::LeaseKeepAlive { .. }
            | Command::SessionKeepAlive { .. }
            | Command::SessionClose { .. }
            | Command::Expire { .. }
            | Command::Sweep { .. }
            | Command::SetRetention(_)
            | Command::SetFeatureLevel(_)
            | Command::RestoreEnd { .. }
            | Command::RestoreDiscard { .. } => Ok(()),
        }
    }

    fn auth(&self, change: &AuthChange) -> Checked {
        match change {
            AuthChange::Enable | AuthChange::Disable => Ok(()),
            AuthChange::SetTokenSecret(secret) if secret.is_empty() => {
                Err(invalid("the secret is empty"))
            }
            AuthChange::SetTokenSecret(secret) => secret_length("secret", secret.len()),
            AuthChange::AddUser { name, password } => {
                auth_name("the user", name)?;
                secret_length("hash", password.as_ref().map_or(0, String::len))
            }
            AuthChange::SetPassword { name, password } => {
                auth_name("the user", name)?;
                secret_length("hash", password.len())
            }
            AuthChange::DeleteUser { name } => auth_name("the user", name),
            AuthChange::AddRole { name } | AuthChange::DeleteRole { name } => {
                auth_name("the role", name)
            }
            AuthChange::GrantRole { user, role } | AuthChange::RevokeRole { user, role } => {
                auth_name("the user", user)?;
                auth_name("the role", role)
            }
            AuthChange::GrantPermission { role, permission } => {
                auth_name("the role", role)?;
                self.permission_range(&permission.range)
            }
            AuthChange::RevokePermission { role, range } => {
                auth_name("the role", role)?;
                self.permission_range(range)
            }
        }
    }

    /// May be of the empty key, which nothing has: the state says what becomes of it.
    fn permission_range(&self, range: &KeyRange) -> Checked {
        let bound = self.limits.max_key_bytes.saturating_add(1);
        self.key_length(&range.start, bound)?;
        match &range.end {
            RangeEnd::Before(end) => self.key_length(end, bound),
            RangeEnd::Single | RangeEnd::Unbounded => Ok(()),
        }
    }

    fn put(&self, put: &Put) -> Checked {
        self.key(&put.key)?;
        if put.ignore_value && !put.value.is_empty() {
            return Err(Error::new(
                Reason::ValueProvided,
                "ignore_value keeps the value that the key has; leave the value out",
            ));
        }
        if put.ignore_lease && (put.lease.is_some() || put.ttl_ms.is_some()) {
            return Err(Error::new(
                Reason::LeaseProvided,
                "ignore_lease keeps the lease that the key has; leave lease and TTL out",
            ));
        }
        if put.lease.is_some() && put.ttl_ms.is_some() {
            return Err(invalid(
                "a put has a lease or a TTL of its own, not both; leave one out",
            ));
        }
        if put.lease.is_some_and(|lease| lease.0 == 0) {
            return Err(invalid("the lease id is 0, which means no lease"));
        }
        put.ttl_ms.map_or(Ok(()), |ttl_ms| ttl("the put", ttl_ms))
    }

    fn key(&self, key: &Bytes) -> Checked {
        if key.is_empty() {
            return Err(Error::new(
                Reason::EmptyKey,
                "the key is empty; a key has at least one byte",
            ));
        }
        self.key_length(key, self.limits.max_key_bytes)
    }

    fn key_length(&self, key: &Bytes, most: usize) -> Checked {
        if key.len() > most {
            return Err(Error::new(
                Reason::KeyTooLarge,
                format!(
                    "the key has {} bytes; at most {most} are accepted",
                    key.len()
                ),
            ));
        }
        Ok(())
    }

    fn key_range(&self, range: &KeyRange) -> Checked {
        // One more byte: the end of a range that stops after a longest key.
        let bound = self.limits.max_key_bytes.saturating_add(1);
        match &range.end {
            RangeEnd::Single => return self.key(&range.start),
            RangeEnd::Before(end) => self.key_length(end, bound)?,
            RangeEnd::Unbounded => {}
        }
        self.key_length(&range.start, bound)
    }

    fn txn(&self, txn: &Txn, depth: usize) -> Checked {
        let most = self.limits.max_txn_depth.min(MAX_TXN_DEPTH);
        if depth > most {
            return Err(Error::new(
                Reason::TxnTooDeep,
                format!("the transaction nests deeper than {most} levels"),
            ));
        }
        let lists = [
            ("compares", txn.compare.len()),
            ("operations under then", txn.then.len()),
            ("operations under else", txn.or_else.len()),
        ];
        for (name, length) in lists {
            if length > self.limits.max_txn_ops {
                return Err(Error::new(
                    Reason::TooManyOperations,
                    format!(
                        "the transaction has {length} {name}; at most {} are accepted",
                        self.limits.max_txn_ops
                    ),
                ));
            }
        }
        for compare in &txn.compare {
            self.key_range(&compare.range)?;
        }
        for op in txn.then.iter().chain(&txn.or_else) {
            match op {
                Op::Put(put) => self.put(put)?,
                Op::Delete(delete) => self.key_range(&delete.range)?,
                Op::Range(range) => self.range(range)?,
                Op::Txn(txn) => self.txn(txn, depth + 1)?,
            }
        }
        Ok(())
    }

    fn range(&self, range: &Range) -> Checked {
        self.key_range(&range.range)
    }
}

/// Checks a read, as [`check`] does a command.
pub fn check_range(range: &Range, limits: &Limits) -> Result<(), Error> {
    Checker { limits }.range(range)
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(Reason::InvalidArgument, text)
}

/// Records as a backup has them: each kind in its order. The limit on keys may be
/// lower here than where they were written, and does not apply.
fn backup_records(records: &[BackupRecord]) -> Checked {
    let mut last = None;
    for record in records {
        let is_named = match record {
            BackupRecord::Auth { revision, .. } => {
                countable("the auth revision", *revision)?;
                true
            }
            BackupRecord::User { name, .. } | BackupRecord::Role { name, .. } => !name.is_empty(),
            BackupRecord::Lease { id, ttl_ms } => {
                ttl("the lease", *ttl_ms)?;
                id.0 != 0
            }
            // The empty prefix is every key.
            BackupRecord::Frozen { .. } => true,
            BackupRecord::Key(kv) => {
                countable("the version of a key", kv.version)?;
                !kv.key.is_empty()
            }
        };
        let place = Some(place(record));
        if !is_named || last >= place {
            return Err(invalid("the records of a backup are not in their order"));
        }
        last = place;
    }
    Ok(())
}

/// The highest number from outside that is counted on from. Nothing that counts by one gets there, nor do the 2^32 of a
/// recovery; above it a backup could end the numbers, and with them every replica.
const MAX_COUNT: u64 = 1 << 62;

fn countable(what: &str, number: u64) -> Checked {
    if number > MAX_COUNT {
        return Err(invalid(format!(
            "{what} is {number}; at most {MAX_COUNT} are accepted"
        )));
    }
    Ok(())
}

/// Where a record stands in a backup.
fn place(record: &BackupRecord) -> (u8, i64, &[u8]) {
    match record {
        BackupRecord::Auth { .. } => (0, 0, &[]),
        BackupRecord::User { name, .. } => (1, 0, name.as_bytes()),
        BackupRecord::Role { name, .. } => (2, 0, name.as_bytes()),
        BackupRecord::Lease { id, .. } => (3, id.0, &[]),
        BackupRecord::Frozen { prefix } => (4, 0, prefix),
        BackupRecord::Key(kv) => (5, 0, &kv.key),
    }
}

/// The longest name of a user or a role. A user's is the identity of its sessions.
const MAX_AUTH_NAME_BYTES: usize = 1024;

fn auth_name(what: &str, name: &str) -> Checked {
    if name.len() > MAX_AUTH_NAME_BYTES {
        return Err(invalid(format!(
            "the name of {what} has {} bytes; at most {MAX_AUTH_NAME_BYTES} are accepted",
            name.len()
        )));
    }
    Ok(())
}

/// The longest hash of a password, and the longest secret.
const MAX_SECRET_BYTES: usize = 512;

fn secret_length(what: &str, bytes: usize) -> Checked {
    if bytes > MAX_SECRET_BYTES {
        return Err(invalid(format!(
            "the {what} has {bytes} bytes; at most {MAX_SECRET_BYTES} are accepted"
        )));
    }
    Ok(())
}

/// The longest UID that is accepted; those of Kubernetes have 36 bytes.
const MAX_SOURCE_BYTES: usize = 256;

fn desired_size(size: &DesiredSize) -> Checked {
    if size.replicas > DesiredSize::MAX_REPLICAS {
        return Err(invalid(format!(
            "the desired size is {} replicas; at most {} are accepted",
            size.replicas,
            DesiredSize::MAX_REPLICAS
        )));
    }
    if size.start.checked_add(size.replicas).is_none() {
        return Err(invalid(
            "the ordinals of the desired size end beyond what a pod's name may say",
        ));
    }
    if size.source.len() > MAX_SOURCE_BYTES {
        return Err(invalid(format!(
            "the source of the desired size has {} bytes; at most {MAX_SOURCE_BYTES} are accepted",
            size.source.len()
        )));
    }
    Ok(())
}

fn ttl(what: &str, ttl_ms: u64) -> Checked {
    if ttl_ms == 0 || ttl_ms > Limits::MAX_TTL_MS {
        return Err(Error::new(
            Reason::InvalidTtl,
            format!(
                "the TTL of {what} is {ttl_ms} ms; from 1 to {} are accepted",
                Limits::MAX_TTL_MS
            ),
        ));
    }
    Ok(())
}

/// What a list of operations may write, to find keys that are written twice. Each version of a key
/// is named by its revision, and a transaction has one: a key that it wrote twice would have two
/// versions under one name. Deletes may overlap each other, since the second finds nothing.
#[derive(Default)]
struct Written {
    puts: BTreeSet<Bytes>,
    /// Disjoint: start to end, where `None` is the end of the keyspace.
    deletes: BTreeMap<Bytes, Option<Bytes>>,
}

/// What either branch of a transaction may write. The branches exclude each other, so they may
/// write the same keys.
fn written(txn: &Txn) -> Result<Written, Error> {
    let mut all = written_by(&txn.then)?;
    let other = written_by(&txn.or_else)?;
    all.puts.extend(other.puts);
    for (start, end) in other.deletes {
        all.add_delete(start, end);
    }
    Ok(all)
}

fn written_by(ops: &[Op]) -> Result<Written, Error> {
    let mut all = Written::default();
    for op in ops {
        match op {
            Op::Range(_) => {}
            Op::Put(put) => {
                let mut one = Written::default();
                one.puts.insert(put.key.clone());
                all.join(one)?;
            }
            Op::Delete(delete) => {
                let mut one = Written::default();
                let start = delete.range.start.clone();
                match &delete.range.end {
                    _ if delete.range.is_empty() => {}
                    RangeEnd::Single => {
                        let end = crate::schema::just_after(&start);
                        one.add_delete(start, Some(end));
                    }
                    RangeEnd::Before(end) => one.add_delete(start, Some(end.clone())),
                    RangeEnd::Unbounded => one.add_delete(start, None),
                }
                all.join(one)?;
            }
            Op::Txn(txn) => all.join(written(txn)?)?,
        }
    }
    Ok(all)
}

impl Written {
    /// Adds what another operation of the same list writes.
    fn join(&mut self, other: Written) -> Checked {
        for key in &other.puts {
            if self.puts.contains(key) || self.deletes_key(key) {
                return Err(duplicate(key));
            }
        }
        for (start, end) in &other.deletes {
            let mut inside = self.puts.range::<Bytes, _>(start..);
            if let Some(key) = inside.next()
                && end.as_ref().is_none_or(|end| key < end)
            {
                return Err(duplicate(key));
            }
        }
        self.puts.extend(other.puts);
        for (start, end) in other.deletes {
            self.add_delete(start, end);
        }
        Ok(())
    }

    fn deletes_key(&self, key: &Bytes) -> bool {
        let before = self.deletes.range::<Bytes, _>(..=key).next_back();
        before.is_some_and(|(_, end)| end.as_ref().is_none_or(|end| key < end))
    }

    /// Adds an interval, merging those that it touches.
    fn add_delete(&mut self, mut start: Bytes, mut end: Option<Bytes>) {
        let reaches = |end: &Option<Bytes>, to: &Bytes| end.as_ref().is_none_or(|end| end >= to);
        loop {
            let last_before = match &end {
                Some(end) => self.deletes.range::<Bytes, _>(..=end).next_back(),
                None => self.deletes.iter().next_back(),
            };
            match last_before {
                Some((other, other_end)) if reaches(other_end, &start) => {
                    let (other, other_end) = (other.clone(), other_end.clone());
                    self.deletes.remove(&other);
                    start = start.min(other);
                    end = match (end, other_end) {
                        (Some(end), Some(other_end)) => Some(end.max(other_end)),
                        _ => None,
                    };
                }
                _ => break,
            }
        }
        self.deletes.insert(start, end);
    }
}

fn duplicate(key: &Bytes) -> Error {
    Error::new(
        Reason::DuplicateKey,
        format!(
            "the transaction writes the key {:?} twice; each key may be put or deleted once",
            key.escape_ascii().to_string()
        ),
    )
}
