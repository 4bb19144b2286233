//! Runs `scripts/*.txt`: what a leader sees, what it does. See [`crate::script`] for the form.
//!
//! ```text
//! > size=3; podkv-0#a leads; podkv-1#b votes silent=12; podkv-1#d; podkv-2#c votes
//! ```
//!
//! First the cluster: `size`, `start`, `since` (seconds that the size has held), `max` voters, `unchanged`
//! (seconds that the membership has), `replaced` (a name that was replaced 3 s ago), `unsettled`, `changing` (by this leader). Then
//! its members: `leads`, `votes`, `silent` (seconds), `behind` (entries); in half a joint change who `joins` the voters and
//! who `leaves` them. Who leads votes, unless it `leaves` or is `unvoted`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podkv_api::MemberId;

use super::decide::{Action, Peer, Situation, Size, decide};
use crate::config::MembershipTiming;
use crate::discovery::Ordinals;
use crate::membership::{Members, PeerAddress};
use crate::script::{Words, replay_all};

#[test]
fn scripts_say_what_they_do() {
    replay_all("reconcile/scripts", run);
}

fn run(line: &str) -> String {
    let mut parts = line.split(';').map(Words::new);
    let cluster = parts.next().unwrap();
    let (mut members, mut old, mut new) = (Members::default(), BTreeSet::new(), BTreeSet::new());
    let (mut peers, mut me) = (BTreeMap::new(), None);
    let seconds =
        |words: &Words, name, otherwise| Duration::from_secs(words.number(name, otherwise).into());
    for part in parts {
        let id = part.id().unwrap();
        let address = PeerAddress {
            name: part.name().into(),
            ..PeerAddress::default()
        };
        members.nodes.insert(id, address);
        let leaves = part.has("leaves") || part.has("unvoted");
        let votes = part.has("votes") || (part.has("leads") && !leaves);
        if votes || part.has("leaves") {
            old.insert(id);
        }
        if votes || part.has("joins") {
            new.insert(id);
        }
        if part.has("leads") {
            me = Some(id);
        }
        let peer = Peer {
            silent: seconds(&part, "silent", 0),
            behind: part.number("behind", 0).into(),
        };
        peers.insert(id, peer);
    }
    members.voters = vec![old, new];
    members.voters.dedup();
    let replaced = cluster.option("replaced").map(str::to_owned);
    let action = decide(&Situation {
        me: me.expect("somebody leads"),
        members: &members,
        settled: !cluster.has("unsettled"),
        changing: cluster.has("changing"),
        unchanged: seconds(&cluster, "unchanged", 60),
        peers: &peers,
        size: cluster.option("size").map(|replicas| Size {
            ordinals: Ordinals {
                start: cluster.number("start", 0),
                replicas: replicas.parse().unwrap(),
            },
            since: seconds(&cluster, "since", 60),
        }),
        max_voters: cluster.number("max", 5),
        timing: &MembershipTiming::default(),
        alive_within: Duration::from_secs(2),
        replaced: &replaced
            .into_iter()
            .map(|name| (name, Duration::from_secs(3)))
            .collect(),
    });
    let name = |id: &MemberId| format!("{}#{:x}", members.nodes[id].name, id.0);
    match &action {
        Action::Nothing => "nothing".into(),
        Action::Wait(why) => format!("wait: {why}"),
        Action::Finish => "finish".into(),
        Action::Promote(id) => format!("promote {}", name(id)),
        Action::Demote(id) => format!("demote {}", name(id)),
        Action::Replace { old, new } => format!("replace {} by {}", name(old), name(new)),
        Action::Remove(id) => format!("remove {}", name(id)),
        Action::HandOver(id) => format!("hand over to {}", name(id)),
    }
}
