//! Runs `tests/scripts/*.txt`: what a user does, what comes out, as a text to read.
//!
//! A line that begins with `>` is a command; what it prints follows it, up to the next command,
//! comment (`#`) or blank line. Keys are words; ranges are `a` (one key), `a..c`, `a..`, `..` and
//! `a*` (a prefix). `[s1/3 ack=2 by=alice] put a 1` is a write in session 1 with sequence 3. A
//! transaction is `txn when value(a)=1 then { put b 2; range a } else { del a }`. Commands are
//! checked as a node does before it proposes; `unchecked` leaves that out.
//!
//! `as alice@2 put a 1` is asked for by a remote caller whose token was made for auth revision 2, `as nobody`
//! by one that did not say who it is. `rights alice@2 read a..c` prints what a node tells such a reader.
//!
//! `backup` keeps a backup of the store, `new_cluster` goes on with an empty store, and `restore`
//! begins, restores records `2..5` of the backup, ends or discards.

use std::fmt::Write;
use std::path::Path;

use podkv_api::*;
use podkv_core::*;

use crate::golden;
use crate::restore::Backup;
use crate::store::Store;

#[test]
fn scripts_print_what_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        golden::check(&file, &replay(&text));
    }
}

fn replay(text: &str) -> String {
    let mut store = Store::new();
    let mut saved = None;
    let mut printed = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix('>') {
            let _ = writeln!(printed, "{line}");
            let output = Step::new(command, &mut saved).run(&mut store);
            let _ = write!(printed, "{output}");
        } else if line.is_empty() || line.starts_with('#') {
            let _ = writeln!(printed, "{line}");
        }
    }
    printed
}

/// One command, token by token.
struct Step<'a> {
    line: &'a str,
    tokens: std::iter::Peekable<std::vec::IntoIter<String>>,
    saved: &'a mut Option<Backup>,
}

impl<'a> Step<'a> {
    fn new(line: &'a str, saved: &'a mut Option<Backup>) -> Self {
        let spaced = ["{", "}", ";", "]", "["]
            .iter()
            .fold(line.to_owned(), |line, mark| {
                line.replace(mark, &format!(" {mark} "))
            });
        let tokens: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
        Self {
            line,
            tokens: tokens.into_iter().peekable(),
            saved,
        }
    }

    fn word(&mut self) -> String {
        let line = self.line;
        let next = self.tokens.next();
        next.unwrap_or_else(|| panic!("the command ends early: {line}"))
    }

    fn take(&mut self, word: &str) -> bool {
        self.tokens.next_if(|token| token == word).is_some()
    }

    /// Takes `name=...` if it comes next.
    fn option(&mut self, name: &str) -> Option<String> {
        let token = self
            .tokens
            .next_if(|token| token.starts_with(name) && token[name.len()..].starts_with('='))?;
        Some(token[name.len() + 1..].to_owned())
    }

    /// `nospace 1`: the kind, then the member.
    fn alarm(&mut self) -> Alarm {
        let kind = match self.word().as_str() {
            "nospace" => AlarmKind::NoSpace,
            "corrupt" => AlarmKind::Corrupt,
            other => panic!("not a kind of alarm: {other}"),
        };
        Alarm {
            member: MemberId(self.number()),
            kind,
        }
    }

    fn number<T: std::str::FromStr>(&mut self) -> T {
        let (line, word) = (self.line, self.word());
        word.parse()
            .unwrap_or_else(|_| panic!("not a number: {word} in {line}"))
    }

    fn run(mut self, store: &mut Store) -> String {
        let checked = !self.take("unchecked");
        let stamp = self.stamp();
        let caller = self.take("as").then(|| self.caller());
        let verb = self.word();
        match verb.as_str() {
            "clock" => {
                let word = self.word();
                match word.strip_prefix('-') {
                    Some(back) => store.clock_ms -= duration(back),
                    None => store.clock_ms += duration(word.trim_start_matches('+')),
                }
                format!("clock {} ms\n", store.clock_ms)
            }
            "range" => self.show_range(store),
            "read" => self.show_txn_read(store),
            "watch" => self.show_changes(store),
            "meta" => format!("{:?}\n", store.meta()),
            "next_deadline" => format!("{:?}\n", next_deadline(&store.view).unwrap()),
            "retention_target" => format!("{:?}\n", retention_target(&store.view).unwrap()),
            "frozen" => format!("{:?}\n", frozen_prefixes(&store.view).unwrap()),
            "alarms" => format!("{:?}\n", alarms(&store.view).unwrap()),
            "leases" => format!("{:?}\n", leases(&store.view).unwrap()),
            "lease_status" => self.show_lease(store),
            "state" => self.show_state(store),
            "auth" if self.tokens.peek().is_none() => show_auth(store),
            "rights" => self.show_rights(store),
            "backup" => {
                let backup = Backup::of(&store.view);
                let text = format!(
                    "revision {}, clock {} ms, {} records\n",
                    backup.header.revision,
                    backup.header.clock_ms,
                    backup.records.len()
                );
                self.saved.replace(backup);
                text
            }
            "new_cluster" => {
                *store = Store::new();
                String::new()
            }
            _ => {
                let mut command = self.command(&verb);
                if let Some(caller) = &caller {
                    command = command.by(caller);
                }
                self.apply(store, stamp, command, checked)
            }
        }
    }

    fn stamp(&mut self) -> Option<Stamp> {
        if !self.take("[") {
            return None;
        }
        let place = self.word();
        let (session, sequence) = place[1..].split_once('/').unwrap();
        let acknowledged_below = self.option("ack").map_or(0, |ack| ack.parse().unwrap());
        let identity = self.option("by").unwrap_or_default().into();
        assert!(self.take("]"));
        let session = SessionStamp {
            session: SessionId(session.parse().unwrap()),
            sequence: sequence.parse().unwrap(),
            acknowledged_below,
        };
        Some(Stamp { session, identity })
    }

    fn command(&mut self, verb: &str) -> Command {
        match verb {
            "put" => Command::Put(self.put()),
            "del" => Command::Delete(self.delete()),
            "txn" => Command::Txn(self.txn()),
            "compact" => Command::Compact {
                revision: self.number(),
            },
            "lease_grant" => Command::LeaseGrant {
                id: LeaseId(self.number()),
                ttl_ms: duration(&self.word()),
            },
            "lease_revoke" => Command::LeaseRevoke {
                id: LeaseId(self.number()),
            },
            "lease_keep_alive" => Command::LeaseKeepAlive {
                ids: self.ids().into_iter().map(LeaseId).collect(),
            },
            "session_open" => Command::SessionOpen {
                id: SessionId(self.number()),
                ttl_ms: duration(&self.word()),
                identity: self.option("by").unwrap_or_default().into(),
            },
            "session_keep_alive" => Command::SessionKeepAlive {
                ids: self.ids().into_iter().map(SessionId).collect(),
            },
            "session_close" => Command::SessionClose {
                id: SessionId(self.number()),
            },
            "expire" => Command::Expire {
                limit: self.number(),
            },
            "sweep" => Command::Sweep {
                limit: self.number(),
            },
            "freeze" => Command::Freeze {
                prefix: self.word().into(),
            },
            "thaw" => Command::Thaw {
                prefix: self.word().into(),
            },
            "raise" => Command::RaiseAlarm(self.alarm()),
            "clear" => Command::ClearAlarm(self.alarm()),
            "retention" => Command::SetRetention(Retention {
                keep_ms: self.option("keep").map(|keep| duration(&keep)),
                max_revisions: self.option("max").map(|max| max.parse().unwrap()),
            }),
            "feature_level" => Command::SetFeatureLevel(self.number()),
            "desired" => {
                let source = self.option("source").unwrap_or_default();
                let generation = self.option("generation").unwrap().parse().unwrap();
                let start = self
                    .option("start")
                    .map_or(0, |start| start.parse().unwrap());
                Command::SetDesiredSize(DesiredSize {
                    source,
                    generation,
                    start,
                    replicas: self.number(),
                })
            }
            "auth" | "user" | "role" => Command::Auth(self.auth(verb)),
            "raise_revision" => Command::RaiseRevision {
                revision: self.number(),
            },
            "restore" => self.restore(),
            verb => panic!("unknown command: {verb} in {}", self.line),
        }
    }

    fn caller(&mut self) -> Caller {
        match self.word().split_once('@') {
            None => Caller::Anonymous,
            Some((name, revision)) => Caller::User {
                name: name.into(),
                revision: revision.parse().unwrap(),
            },
        }
    }

    fn auth(&mut self, what: &str) -> AuthChange {
        let verb = self.word();
        match (what, verb.as_str()) {
            ("auth", "enable") => AuthChange::Enable,
            ("auth", "disable") => AuthChange::Disable,
            ("auth", "secret") => AuthChange::SetTokenSecret(self.word().into()),
            ("user", "add") => AuthChange::AddUser {
                name: self.word().replace("\"\"", ""),
                password: self.tokens.next(),
            },
            ("user", "delete") => AuthChange::DeleteUser { name: self.word() },
            ("user", "password") => AuthChange::SetPassword {
                name: self.word(),
                password: self.word(),
            },
            ("user", "grant") => AuthChange::GrantRole {
                user: self.word(),
                role: self.word(),
            },
            ("user", "revoke") => AuthChange::RevokeRole {
                user: self.word(),
                role: self.word(),
            },
            ("role", "add") => AuthChange::AddRole {
                name: self.word().replace("\"\"", ""),
            },
            ("role", "delete") => AuthChange::DeleteRole { name: self.word() },
            ("role", "grant") => AuthChange::GrantPermission {
                role: self.word(),
                permission: Permission {
                    kind: match self.word().as_str() {
                        "read" => PermissionKind::Read,
                        "write" => PermissionKind::Write,
                        _ => PermissionKind::ReadWrite,
                    },
                    range: key_range(&self.word()),
                },
            },
            ("role", "revoke") => AuthChange::RevokePermission {
                role: self.word(),
                range: key_range(&self.word()),
            },
            _ => panic!("unknown command: {what} {verb} in {}", self.line),
        }
    }

    fn show_rights(&mut self, store: &Store) -> String {
        let caller = self.caller();
        let rights = match rights(&store.view, &caller).unwrap() {
            Ok(rights) => rights,
            Err(reason) => return format!("{reason:?}\n"),
        };
        let allowed = match self.word().as_str() {
            "read" => rights.may_read(&key_range(&self.word())),
            "lease" => {
                let lease = LeaseId(self.number());
                rights.may_read_lease(&store.view, lease).unwrap()
            }
            "role" => rights.may_see_role(&self.word()),
            "admin" => rights.may_administer(),
            what => panic!("unknown right: {what}"),
        };
        allowed.map_or_else(|reason| format!("{reason:?}\n"), |()| "allowed\n".into())
    }

    fn restore(&mut self) -> Command {
        let saved = self.saved.clone().unwrap();
        let other = u128::from(self.take("other"));
        let backup = BackupId(saved.end.id.0 + other);
        match self.word().as_str() {
            "begin" => Command::RestoreBegin {
                backup,
                revision: saved.header.revision,
                clock_ms: saved.header.clock_ms,
                retention: saved.header.retention,
            },
            "end" => Command::RestoreEnd {
                backup,
                records: self
                    .option("records")
                    .map_or(saved.end.records, |records| records.parse().unwrap()),
            },
            "discard" => Command::RestoreDiscard {
                limit: self.number(),
            },
            range => {
                let (from, to) = range.split_once("..").unwrap();
                let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                Command::RestoreRecords {
                    backup,
                    first: from as u64,
                    records: saved.records[from..to].to_vec(),
                }
            }
        }
    }

    fn ids<T: std::str::FromStr>(&mut self) -> Vec<T> {
        let mut ids = Vec::new();
        while self.tokens.peek().is_some() {
            ids.push(self.number());
        }
        ids
    }

    fn put(&mut self) -> Put {
        let key = self.word().replace("\"\"", "");
        let value = match self.tokens.peek() {
            Some(word) if !word.contains('=') && !["prev", ";", "}"].contains(&word.as_str()) => {
                self.word()
            }
            _ => String::new(),
        };
        let mut put = Put::new(key, value);
        loop {
            if let Some(lease) = self.option("lease") {
                put.lease = Some(LeaseId(lease.parse().unwrap()));
            } else if let Some(ttl) = self.option("ttl") {
                put.ttl_ms = Some(duration(&ttl));
            } else if self.take("prev") {
                put.prev_kv = true;
            } else if self
                .option("ignore")
                .is_some_and(|what| match what.as_str() {
                    "value" => {
                        put.ignore_value = true;
                        true
                    }
                    _ => {
                        put.ignore_lease = true;
                        true
                    }
                })
            {
            } else {
                return put;
            }
        }
    }

    fn delete(&mut self) -> Delete {
        let mut delete = Delete::new(key_range(&self.word()));
        delete.prev_kv = self.take("prev");
        delete
    }

    fn range(&mut self) -> Range {
        let mut range = Range::new(key_range(&self.word()));
        loop {
            if let Some(at) = self.option("at") {
                range.revision = at.parse().unwrap();
            } else if let Some(limit) = self.option("limit") {
                range.limit = limit.parse().unwrap();
            } else if self.take("reverse") {
                range.reverse = true;
            } else if self.take("keys_only") {
                range.keys_only = true;
            } else if self.take("count_only") {
                range.count_only = true;
            } else {
                return range;
            }
        }
    }

    fn txn(&mut self) -> Txn {
        let mut txn = Txn::new();
        if self.take("when") {
            while self.tokens.peek().is_some_and(|token| token.contains('(')) {
                txn.compare.push(compare(&self.word()));
            }
        }
        if self.take("then") {
            txn.then = self.ops();
        }
        if self.take("else") {
            txn.or_else = self.ops();
        }
        txn
    }

    fn ops(&mut self) -> Vec<Op> {
        assert!(self.take("{"), "expected {{ in {}", self.line);
        let mut ops = Vec::new();
        while !self.take("}") {
            if self.take(";") {
                continue;
            }
            ops.push(match self.word().as_str() {
                "put" => self.put().into(),
                "del" => self.delete().into(),
                "range" => self.range().into(),
                "txn" => self.txn().into(),
                verb => panic!("not an operation: {verb} in {}", self.line),
            });
        }
        ops
    }

    fn apply(
        &self,
        store: &mut Store,
        stamp: Option<Stamp>,
        command: Command,
        checked: bool,
    ) -> String {
        if checked && let Err(error) = check(&command, &Limits::default()) {
            return format!("not proposed: {:?}: {}\n", error.reason(), error.text());
        }
        let (outcomes, events) = store.apply(vec![Proposal { stamp, command }]);
        let mut text = String::new();
        for outcome in outcomes {
            show_outcome(&mut text, &outcome);
        }
        for revision in events {
            show_events(&mut text, &revision);
        }
        text
    }

    fn show_range(&mut self, store: &Store) -> String {
        let request = self.range();
        match range(&store.view, &request, PageLimits::default()).unwrap() {
            Err(rejection) => format!("rejected: {}\n", show_rejection(rejection)),
            Ok(page) => {
                let mut text = format!(
                    "at {}: {} keys{}\n",
                    page.revision,
                    page.count,
                    if page.more { ", more" } else { "" }
                );
                for kv in &page.kvs {
                    let _ = writeln!(text, "  {}", show_kv(kv));
                }
                text
            }
        }
    }

    fn show_txn_read(&mut self, store: &Store) -> String {
        assert!(self.take("txn"));
        let mut text = String::new();
        match txn_read(&store.view, &self.txn()).unwrap() {
            Err(rejection) => return format!("rejected: {}\n", show_rejection(rejection)),
            Ok(response) => show_txn(&mut text, &response, 0),
        }
        text
    }

    fn show_changes(&mut self, store: &Store) -> String {
        let from = self.number();
        let range = self.tokens.next().map(|range| key_range(&range));
        let limits = ChangesLimits::default();
        match changes(&store.view, from, u64::MAX, range.as_ref(), limits).unwrap() {
            Err(rejection) => format!("rejected: {}\n", show_rejection(rejection)),
            Ok(page) => {
                let mut text = String::new();
                for revision in &page.revisions {
                    show_events(&mut text, revision);
                }
                let _ = writeln!(text, "looked to {}", page.looked_to);
                text
            }
        }
    }

    fn show_lease(&mut self, store: &Store) -> String {
        let id = LeaseId(self.number());
        match lease_status(&store.view, id, true).unwrap() {
            None => "no such lease\n".into(),
            Some(status) => format!("{}\n", show_lease_status(&status)),
        }
    }

    /// The keys of the state, by table: all tables, or the ones named.
    fn show_state(&mut self, store: &Store) -> String {
        let wanted: Vec<String> = self.tokens.by_ref().collect();
        let mut text = String::new();
        for (key, value) in store.view.iter() {
            let name = table_name(key);
            if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
                let _ = writeln!(
                    text,
                    "{name} {} ({} bytes)",
                    key[5..].escape_ascii(),
                    value.len()
                );
            }
        }
        text
    }
}

fn table_name(key: &[u8]) -> &'static str {
    match (key[3], key[4]) {
        (1, 1) => "latest",
        (1, 2) => "history",
        (1, 3) => "changes",
        (1, 4) => "counts",
        (0, 1) => "meta",
        (0, 2) => "leases",
        (0, 3) => "lease_keys",
        (0, 4) => "deadlines",
        (0, 5) => "sessions",
        (0, 6) => "session_results",
        (0, 7) => "clock_marks",
        (0, 8) => "restore",
        other => panic!("unknown table {other:?}"),
    }
}

fn show_auth(store: &Store) -> String {
    let info = auth_info(&store.view).unwrap();
    let mut text = format!(
        "{} at {}, secret {:?}\n",
        if info.enabled { "enabled" } else { "disabled" },
        info.revision,
        info.token_secret
    );
    for name in auth_users(&store.view).unwrap() {
        let user = auth_user(&store.view, &name).unwrap().unwrap();
        let roles = user.roles.join(", ");
        let _ = writeln!(
            text,
            "  user {name}@{}: {:?}, roles [{roles}]",
            user.revision, user.password
        );
    }
    for name in auth_roles(&store.view).unwrap() {
        let _ = writeln!(text, "  role {name}");
        for permission in auth_role(&store.view, &name).unwrap().unwrap() {
            let Permission { kind, range } = permission;
            let _ = writeln!(text, "    {kind:?} {:?} {:?}", range.start, range.end);
        }
    }
    text
}

fn duration(text: &str) -> u64 {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => panic!("unknown unit {unit:?} in {text}"),
    };
    digits.parse::<u64>().unwrap() * unit
}

pub fn key_range(text: &str) -> KeyRange {
    let text = text.replace("\"\"", "");
    if let Some(prefix) = text.strip_suffix('*') {
        return KeyRange::prefix(prefix.to_owned());
    }
    match text.split_once("..") {
        None => KeyRange::key(text),
        Some((start, "")) => KeyRange::from(start.to_owned()),
        Some((start, end)) => KeyRange::between(start.to_owned(), end.to_owned()),
    }
}

/// `value(a)=1`, `mod(a*)>3`, `lease(a)=0`.
fn compare(text: &str) -> Compare {
    let (name, rest) = text.split_once('(').unwrap();
    let (range, rest) = rest.split_once(')').unwrap();
    let (op, rest) = match rest.split_at(1) {
        ("=", rest) => (CompareOp::Equal, rest),
        ("!", rest) => (CompareOp::NotEqual, &rest[1..]),
        (">", rest) => (CompareOp::Greater, rest),
        ("<", rest) => (CompareOp::Less, rest),
        _ => panic!("unknown comparison in {text}"),
    };
    let number = || rest.parse::<u64>().unwrap();
    let target = match name {
        "value" => CompareTarget::Value(rest.to_owned().into()),
        "version" => CompareTarget::Version(number()),
        "create" => CompareTarget::CreateRevision(number()),
        "mod" => CompareTarget::ModRevision(number()),
        "lease" => match number() {
            0 => CompareTarget::Lease(None),
            id => CompareTarget::Lease(Some(LeaseId(id as i64))),
        },
        _ => panic!("unknown target in {text}"),
    };
    Compare {
        range: key_range(range),
        op,
        target,
    }
}

fn show_outcome(text: &mut String, outcome: &Outcome) {
    let duplicate = if outcome.duplicate { " (again)" } else { "" };
    let _ = write!(text, "at {}{duplicate}: ", outcome.revision);
    match &outcome.result {
        Err(rejection) => {
            let _ = writeln!(text, "rejected: {}", show_rejection(*rejection));
        }
        Ok(Answer::Put(response)) => {
            let _ = writeln!(text, "put{}", show_prev(response.prev_kv.as_ref()));
        }
        Ok(Answer::Delete(response)) => show_delete(text, response, 0),
        Ok(Answer::Txn(response)) => show_txn(text, response, 0),
        Ok(Answer::LeaseGrant(response)) => {
            let _ = writeln!(text, "lease {} for {} ms", response.lease, response.ttl_ms);
        }
        Ok(Answer::LeaseKeepAlive(statuses)) => {
            let statuses: Vec<String> = statuses
                .iter()
                .map(|status| match status {
                    None => "no such lease".into(),
                    Some(status) => show_lease_status(status),
                })
                .collect();
            let _ = writeln!(text, "{}", statuses.join("; "));
        }
        Ok(Answer::Compact(_)) => text.push_str("compacted\n"),
        Ok(answer) => {
            let _ = writeln!(text, "{answer:?}");
        }
    }
}

fn show_rejection(rejection: Rejection) -> String {
    let error = Error::from(rejection);
    format!("{:?}: {}", error.reason(), error.text())
}

fn show_prev(kv: Option<&KeyValue>) -> String {
    kv.map_or(String::new(), |kv| format!(", before: {}", show_kv(kv)))
}

fn show_delete(text: &mut String, response: &DeleteResponse, indent: usize) {
    let _ = writeln!(text, "deleted {}", response.deleted);
    for kv in &response.prev_kvs {
        let _ = writeln!(text, "{:indent$}  before: {}", "", show_kv(kv));
    }
}

fn show_txn(text: &mut String, response: &TxnResponse, indent: usize) {
    let branch = if response.succeeded { "then" } else { "else" };
    let _ = writeln!(text, "{branch} at {}", response.header.revision);
    let indent = indent + 2;
    for response in &response.responses {
        let _ = write!(text, "{:indent$}", "");
        match response {
            OpResponse::Put(put) => {
                let _ = writeln!(text, "put{}", show_prev(put.prev_kv.as_ref()));
            }
            OpResponse::Delete(delete) => show_delete(text, delete, indent),
            OpResponse::Range(range) => {
                let more = if range.more { ", more" } else { "" };
                let _ = writeln!(text, "{} keys{more}", range.count);
                for kv in &range.kvs {
                    let _ = writeln!(text, "{:indent$}  {}", "", show_kv(kv));
                }
            }
            OpResponse::Txn(txn) => show_txn(text, txn, indent),
        }
    }
}

fn show_lease_status(status: &LeaseStatus) -> String {
    let keys: Vec<String> = status
        .keys
        .iter()
        .map(|key| key.escape_ascii().to_string())
        .collect();
    format!(
        "lease {}: {} of {} ms left, keys [{}]",
        status.lease,
        status.remaining_ms,
        status.granted_ttl_ms,
        keys.join(" ")
    )
}

fn show_events(text: &mut String, revision: &RevisionEvents) {
    for event in &revision.events {
        let prev = show_prev(event.prev_kv.as_ref());
        let _ = match event.kind {
            EventKind::Put => writeln!(
                text,
                "  {}: put {}{prev}",
                revision.revision,
                show_kv(&event.kv)
            ),
            EventKind::Delete => writeln!(
                text,
                "  {}: delete {} @{}{prev}",
                revision.revision,
                event.kv.key.escape_ascii(),
                event.kv.mod_revision,
            ),
        };
    }
}

/// `key=value (create 2, mod 3, version 2)`
fn show_kv(kv: &KeyValue) -> String {
    let mut text = format!(
        "{}={} (create {}, mod {}, version {}",
        kv.key.escape_ascii(),
        kv.value.escape_ascii(),
        kv.create_revision,
        kv.mod_revision,
        kv.version
    );
    if let Some(lease) = kv.lease {
        let _ = write!(text, ", lease {lease}");
    }
    if let Some(at) = kv.expires_at_ms {
        let _ = write!(text, ", expires at {at} ms");
    }
    text.push(')');
    text
}
