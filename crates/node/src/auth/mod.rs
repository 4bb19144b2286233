//! Who asks: passwords and tokens. What they may do then is the core's to say.
//!
//! ```text
//!   name, password ─► hash, compared with the one in the state ─► token
//!   token ─► its code, checked with the secret in the state ─► caller ─► every command and read
//! ```
//!
//! Neither a password nor a token ever reaches the log, a file or a line of output.

mod password;
mod token;

use std::sync::atomic::AtomicU64;

pub(crate) use self::password::Passwords;
pub(crate) use self::token::{Claims, new_secret};

/// Calls that were refused because of who asked. Counted since the start.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Wrong names and passwords.
    pub passwords: AtomicU64,
    /// Tokens that do not hold, or no longer.
    pub tokens: AtomicU64,
}
