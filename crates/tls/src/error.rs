//! Why there is no TLS connection, for callers and for people.

use std::error::Error;
use std::io;
use std::time::Duration;

use rustls::AlertDescription;

/// Why a handshake came to nothing. Inside the `io::Error` that a dialling side gets.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The other side does not speak TLS here.
    #[error("{0} does not speak TLS here: it answered in plain text, or hung up")]
    NotTls(String),
    #[error("{0:?} is neither a DNS name nor an IP address, so no certificate can name it")]
    Name(String),
    #[error("TLS with {remote}: {}", describe(source))]
    Handshake {
        remote: String,
        source: rustls::Error,
    },
    #[error("the TLS handshake with {remote} took more than {limit:?}")]
    Timeout { remote: String, limit: Duration },
    #[error("plain text is refused: tls is require")]
    PlainText,
    #[error("neither TLS nor HTTP/2: the first byte is {0:#04x}")]
    Garbage(u8),
    #[error("a certificate that cannot be read: {0}")]
    Certificate(String),
    #[error("TLS with {remote}: {source}")]
    Io { remote: String, source: io::Error },
}

impl TlsError {
    /// The connection ended before it said anything: a probe of a port, or a client that changed its mind.
    pub fn is_silence(&self) -> bool {
        matches!(self, TlsError::Io { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof)
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match &error {
            TlsError::Timeout { .. } => io::ErrorKind::TimedOut,
            TlsError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// What went wrong with TLS, if that is among the causes of `error`.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = explain_one(error) {
            return Some(found);
        }
        // The source of an io::Error is the source of what it holds, not what it holds.
        let held = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if let Some(held) = held
            && let Some(found) = explain(held)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn explain_one(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<TlsError>() {
        return Some(error.to_string());
    }
    error.downcast_ref::<rustls::Error>().map(describe)
}

/// rustls's words, with the side that refused.
pub(crate) fn describe(error: &rustls::Error) -> String {
    use AlertDescription as Alert;
    match error {
        rustls::Error::AlertReceived(alert) => match alert {
            Alert::CertificateRequired => "the other side asks for a certificate".into(),
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::DecryptError
            | Alert::AccessDenied => {
                format!("the other side refused this side's certificate: {alert:?}")
            }
            alert => format!("the other side ended it: {alert:?}"),
        },
        rustls::Error::InvalidCertificate(error) => {
            format!("the certificate of the other side was refused: {error}")
        }
        error => error.to_string(),
    }
}
