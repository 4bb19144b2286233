//! How long a caller waits, from gRPC's `grpc-timeout`.

use std::time::Duration;

use podkv_api::{Error, Reason, Result};
use tonic::metadata::MetadataMap;

/// The time for a call: what the caller said, up to `max`. `None` if it said nothing: the node has a
/// limit of its own.
///
/// A tenth of it, up to 100 ms, is kept for the way back: our answer knows whether a write may have been
/// applied, and the caller's own timer, which would be first otherwise, does not.
pub(crate) fn deadline(metadata: &MetadataMap, max: Duration) -> Result<Option<Duration>> {
    let Some(value) = metadata.get("grpc-timeout") else {
        return Ok(None);
    };
    let timeout = value.to_str().ok().and_then(parse).ok_or_else(|| {
        let text =
            format!("grpc-timeout: {value:?}; expected up to 8 digits and H, M, S, m, u or n");
        Error::new(Reason::InvalidArgument, text)
    })?;
    let way_back = (timeout / 10).min(Duration::from_millis(100));
    Ok(Some((timeout - way_back).min(max)))
}

/// As gRPC over HTTP/2 defines it: at most 8 digits, then a unit.
fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(60);

    fn of(value: &'static str) -> Result<Option<Duration>> {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", value.parse().unwrap());
        deadline(&metadata, MAX)
    }

    #[test]
    fn keeps_time_for_the_way_back() {
        assert_eq!(deadline(&MetadataMap::new(), MAX).unwrap(), None);
        assert_eq!(of("5S").unwrap(), Some(Duration::from_millis(4900)));
        assert_eq!(of("100m").unwrap(), Some(Duration::from_millis(90)));
        assert_eq!(of("1000000n").unwrap(), Some(Duration::from_micros(900)));
        assert_eq!(of("0m").unwrap(), Some(Duration::ZERO));
        assert_eq!(of("99999999H").unwrap(), Some(MAX));
    }

    #[test]
    fn refuses_what_grpc_does_not_define() {
        for bad in [
            "",
            "S",
            "5",
            "5s",
            "-5S",
            "+5S",
            "123456789m",
            "5 S",
            "5.5S",
        ] {
            assert_eq!(
                of(bad).unwrap_err().reason(),
                Reason::InvalidArgument,
                "{bad:?}"
            );
        }
    }
}
