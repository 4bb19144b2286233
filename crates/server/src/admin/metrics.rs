//! What a node knows of itself, as Prometheus text. Read at each scrape; nothing is kept.

use std::fmt::{Display, Write};
use std::time::Duration;

use podkv_api::{MemberRole, NodeStatus, Store};
use podkv_node::{Health, Latency, Node, NodeStats, VolumeSpace};

/// A scrape must not hang on a disk that does.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// The page. Without a node there is only that it has not started.
pub(super) async fn render(node: Option<&Node>) -> String {
    let mut page = Page::default();
    let Some(node) = node else {
        page.gauge(
            "started",
            "1 once storage is open and the log is replayed",
            0,
        );
        return page.0;
    };
    let health = node.health().borrow().clone();
    page.health(&health);
    page.gauge(
        "is_leader",
        "1 if this node leads, as far as it knows",
        u8::from(node.is_leader()),
    );
    page.members(node);
    page.waits(node);
    if let Some(tls) = node.tls() {
        page.gauge(
            "tls_certificate_expiry_seconds",
            "Until this node's certificate expires; negative once it has",
            tls.certificate().expires_in_seconds(),
        );
    }
    page.stats(&node.stats());
    page.requests(node);
    let config = node.config();
    if let Ok(Some(space)) = tokio::time::timeout(STATUS_TIMEOUT, node.volume_space()).await {
        page.volume(space, config.headroom_bytes);
    }
    page.gauge(
        "quota_bytes",
        "What the data may grow to; 0 is no quota",
        config.quota_bytes,
    );
    let status = tokio::time::timeout(STATUS_TIMEOUT, Store::status(node)).await;
    let readable = matches!(status, Ok(Ok(_)));
    page.gauge(
        "status_readable",
        "1 if the node could read its own state",
        u8::from(readable),
    );
    if let Ok(Ok(status)) = status {
        page.status(&status);
    }
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, help, "gauge");
        self.sample(name, "", value);
    }

    fn family(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            self.0,
            "# HELP podkv_{name} {help}\n# TYPE podkv_{name} {kind}"
        );
    }

    fn stats(&mut self, stats: &NodeStats) {
        self.family(
            "raft_role",
            "Always 1; what this node does in the group",
            "gauge",
        );
        self.sample("raft_role", &format!("{{role=\"{}\"}}", stats.role), 1);
        for (name, help, value) in [
            (
                "writes_in_flight",
                "Writes admitted here without an answer yet",
                stats.writes_in_flight as u64,
            ),
            (
                "log_bytes",
                "Bytes of the entries in the log",
                stats.log_bytes,
            ),
            ("watches", "Open watches", stats.watches as u64),
            (
                "watches_behind",
                "Watches that catch up or are too slow",
                stats.watches_behind as u64,
            ),
            (
                "watch_buffered_bytes",
                "Events in memory for watches",
                stats.watch_buffered_bytes as u64,
            ),
        ] {
            self.gauge(name, help, value);
        }
        for (name, help, value) in [
            (
                "log_fsyncs_total",
                "Batches of the log that were synced",
                stats.log_fsyncs_total,
            ),
            (
                "log_entries_total",
                "Entries written to the log",
                stats.log_entries_total,
            ),
            (
                "log_written_bytes_total",
                "Bytes of entries written to the log",
                stats.log_bytes_total,
            ),
            (
                "log_stalls_total",
                "Writes of the log that took longer than stall-timeout",
                stats.log_stalls_total,
            ),
            (
                "snapshots_built_total",
                "Snapshots built of the own state",
                stats.snapshots_built_total,
            ),
            (
                "snapshots_installed_total",
                "Snapshots of a peer that took the place of the own state",
                stats.snapshots_installed_total,
            ),
            (
                "read_rounds_total",
                "Rounds to a majority, or to the leader, for linearizable reads",
                stats.read_rounds_total,
            ),
            (
                "reads_by_lease_total",
                "Linearizable reads answered by the leader's lease",
                stats.reads_by_lease_total,
            ),
            (
                "passwords_refused_total",
                "Callers with a wrong name or password",
                stats.passwords_refused_total,
            ),
            (
                "tokens_refused_total",
                "Calls with a token that did not hold, or no longer",
                stats.tokens_refused_total,
            ),
            (
                "watches_fell_behind_total",
                "Times that a live watch's queue was full",
                stats.watches_fell_behind_total,
            ),
            (
                "watches_compacted_total",
                "Watches ended by compaction",
                stats.watches_compacted_total,
            ),
            (
                "watch_reads_total",
                "Reads of the state for watches",
                stats.watch_reads_total,
            ),
            (
                "watch_gaps_total",
                "Reads of the state because the hub fell behind",
                stats.watch_gaps_total,
            ),
        ] {
            self.family(name, help, "counter");
            self.sample(name, "", value);
        }
        self.gauge(
            "log_writing_seconds",
            "For how long the disk has not answered the write of the log that is under way",
            stats.log_writing_for.as_secs_f64(),
        );
        self.latencies(stats);
        self.peers(stats);
    }

    fn latencies(&mut self, stats: &NodeStats) {
        let help = "One write of a batch of the log with its fsync";
        self.histogram("log_write_seconds", help, &stats.log_write_latency);
        let help = "One batch of committed entries, applied to the state";
        self.histogram("apply_seconds", help, &stats.apply_latency);
    }

    fn peers(&mut self, stats: &NodeStats) {
        let help = "Entries that another member lacks, as the leader sees it";
        self.family("peer_lag_entries", help, "gauge");
        for (peer, behind) in &stats.peers_behind {
            let labels = format!("{{peer=\"{}\"}}", escaped(peer));
            self.sample("peer_lag_entries", &labels, behind);
        }
    }

    fn requests(&mut self, node: &Node) {
        let help = "Calls of clients that were answered, and streams that have begun; operations in a pipe one by one";
        self.family("requests_total", help, "counter");
        for total in node.requests().totals() {
            let (method, result) = (total.method.label(), total.result);
            let labels = format!("{{method=\"{method}\",result=\"{result}\"}}");
            self.sample("requests_total", &labels, total.count);
        }
        self.etcd_requests(node);
    }

    /// Calls of etcd's API once more, under the name that dashboards and clients of etcd look for.
    fn etcd_requests(&mut self, node: &Node) {
        const NAME: &str = "grpc_server_handled_total";
        // Writing to a String cannot fail.
        let _ = writeln!(
            self.0,
            "# HELP {NAME} Calls of the etcd API that were answered, and streams that have begun\n# TYPE {NAME} counter"
        );
        for total in node.requests().totals() {
            let path = total.method.path().and_then(|path| path.strip_prefix('/'));
            let Some((service, method)) = path.and_then(|path| path.split_once('/')) else {
                continue;
            };
            if service.starts_with("podkv.") {
                continue;
            }
            let (code, count) = (total.grpc_code, total.count);
            let _ = writeln!(
                self.0,
                "{NAME}{{grpc_code=\"{code}\",grpc_method=\"{method}\",grpc_service=\"{service}\"}} {count}"
            );
        }
    }

    fn volume(&mut self, space: VolumeSpace, headroom_bytes: Option<u64>) {
        for (name, help, bytes) in [
            (
                "volume_size_bytes",
                "Size of the volume's file system",
                space.size_bytes,
            ),
            (
                "volume_free_bytes",
                "What the node may still take of it",
                space.free_bytes,
            ),
            (
                "volume_headroom_bytes",
                "Below so much free space the cluster refuses writes that add data",
                headroom_bytes.unwrap_or_else(|| space.default_headroom()),
            ),
        ] {
            self.gauge(name, help, bytes);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, latency: &Latency) {
        self.family(name, help, "histogram");
        let mut count = 0;
        for (bound_micros, in_bucket) in &latency.buckets {
            count += in_bucket;
            let bound = match bound_micros {
                &u64::MAX => "+Inf".to_string(),
                micros => (*micros as f64 / 1e6).to_string(),
            };
            self.sample(
                &format!("{name}_bucket"),
                &format!("{{le=\"{bound}\"}}"),
                count,
            );
        }
        self.sample(&format!("{name}_sum"), "", latency.sum_micros as f64 / 1e6);
        self.sample(&format!("{name}_count"), "", count);
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "podkv_{name}{labels} {value}");
    }

    fn health(&mut self, health: &Health) {
        let flag = u8::from;
        self.gauge(
            "started",
            "1 once storage is open and the log is replayed",
            flag(health.started),
        );
        self.gauge(
            "ready",
            "1 while the node should get traffic",
            flag(health.ready),
        );
        self.gauge(
            "draining",
            "1 while the node prepares to stop",
            flag(health.draining),
        );
    }

    fn members(&mut self, node: &Node) {
        let members = node.members_known();
        self.family(
            "members",
            "Members of the cluster, as this node knows them",
            "gauge",
        );
        for (role, label) in [
            (MemberRole::Voter, "voter"),
            (MemberRole::Learner, "learner"),
        ] {
            let count = members.iter().filter(|member| member.role == role).count();
            self.sample("members", &format!("{{role=\"{label}\"}}"), count);
        }
    }

    /// 1 where a person may have to look. The reason is in the log: a text is no label.
    fn waits(&mut self, node: &Node) {
        for (name, help, why) in [
            (
                "membership_waiting",
                "1 while something keeps the membership from what it should be; asked of the leader",
                node.membership_waits(),
            ),
            (
                "size_waiting",
                "1 while the StatefulSet's size cannot be read or does not count; asked of the leader",
                node.size_waits(),
            ),
        ] {
            self.gauge(name, help, u8::from(why.is_some()));
        }
    }

    fn status(&mut self, status: &NodeStatus) {
        let header = &status.header;
        self.family("info", "Always 1; who this node is", "gauge");
        let labels = format!(
            "{{name=\"{}\",version=\"{}\",cluster=\"{}\",member=\"{}\"}}",
            escaped(&status.name),
            escaped(&status.version),
            header.cluster,
            header.member
        );
        self.sample("info", &labels, 1);
        let help = "Always 1; what is wrong with which member, as every node knows it";
        self.family("alarm", help, "gauge");
        for alarm in &status.alarms {
            let (kind, member) = (alarm.kind.name(), alarm.member);
            let labels = format!("{{kind=\"{kind}\",member=\"{member}\"}}");
            self.sample("alarm", &labels, 1);
        }
        let has_leader = u8::from(status.leader.is_some());
        self.gauge("has_leader", "1 if this node knows a leader", has_leader);
        self.gauge(
            "durable",
            "0 on memory storage: acknowledged writes may be lost",
            u8::from(status.durable),
        );
        let seconds = status.clock_ms as f64 / 1000.0;
        self.gauge(
            "cluster_clock_seconds",
            "The replicated clock of leases and TTLs",
            seconds,
        );
        for (name, help, value) in [
            (
                "incarnation",
                "Rises at each recovery from a lost majority",
                header.incarnation.0,
            ),
            ("term", "The Raft term", header.term),
            (
                "revision",
                "The newest revision of this node's state",
                header.revision,
            ),
            (
                "compacted_revision",
                "The oldest readable revision",
                status.compacted_revision,
            ),
            ("keys", "Keys in the latest revision", status.keys),
            (
                "committed_index",
                "The newest log index known to be committed",
                status.committed_index,
            ),
            (
                "applied_index",
                "The newest log index in the state",
                status.applied_index,
            ),
            (
                "first_log_index",
                "The first log index held; last_log_index + 1 if a snapshot covers the whole log",
                status.first_log_index,
            ),
            (
                "last_log_index",
                "The index of the last log entry, held or covered by a snapshot",
                status.last_log_index,
            ),
            (
                "snapshot_index",
                "The log index that the newest snapshot covers",
                status.snapshot_index,
            ),
            (
                "disk_bytes",
                "Bytes on the volume: log and state",
                status.disk_bytes,
            ),
        ] {
            self.gauge(name, help, value);
        }
    }
}

/// A label's value: backslash, quote and line feed are escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_is_not_there_has_not_started() {
        assert!(render(None).await.ends_with("\npodkv_started 0\n"));
    }

    #[test]
    fn labels_cannot_break_the_page() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
