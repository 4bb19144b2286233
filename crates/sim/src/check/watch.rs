//! Promise: a watch is ordered, without gaps or duplicates, whole per revision, resumable from a revision, and its
//! bookmarks are true. A list that comes with it is the state at the revision that it names.
//!
//! A stream that says "from revision 5 on" and has told revision 9 or a bookmark of 9 must have told every change of
//! its range from 5 to 9, each once, in order, all events of a revision together. How often its client went from
//! node to node meanwhile does not show. A watch that is started again where another ended is a stream of its own,
//! and is held to the same: so resuming is checked by the revision that it starts from.
//!
//! Its two ends are free: nothing says how soon a change must be told.

use super::{Evidence, Findings};
use crate::history::{Event, KeyValue, Revision, WatchMessage, WatchStream};

pub const NAME: &str = "watch";

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    for (number, stream) in evidence.history.watches.iter().enumerate() {
        let mut place = Place {
            evidence,
            stream,
            told: None,
            listed: Vec::new(),
        };
        for (_, message) in &stream.messages {
            findings.looked_at += 1;
            if let Err(why) = place.take(message) {
                let client = stream.client;
                findings.violation(
                    NAME,
                    format!(
                        "stream {number} of client {client}, {:?}..{:?}: {why}",
                        stream.start, stream.end
                    ),
                );
                break;
            }
        }
    }
    findings
}

struct Place<'e, 'h> {
    evidence: &'e Evidence<'h>,
    stream: &'h WatchStream,
    /// Every change up to here was told; `None` before the stream began.
    told: Option<Revision>,
    listed: Vec<&'h KeyValue>,
}

impl<'h> Place<'_, 'h> {
    fn take(&mut self, message: &'h WatchMessage) -> Result<(), String> {
        match message {
            WatchMessage::Created { start_revision } => {
                if self.told.is_some() {
                    return Err("it was created twice".into());
                }
                self.told = Some(start_revision.saturating_sub(1));
            }
            WatchMessage::List { kvs, .. } => self.listed.extend(kvs),
            WatchMessage::Listed { revision } => {
                let expected =
                    self.evidence
                        .range_at(&self.stream.start, &self.stream.end, *revision);
                if self.listed != expected {
                    return Err(format!(
                        "the list at revision {revision} is {:?}; the state there is {expected:?}",
                        self.listed
                    ));
                }
                self.told = Some(*revision);
            }
            WatchMessage::Events { revision, events } => {
                self.nothing_between(*revision)?;
                let expected = self.events_of(*revision);
                if expected != events.iter().collect::<Vec<_>>() {
                    return Err(format!(
                        "revision {revision} was told as {events:?}; it is {expected:?}"
                    ));
                }
                self.told = Some(*revision);
            }
            WatchMessage::Bookmark { revision } => {
                if self.told.is_some_and(|told| *revision < told) {
                    return Err(format!("a bookmark of {revision} after {:?}", self.told));
                }
                // The revision itself is among those that were told.
                self.nothing_between(revision + 1)?;
                self.told = Some(*revision);
            }
        }
        Ok(())
    }

    /// Nothing of the range lies after what was told and before `next`, and `next` is after it.
    fn nothing_between(&self, next: Revision) -> Result<(), String> {
        let Some(told) = self.told else {
            return Err("it tells before it was created".into());
        };
        if next <= told {
            return Err(format!("revision {next} comes after {told}"));
        }
        let changes = self.evidence.changes;
        let first = changes.partition_point(|change| change.revision <= told);
        for change in &changes[first..] {
            if change.revision >= next {
                break;
            }
            if change.events.iter().any(|event| self.is_in(event)) {
                let gap = change.revision;
                return Err(format!(
                    "revision {gap} is skipped between {told} and {next}"
                ));
            }
        }
        Ok(())
    }

    fn events_of(&self, revision: Revision) -> Vec<&'h Event> {
        let change = self.evidence.change(revision);
        let events = change.map_or(&[][..], |change| &change.events);
        events.iter().filter(|event| self.is_in(event)).collect()
    }

    fn is_in(&self, event: &Event) -> bool {
        let key = event.key();
        key >= self.stream.start.as_str() && key < self.stream.end.as_str()
    }
}
