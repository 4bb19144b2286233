//! What comes from outside in other forms: tokens, settings, manifests, certificates.

use std::collections::BTreeMap;

use arbitrary::Unstructured;
use podkv_api::KeyValue;
use podkv_files::manifest::read_manifests;
use podkv_files::plan::{check_path, plan};
use podkv_pod::{Surroundings, search_domain};
use podkv_server::settings::SETTINGS;

/// A token that opens is one that was issued, byte for byte.
pub fn token(data: &[u8]) {
    let secret = b"secret";
    let text = String::from_utf8_lossy(data);
    let Some((issued, opens)) = podkv_node::fuzzing::token(&text, secret, 7) else {
        return;
    };
    assert!(!opens || issued == text, "{text} is a forgery");
    let (again, _) = podkv_node::fuzzing::token(&issued, secret, 7).expect("what was issued");
    assert_eq!(again, issued);
    let (_, open) = podkv_node::fuzzing::token(&issued, b"", 0).expect("what was issued");
    assert!(!open, "without a secret");
}

/// A settings file, variables after it, one a line as in a file of systemd, and `resolv.conf` behind those: refused with
/// the name of what is wrong, or settings that a node starts with.
pub fn settings(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\u{1}');
    let file = parts.next().unwrap_or_default();
    let variables = parts.next().unwrap_or_default().lines();
    let variables: BTreeMap<String, String> = variables
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| match SETTINGS.get(name.len()) {
            // Short names stand for the settings in their order, or no variable would ever be met.
            Some(setting) if name.starts_with('+') => (setting.variable(), value.to_owned()),
            _ => (name.to_owned(), value.to_owned()),
        })
        .collect();
    let surroundings = Surroundings {
        host_name: "podkv-1".into(),
        resolv_conf: parts.next().unwrap_or_default().into(),
        memory_limit: Some(1 << 30),
    };
    let found = search_domain(&surroundings.resolv_conf);
    assert!(found.is_none_or(|(namespace, _)| !namespace.is_empty()));
    if let Ok(config) = podkv_server::fuzzing::settings(variables, file, &surroundings) {
        config.node.check().expect("what was accepted is right");
    }
}

/// Manifests: every path that comes out is one that a directory may hold. And what stands in place of a large value.
pub fn manifest(data: &[u8]) {
    let Some((how, text)) = data.split_first() else {
        return;
    };
    if how % 4 == 3 {
        if let Ok(Some(large)) = podkv_api::large::Manifest::decode(text) {
            let again = podkv_api::large::Manifest::decode(&large.encode());
            assert!(matches!(again, Ok(Some(again)) if again == large));
        }
        return;
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let Ok(inputs) = read_manifests(text, how % 2 == 1) else {
        return;
    };
    let mut keys = Vec::new();
    for path in inputs.keys() {
        check_path(path).expect("a path that can be a file");
        keys.push(KeyValue {
            key: [b"p/".as_slice(), path].concat().into(),
            value: "v".into(),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: None,
            expires_at_ms: None,
        });
    }
    let planned = plan("p/", &keys);
    let again = plan("p/", keys.iter().rev());
    let same = planned.tree == again.tree && planned.refused == again.refused;
    assert!(same, "the order of keys decides: {planned:?}, {again:?}");
}

/// Names: a certificate in DER, or names for pods and hosts.
pub fn names(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else {
        return;
    };
    if how % 2 == 0 {
        if let Some(certificate) = podkv_tls::fuzzing::certificate(rest) {
            let _ = certificate.names_pod("podkv-0", Some("hl.ns.svc.cluster.local"));
            let _ = certificate.expires_in_seconds();
        }
        return;
    }
    let mut input = Unstructured::new(rest);
    let Ok((pod, domain, names)) = input.arbitrary::<(String, String, Vec<String>)>() else {
        return;
    };
    let host = format!("{pod}.{domain}");
    if !pod.is_empty() && !pod.contains('.') && !domain.trim_end_matches('.').is_empty() {
        let found = podkv_tls::names::pod_domain(&pod, &host);
        let found = found.expect("the pod's own host");
        let name = format!("{pod}.{found}");
        assert!(podkv_tls::names::name_pod(&[name], &pod, Some(found)));
    }
    if podkv_tls::names::name_pod(&names, &pod, Some(&domain)) {
        let own = [
            pod.clone(),
            format!("{pod}.{domain}"),
            format!("*.{domain}"),
        ];
        let is_own = |name: &String| {
            let name = name.strip_suffix('.').unwrap_or(name);
            own.iter().any(|own| own.eq_ignore_ascii_case(name))
        };
        assert!(
            names.iter().any(is_own),
            "{names:?} are not {pod:?} of {domain:?}"
        );
    }
    let stripped = podkv_tls::host_of(&host);
    assert!(host.contains(stripped));
}
