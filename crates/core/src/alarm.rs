//! Alarms: what is wrong with a member, known to every member.
//!
//! ```text
//!   raise NOSPACE of member 1     alarms: NOSPACE 1      writes that add data are refused by every node
//!   raise NOSPACE of member 2     alarms: NOSPACE 1, 2   each member stands for itself
//!   clear NOSPACE of member 1     alarms: NOSPACE 2      still refused
//!   clear NOSPACE of member 2     alarms: none           written again
//! ```
//!
//! A full volume anywhere concerns all: what a majority commits, every member has to store. So a member puts into the
//! log what it measures, and takes it back; the leader takes back what concerns a member that is gone.
//!
//! **Apply refuses nothing for it.** Nodes do, before they propose: see [`grows`]. A refusal that came from apply would
//! be kept in the writer's session, and the same write sent again would be refused for ever, space or not. What is on its
//! way already when an alarm is raised is applied, and fits into the headroom.
//!
//! Alarms are no revision and in no backup: they speak of members, not of data.

use podkv_api::{Alarm, Op, Reason, Txn};

use crate::codec;
use crate::command::Command;
use crate::outcome::{Answer, Rejection};
use crate::schema;
use crate::state::State;
use crate::view::{View, ViewError};

/// Far more than members may have. What is beyond it would tell nobody more.
const MAX_ALARMS: usize = 1024;

/// All alarms, by kind, then by member.
pub fn alarms(view: &dyn View) -> Result<Vec<Alarm>, ViewError> {
    let (start, end) = schema::alarm_bounds();
    let found = view.scan(&start, &end, false);
    found
        .filter_map(|item| {
            item.and_then(|(key, _)| schema::read_alarm_key(&key))
                .transpose()
        })
        .collect()
}

/// Whether a command may add data for good: puts, transactions with a put in either branch, leases, restored records.
/// What frees space, what keeps alive and what administers may go into the headroom. So may sessions: whoever deletes
/// through podkv's own client needs one, and they are bounded.
pub fn grows(command: &Command) -> bool {
    match command.asked() {
        Command::Put(_)
        | Command::LeaseGrant { .. }
        | Command::RestoreBegin { .. }
        | Command::RestoreRecords { .. } => true,
        Command::Txn(txn) => puts(txn),
        _ => false,
    }
}

fn puts(txn: &Txn) -> bool {
    txn.then.iter().chain(&txn.or_else).any(|op| match op {
        Op::Put(_) => true,
        Op::Txn(txn) => puts(txn),
        Op::Delete(_) | Op::Range(_) => false,
    })
}

impl State<'_> {
    /// Raising twice is once.
    pub(crate) fn raise_alarm(
        &mut self,
        alarm: Alarm,
    ) -> Result<Result<Answer, Rejection>, ViewError> {
        let known = alarms(&self.overlay)?;
        if !known.contains(&alarm) && known.len() >= MAX_ALARMS {
            return Ok(Err(self.reject(Reason::InvalidArgument)));
        }
        self.put_record(schema::alarm_key(alarm), codec::encode_record(&()));
        Ok(Ok(Answer::Done))
    }

    /// Two may find at once that it is over.
    pub(crate) fn clear_alarm(&mut self, alarm: Alarm) -> Answer {
        self.delete_record(schema::alarm_key(alarm));
        Answer::Done
    }
}

#[cfg(test)]
mod tests {
    use podkv_api::{Delete, KeyRange, LeaseId, Put};

    use super::*;
    use crate::auth::Caller;

    #[test]
    fn only_what_adds_data_grows() {
        let put = Command::Put(Put::new("k", "v"));
        assert!(grows(&put));
        assert!(grows(&put.by(&Caller::Anonymous)));
        assert!(grows(&Command::LeaseGrant {
            id: LeaseId(1),
            ttl_ms: 1_000
        }));
        let delete = Op::Delete(Delete::new(KeyRange::key("k")));
        assert!(!grows(&Command::Delete(Delete::new(KeyRange::key("k")))));
        assert!(!grows(&Command::Compact { revision: 5 }));
        let frees = Txn {
            then: vec![delete.clone()],
            ..Txn::default()
        };
        assert!(!grows(&Command::Txn(frees.clone())));
        let nested = Txn {
            then: vec![delete],
            or_else: vec![Op::Txn(Txn {
                or_else: vec![Op::Put(Put::new("k", "v"))],
                ..frees
            })],
            ..Txn::default()
        };
        assert!(grows(&Command::Txn(nested)));
    }
}
