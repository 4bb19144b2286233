//! Pins the bytes of everything that is kept or sent. A difference here means that old data or an
//! older peer would be misread: append a variant, add a version, do not edit.
//!
//! `tests/golden/frames.txt` has a line for each frame, `state.txt` one for each key of the state
//! after a program that touches every table. Both are also read back.

use std::path::{Path, PathBuf};

use podkv_api::*;
use podkv_core::*;

use crate::golden;
use crate::restore::Backup;
use crate::store::Store;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Bytes {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn every_put() -> Vec<Put> {
    vec![
        Put::new("key", "value"),
        Put {
            key: "k".into(),
            value: Bytes::new(),
            lease: Some(LeaseId(-7)),
            ttl_ms: Some(70_000),
            prev_kv: true,
            ignore_value: true,
            ignore_lease: true,
        },
    ]
}

fn every_txn() -> Txn {
    let compare = |range: KeyRange, op, target| Compare { range, op, target };
    let range = Range {
        limit: 1,
        reverse: true,
        keys_only: true,
        count_only: true,
        revision: 9,
        ..Range::new(KeyRange::between("a", "b"))
    };
    Txn::new()
        .when([
            compare(
                KeyRange::key("a"),
                CompareOp::Equal,
                CompareTarget::Value("v".into()),
            ),
            compare(
                KeyRange::all(),
                CompareOp::NotEqual,
                CompareTarget::Version(1),
            ),
            compare(
                KeyRange::key("a"),
                CompareOp::Greater,
                CompareTarget::CreateRevision(2),
            ),
            compare(
                KeyRange::key("a"),
                CompareOp::Less,
                CompareTarget::ModRevision(300),
            ),
            compare(
                KeyRange::key("a"),
                CompareOp::Equal,
                CompareTarget::Lease(None),
            ),
            compare(
                KeyRange::key("a"),
                CompareOp::Equal,
                CompareTarget::Lease(Some(LeaseId(5))),
            ),
        ])
        .then([
            Op::Put(Put::new("a", "1")),
            Op::Delete(Delete::new(KeyRange::from("b")).prev_kv()),
            Op::Range(range),
        ])
        .or_else([Op::Txn(Txn::new().then([Op::Put(Put::new("n", "2"))]))])
}

fn every_command() -> Vec<Command> {
    let mut commands: Vec<Command> = every_put().into_iter().map(Command::Put).collect();
    commands.extend([
        Command::Delete(Delete::new(KeyRange::key("a"))),
        Command::Txn(every_txn()),
        Command::Compact { revision: 5 },
        Command::LeaseGrant {
            id: LeaseId(i64::MAX),
            ttl_ms: 10_000,
        },
        Command::LeaseRevoke { id: LeaseId(1) },
        Command::LeaseKeepAlive {
            ids: vec![LeaseId(1), LeaseId(-2)],
        },
        Command::SessionOpen {
            id: SessionId(u128::MAX),
            ttl_ms: 60_000,
            identity: "me".into(),
        },
        Command::SessionKeepAlive {
            ids: vec![SessionId(1), SessionId(2)],
        },
        Command::SessionClose { id: SessionId(3) },
        Command::Expire { limit: 100 },
        Command::Sweep { limit: 1_000 },
        Command::SetRetention(Retention::default()),
        Command::SetRetention(Retention {
            keep_ms: None,
            max_revisions: None,
        }),
        Command::SetFeatureLevel(2),
        Command::RaiseRevision { revision: 1 << 33 },
        Command::RestoreBegin {
            backup: BackupId(u128::MAX - 1),
            revision: 300,
            clock_ms: 70_000,
            retention: Retention::default(),
        },
        Command::RestoreRecords {
            backup: BackupId(1),
            first: 300,
            records: every_backup_record(),
        },
        Command::RestoreEnd {
            backup: BackupId(1),
            records: 302,
        },
        Command::RestoreDiscard { limit: 1_000 },
        Command::SetDesiredSize(DesiredSize {
            source: "0b6e9c1e".into(),
            generation: 7,
            start: 1,
            replicas: 300,
        }),
        Command::Freeze {
            prefix: "k/".into(),
        },
        Command::Thaw {
            prefix: Bytes::new(),
        },
        Command::RestoreRecords {
            backup: BackupId(1),
            first: 2,
            records: vec![BackupRecord::Frozen {
                prefix: "k/".into(),
            }],
        },
    ]);
    for (kind, member) in [
        (AlarmKind::NoSpace, MemberId(1)),
        (AlarmKind::Corrupt, MemberId(u64::MAX)),
    ] {
        let alarm = Alarm { member, kind };
        commands.extend([Command::RaiseAlarm(alarm), Command::ClearAlarm(alarm)]);
    }
    commands.extend(every_auth_change().into_iter().map(Command::Auth));
    commands.extend([
        Command::Put(Put::new("k", "v")).by(&Caller::Anonymous),
        Command::Txn(every_txn()).by(&Caller::User {
            name: "alice".into(),
            revision: 300,
        }),
    ]);
    commands
}

fn every_auth_change() -> Vec<AuthChange> {
    let (user, role) = (String::from("alice"), String::from("reader"));
    let permission = |kind, range| AuthChange::GrantPermission {
        role: role.clone(),
        permission: Permission { kind, range },
    };
    vec![
        AuthChange::Enable,
        AuthChange::Disable,
        AuthChange::SetTokenSecret("secret".into()),
        AuthChange::AddUser {
            name: user.clone(),
            password: Some("$argon2id$hash".into()),
        },
        AuthChange::AddUser {
            name: user.clone(),
            password: None,
        },
        AuthChange::DeleteUser { name: user.clone() },
        AuthChange::SetPassword {
            name: user.clone(),
            password: "$argon2id$hash".into(),
        },
        AuthChange::GrantRole {
            user: user.clone(),
            role: role.clone(),
        },
        AuthChange::RevokeRole {
            user,
            role: role.clone(),
        },
        AuthChange::AddRole { name: role.clone() },
        AuthChange::DeleteRole { name: role.clone() },
        permission(PermissionKind::Read, KeyRange::key("a")),
        permission(PermissionKind::Write, KeyRange::between("a", "b")),
        permission(PermissionKind::ReadWrite, KeyRange::from("a")),
        AuthChange::RevokePermission {
            role: role.clone(),
            range: KeyRange::key("a"),
        },
    ]
}

fn every_backup_record() -> Vec<BackupRecord> {
    vec![
        BackupRecord::Lease {
            id: LeaseId(-7),
            ttl_ms: 60_000,
        },
        BackupRecord::Key(KeyValue {
            key: "k".into(),
            value: "v".into(),
            create_revision: 2,
            mod_revision: 300,
            version: 3,
            lease: Some(LeaseId(-7)),
            expires_at_ms: Some(5_000),
        }),
    ]
}

fn every_answer(revision: Revision) -> Vec<Answer> {
    let header = Header {
        revision,
        ..Header::default()
    };
    let kv = KeyValue {
        key: "k".into(),
        value: "v".into(),
        create_revision: 2,
        mod_revision: 300,
        version: 3,
        lease: Some(LeaseId(4)),
        expires_at_ms: Some(5_000),
    };
    let put = PutResponse {
        header,
        prev_kv: Some(kv.clone()),
    };
    let delete = DeleteResponse {
        header,
        deleted: 1,
        prev_kvs: vec![kv.clone()],
    };
    let range = RangeResponse {
        header,
        kvs: vec![kv],
        count: 7,
        more: true,
    };
    let txn = |responses| TxnResponse {
        header,
        succeeded: true,
        responses,
    };
    vec![
        Answer::Put(put.clone()),
        Answer::Delete(delete.clone()),
        Answer::Txn(txn(vec![
            OpResponse::Put(put),
            OpResponse::Delete(delete),
            OpResponse::Range(range.clone()),
            OpResponse::Txn(txn(vec![OpResponse::Range(range)])),
        ])),
        Answer::Compact(CompactResponse { header }),
        Answer::LeaseGrant(LeaseGrantResponse {
            header,
            lease: LeaseId(9),
            ttl_ms: 2_000,
        }),
        Answer::LeaseRevoke,
        Answer::LeaseKeepAlive(vec![
            None,
            Some(LeaseStatus {
                header,
                lease: LeaseId(1),
                granted_ttl_ms: 2_000,
                remaining_ms: 1_000,
                keys: vec!["k".into()],
            }),
        ]),
        Answer::SessionOpen { ttl_ms: 60_000 },
        Answer::SessionKeepAlive(vec![Some(1), None]),
        Answer::SessionClose,
        Answer::Expire {
            removed: 3,
            more: true,
        },
        Answer::Sweep { more: false },
        Answer::Done,
        Answer::RevisionOnly,
        Answer::Restore {
            records: 300,
            done: true,
        },
        Answer::RestoreDiscard { more: true },
    ]
}

/// Frames by name, with a check that the bytes read back as what was written.
fn frames() -> Vec<(String, Bytes)> {
    let mut frames = Vec::new();
    let stamp = Stamp {
        session: SessionStamp {
            session: SessionId(77),
            sequence: 300,
            acknowledged_below: 299,
        },
        identity: "me".into(),
    };
    for command in every_command() {
        let name = format!("{command:?}");
        let kind = |name: &str| name.split([' ', '(']).next().unwrap().to_owned();
        let name = match name.strip_prefix("Auth(") {
            Some(change) => format!("Auth {}", kind(change.trim_end_matches(')'))),
            None => kind(&name),
        };
        let proposal = Proposal {
            stamp: Some(stamp.clone()),
            command,
        };
        let bytes = proposal.encode();
        assert_eq!(Proposal::decode(&bytes).unwrap(), proposal);
        frames.push((format!("proposal {name}"), bytes));
    }
    let entry = Entry {
        clock_ms: 123_456_789,
        proposals: every_command().into_iter().map(Proposal::from).collect(),
    };
    assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
    frames.push(("entry of every command".into(), entry.encode()));

    let mut results: Vec<Result<Answer, Rejection>> = every_answer(8).into_iter().map(Ok).collect();
    results.push(Err(Rejection {
        reason: Reason::LeaseNotFound,
        revision: 6,
    }));
    for result in results {
        let name = match &result {
            Ok(answer) => format!("{answer:?}"),
            Err(_) => "rejection".into(),
        };
        let name = name.split([' ', '(']).next().unwrap().to_owned();
        let outcome = Outcome {
            revision: 8,
            duplicate: true,
            result,
        };
        assert_eq!(Outcome::decode(&outcome.encode()).unwrap(), outcome);
        frames.push((format!("outcome {name}"), outcome.encode()));
    }
    frames.push(("raw vote".into(), codec::frame(FrameKind::Vote, b"payload")));
    frames
}

#[test]
fn frames_keep_their_bytes() {
    let lines = frames()
        .into_iter()
        .map(|(name, bytes)| format!("{name}: {}\n", hex(&bytes)));
    golden::check(&file("frames.txt"), &lines.collect::<String>());
}

/// Backups are kept for years.
#[test]
fn a_backup_keeps_its_bytes() {
    backup_keeps_its_bytes("backup.txt", &state());
    backup_keeps_its_bytes("backup_auth.txt", &state_with_auth());
}

fn backup_keeps_its_bytes(name: &str, store: &Store) {
    let backup = Backup::of(&store.view);
    golden::check(&file(name), &(hex(&backup.bytes) + "\n"));
    let pinned = std::fs::read_to_string(file(name)).unwrap();
    let pinned = Backup::read(&from_hex(pinned.trim_end())).unwrap();
    assert_eq!(pinned.header, backup.header);
    assert_eq!(pinned.records, backup.records);
    assert_eq!(pinned.end, backup.end);
}

#[test]
fn kinds_keep_their_codes() {
    let kinds = [
        FrameKind::Entry,
        FrameKind::Proposal,
        FrameKind::Outcome,
        FrameKind::LogRecord,
        FrameKind::Vote,
        FrameKind::LogState,
        FrameKind::Marker,
        FrameKind::Membership,
        FrameKind::Applied,
        FrameKind::SnapshotManifest,
        FrameKind::Pointer,
        FrameKind::ClusterSettings,
        FrameKind::BackupHeader,
        FrameKind::PeerMessage,
        FrameKind::PeerBoots,
        FrameKind::BackupBlock,
        FrameKind::BackupEnd,
        FrameKind::Recovery,
        FrameKind::Promise,
    ];
    assert!(kinds.iter().map(|kind| kind.code()).eq(1..=19));
}

/// Every table has a record in it.
fn state() -> Store {
    let mut store = Store::new();
    store.clock_ms = 20_000;
    store.ok(Command::LeaseGrant {
        id: LeaseId(7),
        ttl_ms: 60_000,
    });
    store.ok(Command::SessionOpen {
        id: SessionId(9),
        ttl_ms: 60_000,
        identity: "me".into(),
    });
    store.put("a\0b", "first");
    store.run(Command::Put(Put::new("a\0b", "second").lease(LeaseId(7))));
    store.run(Command::Put(Put {
        ttl_ms: Some(5_000),
        ..Put::new("ttl", "v")
    }));
    store.put("gone", "v");
    store.delete(KeyRange::key("gone"));
    store.clock_ms += 20_000;
    store.run(Proposal {
        stamp: Some(Stamp {
            session: SessionStamp {
                session: SessionId(9),
                sequence: 1,
                acknowledged_below: 1,
            },
            identity: "me".into(),
        }),
        command: Command::Put(Put::new("s", "v")),
    });
    store
}

/// And users, roles, permissions.
fn state_with_auth() -> Store {
    let mut store = state();
    for change in [
        AuthChange::AddUser {
            name: "root".into(),
            password: Some("$argon2id$hash".into()),
        },
        AuthChange::AddUser {
            name: "alice".into(),
            password: None,
        },
        AuthChange::AddRole {
            name: "reader".into(),
        },
        AuthChange::GrantPermission {
            role: "reader".into(),
            permission: Permission {
                kind: PermissionKind::Read,
                range: KeyRange::prefix("a"),
            },
        },
        AuthChange::GrantRole {
            user: "alice".into(),
            role: "reader".into(),
        },
        AuthChange::GrantRole {
            user: "root".into(),
            role: "root".into(),
        },
        AuthChange::Enable,
        AuthChange::SetTokenSecret("secret".into()),
    ] {
        store.ok(Command::Auth(change));
    }
    store
}

/// And a frozen prefix.
fn state_with_frozen() -> Store {
    let mut store = state();
    store.ok(Command::Freeze {
        prefix: "f/".into(),
    });
    store
}

/// And alarms.
fn state_with_alarms() -> Store {
    let mut store = state();
    for kind in [AlarmKind::NoSpace, AlarmKind::Corrupt] {
        store.ok(Command::RaiseAlarm(Alarm {
            member: MemberId(300),
            kind,
        }));
    }
    store
}

/// A sweep that stands in the middle of the compacted revision.
fn state_with_half_a_sweep() -> Store {
    let mut store = Store::new();
    for key in ["a", "b", "c"] {
        store.put(key, "1");
    }
    store.ok(Command::Delete(Delete::new(KeyRange::all())));
    let revision = store.meta().revision;
    store.ok(Command::Compact { revision });
    // Three changes below, and two of its own three.
    let sweep = Command::Sweep { limit: 5 };
    assert_eq!(store.ok(sweep), Answer::Sweep { more: true });
    store
}

#[test]
fn the_state_keeps_its_bytes() {
    state_keeps_its_bytes("state.txt", &state());
    state_keeps_its_bytes("state_auth.txt", &state_with_auth());
    state_keeps_its_bytes("state_frozen.txt", &state_with_frozen());
    state_keeps_its_bytes("state_alarms.txt", &state_with_alarms());
    state_keeps_its_bytes("state_sweep.txt", &state_with_half_a_sweep());
}

fn state_keeps_its_bytes(name: &str, store: &Store) {
    let lines = store
        .view
        .iter()
        .map(|(key, value)| format!("{} {}\n", hex(key), hex(value)));
    golden::check(&file(name), &lines.collect::<String>());
}

/// What an earlier release wrote is read as what it meant.
#[test]
fn pinned_state_is_read() {
    let text = std::fs::read_to_string(file("state.txt")).unwrap();
    let mut view = MemoryView::new();
    let rows = text.lines().map(|line| {
        let (key, value) = line.split_once(' ').unwrap();
        (from_hex(key), Some(from_hex(value)))
    });
    view.commit(rows.collect());
    let store = state();
    assert_eq!(store.meta(), read_meta(&view).unwrap());
    let all = Range::new(KeyRange::all());
    let pinned = range(&view, &all, PageLimits::default()).unwrap().unwrap();
    assert_eq!(pinned, store.range(&all));
    let old = range(&view, &all.at(2), PageLimits::default())
        .unwrap()
        .unwrap();
    assert_eq!(old.kvs[0].value, "first");
    let status = lease_status(&view, LeaseId(7), true).unwrap().unwrap();
    assert_eq!(status.keys, ["a\0b"]);
    assert_eq!(
        state_digest(&view).unwrap(),
        state_digest(&store.view).unwrap()
    );
}
