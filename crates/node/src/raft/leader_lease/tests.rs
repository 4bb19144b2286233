//! The lease's arithmetic and its rules, without Raft.

use std::sync::Arc;

use tokio::time::advance;

use super::*;

const ME: MemberId = MemberId(1);
const PROMISE: Duration = Duration::from_millis(1000);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn ids(ids: &[u64]) -> BTreeSet<MemberId> {
    ids.iter().copied().map(MemberId).collect()
}

/// `promised`: for each other voter, until how many milliseconds from now it is counted.
fn held_for(sets: &[&[u64]], promised: &[(u64, u64)]) -> Option<Option<u64>> {
    let now = Instant::now();
    let sets: Vec<_> = sets.iter().map(|set| ids(set)).collect();
    let until = promised
        .iter()
        .map(|(id, after)| (MemberId(*id), now + ms(*after)))
        .collect();
    match held(ME, &sets, &until) {
        Held::No => None,
        Held::Alone => Some(None),
        Held::Until(at) => Some(Some(u64::try_from((at - now).as_millis()).unwrap())),
    }
}

#[tokio::test(start_paused = true)]
async fn a_majority_of_every_set_has_promised() {
    let all: &[(u64, u64)] = &[(2, 20), (3, 30), (4, 40), (5, 50)];
    let table: &[(&[&[u64]], &[(u64, u64)], Option<Option<u64>>)] = &[
        // Nobody votes; others vote, this node does not.
        (&[], all, None),
        (&[&[2, 3]], all, None),
        // Alone.
        (&[&[1]], &[], Some(None)),
        // Of two, both.
        (&[&[1, 2]], &[], None),
        (&[&[1, 2]], all, Some(Some(20))),
        // Of three, this one and the one that promised longer.
        (&[&[1, 2, 3]], &[], None),
        (&[&[1, 2, 3]], &[(2, 20)], Some(Some(20))),
        (&[&[1, 2, 3]], all, Some(Some(30))),
        // Of four, three.
        (&[&[1, 2, 3, 4]], &[(4, 40)], None),
        (&[&[1, 2, 3, 4]], all, Some(Some(30))),
        // Of five, three: who is not a voter does not count.
        (&[&[1, 2, 3, 4, 5]], all, Some(Some(40))),
        (&[&[1, 2, 3, 6, 7]], all, Some(Some(20))),
        (&[&[1, 2, 6, 7, 8]], all, None),
        // Joint: both, in any order; this node votes in both.
        (&[&[1, 2, 3], &[1, 4, 5]], all, Some(Some(30))),
        (&[&[1, 4, 5], &[1, 2, 3]], all, Some(Some(30))),
        (&[&[1, 2, 3], &[1, 6, 7]], all, None),
        (&[&[1, 2, 3], &[2, 3, 4]], all, None),
        (&[&[1], &[1, 2]], all, Some(Some(20))),
        (&[&[1, 2], &[1]], all, Some(Some(20))),
        (&[&[1, 2], &[1]], &[], None),
    ];
    for (sets, promised, expected) in table {
        let found = held_for(sets, promised);
        assert_eq!(found, *expected, "{sets:?} with {promised:?}");
    }
}

/// By all ways to vote: whoever is elected without this node's vote has a vote of somebody whose promise is over.
#[tokio::test(start_paused = true)]
async fn no_majority_votes_before_the_lease_ends() {
    let now = Instant::now();
    for size in 1..=5_u64 {
        let voters: Vec<u64> = (1..=size).collect();
        for pattern in 0..4_u64.pow(u32::try_from(size).unwrap()) {
            let promised: Vec<u64> = (0..size)
                .map(|nth| pattern / 4_u64.pow(nth as u32) % 4)
                .collect();
            let until: BTreeMap<_, _> = voters
                .iter()
                .zip(&promised)
                .filter(|(id, promised)| MemberId(**id) != ME && **promised > 0)
                .map(|(id, promised)| (MemberId(*id), now + ms(*promised)))
                .collect();
            let lease = match held(
                ME,
                &[voters.iter().copied().map(MemberId).collect()],
                &until,
            ) {
                Held::No => now,
                Held::Until(at) => at,
                Held::Alone => now + ms(100),
            };
            for at in 0..4 {
                let at = now + ms(at);
                let free = voters.iter().filter(|id| {
                    MemberId(**id) != ME
                        && until.get(&MemberId(**id)).is_none_or(|until| *until <= at)
                });
                let elects = free.count() as u64 > size / 2;
                assert!(!elects || lease <= at, "{promised:?} of {size}");
            }
        }
    }
}

#[test]
fn clocks_may_differ_by_a_tenth() {
    // A follower's clock that goes a tenth too fast ends its promise after this much of the leader's time.
    assert!(kept(PROMISE) <= PROMISE * 10 / 11);
    assert_eq!(kept(PROMISE), ms(900));
}

fn terms() -> LeaseTerms {
    LeaseTerms {
        reads: true,
        promise: PROMISE,
        promised_before: Duration::ZERO,
    }
}

struct Rig {
    lease: LeaderLease,
    led: Arc<Mutex<Option<Led>>>,
}

impl Rig {
    fn new(terms: LeaseTerms) -> Self {
        let led = Arc::new(Mutex::new(None));
        let lease = LeaderLease::new(ME, terms);
        let seen = led.clone();
        let leads = move || {
            let led = seen.lock().unwrap();
            led.as_ref().map(|led: &Led| Led {
                term: led.term,
                voters: led.voters.clone(),
                at: led.at,
            })
        };
        assert!(lease.leads.set(Box::new(leads)).is_ok());
        Self { lease, led }
    }

    fn leads(&self, term: u64, voters: &[u64]) {
        let led = Led {
            term,
            voters: vec![ids(voters)],
            at: Some(LogPosition { term: 1, index: 1 }),
        };
        *self.led.lock().unwrap() = Some(led);
    }

    /// Leads three in term 5, and one of the others has just promised.
    fn leading() -> Self {
        let rig = Self::new(terms());
        rig.leads(5, &[1, 2, 3]);
        rig.answer(2);
        assert_eq!(rig.term(), Some(5));
        rig
    }

    fn answer(&self, voter: u64) {
        let sent = self.lease.sending(None);
        self.lease.answered(MemberId(voter), 5, sent, PROMISE);
    }

    fn term(&self) -> Option<u64> {
        self.lease.holds().map(|(term, _)| term)
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_counts_from_when_the_message_was_sent() {
    let rig = Rig::new(terms());
    rig.leads(5, &[1, 2, 3]);
    let sent = rig.lease.sending(None);
    // The way, the follower's disk, a pause of this process: all of it goes from the lease.
    advance(ms(600)).await;
    rig.lease.answered(MemberId(2), 5, sent, PROMISE);
    assert_eq!(rig.term(), Some(5));
    advance(ms(299)).await;
    assert_eq!(rig.term(), Some(5));
    advance(ms(1)).await;
    assert_eq!(rig.term(), None);
    // An answer to what was sent long ago renews nothing, and shortens nothing.
    rig.answer(3);
    rig.lease.answered(MemberId(3), 5, sent, PROMISE);
    advance(ms(800)).await;
    assert_eq!(rig.term(), Some(5));
}

#[tokio::test(start_paused = true)]
async fn who_promises_less_is_counted_for_less() {
    let rig = Rig::new(terms());
    rig.leads(5, &[1, 2, 3]);
    let sent = rig.lease.sending(None);
    rig.lease.answered(MemberId(2), 5, sent, ms(100));
    advance(ms(89)).await;
    assert_eq!(rig.term(), Some(5));
    advance(ms(1)).await;
    assert_eq!(rig.term(), None);
}

#[tokio::test(start_paused = true)]
async fn off_there_is_neither_a_promise_nor_a_lease() {
    let rig = Rig::new(LeaseTerms::default());
    rig.leads(5, &[1, 2, 3]);
    rig.answer(2);
    rig.answer(3);
    assert_eq!(rig.term(), None);
    assert_eq!(rig.lease.heard(5), None);
    assert!(rig.lease.may_vote());
}

#[tokio::test(start_paused = true)]
async fn answers_count_in_their_term_alone() {
    let rig = Rig::leading();
    rig.leads(7, &[1, 2, 3]);
    let sent = rig.lease.sending(None);
    rig.lease.answered(MemberId(2), 7, sent, PROMISE);
    assert_eq!(rig.term(), Some(7));
    assert!(!rig.lease.holds_in(5));
    // Late, of the earlier term.
    advance(ms(800)).await;
    rig.answer(3);
    advance(ms(100)).await;
    assert_eq!(rig.term(), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_promised_in_an_earlier_term_does_not_count() {
    let rig = Rig::new(terms());
    rig.leads(5, &[1, 2, 3, 4, 5]);
    rig.answer(2);
    rig.answer(3);
    rig.leads(7, &[1, 2, 3, 4, 5]);
    let sent = rig.lease.sending(None);
    rig.lease.answered(MemberId(4), 7, sent, PROMISE);
    assert_eq!(
        rig.term(),
        None,
        "one of two others has promised in this term"
    );
    rig.lease.answered(MemberId(2), 7, sent, PROMISE);
    assert_eq!(rig.term(), Some(7));
}

#[tokio::test(start_paused = true)]
async fn who_campaigns_has_no_lease_of_an_earlier_term() {
    let rig = Rig::leading();
    assert!(rig.lease.campaign(6, false));
    assert_eq!(rig.term(), None);
    rig.answer(3);
    assert_eq!(rig.term(), None);
}

#[tokio::test(start_paused = true)]
async fn a_vote_that_is_given_ends_the_lease_for_good() {
    let rig = Rig::leading();
    let voting = rig.lease.admit_vote(6, false).unwrap();
    assert_eq!(rig.term(), None, "openraft may have given it");
    assert!(!rig.lease.holds_in(5));
    voting.decided(false);
    assert_eq!(rig.term(), Some(5));
    // Nobody waits for the decision: it may be either.
    drop(rig.lease.admit_vote(6, true));
    assert_eq!(rig.term(), None);
    rig.answer(3);
    assert_eq!(rig.term(), None);
    rig.leads(7, &[1, 2, 3]);
    let sent = rig.lease.sending(None);
    rig.lease.answered(MemberId(2), 7, sent, PROMISE);
    assert_eq!(rig.term(), Some(7));
}

#[tokio::test(start_paused = true)]
async fn a_promise_holds_from_when_the_message_came_in() {
    let rig = Rig::new(terms());
    assert!(rig.lease.may_vote());
    assert_eq!(rig.lease.heard(5), Some(PROMISE));
    advance(ms(999)).await;
    assert!(!rig.lease.may_vote());
    assert!(rig.lease.admit_vote(6, false).is_none());
    assert!(!rig.lease.campaign(6, false));
    advance(ms(1)).await;
    assert!(rig.lease.may_vote());
    assert!(rig.lease.campaign(6, false));
    rig.lease.admit_vote(7, false).unwrap().decided(true);
    // A leader of the past holds nothing up.
    assert_eq!(rig.lease.heard(5), None);
    assert!(rig.lease.may_vote());
}

#[tokio::test(start_paused = true)]
async fn a_transfer_passes_a_promise() {
    let rig = Rig::new(terms());
    rig.lease.heard(5);
    assert!(rig.lease.campaign(6, true));
    assert!(rig.lease.admit_vote(6, true).is_some());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_promised_while_a_vote_is_decided() {
    let rig = Rig::new(terms());
    let voting = rig.lease.admit_vote(6, false).unwrap();
    assert_eq!(rig.lease.heard(5), None);
    voting.decided(false);
    assert_eq!(rig.lease.heard(5), Some(PROMISE));
}

#[tokio::test(start_paused = true)]
async fn what_was_promised_before_the_start_is_kept() {
    let rig = Rig::new(LeaseTerms {
        promised_before: ms(300),
        ..LeaseTerms::default()
    });
    assert!(!rig.lease.may_vote());
    assert!(!rig.lease.campaign(6, false));
    assert!(rig.lease.admit_vote(6, false).is_none());
    assert!(rig.lease.admit_vote(6, true).is_some());
    // By itself, whatever else takes its time: nobody has to allow it.
    advance(ms(300)).await;
    assert!(rig.lease.may_vote());
    assert!(rig.lease.campaign(6, false));
}

#[tokio::test(start_paused = true)]
async fn there_is_none_while_it_is_suspended() {
    let rig = Rig::leading();
    let (one, two) = (rig.lease.suspend(), rig.lease.suspend());
    assert_eq!(rig.term(), None);
    drop(one);
    assert!(!rig.lease.holds_in(5));
    drop(two);
    assert_eq!(rig.term(), Some(5));
    rig.lease.end(5);
    rig.answer(3);
    assert_eq!(rig.term(), None);
}

#[tokio::test(start_paused = true)]
async fn an_earlier_membership_does_not_count() {
    let rig = Rig::leading();
    let at = LogPosition { term: 5, index: 9 };
    rig.lease.members_from(at);
    assert_eq!(rig.term(), None);
    let changed = Led {
        term: 5,
        voters: vec![ids(&[1, 4, 5])],
        at: Some(at),
    };
    *rig.led.lock().unwrap() = Some(changed);
    assert_eq!(rig.term(), None, "neither has promised");
    rig.answer(4);
    assert_eq!(rig.term(), Some(5));
}

#[tokio::test(start_paused = true)]
async fn the_only_voter_needs_no_promise() {
    let rig = Rig::new(terms());
    rig.leads(5, &[1]);
    advance(ms(100_000)).await;
    assert_eq!(rig.term(), Some(5));
    let voting = rig.lease.admit_vote(6, false).unwrap();
    assert_eq!(rig.term(), None);
    voting.decided(true);
    assert_eq!(rig.term(), None);
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_for_what_others_may_know() {
    let rig = Rig::leading();
    let at = |index| LogPosition { term: 5, index };
    let told = || rig.lease.holds().unwrap().1;
    rig.lease.sending(Some(at(7)));
    assert_eq!(told(), at(7));
    rig.lease.tell(at(9));
    rig.lease.sending(Some(at(8)));
    assert_eq!(told(), at(9));
}
