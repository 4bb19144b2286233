//! Commands out of bytes: few keys, leases, sessions and names, so that commands meet each other; now and then anything.

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use podkv_api::{
    Alarm, AlarmKind, Compare, CompareOp, CompareTarget, Consistency, Delete, DesiredSize,
    KeyRange, KeyValue, LeaseId, MemberId, Op, Permission, PermissionKind, Put, Range, Retention,
    SessionId, SessionStamp, Txn,
};
use podkv_core::{
    AuthChange, AuthUser, BackupId, BackupRecord, Caller, Command, FEATURE_LEVEL, Proposal, Stamp,
};

type Input<'a, 'b> = &'a mut Unstructured<'b>;

/// Deeper transactions are refused by every limit.
const DEPTH: usize = 3;

/// One of a few numbers near the edges, or any.
fn number(input: Input) -> Result<u64> {
    Ok(match input.int_in_range(0u8..=15)? {
        small @ 0..=9 => u64::from(small),
        10 => 2_000,
        11 => 1 << 32,
        12 => Retention::DEFAULT_KEEP_MS,
        13 => u64::MAX - input.int_in_range(0u64..=3)?,
        _ => input.arbitrary()?,
    })
}

pub fn key(input: Input) -> Result<Bytes> {
    const KEYS: [&[u8]; 12] = [
        b"",
        b"a",
        b"a\0",
        b"a\0b",
        b"a\xff",
        b"aa",
        b"b",
        b"b/c",
        b"b/d",
        b"\0",
        b"\xff",
        b"\xff\xff",
    ];
    Ok(match input.ratio(15u8, 16u8)? {
        true => Bytes::from_static(input.choose(&KEYS)?),
        false => Bytes::from(input.arbitrary::<Vec<u8>>()?),
    })
}

fn value(input: Input) -> Result<Bytes> {
    Ok(match input.int_in_range(0u8..=7)? {
        0 => Bytes::new(),
        1 => Bytes::from(vec![b'x'; input.int_in_range(0usize..=5_000)?]),
        2 => Bytes::from(input.arbitrary::<Vec<u8>>()?),
        small => Bytes::from(vec![b'0' + small]),
    })
}

fn range(input: Input) -> Result<KeyRange> {
    Ok(match input.int_in_range(0u8..=5)? {
        0 | 1 => KeyRange::key(key(input)?),
        2 => KeyRange::between(key(input)?, key(input)?),
        3 => KeyRange::from(key(input)?),
        4 => KeyRange::prefix(key(input)?),
        _ => KeyRange::all(),
    })
}

fn lease(input: Input) -> Result<LeaseId> {
    Ok(LeaseId(match input.int_in_range(0u8..=7)? {
        few @ 0..=5 => i64::from(few),
        6 => i64::MIN,
        _ => input.arbitrary()?,
    }))
}

fn session(input: Input) -> Result<SessionId> {
    Ok(SessionId(input.int_in_range(0u128..=3)?))
}

fn name(input: Input) -> Result<String> {
    Ok(match input.int_in_range(0u8..=7)? {
        0..=2 => "root".into(),
        3 | 4 => "alice".into(),
        5 => "bob".into(),
        6 => String::new(),
        _ => input.arbitrary()?,
    })
}

fn put(input: Input) -> Result<Put> {
    Ok(Put {
        key: key(input)?,
        value: value(input)?,
        lease: optional(input, lease)?,
        ttl_ms: optional(input, number)?,
        prev_kv: input.arbitrary()?,
        ignore_value: input.ratio(1u8, 8u8)?,
        ignore_lease: input.ratio(1u8, 8u8)?,
    })
}

/// Mostly not.
fn optional<T>(input: Input, of: fn(Input) -> Result<T>) -> Result<Option<T>> {
    match input.ratio(1u8, 4u8)? {
        true => of(input).map(Some),
        false => Ok(None),
    }
}

fn several<T>(input: Input, most: usize, of: fn(Input) -> Result<T>) -> Result<Vec<T>> {
    let count = input.int_in_range(0..=most)?;
    (0..count).map(|_| of(input)).collect()
}

fn delete(input: Input) -> Result<Delete> {
    Ok(Delete {
        range: range(input)?,
        prev_kv: input.arbitrary()?,
    })
}

/// A read. Its consistency is not in the log.
pub fn read(input: Input) -> Result<Range> {
    Ok(Range {
        range: range(input)?,
        limit: number(input)?,
        reverse: input.arbitrary()?,
        keys_only: input.arbitrary()?,
        count_only: input.arbitrary()?,
        revision: number(input)?,
        consistency: Consistency::default(),
    })
}

fn compare(input: Input) -> Result<Compare> {
    let ops = [
        CompareOp::Equal,
        CompareOp::NotEqual,
        CompareOp::Greater,
        CompareOp::Less,
    ];
    Ok(Compare {
        range: range(input)?,
        op: *input.choose(&ops)?,
        target: match input.int_in_range(0u8..=4)? {
            0 => CompareTarget::Value(value(input)?),
            1 => CompareTarget::Version(number(input)?),
            2 => CompareTarget::CreateRevision(number(input)?),
            3 => CompareTarget::ModRevision(number(input)?),
            _ => CompareTarget::Lease(optional(input, lease)?),
        },
    })
}

fn txn(input: Input, depth: usize) -> Result<Txn> {
    let ops = |input: Input| -> Result<Vec<Op>> {
        let count = input.int_in_range(0..=3)?;
        (0..count).map(|_| op(input, depth)).collect()
    };
    Ok(Txn {
        compare: several(input, 3, compare)?,
        then: ops(input)?,
        or_else: ops(input)?,
    })
}

fn op(input: Input, depth: usize) -> Result<Op> {
    Ok(match input.int_in_range(0u8..=7)? {
        0..=2 => Op::Put(put(input)?),
        3 | 4 => Op::Delete(delete(input)?),
        5 | 6 => Op::Range(read(input)?),
        _ if depth == 0 => Op::Txn(Txn::new()),
        _ => Op::Txn(txn(input, depth - 1)?),
    })
}

fn retention(input: Input) -> Result<Retention> {
    Ok(Retention {
        keep_ms: optional(input, number)?,
        max_revisions: optional(input, number)?,
    })
}

fn permission(input: Input) -> Result<Permission> {
    let kinds = [
        PermissionKind::Read,
        PermissionKind::Write,
        PermissionKind::ReadWrite,
    ];
    Ok(Permission {
        kind: *input.choose(&kinds)?,
        range: range(input)?,
    })
}

/// A record of a backup, well formed or not.
pub fn backup_record(input: Input) -> Result<BackupRecord> {
    Ok(match input.int_in_range(0u8..=9)? {
        0 | 1 => BackupRecord::Lease {
            id: lease(input)?,
            ttl_ms: number(input)?,
        },
        2 => BackupRecord::Auth {
            enabled: input.arbitrary()?,
            revision: number(input)?,
        },
        3 => BackupRecord::User {
            name: name(input)?,
            user: AuthUser {
                password: optional(input, name)?,
                revision: number(input)?,
                roles: several(input, 3, name)?,
            },
        },
        4 => BackupRecord::Role {
            name: name(input)?,
            permissions: several(input, 3, permission)?,
        },
        5 => BackupRecord::Frozen {
            prefix: key(input)?,
        },
        _ => BackupRecord::Key(KeyValue {
            key: key(input)?,
            value: value(input)?,
            create_revision: number(input)?,
            mod_revision: number(input)?,
            version: number(input)?,
            lease: optional(input, lease)?,
            expires_at_ms: optional(input, number)?,
        }),
    })
}

fn auth(input: Input) -> Result<AuthChange> {
    Ok(match input.int_in_range(0u8..=11)? {
        0 => AuthChange::Enable,
        1 => AuthChange::Disable,
        2 => AuthChange::SetTokenSecret(value(input)?),
        3 | 4 => AuthChange::AddUser {
            name: name(input)?,
            password: optional(input, name)?,
        },
        5 => AuthChange::DeleteUser { name: name(input)? },
        6 => AuthChange::SetPassword {
            name: name(input)?,
            password: name(input)?,
        },
        7 => AuthChange::GrantRole {
            user: name(input)?,
            role: name(input)?,
        },
        8 => AuthChange::RevokeRole {
            user: name(input)?,
            role: name(input)?,
        },
        9 => AuthChange::AddRole { name: name(input)? },
        10 => AuthChange::DeleteRole { name: name(input)? },
        _ => AuthChange::GrantPermission {
            role: name(input)?,
            permission: permission(input)?,
        },
    })
}

fn caller(input: Input) -> Result<Caller> {
    Ok(match input.arbitrary()? {
        true => Caller::Anonymous,
        false => Caller::User {
            name: name(input)?,
            revision: number(input)?,
        },
    })
}

fn restore(input: Input) -> Result<Command> {
    // One backup that is restored, and one that is mixed in.
    let backup = BackupId(input.int_in_range(0u128..=1)?);
    Ok(match input.int_in_range(0u8..=3)? {
        0 => Command::RestoreBegin {
            backup,
            revision: number(input)?,
            clock_ms: number(input)?,
            retention: retention(input)?,
        },
        1 => Command::RestoreRecords {
            backup,
            first: number(input)?,
            records: several(input, 4, backup_record)?,
        },
        2 => Command::RestoreEnd {
            backup,
            records: number(input)?,
        },
        _ => Command::RestoreDiscard {
            limit: input.arbitrary()?,
        },
    })
}

fn rare(input: Input) -> Result<Command> {
    let alarm = |input: Input| -> Result<Alarm> {
        Ok(Alarm {
            member: MemberId(number(input)?),
            kind: *input.choose(&[AlarmKind::NoSpace, AlarmKind::Corrupt])?,
        })
    };
    Ok(match input.int_in_range(0u8..=8)? {
        0 => Command::SetRetention(retention(input)?),
        // A higher one ends a replica, as it should.
        1 => Command::SetFeatureLevel(input.int_in_range(0..=FEATURE_LEVEL)?),
        2 => Command::RaiseRevision {
            revision: number(input)?,
        },
        3 => restore(input)?,
        4 => Command::SetDesiredSize(DesiredSize {
            source: name(input)?,
            generation: number(input)?,
            start: input.arbitrary()?,
            replicas: input.arbitrary()?,
        }),
        5 => Command::Freeze {
            prefix: key(input)?,
        },
        6 => Command::Thaw {
            prefix: key(input)?,
        },
        7 => Command::RaiseAlarm(alarm(input)?),
        _ => Command::ClearAlarm(alarm(input)?),
    })
}

/// Any command; with a caller only at the top.
fn command(input: Input) -> Result<Command> {
    Ok(match input.int_in_range(0u8..=23)? {
        0..=4 => Command::Put(put(input)?),
        5 | 6 => Command::Delete(delete(input)?),
        7..=9 => Command::Txn(txn(input, DEPTH)?),
        10 => Command::Compact {
            revision: number(input)?,
        },
        11 | 12 => Command::LeaseGrant {
            id: lease(input)?,
            ttl_ms: number(input)?,
        },
        13 => Command::LeaseRevoke { id: lease(input)? },
        14 => Command::LeaseKeepAlive {
            ids: several(input, 3, lease)?,
        },
        15 => Command::SessionOpen {
            id: session(input)?,
            ttl_ms: number(input)?,
            identity: optional(input, key)?.unwrap_or_default(),
        },
        16 => Command::SessionKeepAlive {
            ids: several(input, 3, session)?,
        },
        17 => Command::SessionClose {
            id: session(input)?,
        },
        18 => Command::Expire {
            limit: input.int_in_range(0..=4)?,
        },
        19 => Command::Sweep {
            limit: input.int_in_range(0..=4)?,
        },
        20 | 21 => Command::Auth(auth(input)?),
        _ => rare(input)?,
    })
}

/// What a node would propose, or a hostile one.
pub fn proposal(input: Input) -> Result<Proposal> {
    let command = command(input)?;
    let command = match optional(input, caller)? {
        Some(caller) => command.by(&caller),
        None => command,
    };
    let stamp = optional(input, |input| {
        Ok(Stamp {
            session: SessionStamp {
                session: session(input)?,
                sequence: number(input)?,
                acknowledged_below: number(input)?,
            },
            identity: optional(input, key)?.unwrap_or_default(),
        })
    })?;
    Ok(Proposal { stamp, command })
}

/// How far the clock goes on before an entry: mostly a little, at times beyond every deadline, at times back.
pub fn pause(input: Input) -> Result<i64> {
    Ok(match input.int_in_range(0u8..=7)? {
        0..=4 => input.int_in_range(0i64..=50)?,
        5 => 3_000,
        6 => 100_000_000,
        _ => -10,
    })
}
