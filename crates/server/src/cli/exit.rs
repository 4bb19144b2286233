//! Exit codes that scripts can use.

use podkv_api::{Error, ErrorKind};

/// What `podkv` exits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// A defect, a failed disk, or a file that cannot be read or written.
    Failed,
    /// Mend the command.
    Usage,
    /// What was named does not exist.
    NotFound,
    /// A compare failed, or something is in the way.
    Conflict,
    /// Try again later.
    Unavailable,
    /// The write may or may not have been applied.
    Unknown,
    /// Not allowed, or not the cluster that was expected.
    Denied,
    /// Ended by SIGINT, as shells count it.
    Interrupted,
    /// Ended by SIGTERM, as shells count it.
    Terminated,
    /// What the program exited with that `podkv exec` ran.
    Program(u8),
}

/// For the help text.
pub const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 bad command or setting; 3 not found; \
4 compare failed or conflict; 5 unavailable, try again; 6 unknown whether the write was applied; 7 denied or fenced; 130, 143 ended by a signal";

impl Exit {
    /// Whatever was under way is to be left.
    pub fn is_by_signal(self) -> bool {
        matches!(self, Self::Interrupted | Self::Terminated)
    }
}

impl From<&Error> for Exit {
    fn from(error: &Error) -> Self {
        if error.outcome_unknown() {
            return Exit::Unknown;
        }
        match error.kind() {
            ErrorKind::Invalid => Exit::Usage,
            ErrorKind::NotFound | ErrorKind::Compacted => Exit::NotFound,
            ErrorKind::Conflict => Exit::Conflict,
            ErrorKind::Unavailable | ErrorKind::Exhausted => Exit::Unavailable,
            ErrorKind::Denied | ErrorKind::Fenced => Exit::Denied,
            _ => Exit::Failed,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        let code: u8 = match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Conflict => 4,
            Exit::Unavailable => 5,
            Exit::Unknown => 6,
            Exit::Denied => 7,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
            Exit::Program(code) => code,
        };
        code.into()
    }
}
