//! `podkv cert`: a CA for development, and certificates from it.
//!
//! The CA's key lies in a file beside its certificate, nothing can be revoked, and who has the file is every pod.
//! That is right for a laptop and for a rehearsal. In production certificates come from cert-manager or from the
//! CA that you have; README, "TLS", lists the names that they need.
//!
//! ```text
//!   ca      DIR/ca.crt  DIR/ca.key
//!   node    OUT/tls.crt OUT/tls.key OUT/ca.crt      the names of a Kubernetes TLS secret
//!   client  OUT/tls.crt OUT/tls.key OUT/ca.crt
//! ```

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use podkv_api::{Error, Reason};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::cli::Failure;

pub(crate) const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
pub(crate) const CERT: &str = "tls.crt";
pub(crate) const KEY: &str = "tls.key";

/// Clocks differ a little.
const BACKDATED: Duration = Duration::minutes(5);

/// Where files go, and whether those that are there may be replaced.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub folder: PathBuf,
    pub force: bool,
}

/// What a node is called.
#[derive(Clone, Debug)]
pub(crate) struct NodeNames {
    /// The pod; `*` is every pod of the set.
    pub pod: String,
    /// The headless service first, which pods are named under.
    pub services: Vec<String>,
    pub namespace: String,
    pub cluster_domain: String,
    /// Further names and addresses.
    pub also: Vec<String>,
}

impl NodeNames {
    /// The subject alternative names.
    pub fn all(&self) -> Vec<String> {
        let Self {
            pod,
            services,
            namespace,
            cluster_domain,
            also,
        } = self;
        let mut names = Vec::new();
        if pod != "*" {
            names.push(pod.clone());
        }
        let forms = |service: &String| {
            [
                service.clone(),
                format!("{service}.{namespace}"),
                format!("{service}.{namespace}.svc"),
                format!("{service}.{namespace}.svc.{cluster_domain}"),
            ]
        };
        if let Some(headless) = services.first() {
            names.extend(forms(headless).map(|service| format!("{pod}.{service}")));
        }
        names.extend(services.iter().flat_map(forms));
        names.extend(["localhost", "127.0.0.1", "::1"].map(String::from));
        names.extend(also.iter().cloned());
        names
    }
}

/// Makes a CA.
pub(crate) fn ca(out: &Output, days: u32) -> Result<Vec<PathBuf>, Failure> {
    // Each has a name of its own: a certificate from another one is then from an unknown issuer, and not one with a
    // bad signature.
    let name = format!("podkv development CA {:08x}", rand::random::<u32>());
    let mut params = params(&name, Vec::new(), days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    out.write(&[
        (CA_CERT, certificate.pem(), false),
        (CA_KEY, key.serialize_pem(), true),
    ])
}

/// Makes a node's certificate.
pub(crate) fn node(
    ca: &Path,
    names: &NodeNames,
    out: &Output,
    days: u32,
) -> Result<Vec<PathBuf>, Failure> {
    let mut params = params(&names.pod, names.all(), days)?;
    // A node is the client of its peers.
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    issue(ca, params, out)
}

/// Makes a client's certificate.
pub(crate) fn client(
    ca: &Path,
    name: &str,
    out: &Output,
    days: u32,
) -> Result<Vec<PathBuf>, Failure> {
    let mut params = params(name, Vec::new(), days)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    issue(ca, params, out)
}

fn params(common_name: &str, names: Vec<String>, days: u32) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(i64::from(days));
    Ok(params)
}

fn issue(ca: &Path, mut params: CertificateParams, out: &Output) -> Result<Vec<PathBuf>, Failure> {
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let read = |name: &str| {
        let path = ca.join(name);
        std::fs::read_to_string(&path).map_err(|error| {
            Failure::Io(format!(
                "{}: {error}; `podkv cert ca` makes it",
                path.display()
            ))
        })
    };
    let (ca_cert, ca_key) = (read(CA_CERT)?, read(CA_KEY)?);
    let ca_key = KeyPair::from_pem(&ca_key).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_pem(&ca_cert, ca_key).map_err(failed)?;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    out.write(&[
        (CERT, certificate.pem(), false),
        (KEY, key.serialize_pem(), true),
        (CA_CERT, ca_cert, false),
    ])
}

impl Output {
    /// All of them, or, if one is there already, none. Each appears whole.
    fn write(&self, files: &[(&str, String, bool)]) -> Result<Vec<PathBuf>, Failure> {
        let paths: Vec<PathBuf> = files
            .iter()
            .map(|(name, ..)| self.folder.join(name))
            .collect();
        if !self.force
            && let Some(path) = paths.iter().find(|path| path.exists())
        {
            let text = format!("{} is there already; --force replaces it", path.display());
            return Err(Failure::Io(text));
        }
        std::fs::create_dir_all(&self.folder)
            .map_err(|error| Failure::Io(format!("{}: {error}", self.folder.display())))?;
        for (path, (_, text, private)) in paths.iter().zip(files) {
            self.write_one(path, text, *private)
                .map_err(|error| Failure::Io(format!("{}: {error}", path.display())))?;
        }
        Ok(paths)
    }

    fn write_one(&self, path: &Path, text: &str, private: bool) -> std::io::Result<()> {
        // Made for its owner alone, so that a key is never anybody else's to read.
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(text.as_bytes())?;
        if !private {
            file.as_file()
                .set_permissions(Permissions::from_mode(0o644))?;
        }
        if self.force {
            file.persist(path)?;
        } else {
            file.persist_noclobber(path)?;
        }
        Ok(())
    }
}

fn failed(error: rcgen::Error) -> Failure {
    let text = format!("the certificate cannot be made: {error}");
    Error::new(Reason::InvalidArgument, text)
        .with_source(error)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(folder: &Path, force: bool) -> Output {
        Output {
            folder: folder.to_path_buf(),
            force,
        }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_private_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        ca(&out(folder, false), 10).unwrap();
        assert_eq!(mode(&folder.join(CA_KEY)), 0o600);
        assert_eq!(mode(&folder.join(CA_CERT)), 0o644);
        let before = std::fs::read(folder.join(CA_CERT)).unwrap();
        assert!(ca(&out(folder, false), 10).is_err());
        assert_eq!(std::fs::read(folder.join(CA_CERT)).unwrap(), before);
        ca(&out(folder, true), 10).unwrap();
        assert_ne!(std::fs::read(folder.join(CA_CERT)).unwrap(), before);
        assert_eq!(mode(&folder.join(CA_KEY)), 0o600);
    }

    #[test]
    fn a_node_has_every_form_of_its_names() {
        let mut names = NodeNames {
            pod: "podkv-0".into(),
            services: vec!["podkv-headless".into(), "podkv".into()],
            namespace: "prod".into(),
            cluster_domain: "cluster.local".into(),
            also: vec!["10.0.0.7".into()],
        };
        let all = names.all();
        for expected in [
            "podkv-0",
            "podkv-0.podkv-headless",
            "podkv-0.podkv-headless.prod",
            "podkv-0.podkv-headless.prod.svc",
            "podkv-0.podkv-headless.prod.svc.cluster.local",
            "podkv-headless.prod.svc.cluster.local",
            "podkv.prod",
            "podkv.prod.svc.cluster.local",
            "localhost",
            "127.0.0.1",
            "::1",
            "10.0.0.7",
        ] {
            assert!(all.iter().any(|name| name == expected), "{expected}");
        }
        names.pod = "*".into();
        let all = names.all();
        assert!(all.contains(&"*.podkv-headless.prod.svc.cluster.local".to_string()));
        assert!(!all.contains(&"*".to_string()));
    }
}
