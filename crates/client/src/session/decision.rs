//! What a failed attempt means for its call. A pure function: the table below is its test.
//!
//! ```text
//!   the attempt ended with               reads      in a session           neither
//!   ---------------------------------    -------    -------------------    -----------------
//!   not sent                             again      again                  again
//!   lost: sent, no answer                again      again, maybe executed  fail, unknown
//!   refused, retryable, known            again      again                  again
//!   refused, retryable, unknown          again      again, maybe executed  fail, unknown
//!   refused: no such session
//!     nothing of it maybe executed       -          new session            -
//!     something maybe executed           -          fail, unknown          -
//!   refused: an outcome of the command   fail       fail, known            fail, known
//!   refused: anything else               fail       fail, unknown if       fail, unknown if
//!                                                   maybe executed         the error says so
//! ```
//!
//! "An outcome of the command" is what apply itself decides. Apply looks into the session first, so a
//! repeated write gets the first outcome again: such an answer is certain whatever happened to the
//! earlier attempts. A refusal at a node's door (too large, no space) says nothing about them. Whether a write is allowed
//! is decided by apply, too.
//!
//! A token that was refused makes any attempt worth repeating, with another token: nothing was executed.
//!
//! "No such session" certainly means "not executed" on the first attempt only. A write that is executed renews its
//! session, and a call ends long before a session does; so this comes after a maybe-executed attempt
//! only if the session was lost, and what was done in it is lost with it.

use podkv_api::Reason;

use crate::failure::{Failure, Fate};

/// Why a call may be sent more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or the same thing again.
    Freely,
    /// It carries a stamp.
    InSession,
    /// Only if it was certainly not executed.
    IfNotExecuted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send the same again.
    Again {
        maybe_executed: bool,
    },
    /// Open another session, take a new stamp, send again.
    NewSession,
    Fail {
        outcome_unknown: bool,
    },
}

/// `maybe_executed` speaks of the attempts before this one.
pub(crate) fn decide(repeat: Repeat, maybe_executed: bool, failure: &Failure) -> Verdict {
    let error = &failure.error;
    let maybe_executed = maybe_executed || failure.maybe_executed();
    match repeat {
        Repeat::Freely if failure.is_retryable() => Verdict::Again {
            maybe_executed: false,
        },
        Repeat::Freely => Verdict::Fail {
            outcome_unknown: false,
        },
        Repeat::IfNotExecuted if failure.is_retryable() && !maybe_executed => Verdict::Again {
            maybe_executed: false,
        },
        Repeat::IfNotExecuted => Verdict::Fail {
            outcome_unknown: maybe_executed,
        },
        // That of somebody else is none: it was opened before this caller had a name, or under another.
        Repeat::InSession
            if matches!(
                error.reason(),
                Reason::SessionNotFound | Reason::SessionIdentity
            ) && !maybe_executed =>
        {
            Verdict::NewSession
        }
        Repeat::InSession if failure.is_retryable() => Verdict::Again { maybe_executed },
        Repeat::InSession => Verdict::Fail {
            outcome_unknown: maybe_executed && !is_outcome(failure),
        },
    }
}

/// True if only the execution of the command can have come to this error. Reasons that a node may also
/// give at its door, by its own limits, are not among them.
fn is_outcome(failure: &Failure) -> bool {
    failure.fate == Fate::Refused
        && !failure.error.outcome_unknown()
        && matches!(
            failure.error.reason(),
            Reason::LeaseNotFound
                | Reason::LeaseExists
                | Reason::KeyNotFound
                | Reason::Compacted
                | Reason::FutureRevision
                | Reason::PermissionDenied
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use podkv_api::Error;

    fn error(reason: Reason) -> Error {
        Error::new(reason, "")
    }

    const AGAIN: Verdict = Verdict::Again {
        maybe_executed: false,
    };
    const AGAIN_MAYBE: Verdict = Verdict::Again {
        maybe_executed: true,
    };
    const FAIL: Verdict = Verdict::Fail {
        outcome_unknown: false,
    };
    const FAIL_UNKNOWN: Verdict = Verdict::Fail {
        outcome_unknown: true,
    };

    #[test]
    fn the_table() {
        let not_sent = Failure::not_sent(error(Reason::Unreachable));
        let lost = Failure::lost(error(Reason::Unreachable));
        let no_leader = Failure::refused(error(Reason::NoLeader));
        let unknown = Failure::refused(error(Reason::LeaderChanged).with_unknown_outcome());
        let no_session = Failure::refused(error(Reason::SessionNotFound));
        let no_session_unknown =
            Failure::refused(error(Reason::SessionNotFound).with_unknown_outcome());
        let no_lease = Failure::refused(error(Reason::LeaseNotFound));
        let too_large = Failure::refused(error(Reason::RequestTooLarge));
        let no_space = Failure::refused(error(Reason::NoSpace));
        let garbled = Failure::lost(error(Reason::Corrupt));

        // The failure, then: a read; in a session, first attempt and after a maybe-executed one; neither.
        let table = [
            (&not_sent, AGAIN, AGAIN, AGAIN_MAYBE, AGAIN),
            (&lost, AGAIN, AGAIN_MAYBE, AGAIN_MAYBE, FAIL_UNKNOWN),
            (&no_leader, AGAIN, AGAIN, AGAIN_MAYBE, AGAIN),
            (&unknown, AGAIN, AGAIN_MAYBE, AGAIN_MAYBE, FAIL_UNKNOWN),
            (&no_session, FAIL, Verdict::NewSession, FAIL_UNKNOWN, FAIL),
            (
                &no_session_unknown,
                FAIL,
                FAIL_UNKNOWN,
                FAIL_UNKNOWN,
                FAIL_UNKNOWN,
            ),
            (&no_lease, FAIL, FAIL, FAIL, FAIL),
            (&too_large, FAIL, FAIL, FAIL_UNKNOWN, FAIL),
            (&no_space, FAIL, FAIL, FAIL_UNKNOWN, FAIL),
            (&garbled, FAIL, FAIL_UNKNOWN, FAIL_UNKNOWN, FAIL_UNKNOWN),
        ];
        for (failure, read, first, later, neither) in table {
            assert_eq!(decide(Repeat::Freely, false, failure), read, "{failure:?}");
            assert_eq!(
                decide(Repeat::InSession, false, failure),
                first,
                "{failure:?}"
            );
            assert_eq!(
                decide(Repeat::InSession, true, failure),
                later,
                "{failure:?}"
            );
            assert_eq!(
                decide(Repeat::IfNotExecuted, false, failure),
                neither,
                "{failure:?}"
            );
        }
    }

    #[test]
    fn once_maybe_executed_a_write_never_counts_as_not_executed_again() {
        // Whatever comes after a lost attempt, only an outcome of the command is certain.
        for code in 1..=46 {
            let reason = Reason::from_code(code);
            for failure in [
                Failure::refused(error(reason)),
                Failure::lost(error(reason)),
                Failure::not_sent(error(reason)),
            ] {
                match decide(Repeat::InSession, true, &failure) {
                    Verdict::Again { maybe_executed } => assert!(maybe_executed, "{failure:?}"),
                    Verdict::Fail { outcome_unknown } => {
                        assert!(outcome_unknown || is_outcome(&failure), "{failure:?}");
                    }
                    Verdict::NewSession => panic!("{failure:?} would be executed twice"),
                }
            }
        }
    }
}
