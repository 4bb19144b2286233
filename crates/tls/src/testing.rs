//! Certificates for tests: good ones, and wrong in every way.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::{TlsConfig, TlsMode};

/// A CA that lives as long as the test.
pub struct TestCa(CertifiedIssuer<'static, KeyPair>);

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub names: Vec<String>,
    /// Its time, in days from now.
    pub days: Range<i64>,
    pub for_servers: bool,
    pub for_clients: bool,
}

impl Leaf {
    /// Good in every way.
    pub fn new(names: &[&str]) -> Self {
        Self {
            names: names.iter().map(ToString::to_string).collect(),
            days: -1..30,
            for_servers: true,
            for_clients: true,
        }
    }
}

/// Where [`TestCa::install`] puts the files, as a node's settings.
pub fn config(folder: &Path, mode: TlsMode) -> TlsConfig {
    TlsConfig {
        mode,
        cert: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        ca: folder.join("ca.crt"),
        ..TlsConfig::default()
    }
}

// Constant input: a failure here is a failed test.
#[expect(clippy::new_without_default, reason = "each is another CA")]
impl TestCa {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut params = CertificateParams::default();
        // Each has a name of its own: else a foreign certificate would have a bad signature, not an unknown issuer.
        let name = format!("test CA {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a CA"))
    }

    /// The CA's certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate and its key, in PEM.
    pub fn issue(&self, leaf: &Leaf) -> (String, String) {
        let mut params = CertificateParams::new(leaf.names.clone()).expect("names");
        let now = OffsetDateTime::now_utc();
        params.not_before = now + Duration::days(leaf.days.start);
        params.not_after = now + Duration::days(leaf.days.end);
        for (wanted, usage) in [
            (leaf.for_servers, ExtendedKeyUsagePurpose::ServerAuth),
            (leaf.for_clients, ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            if wanted {
                params.extended_key_usages.push(usage);
            }
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// Issues into a folder: tls.crt, tls.key, ca.crt. Each is renamed over what was there.
    pub fn install(&self, folder: &Path, leaf: &Leaf) {
        let (cert, key) = self.issue(leaf);
        std::fs::create_dir_all(folder).expect("a folder");
        for (name, text) in [("tls.crt", cert), ("tls.key", key), ("ca.crt", self.pem())] {
            replace(&folder.join(name), &text);
        }
    }
}

/// Renames a new file over what was there.
pub fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).expect("a file");
    std::fs::rename(&next, path).expect("a rename");
}
