//! What ConfigMaps and Secrets hold, as keys: from YAML or JSON, one or several documents, or a List of them.
//!
//! The meaning is Kubernetes': values of `data` are text in a ConfigMap and base64 in a Secret, `binaryData` is base64,
//! `stringData` is text and wins over `data`. What Kubernetes would refuse, a number where text has to be, is refused.

use std::collections::BTreeMap;

use base64::Engine as _;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::input::Inputs;
use crate::plan::check_path;

/// The fields that matter. The others are Kubernetes' business.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    data: Option<BTreeMap<String, Value>>,
    binary_data: Option<BTreeMap<String, Value>>,
    string_data: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    items: Vec<Object>,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

/// Reads manifests. With `by_name`, each object is a folder of its name; without, all their keys share one, and two of
/// the same name are refused.
///
/// # Errors
///
/// [`Error::Input`]: no YAML, other kinds, values that are not what they should be, names that cannot be files.
pub fn read_manifests(text: &str, by_name: bool) -> Result<Inputs> {
    let objects: Vec<Object> = serde_saphyr::from_multiple(text)
        .map_err(|error| Error::Input(format!("not YAML or JSON that can be read: {error}")))?;
    let mut tree = Inputs::new();
    for object in &objects {
        if object.kind.ends_with("List") {
            for item in &object.items {
                add(&mut tree, item, by_name)?;
            }
        } else {
            add(&mut tree, object, by_name)?;
        }
    }
    if tree.is_empty() {
        return Err(Error::Input(
            "there is no ConfigMap or Secret with data in it".into(),
        ));
    }
    Ok(tree)
}

/// How a value stands in a manifest.
type Reader = fn(&str) -> Option<Bytes>;

fn add(tree: &mut Inputs, object: &Object, by_name: bool) -> Result<()> {
    let what = format!("{} {:?}", object.kind, object.metadata.name);
    let mut values: BTreeMap<&str, Bytes> = BTreeMap::new();
    let maps: [(_, Reader); 2] = match object.kind.as_str() {
        "ConfigMap" => [(&object.data, plain), (&object.binary_data, base64)],
        "Secret" => [(&object.data, base64), (&object.string_data, plain)],
        _ => {
            let text = format!("{what}: expected ConfigMap, Secret, or a List of them");
            return Err(Error::Input(text));
        }
    };
    for (map, read) in maps {
        for (key, value) in map.iter().flatten() {
            let read = value.as_str().and_then(read);
            let Some(read) = read else {
                let text = format!(
                    "{what}, {key:?}: expected text, in base64 where Kubernetes has that; quote numbers"
                );
                return Err(Error::Input(text));
            };
            values.insert(key, read);
        }
    }
    for (key, value) in values {
        let path = match by_name {
            true => format!("{}/{key}", object.metadata.name),
            false => key.to_owned(),
        };
        if let Err(why) = check_path(path.as_bytes()) {
            return Err(Error::Input(format!("{what}, {key:?}: {why}")));
        }
        if tree.insert(path.into(), value.into()).is_some() {
            let text =
                format!("{what}: another object has {key:?}, too; --by-name keeps them apart");
            return Err(Error::Input(text));
        }
    }
    Ok(())
}

fn plain(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

fn base64(text: &str) -> Option<Bytes> {
    // kubectl breaks long lines, and people do.
    let text: String = text.split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, by_name: bool, expected: &[(&str, &[u8])]) {
        let found = read_manifests(text, by_name).unwrap();
        let expected: Inputs = expected
            .iter()
            .map(|(path, value)| {
                let owned = Bytes::copy_from_slice;
                (owned(path.as_bytes()), owned(value).into())
            })
            .collect();
        assert_eq!(found, expected);
    }

    fn check_refused(text: &str, what: &str) {
        let error = read_manifests(text, false).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }

    const TWO: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: nginx, labels: {app: web}}
data:
  nginx.conf: |
    worker_processes 1;
    events {}
  version: "1.0"
binaryData:
  logo: /wA=
---
apiVersion: v1
kind: Secret
metadata:
  name: db
type: Opaque
data:
  password: cGFz
  user: b2xk
stringData:
  user: new
"#;

    #[test]
    fn config_maps_and_secrets_are_read_as_kubernetes_does() {
        let conf: &[u8] = b"worker_processes 1;\nevents {}\n";
        check(
            TWO,
            false,
            &[
                ("logo", b"\xff\0"),
                ("nginx.conf", conf),
                ("password", b"pas"),
                ("user", b"new"),
                ("version", b"1.0"),
            ],
        );
        check(
            TWO,
            true,
            &[
                ("db/password", b"pas"),
                ("db/user", b"new"),
                ("nginx/logo", b"\xff\0"),
                ("nginx/nginx.conf", conf),
                ("nginx/version", b"1.0"),
            ],
        );
    }

    #[test]
    fn json_and_lists_are_read() {
        let list = r#"{"apiVersion":"v1","kind":"List","items":[
            {"kind":"ConfigMap","metadata":{"name":"a"},"data":{"x":"1"}},
            {"kind":"ConfigMap","metadata":{"name":"b"},"data":{"y":"2"}}]}"#;
        check(list, false, &[("x", b"1"), ("y", b"2")]);
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused() {
        check_refused("kind: ConfigMap\ndata: {port: 80}", "quote numbers");
        check_refused("kind: ConfigMap\ndata: {on: true}", "quote numbers");
        check_refused("kind: Secret\ndata: {a: '*'}", "base64");
        check_refused(
            "kind: Deployment\nmetadata: {name: web}",
            "expected ConfigMap",
        );
        check_refused("kind: ConfigMap\ndata: {../../etc/passwd: x}", "..");
        check_refused(
            "kind: ConfigMap\nmetadata: {name: a}",
            "no ConfigMap or Secret with data",
        );
        check_refused("kind: [", "not YAML");
        let same = "kind: ConfigMap\ndata: {a: x}\n---\nkind: ConfigMap\ndata: {a: z}";
        check_refused(same, "--by-name");
    }

    /// Each level of references is ten times the one before: a few lines that become gigabytes.
    #[test]
    fn references_do_not_multiply_without_bound() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let before = level - 1;
            let refs = vec![format!("*a{before}"); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        check_refused(&bomb, "not YAML");
    }
}
