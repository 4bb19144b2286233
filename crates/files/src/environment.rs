//! Which environment variables a set of keys means. Pure.
//!
//! ```text
//!   app/LOG_LEVEL       ─► LOG_LEVEL
//!   app/db/host.name    ─► db_host_name       "/", "-" and "." become "_"
//!   app/1ST             ─✗ a name does not begin with a digit
//!   app/a.b  app/a-b    ─✗ both would be a_b: neither is set
//! ```

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use podkv_api::KeyValue;
use podkv_api::large::Manifest;

use crate::plan::is_import_marker;

/// Names with values.
pub type Variables = BTreeMap<String, Bytes>;

/// What a set of keys comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    pub variables: Variables,
    /// Keys that are no variables, with why.
    pub refused: Vec<(Bytes, Refusal)>,
    /// See [`Plan::importing`](crate::Plan::importing).
    pub importing: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Empty, beginning with a digit, or with a byte that no name has.
    Name,
    /// Another key has the same name.
    Twice,
    /// The value holds a NUL byte.
    Nul,
    /// The value is larger than a request.
    Large,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Name => "not a name: letters, digits and _, not a digit first; / - . become _",
            Refusal::Twice => "another key would have the same name",
            Refusal::Nul => "the value holds a NUL byte",
            Refusal::Large => {
                "a large value, which no environment can hold; project writes it as a file"
            }
        })
    }
}

/// Reads `keys`, all of which begin with `prefix`. With `upper`, letters become capitals.
pub fn environment<'k>(
    prefix: &str,
    keys: impl IntoIterator<Item = &'k KeyValue>,
    upper: bool,
) -> Environment {
    let mut result = Environment::default();
    let mut named: BTreeMap<String, Vec<&KeyValue>> = BTreeMap::new();
    for kv in keys {
        let path = kv.key.get(prefix.len()..).unwrap_or_default();
        if is_import_marker(path) {
            result.importing.get_or_insert_with(|| kv.key.clone());
            continue;
        }
        match name(path, upper) {
            None => result.refused.push((kv.key.clone(), Refusal::Name)),
            // One of a later format is none less large.
            Some(_) if !matches!(Manifest::decode(&kv.value), Ok(None)) => {
                result.refused.push((kv.key.clone(), Refusal::Large));
            }
            Some(_) if kv.value.contains(&0) => result.refused.push((kv.key.clone(), Refusal::Nul)),
            Some(name) => named.entry(name).or_default().push(kv),
        }
    }
    for (name, kvs) in named {
        match kvs.as_slice() {
            [kv] => {
                result.variables.insert(name, kv.value.clone());
            }
            several => {
                let keys = several.iter().map(|kv| (kv.key.clone(), Refusal::Twice));
                result.refused.extend(keys);
            }
        }
    }
    result.refused.sort_by(|a, b| a.0.cmp(&b.0));
    result
}

fn name(path: &[u8], upper: bool) -> Option<String> {
    let mut name = String::with_capacity(path.len());
    for byte in path {
        match byte {
            b'/' | b'-' | b'.' => name.push('_'),
            b'_' | b'0'..=b'9' | b'A'..=b'Z' => name.push(char::from(*byte)),
            b'a'..=b'z' if upper => name.push(char::from(byte.to_ascii_uppercase())),
            b'a'..=b'z' => name.push(char::from(*byte)),
            _ => return None,
        }
    }
    match name.bytes().next() {
        None | Some(b'0'..=b'9') => None,
        Some(_) => Some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        keys: &[(&str, &str)],
        upper: bool,
        expected: &[(&str, &str)],
        refused: &[(&str, Refusal)],
    ) {
        let kvs: Vec<KeyValue> = keys
            .iter()
            .map(|(key, value)| KeyValue {
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: Bytes::copy_from_slice(value.as_bytes()),
                create_revision: 1,
                mod_revision: 1,
                version: 1,
                lease: None,
                expires_at_ms: None,
            })
            .collect();
        let found = environment("app/", &kvs, upper);
        let variables: Vec<(&str, &[u8])> = found
            .variables
            .iter()
            .map(|(name, value)| (name.as_str(), &value[..]))
            .collect();
        let expected: Vec<(&str, &[u8])> = expected
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect();
        assert_eq!(variables, expected);
        let said: Vec<(String, Refusal)> = found
            .refused
            .iter()
            .map(|(key, why)| (key.escape_ascii().to_string(), *why))
            .collect();
        let refused: Vec<(String, Refusal)> = refused
            .iter()
            .map(|(key, why)| ((*key).to_owned(), *why))
            .collect();
        assert_eq!(said, refused);
    }

    #[test]
    fn keys_are_names() {
        check(
            &[("app/A", "1"), ("app/db/host.name", "x=y")],
            false,
            &[("A", "1"), ("db_host_name", "x=y")],
            &[],
        );
        check(&[("app/db-host", "1")], true, &[("DB_HOST", "1")], &[]);
    }

    #[test]
    fn a_large_value_is_no_variable() {
        let manifest = Manifest {
            upload: podkv_api::large::UploadId(7),
            bytes: 5_000_000,
            chunk_bytes: 1 << 20,
            sha256: [b'a'; 32],
        };
        let kv = KeyValue {
            key: "app/A".into(),
            value: manifest.encode(),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: None,
            expires_at_ms: None,
        };
        let found = environment("app/", [&kv], false);
        assert_eq!(found.refused, [(kv.key.clone(), Refusal::Large)]);
        assert!(found.variables.is_empty());
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        check(
            &[
                ("app/", "1"),
                ("app/1st", "1"),
                ("app/a b", "1"),
                ("app/a=b", "1"),
                ("app/n", "a\0b"),
                ("app/ok", ""),
            ],
            false,
            &[("ok", "")],
            &[
                ("app/", Refusal::Name),
                ("app/1st", Refusal::Name),
                ("app/a b", Refusal::Name),
                ("app/a=b", Refusal::Name),
                ("app/n", Refusal::Nul),
            ],
        );
        check(
            &[("app/a-b", "1"), ("app/a.b", "2"), ("app/c", "3")],
            false,
            &[("c", "3")],
            &[("app/a-b", Refusal::Twice), ("app/a.b", Refusal::Twice)],
        );
    }
}
