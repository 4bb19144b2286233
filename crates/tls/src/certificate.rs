//! What podkv reads in a certificate: its DNS names, and until when it is good.

use std::time::{SystemTime, UNIX_EPOCH};

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::names;

/// A certificate, as far as podkv looks into it. That it is genuine is rustls's to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    names: Vec<String>,
    /// Seconds since 1970.
    not_before: i64,
    not_after: i64,
}

impl Certificate {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let alternatives = certificate
            .subject_alternative_name()
            .map_err(|error| error.to_string())?;
        let names = alternatives.map_or_else(Vec::new, |extension| {
            let names = extension.value.general_names.iter();
            names
                .filter_map(|name| match name {
                    GeneralName::DNSName(name) => Some((*name).to_owned()),
                    _ => None,
                })
                .collect()
        });
        let validity = certificate.validity();
        Ok(Self {
            names,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }

    /// The DNS names among its subject alternative names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// True if it names that pod: see [`names`].
    pub fn names_pod(&self, pod: &str, domain: Option<&str>) -> bool {
        names::name_pod(&self.names, pod, domain)
    }

    /// Seconds until it expires; negative once it has.
    pub fn expires_in_seconds(&self) -> i64 {
        self.not_after - now()
    }

    /// Why it is of no use now, if so.
    pub(crate) fn outside_its_time(&self) -> Option<String> {
        let now = now();
        if now > self.not_after {
            Some(format!("it expired {} ago", span(now - self.not_after)))
        } else if now < self.not_before {
            let wait = span(self.not_before - now);
            Some(format!("it is not valid yet: its time begins in {wait}"))
        } else {
            None
        }
    }
}

/// A length of time for people.
pub(crate) fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        172_800.. => format!("{} days", seconds / 86_400),
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock before 1970 finds every certificate not valid yet, which is what rustls would say.
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}
