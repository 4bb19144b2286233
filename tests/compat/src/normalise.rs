//! What two stores may answer differently, and how requests and answers are made comparable.
//!
//! [`RULES`] is the one table. A field that it does not name must be equal; [`WATCH_RULES`] says the same of what a
//! stream as a whole may do.

use bytes::Bytes;
use prost_reflect::{DynamicMessage, FieldDescriptor, ReflectMessage as _, Value};

use crate::program::CHOSEN;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Treatment {
    /// Counted from the revision at which the program began.
    Revision,
    /// An id that the server chose is told as the n-th that it chose.
    Lease,
    /// Seconds: short ones are `1`, longer ones are rounded up to hundreds.
    Seconds,
    /// Not compared.
    Ignored,
    /// A list without order.
    Sorted,
    /// `semver` if it is one.
    Version,
}

pub struct Rule {
    pub fields: &'static [&'static str],
    pub treatment: Treatment,
    pub reason: &'static str,
}

use Treatment::{Ignored, Lease, Revision, Seconds, Sorted, Version};

pub const RULES: &[Rule] = &[
    Rule {
        fields: &[
            "ResponseHeader.cluster_id",
            "ResponseHeader.member_id",
            "ResponseHeader.raft_term",
        ],
        treatment: Ignored,
        reason: "another cluster, other members, other elections",
    },
    Rule {
        fields: &[
            "ResponseHeader.revision",
            "KeyValue.create_revision",
            "KeyValue.mod_revision",
            "WatchResponse.compact_revision",
            "RangeRequest.revision",
            "RangeRequest.min_mod_revision",
            "RangeRequest.max_mod_revision",
            "RangeRequest.min_create_revision",
            "RangeRequest.max_create_revision",
            "Compare.create_revision",
            "Compare.mod_revision",
            "CompactionRequest.revision",
            "WatchCreateRequest.start_revision",
        ],
        treatment: Revision,
        reason: "programs share a store: each counts from where it began. Only a `fresh` program sees what a new store counts from",
    },
    Rule {
        fields: &[
            "KeyValue.lease",
            "PutRequest.lease",
            "Compare.lease",
            "LeaseGrantRequest.ID",
            "LeaseGrantResponse.ID",
            "LeaseRevokeRequest.ID",
            "LeaseKeepAliveRequest.ID",
            "LeaseKeepAliveResponse.ID",
            "LeaseTimeToLiveRequest.ID",
            "LeaseTimeToLiveResponse.ID",
            "LeaseStatus.ID",
        ],
        treatment: Lease,
        reason: "an id that the server chooses is random",
    },
    Rule {
        fields: &[
            "LeaseGrantResponse.TTL",
            "LeaseKeepAliveResponse.TTL",
            "LeaseTimeToLiveResponse.TTL",
            "LeaseTimeToLiveResponse.grantedTTL",
        ],
        treatment: Seconds,
        reason: "time passes; and the smallest TTL follows from each server's own election time-out",
    },
    Rule {
        fields: &["LeaseTimeToLiveResponse.keys", "LeaseLeasesResponse.leases"],
        treatment: Sorted,
        reason: "etcd 3.4 walks a hash map for the keys, and orders leases by what remains of them",
    },
    Rule {
        fields: &["StatusResponse.version"],
        treatment: Version,
        reason: "podkv names the newest etcd whose calls it answers; clients parse it, so it must be a semver",
    },
    Rule {
        fields: &[
            "StatusResponse.dbSize",
            "StatusResponse.dbSizeInUse",
            "StatusResponse.dbSizeQuota",
            "StatusResponse.storageVersion",
            "StatusResponse.leader",
            "StatusResponse.raftIndex",
            "StatusResponse.raftTerm",
            "StatusResponse.raftAppliedIndex",
            "StatusResponse.downgradeInfo",
            "MemberListResponse.members",
            "AlarmMember.memberID",
        ],
        treatment: Ignored,
        reason: "facts of one machine or one member; the last three of Status came after 3.4",
    },
];

/// What the order and the grouping of a stream's responses may be. The code is `streams.rs`.
pub const WATCH_RULES: &[(&str, &str)] = &[
    (
        "several revisions of one watch may come in one response or in several; one revision never in several \
         without `fragment`",
        "how much is ready when a response is sent is a matter of time",
    ),
    (
        "the order of responses of different watches of a stream is free",
        "so is theirs",
    ),
    (
        "the header of a response with events names a revision between its last event and the newest",
        "it is what was current when the response was sent",
    ),
    (
        "responses without events are dropped where `progress_notify` was asked for",
        "the interval is a setting",
    ),
    (
        "deletes *at* the compacted revision are dropped from what a watch starting there reports",
        "etcd 3.4 forgets such a tombstone, at a time of its own; podkv keeps it, as 3.5.17 and 3.6 do",
    ),
    (
        "a program after which etcd lacks a previous value in an event, and nothing else differs, is run again, twice",
        "etcd notes that a watch wants them after it has made the watch: what was sent in between is without",
    ),
    (
        "a progress request is only sent once every watch of the stream has what happened before it",
        "etcd 3.4.23 answers at once and outruns events (fixed in 3.4.25 and 3.5.8); podkv waits",
    ),
    (
        "nothing is compacted while a watch from the past has had nothing to report",
        "in etcd it may not have come past that revision yet, and would be canceled; when it does is not to be seen",
    ),
    (
        "the id of a watch that a compaction canceled is the server's choice, and is not used again",
        "in etcd it stays taken until it is canceled once more, which is answered once more; in podkv it is free",
    ),
    (
        "a call that is served locally, and a watch, begins after a linearizable read of the same node",
        "what a node that lags answers is a matter of time; etcd has one node here, podkv three",
    ),
];

/// What a program's numbers are relative to.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Revision 1 of the program is this much higher on the store.
    pub offset: i64,
    /// Ids that the server chose.
    pub chosen: Vec<i64>,
}

impl Origin {
    fn revision(&self, absolute: i64) -> i64 {
        if absolute > 0 {
            absolute - self.offset
        } else {
            absolute
        }
    }

    pub fn absolute_revision(&self, relative: i64) -> i64 {
        if relative > 0 {
            relative.saturating_add(self.offset)
        } else {
            relative
        }
    }

    fn lease(&self, id: i64) -> i64 {
        match (0..).zip(&self.chosen).find(|(_, chosen)| **chosen == id) {
            Some((index, _)) => CHOSEN + index,
            None => id,
        }
    }

    fn absolute_lease(&self, id: i64) -> i64 {
        let index = usize::try_from(id - CHOSEN).ok();
        *index
            .and_then(|index| self.chosen.get(index))
            .unwrap_or(&id)
    }

    /// What is sent for a request of a program.
    pub fn to_wire(&self, message: &mut DynamicMessage) {
        each(message, &mut |treatment, value| match treatment {
            Revision => map(value, |revision| self.absolute_revision(revision)),
            Lease => map(value, |id| self.absolute_lease(id)),
            Seconds | Ignored | Sorted | Version => {}
        });
    }

    /// What is compared of an answer.
    pub fn from_wire(&self, message: &mut DynamicMessage) {
        each(message, &mut |treatment, value| match treatment {
            Revision => map(value, |revision| self.revision(revision)),
            Lease => map(value, |id| self.lease(id)),
            Seconds => map(value, round),
            Ignored => *value = default_like(value),
            Sorted => {}
            Version => {
                if value.as_str().is_some_and(is_semver) {
                    *value = Value::String("semver".into());
                }
            }
        });
        // After what is in the lists has its final form.
        each(message, &mut |treatment, value| {
            if treatment == Sorted
                && let Some(list) = value.as_list_mut()
            {
                list.sort_by_key(ToString::to_string);
            }
        });
    }
}

fn map(value: &mut Value, change: impl Fn(i64) -> i64) {
    if let Value::I64(number) = value {
        *number = change(*number);
    }
}

fn round(seconds: i64) -> i64 {
    match seconds {
        ..=0 => seconds,
        1..=100 => 1,
        _ => (seconds + 99) / 100 * 100,
    }
}

fn is_semver(text: &str) -> bool {
    let parts: Vec<_> = text.split('.').collect();
    parts.len() == 3 && parts.iter().all(|part| part.parse::<u32>().is_ok())
}

fn default_like(value: &Value) -> Value {
    match value {
        Value::U64(_) => Value::U64(0),
        Value::I64(_) => Value::I64(0),
        Value::String(_) => Value::String(String::new()),
        Value::Bytes(_) => Value::Bytes(Bytes::new()),
        Value::List(_) => Value::List(Vec::new()),
        Value::Message(message) => Value::Message(DynamicMessage::new(message.descriptor())),
        other => other.clone(),
    }
}

fn treatment_of(field: &FieldDescriptor) -> Option<Treatment> {
    let name = field.full_name();
    let name = name.split_once('.').map_or(name, |(_package, name)| name);
    let rule = RULES.iter().find(|rule| rule.fields.contains(&name))?;
    Some(rule.treatment)
}

/// Calls `treat` for every field in the message, however deep, that has a rule.
fn each(message: &mut DynamicMessage, treat: &mut impl FnMut(Treatment, &mut Value)) {
    for (field, value) in message.fields_mut() {
        match value {
            Value::Message(message) => each(message, treat),
            Value::List(list) => list.iter_mut().for_each(|value| {
                if let Value::Message(message) = value {
                    each(message, treat);
                }
            }),
            _ => {}
        }
        if let Some(treatment) = treatment_of(&field) {
            treat(treatment, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::descriptor;

    #[test]
    fn every_rule_names_a_field() {
        for rule in RULES {
            assert!(!rule.reason.is_empty());
            for field in rule.fields {
                let (message, name) = field.split_once('.').unwrap();
                assert!(
                    descriptor(message).get_field_by_name(name).is_some(),
                    "{field}"
                );
            }
        }
    }
}
