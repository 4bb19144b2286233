//! Whether a command speaks TLS, and with what files.
//!
//! The three files have one name each, for `serve` and for the commands that call it: `--tls-ca`, `--tls-cert`,
//! `--tls-key`, or `PODKV_TLS_CA` and so on. So in a pod, where the variables are set for the node, `kubectl exec …
//! podkv status` finds them too: it checks the node against the same CA, and shows the node's own certificate if
//! it is asked for one.
//!
//! A CA means TLS; there is no setting beside it that could disagree. Only `PODKV_TLS=off`, which says that the node
//! does not speak TLS, makes a command leave aside a CA that comes from the environment.

use std::collections::BTreeMap;

use podkv_client::TlsOptions;

use super::args::TlsArgs;
use crate::settings::{TLS, TLS_CA, TLS_CERT, TLS_KEY};

/// The TLS of a command that calls a cluster. `variable` reads the environment.
pub(super) fn options(
    args: TlsArgs,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<TlsOptions> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let from_environment = |setting: &crate::settings::Setting| {
        let is_off = variable(&TLS.variable()).is_some_and(|mode| mode == "off");
        let wanted = args.tls_ca.is_some() || !is_off;
        wanted
            .then(|| variable(&setting.variable()))
            .flatten()
            .map(Into::into)
    };
    let ca = args.tls_ca.clone().or_else(|| from_environment(&TLS_CA));
    let cert = args.tls_cert.clone();
    let key = args.tls_key.clone();
    // A pair from one place: a flag's certificate with the environment's key would be nobody's.
    let (cert, key) = match (cert, key) {
        (None, None) => (from_environment(&TLS_CERT), from_environment(&TLS_KEY)),
        pair => pair,
    };
    if ca.is_none() && args.tls_cert.is_none() && args.tls_key.is_none() {
        return None;
    }
    Some(TlsOptions {
        // Without one the client says that it is not set.
        ca: ca.unwrap_or_default(),
        cert,
        key,
        server_name: args.tls_server_name.clone(),
    })
}

/// The same flags as settings of `serve`.
pub(super) fn serve_flags(args: &TlsArgs, flags: &mut BTreeMap<&'static str, String>) {
    for (setting, value) in [
        (&TLS_CA, &args.tls_ca),
        (&TLS_CERT, &args.tls_cert),
        (&TLS_KEY, &args.tls_key),
    ] {
        if let Some(value) = value {
            flags.insert(setting.name, value.display().to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[(&str, &str)], variables: &[(&str, &str)]) -> Option<TlsOptions> {
        let flag = |name: &str| {
            let found = args.iter().find(|(flag, _)| *flag == name);
            found.map(|(_, value)| value.into())
        };
        let args = TlsArgs {
            tls_ca: flag("ca"),
            tls_cert: flag("cert"),
            tls_key: flag("key"),
            tls_server_name: None,
        };
        options(args, |name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_string())
        })
    }

    #[test]
    fn a_ca_means_tls() {
        assert_eq!(of(&[], &[]), None);
        assert_eq!(of(&[], &[("PODKV_TLS_CA", "")]), None);
        assert!(of(&[("ca", "/ca")], &[]).is_some());
        let in_pod = [
            ("PODKV_TLS", "allow"),
            ("PODKV_TLS_CA", "/e/ca"),
            ("PODKV_TLS_CERT", "/e/crt"),
            ("PODKV_TLS_KEY", "/e/key"),
        ];
        let found = of(&[], &in_pod).unwrap();
        assert_eq!(found.ca.to_str(), Some("/e/ca"));
        assert_eq!(found.cert.unwrap().to_str(), Some("/e/crt"));
        assert_eq!(found.key.unwrap().to_str(), Some("/e/key"));
    }

    #[test]
    fn off_leaves_the_environment_aside_and_not_the_flags() {
        let off = [("PODKV_TLS", "off"), ("PODKV_TLS_CA", "/e/ca")];
        assert_eq!(of(&[], &off), None);
        assert_eq!(
            of(&[("ca", "/f/ca")], &off).unwrap().ca.to_str(),
            Some("/f/ca")
        );
    }

    #[test]
    fn a_pair_comes_from_one_place() {
        let variables = [
            ("PODKV_TLS_CA", "/e/ca"),
            ("PODKV_TLS_CERT", "/e/crt"),
            ("PODKV_TLS_KEY", "/e/key"),
        ];
        let found = of(&[("cert", "/f/crt")], &variables).unwrap();
        assert_eq!(found.cert.unwrap().to_str(), Some("/f/crt"));
        assert_eq!(found.key, None);
    }
}
