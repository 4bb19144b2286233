//! What happened in a run, as far as anybody outside the nodes could see.
//!
//! Every call is noted with the moment just before it was sent and the moment just after its answer was there, on
//! one monotonic clock. So if one call's `returned` is before another's `invoked`, the first really was over
//! before the second began. The converse is not claimed.
//!
//! **A failed write is unknown, unless its error says that it was certainly not applied.** [`Outcome`] keeps the
//! two apart, and no checker may read an unknown one as absent.
//!
//! **A value is written by one call alone.** Drivers put the call's id into it. That is how a checker finds out
//! whose write it is that a replica holds, whatever became of the answer.
//!
//! At rest a history is one JSON record a line: `setup` first, then the others in any order. See
//! [`History::save`].

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Since the run began, on one monotonic clock.
pub type Nanos = u64;
pub type Revision = u64;

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    pub setup: Setup,
    pub calls: Vec<Call>,
    pub watches: Vec<WatchStream>,
    pub holds: Vec<Hold>,
    pub large: Vec<LargeCall>,
    pub sightings: Vec<Sighting>,
    pub replicas: Vec<Replica>,
    pub rewound: Vec<Rewound>,
    pub faults: Vec<Fault>,
}

/// What the run was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    pub seed: u64,
    /// The command that plays it again.
    pub command: String,
    /// Keys with these prefixes are written by what is not recorded as calls: the lock recipe's queue. Whose
    /// writes they are is not asked; everything else about them is.
    pub foreign: Vec<String>,
}

impl Setup {
    pub fn is_foreign(&self, key: &str) -> bool {
        self.foreign
            .iter()
            .any(|prefix| key.starts_with(prefix.as_str()))
    }
}

/// One call of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Unique in the run.
    pub id: u64,
    pub client: u32,
    /// Before it was sent.
    pub invoked: Nanos,
    /// After its answer, or its error, was there. Means nothing if the outcome is unknown.
    pub returned: Nanos,
    pub action: Action,
    pub outcome: Outcome,
    /// It was sent under a lock: its compares hold only while that lock is held.
    pub fence: Option<Fence>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// If all compares hold, `then`, else `or_else`, all at one revision. A single put, delete or read is one
    /// step without compares.
    Run {
        compare: Vec<Compare>,
        then: Vec<Step>,
        or_else: Vec<Step>,
        consistency: Consistency,
    },
    Grant {
        lease: i64,
        ttl_ms: u64,
    },
    KeepAlive {
        lease: i64,
    },
    Revoke {
        lease: i64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    Linearizable,
    /// What the node had, however old.
    Local,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Put {
        key: String,
        value: String,
        lease: Option<i64>,
        ttl_ms: Option<u64>,
    },
    Delete {
        key: String,
    },
    Get {
        key: String,
    },
    /// The keys `k` with `start <= k < end`.
    Scan {
        start: String,
        end: String,
    },
}

/// A condition on one key. A key that does not exist has revisions 0, and no value that equals anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    Value { key: String, equals: String },
    Created { key: String, equals: Revision },
    Modified { key: String, equals: Revision },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    Ok {
        /// Not every call's answer has one.
        header: Option<Header>,
        answer: Answer,
    },
    /// Certainly not applied, by the store's own contract of errors.
    Refused { reason: String },
    /// It may have been applied, or may be yet.
    Unknown { reason: String },
}

/// Comes with an answer: the state that it speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub cluster: u64,
    pub incarnation: u64,
    pub member: u64,
    pub term: u64,
    /// Of a write that changed something: the revision that it made. Else: that of the state that was read.
    pub revision: Revision,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Ran {
        /// Every compare held.
        succeeded: bool,
        /// One for each step of the branch that ran.
        results: Vec<StepResult>,
    },
    Granted {
        ttl_ms: u64,
    },
    KeptAlive {
        ttl_ms: u64,
        remaining_ms: u64,
    },
    Revoked,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepResult {
    Put,
    Deleted(u64),
    Read(Vec<KeyValue>),
}

/// A key as somebody saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    pub key: String,
    pub value: String,
    pub created: Revision,
    pub modified: Revision,
    pub version: u64,
    pub lease: Option<i64>,
    /// It has a deadline of its own.
    pub has_ttl: bool,
}

/// The lock under which a call was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    pub lock: String,
    pub token: Revision,
}

/// A watch, from the call to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchStream {
    pub client: u32,
    /// The keys `k` with `start <= k < end`.
    pub start: String,
    pub end: String,
    pub messages: Vec<(Nanos, WatchMessage)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WatchMessage {
    /// Every change from `start_revision` on will be told.
    Created {
        start_revision: Revision,
    },
    List {
        revision: Revision,
        kvs: Vec<KeyValue>,
    },
    Listed {
        revision: Revision,
    },
    Events {
        revision: Revision,
        events: Vec<Event>,
    },
    /// Everything up to here was told.
    Bookmark {
        revision: Revision,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    Put(KeyValue),
    Delete { key: String },
}

impl Event {
    pub fn key(&self) -> &str {
        match self {
            Event::Put(kv) => &kv.key,
            Event::Delete { key } => key,
        }
    }
}

/// A lock that was held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    pub lock: String,
    pub client: u32,
    /// Before it was asked for.
    pub asked: Nanos,
    /// After it was there.
    pub acquired: Nanos,
    /// The last moment of which the holder knows that it surely held the lock; read off the clock before asking.
    pub confirmed: Nanos,
    pub token: Revision,
}

/// A call for a key whose values may be too long for a request. Its writes are not among [`History::calls`]: each is many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LargeCall {
    pub id: u64,
    pub client: u32,
    pub invoked: Nanos,
    /// Means nothing if the outcome is unknown.
    pub returned: Nanos,
    pub key: String,
    pub action: LargeAction,
    pub outcome: LargeOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LargeAction {
    /// No two calls put the same content.
    Put(Content),
    Delete,
    Get,
}

/// A value, as far as it is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Content {
    pub bytes: u64,
    /// In hexadecimal.
    pub sha256: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LargeOutcome {
    /// The state after it is of this revision.
    Wrote {
        revision: Revision,
    },
    /// The revision at which the key was last written.
    Found {
        content: Content,
        modified: Revision,
    },
    NotFound,
    /// Certainly not applied; of a read: it came to nothing.
    Refused {
        reason: String,
    },
    Unknown {
        reason: String,
    },
}

/// What a node said of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sighting {
    /// Before it was asked.
    pub asked: Nanos,
    pub seen: Nanos,
    pub node: String,
    pub header: Header,
    pub leader: Option<u64>,
}

/// What a replica holds at the end, asked of it alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Replica {
    pub node: String,
    /// The revision that all of this is of.
    pub revision: Revision,
    /// All changes since the store was empty, in the order in which it told them.
    pub changes: Vec<Change>,
    /// Every key at `revision`, in key order.
    pub keys: Vec<KeyValue>,
    /// The node's own digest of its data at some revisions.
    pub digests: Vec<(Revision, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub revision: Revision,
    pub events: Vec<Event>,
}

/// What was done to the cluster. For people: no checker looks at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub at: Nanos,
    pub what: String,
}

/// The volume of a node was put back to an earlier state, while the node was down: what its id knew since is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewound {
    pub at: Nanos,
    pub node: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Setup(Setup),
    Call(Call),
    Watch(WatchStream),
    Hold(Hold),
    Large(LargeCall),
    Sighting(Sighting),
    Replica(Replica),
    Rewound(Rewound),
    Fault(Fault),
}

impl History {
    /// Writes it to a file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        let records = std::iter::once(Record::Setup(self.setup.clone()))
            .chain(self.faults.iter().cloned().map(Record::Fault))
            .chain(self.calls.iter().cloned().map(Record::Call))
            .chain(self.watches.iter().cloned().map(Record::Watch))
            .chain(self.holds.iter().cloned().map(Record::Hold))
            .chain(self.large.iter().cloned().map(Record::Large))
            .chain(self.sightings.iter().cloned().map(Record::Sighting))
            .chain(self.replicas.iter().cloned().map(Record::Replica))
            .chain(self.rewound.iter().cloned().map(Record::Rewound));
        for record in records {
            serde_json::to_writer(&mut file, &record)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }

    /// Reads what [`History::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, or a line is no record.
    pub fn load(path: &Path) -> std::io::Result<Self> {
        let mut history = Self::default();
        for line in BufReader::new(File::open(path)?).lines() {
            match serde_json::from_str(&line?)? {
                Record::Setup(setup) => history.setup = setup,
                Record::Call(call) => history.calls.push(call),
                Record::Watch(watch) => history.watches.push(watch),
                Record::Hold(hold) => history.holds.push(hold),
                Record::Large(call) => history.large.push(call),
                Record::Sighting(sighting) => history.sightings.push(sighting),
                Record::Replica(replica) => history.replicas.push(replica),
                Record::Rewound(rewound) => history.rewound.push(rewound),
                Record::Fault(fault) => history.faults.push(fault),
            }
        }
        Ok(history)
    }
}

impl Call {
    /// The header of the answer, if there was one.
    pub fn header(&self) -> Option<&Header> {
        match &self.outcome {
            Outcome::Ok { header, .. } => header.as_ref(),
            Outcome::Refused { .. } | Outcome::Unknown { .. } => None,
        }
    }

    pub fn is_ok(&self) -> bool {
        matches!(self.outcome, Outcome::Ok { .. })
    }

    pub fn is_unknown(&self) -> bool {
        matches!(self.outcome, Outcome::Unknown { .. })
    }

    /// True if its answer says that it changed something, and so made a revision.
    pub fn wrote(&self) -> bool {
        let Outcome::Ok {
            answer: Answer::Ran { results, .. },
            ..
        } = &self.outcome
        else {
            return false;
        };
        results.iter().any(|result| match result {
            StepResult::Put => true,
            StepResult::Deleted(count) => *count > 0,
            StepResult::Read(_) => false,
        })
    }

    /// True if it may change something at all.
    pub fn is_write(&self) -> bool {
        self.steps()
            .any(|step| matches!(step, Step::Put { .. } | Step::Delete { .. }))
    }

    /// The steps of both branches.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        let (then, or_else): (&[Step], &[Step]) = match &self.action {
            Action::Run { then, or_else, .. } => (then, or_else),
            _ => (&[], &[]),
        };
        then.iter().chain(or_else)
    }

    /// A read that may be served from an old state.
    pub fn is_local(&self) -> bool {
        matches!(
            self.action,
            Action::Run {
                consistency: Consistency::Local,
                ..
            }
        )
    }
}
