//! What a request must be before it is proposed.

use podkv_api::{Error, Limits};

use crate::command::Command;

/// Checks a command against the limits of this node and against all that makes sense without
/// looking at the state. Done before proposing: limits are local, and apply must not depend on them.
pub fn check(_command: &Command, _limits: &Limits) -> Result<(), Error> {
    Ok(())
}
