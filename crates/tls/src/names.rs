//! Which pod a certificate names.
//!
//! A pod of a StatefulSet is `<pod>.<headless service>.<namespace>.svc.<cluster domain>`. What follows the pod is
//! one *domain* for all pods of the set, and this node knows it from its own address for peers:
//!
//! ```text
//!   pod podkv-0, dialled as podkv-0.podkv-headless.prod.svc.cluster.local.:2380
//!                                   └── the domain: podkv-headless.prod.svc.cluster.local
//! ```
//!
//! With a domain, a certificate names the pod `podkv-1` if one of its DNS names is `podkv-1.<domain>`,
//! `*.<domain>`, or just `podkv-1`. That is what a dialling node would ask for, so the pod of that name in another
//! namespace, under the same CA, is somebody else.
//!
//! Without a domain (addresses that are IPs, as in development) it is enough that the first label of a DNS name is
//! the pod's; a wildcard names nobody then. The common name of the subject never counts.

/// The domain of the pods of this set, from this pod's own name and the host that its peers dial. `None` if the
/// host does not begin with the pod's name, or has nothing behind it.
pub fn pod_domain<'a>(pod: &str, host: &'a str) -> Option<&'a str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let (first, domain) = host.split_once('.')?;
    (first.eq_ignore_ascii_case(pod) && !domain.is_empty()).then_some(domain)
}

/// True if one of these DNS names is that of the pod.
pub fn name_pod<S: AsRef<str>>(names: &[S], pod: &str, domain: Option<&str>) -> bool {
    !pod.is_empty()
        && names.iter().any(|name| {
            let name = name.as_ref();
            let name = name.strip_suffix('.').unwrap_or(name);
            let (first, rest) = match name.split_once('.') {
                Some((first, rest)) => (first, Some(rest)),
                None => (name, None),
            };
            match (domain, rest) {
                (_, None) => first.eq_ignore_ascii_case(pod),
                (None, Some(_)) => first.eq_ignore_ascii_case(pod),
                (Some(domain), Some(rest)) => {
                    (first == "*" || first.eq_ignore_ascii_case(pod))
                        && rest.eq_ignore_ascii_case(domain)
                }
            }
        })
}

/// The host of `host:port` as a certificate has it: no brackets, no trailing dot.
pub fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_follows_the_pod() {
        let cases = [
            (
                "podkv-0.hl.ns.svc.cluster.local.",
                Some("hl.ns.svc.cluster.local"),
            ),
            ("podkv-0.hl", Some("hl")),
            ("PODKV-0.hl", Some("hl")),
            ("podkv-0", None),
            ("podkv-0.", None),
            ("podkv-1.hl", None),
            ("10.0.0.1", None),
            ("::1", None),
        ];
        for (host, expected) in cases {
            assert_eq!(pod_domain("podkv-0", host), expected, "{host}");
        }
    }

    #[test]
    fn which_names_are_the_pods() {
        let domain = Some("hl.ns.svc.cluster.local");
        // (name in the certificate, with the domain, without one), for the pod podkv-1
        let cases = [
            ("podkv-1.hl.ns.svc.cluster.local", true, true),
            ("podkv-1.hl.ns.svc.cluster.local.", true, true),
            ("PodKV-1.hl.ns.svc.Cluster.Local", true, true),
            ("*.hl.ns.svc.cluster.local", true, false),
            ("podkv-1", true, true),
            // Another namespace, or another service.
            ("podkv-1.hl.other.svc.cluster.local", false, true),
            ("*.hl.other.svc.cluster.local", false, false),
            // A wildcard stands for one label.
            ("*.ns.svc.cluster.local", false, false),
            ("*.svc.cluster.local", false, false),
            ("*", false, false),
            ("a.podkv-1.hl.ns.svc.cluster.local", false, false),
            // Others.
            ("podkv-11.hl.ns.svc.cluster.local", false, false),
            ("podkv-0.hl.ns.svc.cluster.local", false, false),
            ("podkv-*.hl.ns.svc.cluster.local", false, false),
            ("xpodkv-1", false, false),
            ("", false, false),
        ];
        for (name, with, without) in cases {
            assert_eq!(name_pod(&[name], "podkv-1", domain), with, "{name}");
            assert_eq!(name_pod(&[name], "podkv-1", None), without, "{name}");
        }
        assert!(name_pod(&["other", "podkv-1"], "podkv-1", domain));
        assert!(!name_pod::<&str>(&[], "podkv-1", domain));
        // Who has no name is nobody, whatever the certificate says.
        assert!(!name_pod(&["", "*.hl.ns.svc.cluster.local"], "", domain));
    }

    #[test]
    fn hosts_lose_port_brackets_and_dot() {
        for (address, host) in [
            ("podkv-0.hl.ns.:2380", "podkv-0.hl.ns"),
            ("[::1]:2380", "::1"),
            ("127.0.0.1:2380", "127.0.0.1"),
        ] {
            assert_eq!(host_of(address), host);
        }
    }
}
