//! What a watch reports, step by step.

use std::task::Poll;
use std::time::Duration;

use podkv_api::{KeyRange, Reason, Watch, WatchMessage};
use podkv_core::Command;

use super::rig::{Rig, User, compact, delete, delete_range, put, tip_of, txn};
use crate::watch::WatchSettings;
use crate::watch::hub::TICK;

const INTERVAL: Duration = Duration::from_secs(5);

fn rig() -> Rig {
    Rig::new(WatchSettings::default())
}

fn tight(buffer_bytes: usize, queue_items: usize) -> WatchSettings {
    WatchSettings {
        buffer_bytes,
        queue_items,
        warm_revisions: 0,
        ..WatchSettings::default()
    }
}

fn prefix(prefix: &'static str) -> Watch {
    Watch::new(KeyRange::prefix(prefix))
}

#[test]
fn from_now_on() {
    let mut rig = rig();
    rig.apply_each([put("a", "1"), put("b", "1")]);
    let mut user = rig.watch(prefix("a"));
    assert_eq!(rig.read(&mut user), ["created from 4"]);
    rig.apply_each([put("b", "2"), put("a", "2"), delete("a"), delete("a")]);
    assert_eq!(rig.read(&mut user), ["5: put a=2", "6: delete a"]);
}

#[test]
fn now_is_after_what_the_caller_may_have_seen() {
    let mut rig = rig();
    // The state is ahead of the hub: applied, and not yet published.
    let effects = rig.state.apply([put("a", "1")]);
    let mut user = rig.watch(prefix("a"));
    assert_eq!(rig.read(&mut user), ["created from 3"]);
    rig.shared.publish(effects.events.clone(), tip_of(&effects));
    rig.apply([put("a", "2")]);
    assert_eq!(rig.read(&mut user), ["3: put a=2"]);
}

#[test]
fn resumes_from_a_revision_and_goes_on_live() {
    let mut rig = rig();
    rig.apply_each([put("a", "1"), put("b", "1"), put("a", "2"), put("a", "3")]);
    let mut user = rig.watch(prefix("a").from_revision(4).bookmarks());
    assert_eq!(
        rig.read(&mut user),
        ["created from 4", "4: put a=2", "5: put a=3"]
    );
    rig.apply([put("a", "4")]);
    assert_eq!(rig.read(&mut user), ["6: put a=4"]);
}

#[test]
fn history_is_read_from_the_state_when_memory_does_not_reach_back() {
    let mut rig = Rig::new(tight(1, 8));
    let commands = (0..50).map(|number| put("a", &number.to_string()));
    rig.apply_each(commands);
    rig.settle();
    let mut user = rig.watch(prefix("a").from_revision(2).prev_kv());
    let messages = rig.read(&mut user);
    assert_eq!(messages.len(), 51);
    assert_eq!(messages[1], "2: put a=0");
    assert_eq!(messages[50], "51: put a=49 (was 48)");
    assert!(rig.shared.counters.read(0).reads_total > 0);
}

#[test]
fn a_revision_is_one_message_in_the_order_of_its_operations() {
    let mut rig = rig();
    let mut user = rig.watch(prefix(""));
    rig.apply([txn(&[("z", "1"), ("a", "1"), ("m", "1")])]);
    rig.apply([delete_range(KeyRange::all())]);
    assert_eq!(
        rig.read(&mut user),
        [
            "created from 2",
            "2: put z=1, put a=1, put m=1",
            "3: delete a, delete m, delete z"
        ]
    );
}

#[test]
fn a_watch_sees_its_part_of_a_revision() {
    let mut rig = rig();
    let mut one = rig.watch(Watch::new(KeyRange::key("m")));
    let mut some = rig.watch(Watch::new(KeyRange::between("b", "n")));
    rig.apply([txn(&[("z", "1"), ("c", "1"), ("m", "1")])]);
    assert_eq!(rig.read(&mut one), ["created from 2", "2: put m=1"]);
    assert_eq!(
        rig.read(&mut some),
        ["created from 2", "2: put c=1, put m=1"]
    );
}

#[test]
fn what_filters_to_nothing_sends_nothing() {
    let mut rig = rig();
    let mut deletes = rig.watch(Watch {
        no_put: true,
        ..prefix("")
    });
    let mut puts = rig.watch(Watch {
        no_delete: true,
        ..prefix("")
    });
    rig.apply_each([put("a", "1"), delete("a")]);
    assert_eq!(rig.read(&mut deletes), ["created from 2", "3: delete a"]);
    assert_eq!(rig.read(&mut puts), ["created from 2", "2: put a=1"]);
    // The same from history, live and catching up.
    let mut deletes = rig.watch(Watch {
        no_put: true,
        ..prefix("").from_revision(2)
    });
    assert_eq!(rig.read(&mut deletes), ["created from 2", "3: delete a"]);
}

#[test]
fn the_value_before_comes_only_if_asked_for() {
    let mut rig = rig();
    let mut with = rig.watch(prefix("").prev_kv());
    let mut without = rig.watch(prefix(""));
    rig.apply_each([put("a", "1"), put("a", "2"), delete("a")]);
    assert_eq!(
        rig.read(&mut with),
        [
            "created from 2",
            "2: put a=1",
            "3: put a=2 (was 1)",
            "4: delete a (was 2)"
        ]
    );
    assert_eq!(
        rig.read(&mut without),
        ["created from 2", "2: put a=1", "3: put a=2", "4: delete a"]
    );
}

#[test]
fn a_compacted_start_is_created_and_then_refused() {
    let mut rig = rig();
    rig.apply_each([put("a", "1"), put("a", "2"), put("a", "3"), compact(3)]);
    let mut user = rig.watch(prefix("a").from_revision(2));
    assert_eq!(
        rig.read(&mut user),
        ["created from 2", "Compacted at 3", "end"]
    );
    // The compacted revision itself is readable.
    let mut user = rig.watch(prefix("a").from_revision(3));
    assert_eq!(
        rig.read(&mut user),
        ["created from 3", "3: put a=2", "4: put a=3"]
    );
}

#[test]
fn a_start_in_the_future_waits_for_it() {
    let mut rig = rig();
    let mut user = rig.watch(prefix("a").from_revision(4).bookmarks());
    rig.apply_each([put("a", "1"), put("a", "2")]);
    rig.tick(INTERVAL);
    assert_eq!(rig.read(&mut user), ["created from 4"]);
    rig.apply_each([put("a", "3"), put("a", "4")]);
    assert_eq!(rig.read(&mut user), ["4: put a=3", "5: put a=4"]);
}

#[test]
fn a_start_in_the_future_survives_a_snapshot_without_old_events() {
    let mut rig = rig();
    let mut future = rig.watch(prefix("a").from_revision(8));
    let mut now = rig.watch(prefix("a"));
    rig.settle();
    for number in 0..4 {
        rig.state.apply([put("a", &number.to_string())]);
    }
    rig.state.apply([compact(5)]);
    rig.shared.reset(rig.state.tip());
    rig.apply_each([put("a", "6"), put("a", "7"), put("a", "8")]);
    assert_eq!(rig.read(&mut future), ["created from 8", "8: put a=8"]);
    // Whose place was skipped over is told.
    assert_eq!(
        rig.read(&mut now),
        ["created from 2", "Compacted at 5", "end"]
    );
}

#[test]
fn a_snapshot_that_kept_the_history_is_a_gap_that_is_read() {
    let mut rig = rig();
    let mut user = rig.watch(prefix("a"));
    rig.settle();
    rig.state.apply([put("a", "1")]);
    rig.state.apply([put("a", "2")]);
    rig.shared.reset(rig.state.tip());
    rig.apply([put("a", "3")]);
    assert_eq!(
        rig.read(&mut user),
        ["created from 2", "2: put a=1", "3: put a=2", "4: put a=3"]
    );
}

#[test]
fn lists_in_chunks_at_one_revision_and_then_watches() {
    let mut rig = Rig::new(tight(32, 8));
    rig.apply_each([put("a", "1"), put("b", "1"), put("c", "1"), put("x", "1")]);
    let mut user = rig.watch(Watch::new(KeyRange::between("a", "d")).list());
    rig.settle();
    assert!(matches!(
        user.poll(),
        Poll::Ready(Some(Ok(WatchMessage::Created { .. })))
    ));
    // Between two chunks: neither seen in the list nor lost.
    rig.apply_each([put("b", "2"), put("aa", "1"), delete("c")]);
    assert_eq!(
        rig.read(&mut user),
        [
            "list at 5: a=1",
            "list at 5: b=1",
            "list at 5: c=1",
            "listed at 5",
            "6: put b=2",
            "7: put aa=1",
            "8: delete c"
        ]
    );
}

#[test]
fn an_empty_list_is_listed() {
    let mut rig = rig();
    let mut user = rig.watch(prefix("a").list());
    assert_eq!(rig.read(&mut user), ["created from 2", "listed at 1"]);
    rig.apply([put("a", "1")]);
    assert_eq!(rig.read(&mut user), ["2: put a=1"]);
}

#[test]
fn a_slow_list_goes_on_from_a_younger_view_at_the_same_revision() {
    let mut rig = Rig::new(tight(32, 8));
    rig.apply_each([put("a", "1"), put("b", "1"), put("c", "1")]);
    let mut user = rig.watch(prefix("").list());
    rig.settle();
    assert_eq!(poll(&mut user), "created from 5");
    assert_eq!(poll(&mut user), "list at 4: a=1");
    rig.apply_each([put("b", "2"), delete("c")]);
    for _ in 0..3 {
        rig.tick(INTERVAL);
    }
    assert_eq!(
        rig.read(&mut user),
        [
            "list at 4: b=1",
            "list at 4: c=1",
            "listed at 4",
            "5: put b=2",
            "6: delete c"
        ]
    );
}

#[test]
fn a_list_whose_revision_is_compacted_under_it_says_so() {
    let mut rig = Rig::new(tight(32, 8));
    rig.apply_each([put("a", "1"), put("b", "1")]);
    let mut user = rig.watch(prefix("").list());
    rig.settle();
    assert_eq!(poll(&mut user), "created from 4");
    assert_eq!(poll(&mut user), "list at 3: a=1");
    rig.apply_each([put("b", "2"), put("b", "3"), compact(5)]);
    for _ in 0..3 {
        rig.tick(INTERVAL);
    }
    assert_eq!(rig.read(&mut user), ["Compacted at 5", "end"]);
}

#[test]
fn bookmarks_tell_how_far_a_quiet_watch_is() {
    let mut rig = rig();
    let mut user = rig.watch(prefix("a").bookmarks());
    assert_eq!(rig.read(&mut user), ["created from 2"]);
    rig.tick(INTERVAL);
    assert_eq!(
        rig.read(&mut user),
        [""; 0],
        "nothing happened, nothing is said"
    );
    rig.apply_each([put("b", "1"), put("b", "2")]);
    rig.settle();
    rig.tick(INTERVAL);
    assert_eq!(rig.read(&mut user), ["bookmark 3"]);
    rig.apply_each([put("b", "3"), put("a", "1")]);
    rig.settle();
    rig.tick(INTERVAL);
    assert_eq!(
        rig.read(&mut user),
        ["5: put a=1"],
        "the event says it already"
    );
}

#[test]
fn who_asks_is_told_as_soon_as_everything_is_reported() {
    let mut rig = rig();
    let mut user = rig.watch(prefix("a"));
    assert_eq!(rig.read(&mut user), ["created from 2"]);
    rig.apply_each([put("b", "1"), put("b", "2")]);
    rig.settle();
    user.progress.ask(3);
    assert_eq!(rig.read(&mut user), ["bookmark 3"]);
    // Published, and not yet fanned out: the event is the answer.
    rig.apply([put("a", "1")]);
    user.progress.ask(4);
    assert_eq!(rig.read(&mut user), ["4: put a=1"]);
    // Not there yet: told when it is, and once.
    user.progress.ask(6);
    assert_eq!(rig.read(&mut user), [""; 0]);
    rig.apply_each([put("b", "3"), put("b", "4")]);
    rig.settle();
    rig.tick(TICK);
    assert_eq!(rig.read(&mut user), ["bookmark 6"]);
    rig.apply_each([put("b", "5")]);
    rig.settle();
    rig.tick(TICK);
    assert_eq!(rig.read(&mut user), [""; 0]);
    drop(user);
    rig.settle();
    assert!(rig.desk.hub.is_clear());
}

#[test]
fn who_asks_and_is_behind_is_told_after_the_past() {
    let mut rig = rig();
    rig.apply_each([put("a", "1"), put("a", "2"), put("b", "1")]);
    rig.settle();
    let mut user = rig.watch(prefix("a").from_revision(2));
    user.progress.ask(4);
    let told = rig.read(&mut user);
    assert_eq!(told[..3], ["created from 2", "2: put a=1", "3: put a=2"]);
    rig.tick(TICK);
    let told = [&told[3..], &rig.read(&mut user)[..]].concat();
    assert_eq!(told, ["bookmark 4"]);
    // Its first event is yet to come: there is nothing to report up to there.
    let mut later = rig.watch(prefix("a").from_revision(9));
    later.progress.ask(4);
    assert_eq!(rig.read(&mut later), ["created from 9"]);
}

#[test]
fn a_bookmark_is_never_ahead_of_what_was_queued() {
    let mut rig = rig();
    let mut user = rig.watch(prefix("a").bookmarks());
    rig.settle();
    rig.apply([put("a", "1")]);
    // Published, and not yet fanned out.
    rig.tick(INTERVAL);
    assert_eq!(rig.read(&mut user), ["created from 2", "2: put a=1"]);
}

#[test]
fn a_resumed_watch_is_told_when_it_has_caught_up() {
    let mut rig = rig();
    rig.apply_each([put("a", "1"), put("b", "1"), put("b", "2")]);
    rig.settle();
    let mut user = rig.watch(prefix("a").from_revision(2).bookmarks());
    assert_eq!(
        rig.read(&mut user),
        ["created from 2", "2: put a=1", "bookmark 4"]
    );
}

#[test]
fn a_slow_watcher_catches_up_from_memory() {
    let mut rig = Rig::new(WatchSettings {
        queue_items: 2,
        ..WatchSettings::default()
    });
    let mut user = rig.watch(prefix("a"));
    rig.settle();
    for number in 0..10 {
        rig.apply([put("a", &number.to_string())]);
        rig.settle();
    }
    let stats = rig.shared.counters.read(0);
    assert_eq!(
        (stats.live, stats.behind, stats.fell_behind_total),
        (0, 1, 1)
    );
    let messages = rig.read(&mut user);
    assert_eq!(messages.len(), 11);
    assert_eq!(messages[10], "11: put a=9");
    let stats = rig.shared.counters.read(0);
    assert_eq!((stats.live, stats.behind, stats.reads_total), (1, 0, 0));
}

#[test]
fn a_stalled_watcher_holds_no_events() {
    let mut rig = Rig::new(tight(8 << 10, 64));
    let mut user = rig.watch(prefix("a"));
    rig.settle();
    let value = "x".repeat(1000);
    for _ in 0..50 {
        rig.apply([put("a", &value)]);
        rig.settle();
        let stats = rig.shared.counters.read(rig.shared.feed.bytes());
        assert!(stats.buffered_bytes <= 8 << 10, "{stats:?}");
    }
    // What it was given points to nothing any more; it reads on from the state.
    let messages = rig.read(&mut user);
    assert_eq!(messages.len(), 51);
    assert!(rig.shared.counters.read(0).reads_total > 0);
}

#[test]
fn a_watcher_too_slow_for_the_history_is_told() {
    let mut rig = Rig::new(tight(1, 2));
    let mut user = rig.watch(prefix("a"));
    rig.settle();
    let numbers = (0..10).map(|number| put("a", &number.to_string()));
    rig.apply_each(numbers);
    rig.apply([compact(8)]);
    rig.settle();
    let messages = rig.read(&mut user);
    assert_eq!(messages[0], "created from 2");
    assert_eq!(messages[messages.len() - 2..], ["Compacted at 8", "end"]);
}

#[test]
fn a_compaction_does_not_touch_who_is_level() {
    let mut rig = rig();
    let mut user = rig.watch(prefix("a"));
    rig.apply_each([put("a", "1"), put("a", "2")]);
    assert_eq!(
        rig.read(&mut user),
        ["created from 2", "2: put a=1", "3: put a=2"]
    );
    rig.apply_each([compact(3), put("a", "3")]);
    assert_eq!(rig.read(&mut user), ["4: put a=3"]);
}

#[test]
fn a_hub_that_falls_behind_the_log_reads_what_it_missed() {
    let mut rig = Rig::new(tight(2 << 10, 64));
    let mut user = rig.watch(prefix("a"));
    rig.settle();
    let numbers = (0..100).map(|number| put("a", &number.to_string()));
    rig.apply_each(numbers);
    assert!(
        rig.shared.feed.bytes() <= 512,
        "the publisher neither waits nor piles up"
    );
    let messages = rig.read(&mut user);
    assert_eq!(messages.len(), 101);
    assert!(rig.shared.counters.read(0).gaps_total > 0);
}

#[test]
fn what_was_read_and_not_taken_is_taken_back_for_others() {
    // Room for about one step.
    let mut rig = Rig::new(tight(8 << 10, 1000));
    let value = "x".repeat(300);
    for number in 0..20 {
        rig.apply([put(&format!("a{number:02}"), &value)]);
    }
    rig.settle();
    let mut users: Vec<_> = (0..4)
        .map(|_| rig.watch(prefix("").from_revision(2)))
        .collect();
    // All ask, nobody reads on: the later ones get theirs all the same.
    for user in &mut users {
        rig.settle();
        assert_eq!(poll(user), "created from 2");
        assert!(user.poll().is_pending());
        rig.settle();
        // Whoever came before has had the time to read.
        rig.tick(INTERVAL);
        rig.settle();
        assert!(user.was_woken());
        let held = rig.shared.counters.read(0).buffered_bytes;
        assert!(held <= 8 << 10, "{held} bytes are held");
    }
    for user in &mut users {
        let revisions: Vec<_> = rig
            .read(user)
            .iter()
            .map(|line| line.split(':').next().unwrap().to_owned())
            .collect();
        let expected: Vec<_> = (2..22).map(|revision: u64| revision.to_string()).collect();
        assert_eq!(revisions, expected);
    }
}

#[test]
fn who_does_not_read_is_not_read_for() {
    // No room at all: one may hold something at a time. Memory reaches back to revision 3.
    let mut rig = Rig::new(tight(1, 8));
    rig.apply_each([put("a", "1"), put("a", "2")]);
    rig.settle();
    let mut users: Vec<_> = (0..2)
        .map(|_| rig.watch(prefix("").from_revision(2)))
        .collect();
    rig.settle();
    for user in &mut users {
        assert_eq!(poll(user), "created from 2");
        assert!(user.poll().is_pending());
    }
    rig.desk.take_over();
    let action = rig.desk.actions.pop().unwrap();
    assert!(rig.desk.actions.is_empty(), "the other one waits");
    rig.run(action);
    // The first one stands in line for the rest when its part is taken back for the other.
    rig.tick(INTERVAL);
    for _ in 0..5 {
        rig.settle();
        rig.tick(INTERVAL);
    }
    assert_eq!(rig.shared.counters.read(0).reads_total, 2, "one for each");
    for user in &mut users {
        assert_eq!(rig.read(user), ["2: put a=1", "3: put a=2"]);
    }
}

#[test]
fn a_new_hub_reads_the_recent_past_back() {
    let mut before = rig();
    before.apply_each([put("a", "1"), put("a", "2"), put("a", "3")]);
    let settings = WatchSettings {
        warm_revisions: 2,
        ..WatchSettings::default()
    };
    let mut rig = Rig::over(before.state.clone(), settings);
    rig.settle();
    let mut user = rig.watch(prefix("a").from_revision(3));
    assert_eq!(
        rig.read(&mut user),
        ["created from 3", "3: put a=2", "4: put a=3"]
    );
    assert_eq!(
        rig.shared.counters.read(0).reads_total,
        0,
        "it came from memory"
    );
    let mut user = rig.watch(prefix("a"));
    assert_eq!(rig.read(&mut user), ["created from 5"]);
}

#[test]
fn a_revision_that_was_raised_is_no_event() {
    let mut rig = rig();
    let mut user = rig.watch(prefix("a").bookmarks());
    rig.apply_each([
        put("a", "1"),
        Command::RaiseRevision { revision: 1000 },
        put("a", "2"),
    ]);
    assert_eq!(
        rig.read(&mut user),
        ["created from 2", "2: put a=1", "1001: put a=2"]
    );
}

#[test]
fn a_dropped_watch_is_forgotten() {
    let mut rig = rig();
    let mut users: Vec<_> = (0..10)
        .map(|_| rig.watch(prefix("a").bookmarks()))
        .collect();
    users.push(rig.watch(prefix("a").list()));
    rig.settle();
    assert_eq!(rig.shared.counters.read(0).watchers, 11);
    drop(users);
    rig.settle();
    let stats = rig.shared.counters.read(0);
    assert_eq!((stats.watchers, stats.behind), (0, 0));
    assert_eq!(
        rig.shared.open.load(std::sync::atomic::Ordering::Relaxed),
        0
    );
    assert!(rig.desk.hub.is_clear());
}

#[test]
fn however_the_hub_ends_its_watches_do() {
    let mut rig = rig();
    let mut known = rig.watch(prefix("a"));
    rig.settle();
    let mut unknown = rig.watch(prefix("a"));
    assert_eq!(poll(&mut known), "created from 2");
    assert!(known.poll().is_pending());
    let shared = rig.shared.clone();
    drop(rig);
    assert!(known.was_woken());
    assert_eq!(poll(&mut known), "NodeNotReady at 0");
    assert!(matches!(known.poll(), Poll::Ready(None)));
    assert_eq!(poll(&mut unknown), "NodeNotReady at 0");
    let refused = shared.watch(prefix("a"), 0).err().unwrap();
    assert_eq!(refused.reason(), Reason::NodeNotReady);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let rig = Rig::new(WatchSettings {
        max_watches: 1,
        ..WatchSettings::default()
    });
    let refused = |watch: Watch| rig.shared.watch(watch, 0).err().unwrap().reason();
    assert_eq!(
        refused(prefix("a").list().from_revision(3)),
        Reason::InvalidArgument
    );
    assert_eq!(
        refused(Watch::new(KeyRange::between("b", "a"))),
        Reason::InvalidArgument
    );
    assert_eq!(refused(Watch::new(KeyRange::key(""))), Reason::EmptyKey);
    assert_eq!(
        refused(Watch::new(KeyRange::key(vec![b'k'; 1 << 20]))),
        Reason::KeyTooLarge
    );
    let open = rig.shared.watch(prefix("a"), 0).unwrap();
    assert_eq!(refused(prefix("a")), Reason::Overloaded);
    drop(open);
    assert!(rig.shared.watch(prefix("a"), 0).is_ok());
}

#[test]
fn headers_tell_the_present_while_a_watcher_catches_up() {
    let mut rig = rig();
    rig.apply_each([put("a", "1"), put("a", "2")]);
    let mut user = rig.watch(prefix("a").from_revision(2));
    rig.settle();
    assert_eq!(poll(&mut user), "created from 2");
    match user.poll() {
        Poll::Ready(Some(Ok(WatchMessage::Events {
            header, revision, ..
        }))) => {
            assert_eq!((header.revision, revision), (3, 2));
        }
        other => panic!("expected events, not {other:?}"),
    }
}

fn poll(user: &mut User) -> String {
    match user.poll() {
        Poll::Ready(Some(message)) => super::rig::describe(&message),
        Poll::Ready(None) => "end".into(),
        Poll::Pending => "pending".into(),
    }
}
