//! The promise: a write in a session is applied once. Here its edges; the rules are in
//! `scripts/06_sessions.txt` and in the twin.

use podkv_api::*;
use podkv_core::*;

use crate::store::Store;

fn stamped(session: u128, sequence: u64, command: Command) -> Proposal {
    Proposal {
        stamp: Some(Stamp {
            session: SessionStamp {
                session: SessionId(session),
                sequence,
                acknowledged_below: 0,
            },
            identity: Bytes::new(),
        }),
        command,
    }
}

fn open(id: u128) -> Command {
    Command::SessionOpen {
        id: SessionId(id),
        ttl_ms: 60_000,
        identity: Bytes::new(),
    }
}

#[test]
fn a_large_answer_is_remembered_by_its_revision() {
    let mut store = Store::new();
    store.ok(open(1));
    store.put("a", &"x".repeat(5_000));
    let put = Command::Put(Put::new("a", "1").prev_kv());
    let first = store.run(stamped(1, 1, put.clone()));
    assert!(matches!(first.result, Ok(Answer::Put(_))));
    let again = store.run(stamped(1, 1, put));
    let expected = Outcome {
        revision: first.revision,
        duplicate: true,
        result: Ok(Answer::RevisionOnly),
    };
    assert_eq!(again, expected);
    assert_eq!(store.meta().revision, first.revision);
}

#[test]
fn the_same_write_twice_in_one_entry_is_one_write() {
    let mut store = Store::new();
    store.ok(open(1));
    let put = stamped(1, 1, Command::Put(Put::new("a", "1")));
    let (outcomes, events) = store.apply(vec![put.clone(), put]);
    assert_eq!(outcomes[0].result, outcomes[1].result);
    assert_eq!(
        (outcomes[0].duplicate, outcomes[1].duplicate),
        (false, true)
    );
    assert_eq!(events.len(), 1);
}

#[test]
fn a_session_can_be_closed_from_within() {
    let mut store = Store::new();
    store.ok(open(1));
    let close = Command::SessionClose { id: SessionId(1) };
    let outcome = store.run(stamped(1, 1, close.clone()));
    assert_eq!(outcome.result, Ok(Answer::SessionClose));
    let again = store.run(stamped(1, 1, close));
    assert_eq!(again.result.unwrap_err().reason, Reason::SessionNotFound);
}

#[test]
fn live_sessions_are_never_evicted_for_new_ones() {
    let mut store = Store::new();
    let opens = (1..=100_000).map(|id| open(id).into()).collect();
    let (outcomes, _) = store.apply(opens);
    assert!(outcomes.iter().all(|outcome| outcome.result.is_ok()));
    assert_eq!(store.rejected(open(100_001)), Reason::Overloaded);
    // One that is open can still be renewed, and one that is closed makes room.
    store.ok(open(7));
    store.ok(Command::SessionClose { id: SessionId(8) });
    store.ok(open(100_001));
}
