//! Tokens: what a caller shows in place of its password.
//!
//! ```text
//!   token  base64url of
//!          +---------+---------------+---------------+----------+------+----------------+
//!          | version | auth revision | user revision | expires  | name | HMAC-SHA-256   |
//!          | u8 = 1  | u64 BE        | u64 BE        | u64 BE   |      | 32 bytes       |
//!          +---------+---------------+---------------+----------+------+----------------+
//!          the code is over all before it, with the secret that every replica has
//! ```
//!
//! No node remembers tokens: each checks them by itself, after a restart and a change of leader, too. One ends with its
//! time (by the nodes' own clocks, in seconds since 1970), with the password that it was given for, with its user, and
//! with auth being disabled.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes};
use hmac::{Hmac, Mac};
use sha2::Sha256;

const VERSION: u8 = 1;
const CODE_BYTES: usize = 32;
/// What stands before the name.
const HEAD_BYTES: usize = 1 + 3 * 8;
/// A longer one is not ours: names have at most 1024 bytes.
const MAX_TOKEN_BYTES: usize = 2048;

/// What a token says. Nothing of it counts before [`Claims::hold`].
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    /// That of the state when the token was made: a node whose state is older cannot judge it.
    pub auth_revision: u64,
    /// See [`podkv_core::Caller`].
    pub user_revision: u64,
    pub expires: u64,
    pub name: String,
}

/// A claim that came with a code.
pub(crate) struct Shown {
    pub claims: Claims,
    signed: Vec<u8>,
}

impl Claims {
    pub fn token(&self, secret: &[u8]) -> String {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.name.len() + CODE_BYTES);
        bytes.put_u8(VERSION);
        bytes.put_u64(self.auth_revision);
        bytes.put_u64(self.user_revision);
        bytes.put_u64(self.expires);
        bytes.put_slice(self.name.as_bytes());
        let code = code(secret, &bytes).finalize().into_bytes();
        bytes.put_slice(&code);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// `None` if it is no token of ours, whoever made it.
    pub fn read(token: &str) -> Option<Shown> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let signed = URL_SAFE_NO_PAD.decode(token).ok()?;
        let content = signed.get(..signed.len().checked_sub(CODE_BYTES)?)?;
        let (head, name) = content.split_at_checked(HEAD_BYTES)?;
        let number = |at: usize| {
            let bytes = head.get(at..)?.first_chunk::<8>()?;
            Some(u64::from_be_bytes(*bytes))
        };
        if *head.first()? != VERSION {
            return None;
        }
        let claims = Claims {
            auth_revision: number(1)?,
            user_revision: number(9)?,
            expires: number(17)?,
            name: String::from_utf8(name.to_vec()).ok()?,
        };
        Some(Shown { claims, signed })
    }
}

impl Shown {
    /// The claims, if they were made with this secret and are not over. `now` is in seconds since 1970.
    pub fn check(self, secret: &[u8], now: u64) -> Option<Claims> {
        let (content, shown) = self
            .signed
            .split_at_checked(self.signed.len().checked_sub(CODE_BYTES)?)?;
        // Without a secret anybody could make the code.
        if secret.is_empty() || code(secret, content).verify_slice(shown).is_err() {
            return None;
        }
        (now < self.claims.expires).then_some(self.claims)
    }
}

fn code(secret: &[u8], content: &[u8]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut code = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length");
    code.update(content);
    code
}

/// For tokens that are yet to be made.
pub(crate) fn new_secret() -> Bytes {
    Bytes::copy_from_slice(&rand::random::<[u8; 32]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            auth_revision: 7,
            user_revision: 5,
            expires: 1000,
            name: "alice".into(),
        }
    }

    #[test]
    fn a_token_holds_until_it_expires() {
        let token = claims().token(b"secret");
        let check = |now| Claims::read(&token).unwrap().check(b"secret", now);
        assert!(check(999).is_some_and(|found| found == claims()));
        assert!(check(1000).is_none());
    }

    #[test]
    fn another_secret_or_none_opens_nothing() {
        let token = claims().token(b"secret");
        for other in [&b"Secret"[..], b""] {
            assert!(Claims::read(&token).unwrap().check(other, 0).is_none());
        }
        let made_without = claims().token(b"");
        assert!(Claims::read(&made_without).unwrap().check(b"", 0).is_none());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let token = URL_SAFE_NO_PAD.decode(claims().token(b"secret")).unwrap();
        let holds = |bytes: &[u8]| {
            Claims::read(&URL_SAFE_NO_PAD.encode(bytes))
                .and_then(|shown| shown.check(b"secret", 0))
                .is_some()
        };
        assert!(holds(&token));
        for bit in 0..token.len() * 8 {
            let mut flipped = token.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!holds(&flipped), "bit {bit}");
        }
        for cut in 0..token.len() {
            assert!(!holds(&token[..cut]), "{cut}");
        }
        for foreign in ["", "x", "not base64!", &"A".repeat(5000)] {
            assert!(Claims::read(foreign).is_none());
        }
    }
}
