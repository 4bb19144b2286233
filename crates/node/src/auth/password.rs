//! Passwords: hashed with Argon2id, a few at a time.
//!
//! A hash is slow and takes 19 MiB by intent. Anybody may ask for one by trying to log in, so few run at once,
//! beside the async threads, and few more wait: who guesses passwords does not get a node's memory and processors.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use podkv_api::{Error, Reason, Result};
use tokio::sync::Semaphore;

use crate::storage::Workers;

/// Hashes at once. Two keep a pod with one or two processors responsive.
const AT_ONCE: usize = 2;
/// Hashes that may wait: a few seconds of work.
const WAITING: usize = 64;

/// The parameters are the library's defaults, OWASP's: 19 MiB, two passes. They are in each hash, so that
/// others can follow.
const SALT_BYTES: usize = 16;

/// A hash that no password has, for users that do not exist: whether one does is not to be told from the time that
/// the answer takes.
const NOBODYS: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5LW5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The way to hash passwords on a node.
pub(crate) struct Passwords {
    workers: Workers,
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Passwords {
    /// `workers` are whom the node's other work that blocks is given to.
    pub fn new(workers: Workers) -> Self {
        Self {
            workers,
            running: Arc::new(Semaphore::new(AT_ONCE)),
            admitted: Arc::new(Semaphore::new(AT_ONCE + WAITING)),
        }
    }

    /// A new hash, in PHC's string format.
    pub async fn hash(&self, password: String) -> Result<String> {
        let salt: [u8; SALT_BYTES] = rand::random();
        self.run(move || {
            let failed = |error: argon2::password_hash::Error| {
                Error::internal(format!("the password cannot be hashed: {error}"))
            };
            let salt = SaltString::encode_b64(&salt).map_err(failed)?;
            let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
            Ok(hash.map_err(failed)?.to_string())
        })
        .await
    }

    /// Whether the password is the one that was hashed. Without a hash it is not, and that takes as long.
    pub async fn verify(&self, hash: Option<String>, password: String) -> Result<bool> {
        self.run(move || {
            let is_somebodys = hash.is_some();
            let hash = hash.as_deref().unwrap_or(NOBODYS);
            let hash = PasswordHash::new(hash).map_err(|error| {
                let text = format!("the hash of a password cannot be read: {error}");
                Error::new(Reason::Corrupt, text)
            })?;
            let verified = Argon2::default().verify_password(password.as_bytes(), &hash);
            Ok(verified.is_ok() && is_somebodys)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Ok(admitted) = self.admitted.clone().try_acquire_owned() else {
            let text = "too many passwords are being checked on this node: try again";
            return Err(Error::new(Reason::Overloaded, text));
        };
        let stopping = || {
            Error::new(
                Reason::NodeNotReady,
                "the node is stopping: ask another one",
            )
        };
        let running = self.running.clone().acquire_owned().await;
        let running = running.map_err(|_| stopping())?;
        // Whoever asked may go away; the work goes on, and keeps its place until it has ended.
        let work = self.workers.spawn(move || {
            let _places = (admitted, running);
            work()
        });
        work.await.map_err(|_| stopping())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_known_by_its_hash() {
        let passwords = Passwords::new(Workers::default());
        let hash = passwords.hash("secret".into()).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        assert!(!hash.contains("secret"));
        assert_ne!(hash, passwords.hash("secret".into()).await.unwrap());
        let verify = |password: &str| passwords.verify(Some(hash.clone()), password.into());
        assert!(verify("secret").await.unwrap());
        assert!(!verify("Secret").await.unwrap());
        assert!(!verify("").await.unwrap());
    }

    #[tokio::test]
    async fn nobody_has_no_password() {
        let passwords = Passwords::new(Workers::default());
        for guess in ["", "nobody", NOBODYS] {
            assert!(!passwords.verify(None, guess.into()).await.unwrap());
        }
    }

    #[tokio::test]
    async fn those_who_wait_are_few() {
        let passwords = Passwords::new(Workers::default());
        let taken = passwords.admitted.clone();
        let _all = taken
            .acquire_many((AT_ONCE + WAITING) as u32)
            .await
            .unwrap();
        let refused = passwords.verify(None, "x".into()).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::Overloaded);
    }
}
