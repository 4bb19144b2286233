//! What clients asked of this node over the network, counted by method and result.
//!
//! One counter for each pair, in one fixed array: to count is one relaxed addition, without a lock, an allocation or a
//! look-up by name.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! methods {
    ($($name:ident = $path:literal, $label:literal;)*) => {
        /// What can be asked. Operations in a pipe count as the method that they are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Method {
            $($name,)*
            /// Whatever else is served on the port: health, reflection, other protocols.
            Other,
        }

        impl Method {
            const ALL: &[Method] = &[$(Method::$name,)* Method::Other];

            /// The method behind a gRPC path.
            pub fn of_path(path: &str) -> Self {
                match path {
                    $($path => Self::$name,)*
                    _ => Self::Other,
                }
            }

            /// The gRPC path: `/package.Service/Method`.
            pub fn path(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some($path),)*
                    Self::Other => None,
                }
            }

            /// As it stands in metrics.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                    Self::Other => "other",
                }
            }
        }
    };
}

methods! {
    KvGet = "/podkv.v1.KV/Get", "kv.get";
    KvPut = "/podkv.v1.KV/Put", "kv.put";
    KvDelete = "/podkv.v1.KV/Delete", "kv.delete";
    KvRange = "/podkv.v1.KV/Range", "kv.range";
    KvTxn = "/podkv.v1.KV/Txn", "kv.txn";
    KvCompact = "/podkv.v1.KV/Compact", "kv.compact";
    KvPipe = "/podkv.v1.KV/Pipe", "kv.pipe";
    LeaseGrant = "/podkv.v1.Lease/Grant", "lease.grant";
    LeaseRevoke = "/podkv.v1.Lease/Revoke", "lease.revoke";
    LeaseKeepAlive = "/podkv.v1.Lease/KeepAlive", "lease.keep_alive";
    LeaseStatus = "/podkv.v1.Lease/Status", "lease.status";
    LeaseList = "/podkv.v1.Lease/List", "lease.list";
    SessionOpen = "/podkv.v1.Session/Open", "session.open";
    SessionKeepAlive = "/podkv.v1.Session/KeepAlive", "session.keep_alive";
    SessionClose = "/podkv.v1.Session/Close", "session.close";
    Watch = "/podkv.v1.Watch/Watch", "watch.watch";
    ClusterMembers = "/podkv.v1.Cluster/Members", "cluster.members";
    ClusterStatus = "/podkv.v1.Cluster/Status", "cluster.status";
    ClusterAddMember = "/podkv.v1.Cluster/AddMember", "cluster.add_member";
    ClusterPromoteMember = "/podkv.v1.Cluster/PromoteMember", "cluster.promote_member";
    ClusterRemoveMember = "/podkv.v1.Cluster/RemoveMember", "cluster.remove_member";
    ClusterTransferLeadership = "/podkv.v1.Cluster/TransferLeadership", "cluster.transfer_leadership";
    ClusterSetRetention = "/podkv.v1.Cluster/SetRetention", "cluster.set_retention";
    ClusterResize = "/podkv.v1.Cluster/Resize", "cluster.resize";
    ClusterFreeze = "/podkv.v1.Cluster/Freeze", "cluster.freeze";
    ClusterThaw = "/podkv.v1.Cluster/Thaw", "cluster.thaw";
    ClusterFrozen = "/podkv.v1.Cluster/Frozen", "cluster.frozen";
    ClusterAlarms = "/podkv.v1.Cluster/Alarms", "cluster.alarms";
    ClusterDisarmAlarm = "/podkv.v1.Cluster/DisarmAlarm", "cluster.disarm_alarm";
    SnapshotSave = "/podkv.v1.Snapshot/Save", "snapshot.save";
    SnapshotRestore = "/podkv.v1.Snapshot/Restore", "snapshot.restore";
    SnapshotDiscardRestore = "/podkv.v1.Snapshot/DiscardRestore", "snapshot.discard_restore";
    AuthAuthenticate = "/podkv.v1.Auth/Authenticate", "auth.authenticate";
    AuthStatus = "/podkv.v1.Auth/Status", "auth.status";
    AuthEnable = "/podkv.v1.Auth/Enable", "auth.enable";
    AuthDisable = "/podkv.v1.Auth/Disable", "auth.disable";
    AuthAddUser = "/podkv.v1.Auth/AddUser", "auth.add_user";
    AuthGetUser = "/podkv.v1.Auth/GetUser", "auth.get_user";
    AuthListUsers = "/podkv.v1.Auth/ListUsers", "auth.list_users";
    AuthDeleteUser = "/podkv.v1.Auth/DeleteUser", "auth.delete_user";
    AuthSetPassword = "/podkv.v1.Auth/SetPassword", "auth.set_password";
    AuthGrantRole = "/podkv.v1.Auth/GrantRole", "auth.grant_role";
    AuthRevokeRole = "/podkv.v1.Auth/RevokeRole", "auth.revoke_role";
    AuthAddRole = "/podkv.v1.Auth/AddRole", "auth.add_role";
    AuthGetRole = "/podkv.v1.Auth/GetRole", "auth.get_role";
    AuthListRoles = "/podkv.v1.Auth/ListRoles", "auth.list_roles";
    AuthDeleteRole = "/podkv.v1.Auth/DeleteRole", "auth.delete_role";
    AuthGrantPermission = "/podkv.v1.Auth/GrantPermission", "auth.grant_permission";
    AuthRevokePermission = "/podkv.v1.Auth/RevokePermission", "auth.revoke_permission";
    EtcdKvRange = "/etcdserverpb.KV/Range", "etcd.kv.range";
    EtcdKvRangeStream = "/etcdserverpb.KV/RangeStream", "etcd.kv.range_stream";
    EtcdKvPut = "/etcdserverpb.KV/Put", "etcd.kv.put";
    EtcdKvDeleteRange = "/etcdserverpb.KV/DeleteRange", "etcd.kv.delete_range";
    EtcdKvTxn = "/etcdserverpb.KV/Txn", "etcd.kv.txn";
    EtcdKvCompact = "/etcdserverpb.KV/Compact", "etcd.kv.compact";
    EtcdWatch = "/etcdserverpb.Watch/Watch", "etcd.watch.watch";
    EtcdLeaseGrant = "/etcdserverpb.Lease/LeaseGrant", "etcd.lease.grant";
    EtcdLeaseRevoke = "/etcdserverpb.Lease/LeaseRevoke", "etcd.lease.revoke";
    EtcdLeaseKeepAlive = "/etcdserverpb.Lease/LeaseKeepAlive", "etcd.lease.keep_alive";
    EtcdLeaseTimeToLive = "/etcdserverpb.Lease/LeaseTimeToLive", "etcd.lease.time_to_live";
    EtcdLeaseLeases = "/etcdserverpb.Lease/LeaseLeases", "etcd.lease.list";
    EtcdAuthAuthenticate = "/etcdserverpb.Auth/Authenticate", "etcd.auth.authenticate";
    EtcdMemberList = "/etcdserverpb.Cluster/MemberList", "etcd.cluster.member_list";
    EtcdStatus = "/etcdserverpb.Maintenance/Status", "etcd.maintenance.status";
    EtcdAlarm = "/etcdserverpb.Maintenance/Alarm", "etcd.maintenance.alarm";
    EtcdSnapshot = "/etcdserverpb.Maintenance/Snapshot", "etcd.maintenance.snapshot";
    EtcdLock = "/v3lockpb.Lock/Lock", "etcd.lock.lock";
    EtcdUnlock = "/v3lockpb.Lock/Unlock", "etcd.lock.unlock";
    EtcdCampaign = "/v3electionpb.Election/Campaign", "etcd.election.campaign";
    EtcdProclaim = "/v3electionpb.Election/Proclaim", "etcd.election.proclaim";
    EtcdLeader = "/v3electionpb.Election/Leader", "etcd.election.leader";
    EtcdObserve = "/v3electionpb.Election/Observe", "etcd.election.observe";
    EtcdResign = "/v3electionpb.Election/Resign", "etcd.election.resign";
}

/// gRPC's status codes by number: in our metrics, and as gRPC itself writes them.
const RESULTS: [(&str, &str); 17] = [
    ("ok", "OK"),
    ("cancelled", "Cancelled"),
    ("unknown", "Unknown"),
    ("invalid_argument", "InvalidArgument"),
    ("deadline_exceeded", "DeadlineExceeded"),
    ("not_found", "NotFound"),
    ("already_exists", "AlreadyExists"),
    ("permission_denied", "PermissionDenied"),
    ("resource_exhausted", "ResourceExhausted"),
    ("failed_precondition", "FailedPrecondition"),
    ("aborted", "Aborted"),
    ("out_of_range", "OutOfRange"),
    ("unimplemented", "Unimplemented"),
    ("internal", "Internal"),
    ("unavailable", "Unavailable"),
    ("data_loss", "DataLoss"),
    ("unauthenticated", "Unauthenticated"),
];
/// The code of what is none of these.
const UNKNOWN: usize = 2;

/// Counters since the start.
#[derive(Debug)]
pub struct Requests([[AtomicU64; RESULTS.len()]; Method::ALL.len()]);

impl Default for Requests {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Default::default()))
    }
}

impl Requests {
    /// Counts one that has ended, or a stream that has begun. `grpc_code` is the number of its status.
    pub fn count(&self, method: Method, grpc_code: i32) {
        let result = usize::try_from(grpc_code).ok();
        let result = result.filter(|code| *code < RESULTS.len());
        // `Method::ALL` lists every method in its order, and the result is below the length.
        if let Some(counter) = self
            .0
            .get(method as usize)
            .and_then(|counters| counters.get(result.unwrap_or(UNKNOWN)))
        {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Everything that ever happened, and of each method its successes.
    pub fn totals(&self) -> impl Iterator<Item = Total> + '_ {
        Method::ALL
            .iter()
            .zip(&self.0)
            .flat_map(|(method, counts)| {
                RESULTS
                    .iter()
                    .zip(counts)
                    .filter_map(|((result, grpc_code), count)| {
                        let count = count.load(Relaxed);
                        let shown = count > 0 || *result == "ok";
                        shown.then_some(Total {
                            method: *method,
                            result,
                            grpc_code,
                            count,
                        })
                    })
            })
    }
}

/// How often a method ended in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total {
    pub method: Method,
    /// In podkv's metrics: `resource_exhausted`.
    pub result: &'static str,
    /// As gRPC writes it: `ResourceExhausted`.
    pub grpc_code: &'static str,
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_and_result_has_a_counter_of_its_own() {
        let requests = Requests::default();
        for _ in 0..3 {
            requests.count(Method::of_path("/podkv.v1.KV/Put"), 0);
        }
        requests.count(Method::KvPut, 14);
        requests.count(Method::of_path("/grpc.health.v1.Health/Check"), 99);
        let happened: Vec<_> = requests
            .totals()
            .filter(|total| total.count > 0)
            .map(|total| (total.method.label(), total.result, total.count))
            .collect();
        let expected = [
            ("kv.put", "ok", 3),
            ("kv.put", "unavailable", 1),
            ("other", "unknown", 1),
        ];
        assert_eq!(happened, expected);
        // What has not happened yet is 0, not absent: a rate needs a first sample.
        let get =
            |total: Total| (total.method, total.grpc_code, total.count) == (Method::KvGet, "OK", 0);
        assert!(requests.totals().any(get));
    }

    #[test]
    fn methods_are_their_index() {
        for (index, method) in Method::ALL.iter().enumerate() {
            assert_eq!(*method as usize, index);
        }
    }
}
