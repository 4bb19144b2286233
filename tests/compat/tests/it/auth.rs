//! Auth, method by method: what etcd answers to whom, and podkv the same. Where etcd 3.4.23 lets through what later ones
//! refuse, the reason stands beside the step, and both answers are checked: an etcd that is mended asks for its step to be
//! taken back.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use pb::auth_client::AuthClient;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use podkv_compat::link::Link;
use podkv_compat::servers::{Etcd, Podkv};
use podkv_proto::etcd::authpb;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::v3lockpb;
use podkv_proto::etcd::v3lockpb::lock_client::LockClient;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Whose token comes with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Nobody,
    Root,
    Alice,
    /// Shows a token of nobody's making.
    Forger,
}
use Who::{Alice, Forger, Nobody, Root};

type Answer = Result<String, Status>;
type Call =
    Box<dyn Fn(Channel, Option<String>) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send>;

enum What {
    Call(Call),
    /// Takes a token for later calls.
    LogIn(&'static str),
}

struct Step {
    line: u32,
    who: Who,
    what: What,
    /// What podkv answers, and why, where etcd answers otherwise.
    differs: Option<(Code, &'static str)>,
}

impl Step {
    fn differs(self, code: Code, reason: &'static str) -> Self {
        Self {
            differs: Some((code, reason)),
            ..self
        }
    }
}

/// A call of one method. What it answers is compared without its header, which names the server.
macro_rules! step {
    ($who:ident: $client:ident.$method:ident($request:expr)) => {
        Step {
            line: line!(),
            who: $who,
            what: What::Call(Box::new(|channel, token| {
                let request = $request;
                Box::pin(async move {
                    let mut request = Request::new(request);
                    if let Some(token) = token {
                        request
                            .metadata_mut()
                            .insert("token", token.parse().unwrap());
                    }
                    let answer = $client::new(channel).$method(request).await?;
                    let mut answer = answer.into_inner();
                    answer.header = None;
                    Ok(format!("{answer:?}"))
                })
            })),
            differs: None,
        }
    };
}

fn log_in(who: Who, password: &'static str) -> Step {
    Step {
        line: line!(),
        who,
        what: What::LogIn(password),
        differs: None,
    }
}

struct Side {
    link: Link,
    tokens: BTreeMap<Who, String>,
}

impl Side {
    async fn run(&mut self, turn: usize, step: &Step) -> Answer {
        // Each node in its turn; it must know what the one before it answered.
        let channel = self.link.node(turn);
        match &step.what {
            What::Call(call) => call(channel, self.tokens.get(&step.who).cloned()).await,
            What::LogIn(password) => {
                let name = format!("{:?}", step.who).to_lowercase();
                let request = pb::AuthenticateRequest {
                    name,
                    password: (*password).to_owned(),
                };
                let given = AuthClient::new(channel).authenticate(request).await?;
                self.tokens.insert(step.who, given.into_inner().token);
                Ok("a token".to_owned())
            }
        }
    }
}

fn user(name: &str) -> pb::AuthUserAddRequest {
    pb::AuthUserAddRequest {
        name: name.into(),
        password: "pw".into(),
        ..Default::default()
    }
}

fn grant(
    role: &str,
    kind: i32,
    key: &'static str,
    range_end: &'static str,
) -> pb::AuthRoleGrantPermissionRequest {
    pb::AuthRoleGrantPermissionRequest {
        name: role.into(),
        perm: Some(authpb::Permission {
            perm_type: kind,
            key: key.into(),
            range_end: range_end.into(),
        }),
    }
}

fn range(key: &'static str, range_end: &'static str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        count_only: true,
        ..Default::default()
    }
}

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value: "v".into(),
        ..Default::default()
    }
}

fn put_prev(key: &'static str) -> pb::PutRequest {
    pb::PutRequest {
        prev_kv: true,
        ..put(key)
    }
}

fn delete(key: &'static str, range_end: &'static str, prev_kv: bool) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv,
    }
}

fn then(request: pb::request_op::Request) -> pb::TxnRequest {
    pb::TxnRequest {
        success: vec![pb::RequestOp {
            request: Some(request),
        }],
        ..Default::default()
    }
}

fn otherwise(request: pb::request_op::Request) -> pb::TxnRequest {
    let txn = then(request);
    pb::TxnRequest {
        failure: txn.success,
        ..Default::default()
    }
}

fn when(key: &'static str) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: vec![pb::Compare {
            key: key.into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

const READ: i32 = 0;
const WRITE: i32 = 1;
const READ_WRITE: i32 = 2;

/// A lease with keys that alice may not touch.
const LEASE: i64 = 7;

fn leased(key: &'static str) -> pb::PutRequest {
    pb::PutRequest {
        lease: LEASE,
        ..put(key)
    }
}

const NESTED: &str = "CVE of 2026: etcd looks at no operation of a nested transaction";
const PREV_KV: &str = "CVE of 2026: etcd does not look at prev_kv in a transaction";
const ATTACH: &str = "CVE of 2026: etcd does not look at leases in a transaction";
const LEASE_KEYS: &str = "CVE of 2023: etcd names a lease's keys to everybody";
const WITHOUT: &str = "CVE of 2026: etcd does not ask who calls this";
const COMPACT: &str = "CVE of 2026: etcd lets everybody compact";
const TOKEN: &str = "later ones look at no token while auth is disabled";
const RECIPE: &str = "etcd's locks have the text, but no code for it";
const EMPTY: &str = "later ones refuse a permission on nothing";

/// Users, roles, permissions; before auth is enabled, and how it is.
fn administration() -> Vec<Step> {
    vec![
        step!(Nobody: AuthClient.auth_enable(pb::AuthEnableRequest {})),
        step!(Nobody: AuthClient.auth_disable(pb::AuthDisableRequest {})),
        log_in(Root, "pw"),
        step!(Forger: KvClient.range(range("a", ""))).differs(Code::Ok, TOKEN),
        step!(Nobody: AuthClient.user_add(user(""))),
        step!(Nobody: AuthClient.user_add(user("root"))),
        step!(Nobody: AuthClient.user_add(user("root"))),
        step!(Nobody: AuthClient.auth_enable(pb::AuthEnableRequest {})),
        step!(Nobody: AuthClient.role_add(pb::AuthRoleAddRequest { name: "".into() })),
        step!(Nobody: AuthClient.user_grant_role(pb::AuthUserGrantRoleRequest { user: "root".into(), role: "r".into() })),
        step!(Nobody: AuthClient.user_grant_role(pb::AuthUserGrantRoleRequest { user: "no".into(), role: "root".into() })),
        step!(Nobody: AuthClient.user_grant_role(pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() })),
        step!(Nobody: AuthClient.user_grant_role(pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() })),
        step!(Nobody: AuthClient.role_get(pb::AuthRoleGetRequest { role: "root".into() })),
        step!(Nobody: AuthClient.user_add(user("alice"))),
        step!(Nobody: AuthClient.role_add(pb::AuthRoleAddRequest { name: "r".into() })),
        step!(Nobody: AuthClient.role_add(pb::AuthRoleAddRequest { name: "r".into() })),
        step!(Nobody: AuthClient.role_grant_permission(grant("no", READ, "a", ""))),
        step!(Nobody: AuthClient.role_grant_permission(grant("r", READ, "z", "y"))).differs(Code::InvalidArgument, EMPTY),
        step!(Nobody: AuthClient.role_revoke_permission(pb::AuthRoleRevokePermissionRequest { role: "r".into(), key: "z".into(), range_end: "y".into() }))
            .differs(Code::FailedPrecondition, EMPTY),
        step!(Nobody: AuthClient.role_grant_permission(grant("r", WRITE, "a", ""))),
        step!(Nobody: AuthClient.role_grant_permission(grant("r", READ_WRITE, "a", ""))),
        step!(Nobody: AuthClient.role_grant_permission(grant("r", READ, "b", "d"))),
        step!(Nobody: AuthClient.role_grant_permission(grant("r", READ, "d", "f"))),
        step!(Nobody: AuthClient.role_grant_permission(grant("r", WRITE, "w", "x"))),
        step!(Nobody: AuthClient.role_get(pb::AuthRoleGetRequest { role: "r".into() })),
        step!(Nobody: AuthClient.role_get(pb::AuthRoleGetRequest { role: "no".into() })),
        step!(Nobody: AuthClient.role_revoke_permission(pb::AuthRoleRevokePermissionRequest { role: "r".into(), key: "b".into(), range_end: "c".into() })),
        step!(Nobody: AuthClient.role_revoke_permission(pb::AuthRoleRevokePermissionRequest { role: "no".into(), key: "b".into(), range_end: "d".into() })),
        step!(Nobody: AuthClient.user_grant_role(pb::AuthUserGrantRoleRequest { user: "alice".into(), role: "r".into() })),
        step!(Nobody: AuthClient.user_get(pb::AuthUserGetRequest { name: "alice".into() })),
        step!(Nobody: AuthClient.user_get(pb::AuthUserGetRequest { name: "no".into() })),
        step!(Nobody: AuthClient.user_list(pb::AuthUserListRequest {})),
        step!(Nobody: AuthClient.role_list(pb::AuthRoleListRequest {})),
        step!(Nobody: AuthClient.user_change_password(pb::AuthUserChangePasswordRequest { name: "no".into(), password: "x".into(), ..Default::default() })),
        step!(Nobody: AuthClient.user_delete(pb::AuthUserDeleteRequest { name: "no".into() })),
        step!(Nobody: AuthClient.role_delete(pb::AuthRoleDeleteRequest { role: "no".into() })),
        step!(Nobody: AuthClient.user_revoke_role(pb::AuthUserRevokeRoleRequest { name: "alice".into(), role: "no".into() })),
        step!(Nobody: AuthClient.user_revoke_role(pb::AuthUserRevokeRoleRequest { name: "no".into(), role: "r".into() })),
        step!(Nobody: AuthClient.auth_enable(pb::AuthEnableRequest {})),
    ]
}

/// Once it is enabled.
fn enforcement() -> Vec<Step> {
    use pb::request_op::Request::{RequestDeleteRange, RequestPut, RequestRange, RequestTxn};
    vec![
        log_in(Alice, "wrong"),
        log_in(Forger, "pw"),
        log_in(Root, "pw"),
        log_in(Alice, "pw"),
        step!(Forger: KvClient.put(put("a"))),
        step!(Forger: KvClient.range(range("a", ""))),
        step!(Nobody: KvClient.put(put("a"))),
        step!(Nobody: KvClient.range(range("a", ""))),
        step!(Nobody: KvClient.range(pb::RangeRequest { serializable: true, ..range("a", "") })),
        step!(Nobody: KvClient.delete_range(delete("a", "", false))),
        step!(Nobody: KvClient.txn(when("a"))),
        step!(Nobody: AuthClient.auth_enable(pb::AuthEnableRequest {})),
        step!(Nobody: AuthClient.user_list(pb::AuthUserListRequest {})),
        step!(Root: KvClient.put(put("g"))),
        step!(Root: LeaseClient.lease_grant(pb::LeaseGrantRequest { ttl: 600, id: LEASE })),
        step!(Root: KvClient.put(leased("g"))),
        // Ranges: permissions that touch are one.
        step!(Alice: KvClient.range(range("a", ""))),
        step!(Alice: KvClient.range(range("b", "f"))),
        step!(Alice: KvClient.range(range("c", "e"))),
        step!(Alice: KvClient.range(range("b", "g"))),
        step!(Alice: KvClient.range(range("a", "f"))),
        step!(Alice: KvClient.range(range("b", "\0"))),
        step!(Alice: KvClient.range(range("w", ""))),
        step!(Alice: KvClient.range(pb::RangeRequest { serializable: true, ..range("g", "") })),
        // Writes.
        step!(Alice: KvClient.put(put("a"))),
        step!(Alice: KvClient.put(put_prev("a"))),
        step!(Alice: KvClient.put(put("w1"))),
        step!(Alice: KvClient.put(put_prev("w1"))),
        step!(Alice: KvClient.put(put("b"))),
        step!(Alice: KvClient.delete_range(delete("w", "x", false))),
        step!(Alice: KvClient.delete_range(delete("w", "x", true))),
        step!(Alice: KvClient.delete_range(delete("w", "y", false))),
        step!(Alice: KvClient.delete_range(delete("w", "\0", false))),
        // Transactions: compares, both branches, nested ones.
        step!(Alice: KvClient.txn(when("b"))),
        step!(Alice: KvClient.txn(when("g"))),
        step!(Alice: KvClient.txn(when("w"))),
        step!(Alice: KvClient.txn(then(RequestPut(put("w1"))))),
        step!(Alice: KvClient.txn(then(RequestPut(put("g"))))),
        step!(Alice: KvClient.txn(otherwise(RequestPut(put("g"))))),
        step!(Alice: KvClient.txn(otherwise(RequestRange(range("g", ""))))),
        step!(Alice: KvClient.txn(then(RequestRange(range("b", "g"))))),
        step!(Alice: KvClient.txn(then(RequestDeleteRange(delete("w", "x", true))))),
        step!(Alice: KvClient.txn(then(RequestDeleteRange(delete("g", "", false))))),
        step!(Alice: KvClient.txn(then(RequestPut(put_prev("w1"))))).differs(Code::PermissionDenied, PREV_KV),
        step!(Alice: KvClient.txn(then(RequestTxn(then(RequestPut(put("h"))))))).differs(Code::PermissionDenied, NESTED),
        step!(Alice: KvClient.txn(then(RequestTxn(when("g"))))).differs(Code::PermissionDenied, NESTED),
        step!(Alice: KvClient.txn(otherwise(RequestTxn(then(RequestRange(range("g", ""))))))).differs(Code::PermissionDenied, NESTED),
        // Leases.
        step!(Alice: KvClient.put(leased("a"))),
        step!(Alice: KvClient.txn(then(RequestPut(leased("a"))))).differs(Code::PermissionDenied, ATTACH),
        step!(Alice: LeaseClient.lease_revoke(pb::LeaseRevokeRequest { id: LEASE })),
        step!(Alice: LeaseClient.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: LEASE, keys: true })).differs(Code::PermissionDenied, LEASE_KEYS),
        step!(Nobody: LeaseClient.lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 8 })).differs(Code::InvalidArgument, WITHOUT),
        step!(Nobody: LeaseClient.lease_leases(pb::LeaseLeasesRequest {})).differs(Code::InvalidArgument, WITHOUT),
        step!(Root: LeaseClient.lease_revoke(pb::LeaseRevokeRequest { id: LEASE })),
        // Locks are keys.
        step!(Nobody: LockClient.lock(v3lockpb::LockRequest { name: "a".into(), lease: 0 })).differs(Code::InvalidArgument, RECIPE),
        step!(Alice: LockClient.lock(v3lockpb::LockRequest { name: "g".into(), lease: 0 })).differs(Code::PermissionDenied, RECIPE),
        step!(Alice: LockClient.unlock(v3lockpb::UnlockRequest { key: "g".into() })).differs(Code::PermissionDenied, RECIPE),
        // The cluster.
        step!(Alice: KvClient.compact(pb::CompactionRequest { revision: 2, physical: false })).differs(Code::PermissionDenied, COMPACT),
        step!(Nobody: ClusterClient.member_list(pb::MemberListRequest::default())).differs(Code::InvalidArgument, WITHOUT),
        step!(Nobody: MaintenanceClient.alarm(pb::AlarmRequest::default())).differs(Code::InvalidArgument, WITHOUT),
        step!(Alice: ClusterClient.member_remove(pb::MemberRemoveRequest { id: 1 })),
        step!(Alice: ClusterClient.member_promote(pb::MemberPromoteRequest { id: 1 })),
        // Users and roles.
        step!(Alice: AuthClient.user_get(pb::AuthUserGetRequest { name: "alice".into() })),
        step!(Alice: AuthClient.user_get(pb::AuthUserGetRequest { name: "root".into() })),
        step!(Alice: AuthClient.user_get(pb::AuthUserGetRequest { name: "no".into() })),
        step!(Alice: AuthClient.role_get(pb::AuthRoleGetRequest { role: "r".into() })),
        step!(Alice: AuthClient.role_get(pb::AuthRoleGetRequest { role: "root".into() })),
        step!(Alice: AuthClient.user_list(pb::AuthUserListRequest {})),
        step!(Alice: AuthClient.role_list(pb::AuthRoleListRequest {})),
        step!(Alice: AuthClient.user_add(user("bob"))),
        step!(Alice: AuthClient.user_change_password(pb::AuthUserChangePasswordRequest { name: "alice".into(), password: "x".into(), ..Default::default() })),
        step!(Alice: AuthClient.role_grant_permission(grant("r", READ, "g", ""))),
        step!(Alice: AuthClient.auth_disable(pb::AuthDisableRequest {})),
        step!(Root: AuthClient.user_delete(pb::AuthUserDeleteRequest { name: "root".into() })),
        step!(Root: AuthClient.user_revoke_role(pb::AuthUserRevokeRoleRequest { name: "root".into(), role: "root".into() })),
        step!(Root: AuthClient.role_delete(pb::AuthRoleDeleteRequest { role: "root".into() })),
        // What changes under a token.
        step!(Root: AuthClient.role_grant_permission(grant("r", READ, "g", ""))),
        step!(Alice: KvClient.range(range("g", ""))),
        step!(Root: AuthClient.role_revoke_permission(pb::AuthRoleRevokePermissionRequest { role: "r".into(), key: "g".into(), range_end: "".into() })),
        step!(Alice: KvClient.range(range("g", ""))),
        step!(Root: AuthClient.user_change_password(pb::AuthUserChangePasswordRequest { name: "alice".into(), password: "new".into(), ..Default::default() })),
        step!(Alice: KvClient.range(range("a", ""))),
        step!(Alice: KvClient.put(put("a"))),
        log_in(Alice, "pw"),
        log_in(Alice, "new"),
        step!(Alice: KvClient.put(put("a"))),
        step!(Root: AuthClient.role_delete(pb::AuthRoleDeleteRequest { role: "r".into() })),
        step!(Alice: KvClient.put(put("a"))),
        step!(Root: AuthClient.user_get(pb::AuthUserGetRequest { name: "alice".into() })),
        step!(Root: AuthClient.user_delete(pb::AuthUserDeleteRequest { name: "alice".into() })),
        step!(Alice: KvClient.put(put("a"))),
        log_in(Alice, "new"),
        step!(Root: AuthClient.auth_disable(pb::AuthDisableRequest {})),
        step!(Nobody: KvClient.put(put("g"))),
        step!(Forger: KvClient.range(range("g", ""))).differs(Code::Ok, TOKEN),
        log_in(Root, "pw"),
    ]
}

fn shown(answer: &Answer) -> String {
    match answer {
        Ok(answer) => answer.clone(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_answers_as_etcds_does() {
    let (etcd, podkv) = tokio::join!(Etcd::start(), Podkv::start());
    let side = |link| Side {
        link,
        tokens: BTreeMap::from([(Forger, "forged.1".to_owned())]),
    };
    let (mut one, mut other) = (side(etcd.link().await), side(podkv.link().await));
    let mut wrong = Vec::new();
    let steps = administration().into_iter().chain(enforcement());
    for (turn, step) in steps.enumerate() {
        let found = one.run(turn, &step).await;
        let ours = other.run(turn, &step).await;
        other.link.settle(turn + 1).await;
        let right = match step.differs {
            None => shown(&found) == shown(&ours),
            Some((code, _)) => {
                let said = ours.as_ref().err().map_or(Code::Ok, Status::code);
                shown(&found) != shown(&ours) && said == code
            }
        };
        if !right {
            let (line, who) = (step.line, step.who);
            let (found, ours) = (shown(&found), shown(&ours));
            wrong.push(format!(
                "line {line}, {who:?}\n  etcd  {found}\n  podkv {ours}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
