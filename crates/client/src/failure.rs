//! How an attempt failed: the error, and what became of the request.

use podkv_api::{Error, Reason};
use podkv_proto::convert::{Call, from_status};
use tonic::Status;

/// What became of a request that has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It never left this client: certainly not executed.
    NotSent,
    /// A node answered, with the error. Whether the outcome is known stands in the error.
    Refused,
    /// It was sent, and nothing came back: perhaps executed.
    Lost,
}

#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub error: Error,
    pub fate: Fate,
    /// The token was refused, and the next attempt gets another: see `credentials.rs`.
    pub again: bool,
}

impl Failure {
    pub fn not_sent(error: Error) -> Self {
        Self {
            error,
            fate: Fate::NotSent,
            again: false,
        }
    }

    pub fn refused(error: Error) -> Self {
        Self {
            error,
            fate: Fate::Refused,
            again: false,
        }
    }

    pub fn lost(error: Error) -> Self {
        Self {
            error,
            fate: Fate::Lost,
            again: false,
        }
    }

    /// A call that ended with a status. Outcomes that are unknown only because the answer was lost
    /// are told by the fate, so that reads and writes share this.
    pub fn from_status(status: &Status) -> Self {
        let error = from_status(status, Call::Write);
        if !status.details().is_empty() {
            Self::refused(error)
        } else if error.outcome_unknown() {
            Self::lost(from_status(status, Call::Read))
        } else if error.reason() == Reason::Unreachable {
            Self::not_sent(error)
        } else {
            Self::refused(error)
        }
    }

    /// True if the same request may succeed later or elsewhere.
    pub fn is_retryable(&self) -> bool {
        self.again || self.error.is_retryable()
    }

    /// True if the request may have been executed.
    pub fn maybe_executed(&self) -> bool {
        self.fate == Fate::Lost || self.error.outcome_unknown()
    }
}

/// An answer that arrived and makes no sense. The request was executed, or may have been.
pub(crate) fn corrupt(text: impl Into<String>) -> Failure {
    Failure::lost(Error::new(Reason::Corrupt, text))
}

pub(crate) fn closed() -> Error {
    Error::new(Reason::NodeNotReady, "the client is closed")
}
