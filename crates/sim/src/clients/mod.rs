//! Who calls: each file is one kind of client, and each client is a task that does one thing after another until the
//! round ends.
//!
//! | file | what it does | keys |
//! | --- | --- | --- |
//! | `mix` | puts, deletes, reads, compare-and-swap, transactions over several keys, ranges, TTLs | `k/`, `ttl/` |
//! | `lease_holders` | grants leases, keeps them alive for a while, revokes them or lets them go | `lease/` |
//! | `large` | puts and reads values in many chunks, gives some up half-way, deletes | `large/` |
//! | `lockers` | take locks, write under their fence | `lock/`, `guarded/` |
//! | `watchers` | watch, break off, resume | - |
//! | `lookouts` | ask each node who leads | - |
//!
//! Here is what they share: a call as a history has it, made with the Rust client.

pub mod large;
pub mod lease_holders;
pub mod lockers;
pub mod lookouts;
pub mod mix;
pub mod watchers;

use std::time::Duration;

use crate::history::{Action, Answer, Compare, Consistency, Fence, Header, Step, StepResult};
use podkv_api::{
    Compare as ApiCompare, CompareOp, CompareTarget, Delete, Error, KeyRange, LeaseId, Op,
    OpResponse, Put, Range, Store as _, Txn,
};
use podkv_client::{Builder, Client};

use crate::recorder::{Recorder, header, key_value};
use crate::world::plan::Planted;

/// Prefixes that are not recorded as calls: the recipes write them by themselves.
pub const FOREIGN: [&str; 3] = ["lock/", "large/", "\0podkv/large/"];

/// Short, so that elections are felt: many calls end with an unknown outcome.
const DEADLINE: Duration = Duration::from_millis(1500);
const ATTEMPT: Duration = Duration::from_millis(600);

/// A client that knows all nodes.
pub fn everywhere(addresses: Vec<String>) -> Builder {
    client(addresses, false)
}

/// A client that stays on one node.
pub fn at(address: String) -> Builder {
    client(vec![address], true)
}

fn client(endpoints: Vec<String>, fixed: bool) -> Builder {
    Client::builder()
        .endpoints(endpoints)
        .fixed(fixed)
        .deadline(DEADLINE)
        .attempt_timeout(ATTEMPT)
        .connect_timeout(Duration::from_millis(300))
        .backoff(Duration::from_millis(10), Duration::from_millis(200))
        .refresh_interval(Duration::from_secs(2))
}

/// What every client has.
#[derive(Clone)]
pub struct Caller {
    pub recorder: Recorder,
    pub client: Client,
    pub number: u32,
    /// How long it rests after a call, at most; none at all finds out what the store can bear.
    pub rest: Duration,
    /// A bug between the store and what is noted, to see whether the checkers find it.
    pub planted: Option<Planted>,
}

/// One call of a history.
pub struct Run {
    pub id: u64,
    pub compare: Vec<Compare>,
    pub then: Vec<Step>,
    pub or_else: Vec<Step>,
    pub consistency: Consistency,
    pub fence: Option<Fence>,
}

impl Run {
    pub fn new(id: u64, then: Vec<Step>) -> Self {
        Self {
            id,
            compare: Vec::new(),
            then,
            or_else: Vec::new(),
            consistency: Consistency::Linearizable,
            fence: None,
        }
    }
}

/// What a call came to: the header, whether every compare held, and the answers.
type Ran = (podkv_api::Header, bool, Vec<StepResult>);

impl Caller {
    /// Makes a call and notes it. A single step goes by the verb that it is, everything else is a transaction.
    pub async fn run(&self, run: Run) -> Result<Vec<StepResult>, Error> {
        let action = Action::Run {
            compare: run.compare.clone(),
            then: run.then.clone(),
            or_else: run.or_else.clone(),
            consistency: run.consistency,
        };
        let id = run.id;
        let noted = (action, run.fence.clone());
        let ran = self
            .recorder
            .call(self.number, id, noted, self.send(run), answer_of)
            .await?;
        Ok(ran.2)
    }

    async fn send(&self, run: Run) -> Result<Ran, Error> {
        if run.compare.is_empty()
            && let [step] = &run.then[..]
        {
            return self.send_one(step, run.consistency).await;
        }
        let txn = Txn::new()
            .when(run.compare.iter().map(compare))
            .then(run.then.iter().map(op))
            .or_else(run.or_else.iter().map(op));
        let answer = self.client.txn(txn).await?;
        let results = answer.responses.iter().map(result).collect();
        Ok((answer.header, answer.succeeded, results))
    }

    async fn send_one(&self, step: &Step, consistency: Consistency) -> Result<Ran, Error> {
        match op(step) {
            Op::Put(put) => {
                if self.planted == Some(Planted::DoubleApply) {
                    // Its answer is lost, and it is sent again as if it were new.
                    self.client.put(put.clone()).await?;
                }
                let answer = self.client.put(put).await?;
                Ok((answer.header, true, vec![StepResult::Put]))
            }
            Op::Delete(delete) => {
                let answer = self.client.delete(delete).await?;
                let results = vec![StepResult::Deleted(answer.deleted)];
                Ok((answer.header, true, results))
            }
            Op::Range(range) => {
                let consistency = match consistency {
                    Consistency::Linearizable if self.planted == Some(Planted::StaleRead) => {
                        podkv_api::Consistency::Local
                    }
                    Consistency::Linearizable => podkv_api::Consistency::Linearizable,
                    Consistency::Local => podkv_api::Consistency::Local,
                };
                let answer = self.client.range(range.consistency(consistency)).await?;
                let kvs = answer.kvs.iter().map(key_value).collect();
                Ok((answer.header, true, vec![StepResult::Read(kvs)]))
            }
            Op::Txn(_) => Err(Error::internal("no step is a transaction")),
        }
    }
}

fn answer_of(ran: &Ran) -> (Option<Header>, Answer) {
    let answer = Answer::Ran {
        succeeded: ran.1,
        results: ran.2.clone(),
    };
    (Some(header(&ran.0)), answer)
}

fn op(step: &Step) -> Op {
    match step {
        Step::Put {
            key,
            value,
            lease,
            ttl_ms,
        } => {
            let mut put = Put::new(key.clone(), value.clone());
            put.lease = lease.map(LeaseId);
            put.ttl_ms = *ttl_ms;
            put.into()
        }
        Step::Delete { key } => Delete::new(KeyRange::key(key.clone())).into(),
        Step::Get { key } => Range::new(KeyRange::key(key.clone())).into(),
        Step::Scan { start, end } => {
            Range::new(KeyRange::between(start.clone(), end.clone())).into()
        }
    }
}

pub fn compare(compare: &Compare) -> ApiCompare {
    let (key, target) = match compare {
        Compare::Value { key, equals } => (key, CompareTarget::Value(equals.clone().into())),
        Compare::Created { key, equals } => (key, CompareTarget::CreateRevision(*equals)),
        Compare::Modified { key, equals } => (key, CompareTarget::ModRevision(*equals)),
    };
    ApiCompare::new(key.clone(), CompareOp::Equal, target)
}

fn result(response: &OpResponse) -> StepResult {
    match response {
        OpResponse::Put(_) => StepResult::Put,
        OpResponse::Delete(deleted) => StepResult::Deleted(deleted.deleted),
        OpResponse::Range(read) => StepResult::Read(read.kvs.iter().map(key_value).collect()),
        // None is sent.
        OpResponse::Txn(_) => StepResult::Read(Vec::new()),
    }
}
