//! Formats and parsers that are private, as `tests/fuzz` sees them: bytes in, bytes out.

use podkv_core::fuzzing::Format;

use crate::auth::Claims;

/// Everything that has bytes of its own in this crate. Corpora name a format by its place: append only.
pub const FORMATS: [&[Format]; 2] = [crate::raft::FORMATS, crate::identity::FORMATS];

/// Reads a token. `Some` with what a node with `secret` would have issued for the same claims, and whether it lets this
/// one in at `now`.
pub fn token(token: &str, secret: &[u8], now: u64) -> Option<(String, bool)> {
    let shown = Claims::read(token)?;
    let issued = shown.claims.token(secret);
    Some((issued, shown.check(secret, now).is_some()))
}
