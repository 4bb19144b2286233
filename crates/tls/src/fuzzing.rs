//! What is private and read from a peer, for `tests/fuzz`.

use crate::Certificate;

/// What podkv reads in a certificate, DER; `None` if it refuses it.
pub fn certificate(der: &[u8]) -> Option<Certificate> {
    let certificate = Certificate::parse(der).ok()?;
    // Its text is what matters of it; that it can be made is what is tried.
    let _ = certificate.outside_its_time();
    Some(certificate)
}
