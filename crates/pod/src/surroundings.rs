//! What a pod can tell of itself without being told: pure functions over the texts that Kubernetes puts there.
//!
//! ```text
//!   host name          podkv-0                                             the pod, its StatefulSet, its ordinal
//!   /etc/resolv.conf   search default.svc.cluster.local svc.cluster.local  namespace and cluster domain
//!   cgroup files       memory.max 536870912                                how much memory there is
//! ```
//!
//! From these and the name of the headless service follow all addresses:
//! `podkv-0.podkv-headless.default.svc.cluster.local.`, with the trailing dot, so that nothing searches.

use std::path::{Path, PathBuf};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The block cache where no limit is set: what RocksDB's makers call small.
const CACHE_WITHOUT_LIMIT: u64 = 128 << 20;
/// Below this, every read of the state would go to the disk; above it, the page cache does as well.
const CACHE_MIN: u64 = 32 << 20;
const CACHE_MAX: u64 = 1 << 30;
/// A quarter: the rest is for memtables, the log's cache, connections, and checkpoints under way.
const CACHE_SHARE: u64 = 4;

/// The texts, as they were read at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    pub host_name: String,
    pub resolv_conf: String,
    /// In bytes; `None` without a limit.
    pub memory_limit: Option<u64>,
}

impl Surroundings {
    /// Reads what is there. What is not there is empty.
    pub fn read() -> Self {
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let own_cgroup = text(Path::new("/proc/self/cgroup"));
        let limits = limit_files(&own_cgroup);
        Self {
            host_name: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            resolv_conf: text(Path::new(RESOLV_CONF)),
            memory_limit: limits
                .iter()
                .filter_map(|path| memory_limit(&text(path)))
                .min(),
        }
    }

    /// The pod's name. A host name may be complete (`setHostnameAsFQDN`): the pod is its first label.
    pub fn pod_name(&self) -> &str {
        self.host_name.split('.').next().unwrap_or_default()
    }

    /// The default of the block cache.
    pub fn cache_bytes(&self) -> u64 {
        match self.memory_limit {
            None => CACHE_WITHOUT_LIMIT,
            Some(limit) => (limit / CACHE_SHARE).clamp(CACHE_MIN, CACHE_MAX),
        }
    }
}

/// Namespace and cluster domain, from the search list that a kubelet writes: `<namespace>.svc.<domain>`.
pub fn search_domain(resolv_conf: &str) -> Option<(String, String)> {
    // The last list counts, as for the C library.
    let list = resolv_conf
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("search"))
        .rfind(|list| list.starts_with(char::is_whitespace))?;
    list.split_whitespace().find_map(|entry| {
        let (namespace, domain) = entry.trim_end_matches('.').split_once(".svc.")?;
        let found = is_label(namespace) && is_domain(domain);
        found.then(|| (namespace.into(), domain.into()))
    })
}

/// A DNS label as Kubernetes accepts it for a name: `podkv-headless`.
pub fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// `cluster.local`, without a trailing dot.
pub fn is_domain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// Where a pod's peers are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    pub headless_service: String,
    pub namespace: String,
    pub cluster_domain: String,
}

impl PodNetwork {
    /// What the names of the service's pods end with, complete: `podkv-headless.default.svc.cluster.local.`
    pub fn domain(&self) -> String {
        format!(
            "{}.{}.svc.{}.",
            self.headless_service, self.namespace, self.cluster_domain
        )
    }

    pub fn address(&self, pod: &str, port: u16) -> String {
        format!("{pod}.{}:{port}", self.domain())
    }
}

/// The files that may hold a memory limit for this process, from `/proc/self/cgroup`. In a container
/// its own group is the root of what it sees; outside it is somewhere below.
fn limit_files(own_cgroup: &str) -> Vec<PathBuf> {
    let root = Path::new(CGROUP_ROOT);
    let mut files = vec![
        root.join("memory.max"),
        root.join("memory/memory.limit_in_bytes"),
    ];
    for line in own_cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            files.push(root.join(path).join("memory.max"));
        } else if controllers
            .split(',')
            .any(|controller| controller == "memory")
        {
            files.push(root.join("memory").join(path).join("memory.limit_in_bytes"));
        }
    }
    files
}

/// The limit in such a file. Version 2 says `max` where there is none, version 1 a number of pages that no
/// machine has.
fn memory_limit(text: &str) -> Option<u64> {
    const NO_MACHINE_HAS: u64 = 1 << 60;
    let limit = text.trim().parse().ok()?;
    (limit < NO_MACHINE_HAS).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_and_domain_are_in_the_search_list() {
        let kubelet = "search default.svc.cluster.local svc.cluster.local cluster.local\n\
                       nameserver 10.96.0.10\noptions ndots:5\n";
        // GKE adds domains of the host; its cluster has another domain; IPv6 alone.
        let gke = "nameserver fd00:10:96::a\n\
                   search prod-eu.svc.k8s.example.org svc.k8s.example.org k8s.example.org \
                   europe-west4-a.c.my-project.internal google.internal.\noptions ndots:5\n";
        // dnsConfig.searches of the pod, which a kubelet appends.
        let own = "search db.svc.cluster.local. svc.cluster.local. corp.example.com\n";
        let later_wins = "search a.svc.x.y\nsearch b.svc.cluster.local\n";
        let pair = |namespace: &str, domain: &str| Some((namespace.into(), domain.into()));
        for (text, expected) in [
            (kubelet, pair("default", "cluster.local")),
            (gke, pair("prod-eu", "k8s.example.org")),
            (own, pair("db", "cluster.local")),
            (later_wins, pair("b", "cluster.local")),
            // dnsPolicy: Default, a laptop, nothing.
            ("search fritz.box\nnameserver 192.168.178.1\n", None),
            (
                "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n",
                None,
            ),
            ("search svc.cluster.local\n", None),
            ("searching default.svc.cluster.local\n", None),
            ("# search default.svc.cluster.local\n", None),
            ("", None),
        ] {
            assert_eq!(search_domain(text), expected, "{text}");
        }
    }

    #[test]
    fn the_pod_is_the_first_label_of_the_host_name() {
        for host_name in [
            "podkv-0",
            "podkv-0.podkv-headless.default.svc.cluster.local",
        ] {
            let surroundings = Surroundings {
                host_name: host_name.into(),
                ..Default::default()
            };
            assert_eq!(surroundings.pod_name(), "podkv-0");
        }
    }

    #[test]
    fn addresses_are_complete_names() {
        let network = PodNetwork {
            headless_service: "podkv-headless".into(),
            namespace: "default".into(),
            cluster_domain: "cluster.local".into(),
        };
        assert_eq!(
            network.address("podkv-2", 2380),
            "podkv-2.podkv-headless.default.svc.cluster.local.:2380"
        );
    }

    #[test]
    fn a_memory_limit_is_read_from_either_version_of_cgroups() {
        assert_eq!(memory_limit("536870912\n"), Some(512 << 20));
        assert_eq!(memory_limit("max\n"), None);
        assert_eq!(memory_limit("9223372036854771712\n"), None);
        assert_eq!(memory_limit(""), None);

        let files = |own: &str| {
            let files = limit_files(own).into_iter();
            files
                .map(|path| path.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        };
        let in_container = files("0::/\n");
        assert!(in_container.contains(&"/sys/fs/cgroup/memory.max".to_string()));
        let systemd = files("0::/system.slice/podkv.service\n");
        let expected = "/sys/fs/cgroup/system.slice/podkv.service/memory.max";
        assert!(systemd.contains(&expected.to_string()), "{systemd:?}");
        let version_1 = files(
            "12:cpu,cpuacct:/kubepods/burstable/pod1/c1\n9:memory:/kubepods/burstable/pod1/c1\n1:name=systemd:/x\n",
        );
        for expected in [
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/kubepods/burstable/pod1/c1/memory.limit_in_bytes",
        ] {
            assert!(version_1.contains(&expected.to_string()), "{version_1:?}");
        }
    }

    #[test]
    fn the_cache_is_a_quarter_of_the_limit_within_bounds() {
        let cache = |memory_limit| {
            let surroundings = Surroundings {
                memory_limit,
                ..Default::default()
            };
            surroundings.cache_bytes()
        };
        for (limit, expected) in [
            (None, 128 << 20),
            (Some(64 << 20), 32 << 20),
            (Some(512 << 20), 128 << 20),
            (Some(2 << 30), 512 << 20),
            (Some(64 << 30), 1 << 30),
        ] {
            assert_eq!(cache(limit), expected, "{limit:?}");
        }
    }
}
