//! Runs `scripts/*.txt`: what a node sees, what it does, as a text to read.
//!
//! See [`crate::script`] for the form.
//!
//! ```text
//! > podkv-0#a virgin; podkv-1#b virgin; podkv-2 silent
//! ```
//!
//! First this node: name, id, phase, and settings other than `N=3 start=0 max=5`. Then what the suggested peers say.
//! Phases: `virgin`, `reserved 7 abc` (cluster, founders by id in the order of their ordinals), `member 7/1`
//! (cluster, incarnation), `retired 7`. A member may say `leads`; of this node, `founded abc`.

use std::collections::BTreeSet;

use podkv_api::{ClusterId, Incarnation, MemberId};

use super::decide::{Action, Answer, Me, Peer, Said, Situation, decide};
use super::founders::{Founding, PodName, choose_voters};
use crate::discovery::Ordinals;
use crate::discovery::Suggestion;
use crate::identity::{Founder, Phase, Proposal};
use crate::script::{Words, member, replay_all};

#[test]
fn scripts_say_what_they_do() {
    replay_all("bootstrap/scripts", |situation| tell(&run(situation)));
}

fn run(line: &str) -> Action {
    let mut parts = line.split(';').map(Words::new);
    let mine = parts.next().unwrap();
    let me = Me {
        name: PodName::parse(mine.name()).unwrap(),
        id: mine.id().unwrap(),
        peer_address: format!("{}:2380", mine.name()),
        client_address: format!("{}:2379", mine.name()),
        // N=0 stands for not being told yet.
        expected: match mine.number("N", 3) {
            0 => Err("the API server is silent".into()),
            replicas => Ok(Ordinals {
                start: mine.number("start", 0),
                replicas,
            }),
        },
        max_voters: mine.number("max", 5),
        read_only: mine.words.iter().any(|word| word == "read-only"),
    };
    let start = mine.number("start", 0);
    let propose = |cluster: &str, founders: &str| {
        let mut founders: Vec<_> = founders
            .chars()
            .enumerate()
            .map(|(ordinal, id)| {
                founder(
                    &me.name
                        .with_ordinal(start + u32::try_from(ordinal).unwrap()),
                    member(&id.to_string()),
                )
            })
            .collect();
        choose_voters(&mut founders, me.max_voters);
        let replicas = u32::try_from(founders.len()).unwrap();
        Proposal {
            cluster: cluster_of(cluster),
            replicas,
            founders,
        }
    };
    let words: Vec<_> = mine.words.iter().map(String::as_str).collect();
    let phase = match words[1..] {
        ["virgin", ..] => Phase::Virgin,
        ["reserved", cluster, founders, ..] => Phase::Reserved(propose(cluster, founders)),
        ["member", cluster, ..] => {
            let (cluster, incarnation) = cluster_and_incarnation(cluster);
            Phase::Member {
                cluster,
                incarnation,
            }
        }
        ["retired", cluster, ..] => Phase::Retired {
            cluster: cluster_of(cluster),
            incarnation: Incarnation(1),
        },
        _ => panic!("no phase in {line}"),
    };
    let founding = match words[1..] {
        ["member", cluster, "founded", founders, ..] => {
            Some(propose(cluster.split('/').next().unwrap(), founders))
        }
        _ => None,
    };
    decide(&Situation {
        founding: founding.as_ref(),
        released: &mine
            .option("released")
            .map(cluster_of)
            .into_iter()
            .collect(),
        rejoins: mine.option("rejoins").map(cluster_of),
        refusals: &mine
            .option("refused-by")
            .map(member)
            .into_iter()
            .collect::<BTreeSet<_>>(),
        peers: &parts.map(|part| peer(&part)).collect::<Vec<_>>(),
        phase: &phase,
        me: &me,
    })
}

fn peer(part: &Words) -> Peer {
    let suggestion = Suggestion {
        name: Some(part.name().into()),
        peer_address: format!("{}:2380", part.name()),
    };
    let words: Vec<_> = part.words[1..].iter().map(String::as_str).collect();
    let said = match words[..] {
        ["silent", ..] => {
            return Peer {
                suggestion,
                answer: None,
            };
        }
        ["virgin", ..] => Said::Virgin,
        ["reserved", cluster, ..] => Said::Reserved {
            cluster: cluster_of(cluster),
        },
        ["retired", cluster, ..] => Said::Retired {
            cluster: cluster_of(cluster),
        },
        ["member", cluster, ref rest @ ..] => {
            let (cluster, incarnation) = cluster_and_incarnation(cluster);
            let leader = rest.contains(&"leads").then(|| part.id().unwrap());
            Said::Member {
                cluster,
                incarnation,
                leader,
            }
        }
        _ => panic!("what does {words:?} say?"),
    };
    let Founder {
        name,
        id,
        peer_address,
        client_address,
        ..
    } = founder(part.name(), part.id().unwrap());
    let replicas = part.number("N", 3);
    Peer {
        suggestion,
        answer: Some(Answer {
            name,
            id,
            peer_address,
            client_address,
            replicas,
            said,
        }),
    }
}

fn cluster_of(cluster: &str) -> ClusterId {
    ClusterId(u64::from_str_radix(cluster, 16).unwrap())
}

fn cluster_and_incarnation(text: &str) -> (ClusterId, Incarnation) {
    let (cluster, incarnation) = text.split_once('/').unwrap();
    (
        cluster_of(cluster),
        Incarnation(incarnation.parse().unwrap()),
    )
}

fn founder(name: &str, id: MemberId) -> Founder {
    Founder {
        name: name.into(),
        id,
        peer_address: format!("{name}:2380"),
        client_address: format!("{name}:2379"),
        voter: false,
    }
}

fn tell(action: &Action) -> String {
    let founders = |founders: &[Founder]| {
        let names = founders.iter().map(|founder| {
            format!(
                "{}#{:x}{}",
                founder.name,
                founder.id.0,
                if founder.voter { "" } else { " (learner)" }
            )
        });
        names.collect::<Vec<_>>().join(", ")
    };
    match action {
        Action::Wait(why) if why.needs_help() => format!("wait! {why}"),
        Action::Wait(why) => format!("wait: {why}"),
        Action::Propose { founders: all } => format!("propose {}", founders(all)),
        Action::Ask { founders: some } => format!("ask {}", founders(some)),
        Action::Initialize(proposal) => {
            let founding = Founding::from(proposal);
            let ids = |ids: Vec<&MemberId>| {
                ids.iter()
                    .map(|id| format!("{:x}", id.0))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let voters = ids(founding.voters.keys().collect());
            let learners = ids(founding.learners.keys().collect());
            format!(
                "initialize {:x}, voters [{voters}], learners [{learners}]",
                proposal.cluster.0
            )
        }
        Action::Release { cluster, because } => format!("release {:x}: {because}", cluster.0),
        Action::Join {
            cluster,
            incarnation,
            via,
        } => {
            let via: Vec<_> = via.iter().map(|via| via.peer_address.as_str()).collect();
            format!("join {:x}/{incarnation} via {}", cluster.0, via.join(", "))
        }
        Action::Member => "nothing: a member".into(),
        Action::Retired => "nothing: retired".into(),
    }
}
