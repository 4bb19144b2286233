//! Certificates, keys and CAs from PEM files, checked before they are used.
//!
//! A refusal names the setting and the file, what is wrong and what would be right.

use std::path::Path;
use std::sync::Arc;

use podkv_api::{Error, Reason, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

use crate::certificate::Certificate;
use crate::error::describe;

pub(crate) const CERT: &str = "tls-cert";
pub(crate) const KEY: &str = "tls-key";
pub(crate) const CA: &str = "tls-ca";

/// gRPC is HTTP/2.
pub(crate) const ALPN: &[u8] = b"h2";
/// Clients without gRPC speak JSON over it.
pub(crate) const ALPN_HTTP1: &[u8] = b"http/1.1";

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A certificate with its key.
pub(crate) struct Pair {
    pub key: Arc<CertifiedKey>,
    pub certificate: Certificate,
}

/// An error that names the setting and its file.
pub(crate) fn bad(setting: &str, path: &Path, what: impl std::fmt::Display) -> Error {
    let text = if path.as_os_str().is_empty() {
        format!("{setting} is not set: {what}")
    } else {
        format!("{setting} {}: {what}", path.display())
    };
    Error::new(Reason::Configuration, text)
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>> {
    if path.as_os_str().is_empty() {
        return Err(bad(setting, path, "expected a PEM file"));
    }
    std::fs::read(path).map_err(|error| bad(setting, path, &error).with_source(error))
}

fn read_certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(setting, path)?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| bad(setting, path, format!("not PEM: {error}")))?;
    if found.is_empty() {
        let what = "no certificate in it; expected PEM with BEGIN CERTIFICATE";
        return Err(bad(setting, path, what));
    }
    Ok(found)
}

/// The CA's certificates, as what others' must chain to.
pub(crate) fn read_roots(path: &Path) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(CA, path)? {
        let added = roots.add(certificate);
        added.map_err(|error| bad(CA, path, format!("not a CA's certificate: {error}")))?;
    }
    Ok(Arc::new(roots))
}

/// A certificate within its time, with the key that belongs to it.
pub(crate) fn read_pair(cert: &Path, key: &Path) -> Result<Pair> {
    let chain = read_certificates(CERT, cert)?;
    let certificate = Certificate::parse(&chain[0])
        .map_err(|error| bad(CERT, cert, format!("not an X.509 certificate: {error}")))?;
    if let Some(why) = certificate.outside_its_time() {
        return Err(bad(CERT, cert, why));
    }
    let text = read(KEY, key)?;
    let private = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        bad(
            KEY,
            key,
            format!("no private key in it, expected PEM: {error}"),
        )
    })?;
    let pair =
        CertifiedKey::from_der(chain, private, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                let what = format!("it is not the key of the certificate in {}", cert.display());
                bad(KEY, key, what)
            }
            error => bad(KEY, key, error),
        })?;
    Ok(Pair {
        key: Arc::new(pair),
        certificate,
    })
}

pub(crate) fn client_verifier(
    roots: &Arc<RootCertStore>,
    ca: &Path,
) -> Result<Arc<dyn ClientCertVerifier>> {
    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(|error| bad(CA, ca, error))
}

/// Asks of a node's own certificate what peers and clients will ask of it: they would refuse it otherwise, one
/// by one and far away from the file that is wrong.
pub(crate) fn check_own(
    pair: &Pair,
    cert: &Path,
    roots: &Arc<RootCertStore>,
    clients: &dyn ClientCertVerifier,
    hosts: &[String],
) -> Result<()> {
    let (leaf, between) = (&pair.key.cert[0], &pair.key.cert[1..]);
    let now = UnixTime::now();
    clients
        .verify_client_cert(leaf, between, now)
        .map_err(|error| bad(CERT, cert, own_fault(&error, "clients")))?;
    let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(|error| bad(CERT, cert, error))?;
    for host in hosts {
        let name = ServerName::try_from(host.as_str()).map_err(|_| {
            let what = format!(
                "{host:?} is neither a DNS name nor an IP address: no certificate can name it"
            );
            bad(CERT, cert, what)
        })?;
        servers
            .verify_server_cert(leaf, between, &name, &[], now)
            .map_err(|error| match error {
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                ) => bad(CERT, cert, not_named(host, &pair.certificate)),
                error => bad(CERT, cert, own_fault(&error, "servers")),
            })?;
    }
    Ok(())
}

/// `what` is not among the names.
pub(crate) fn not_named(what: &str, certificate: &Certificate) -> String {
    format!(
        "it does not name this pod: expected {what} among its subject alternative names; its DNS names are: {}",
        certificate.names().join(", ")
    )
}

fn own_fault(error: &rustls::Error, purpose: &str) -> String {
    match error {
        // A bad signature is a CA of the same name with another key: made anew, for instance.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => {
            format!("it does not chain to a certificate in {CA}")
        }
        rustls::Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => format!(
            "it is not meant for {purpose}; expected both the usages server auth and client auth"
        ),
        rustls::Error::InvalidCertificate(error) => error.to_string(),
        error => describe(error),
    }
}
