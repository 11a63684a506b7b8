//! Who says what about the Master, second by second: `testdata/master_*.txt` played against one [`MasterTracker`] per
//! Server.
//!
//! A line is a second: what happens at its start, then what each Server says at its end. `s2 7` is the title of s2 in
//! term 7, `s2 7 ?` a provisional one, `-` none, `down` no process. Events, separated by commas:
//!
//! | event | meaning |
//! |---|---|
//! | `start s1` | its process starts, knowing no leader |
//! | `kill s1` | its process is gone |
//! | `cut s1 s2` / `heal` | the two do not reach each other / everyone reaches everyone |
//! | `voters s1 s2` | these vote |
//! | `joint s1 > s2` | the configuration is joint: before > after |
//! | `lead s1 2` | s1 is elected in term 2; whoever reaches it follows |
//!
//! A leader without a quorum gives up after a second, a follower forgets a silent leader after a second.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use p2p_common::cluster_state::ClusterState;
use p2p_common::member::{Member, RaftId};
use p2p_common::{ClusterId, Epoch, KeyHash, NodeId, NodeKind, Now, UnixMs};
use p2p_server_core::{MasterSight, MasterTracker, RaftSight};
use uuid::Uuid;

/// How long raft takes to notice.
const SILENCE_MS: u64 = 1_000;

struct Process {
    started: Now,
    leader: Option<RaftId>,
    term: u64,
    /// Since when it does not reach its leader, or its quorum while it leads.
    silent_since: Option<Now>,
    tracker: MasterTracker,
}

struct World {
    names: Vec<String>,
    state: ClusterState,
    running: BTreeMap<RaftId, Process>,
    terms: BTreeMap<RaftId, u64>,
    cut: BTreeSet<(RaftId, RaftId)>,
    voters: BTreeSet<RaftId>,
    outgoing: BTreeSet<RaftId>,
    now: Now,
    /// Who ever held a title without a mark.
    holders: BTreeMap<u64, NodeId>,
}

impl World {
    fn new(names: Vec<String>) -> World {
        let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), Vec::new());
        for (raft_id, name) in (1..).zip(&names) {
            let id = NodeId::new(NodeKind::Server, Uuid::from_u128(raft_id.into()));
            let member = Member {
                id,
                name: name.clone(),
                addresses: vec!["127.0.0.1:7400".parse().unwrap()],
                zone: String::new(),
                raft_id,
                key_hash: KeyHash([0; 32]),
            };
            state.members.insert(id, member);
        }
        World {
            names,
            state,
            running: BTreeMap::new(),
            terms: BTreeMap::new(),
            cut: BTreeSet::new(),
            voters: BTreeSet::new(),
            outgoing: BTreeSet::new(),
            now: Now::ZERO,
            holders: BTreeMap::new(),
        }
    }

    fn id(&self, name: &str) -> RaftId {
        let place = self.names.iter().position(|known| known == name);
        place.unwrap_or_else(|| panic!("there is no {name}")) as RaftId + 1
    }

    fn ids(&self, names: &str) -> BTreeSet<RaftId> {
        names.split_whitespace().map(|name| self.id(name)).collect()
    }

    fn reaches(&self, a: RaftId, b: RaftId) -> bool {
        let up = self.running.contains_key(&a) && self.running.contains_key(&b);
        up && !self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn event(&mut self, event: &str) {
        let (verb, rest) = event.split_once(' ').unwrap_or((event, ""));
        match verb {
            "start" => {
                let id = self.id(rest);
                let process = Process {
                    started: self.now,
                    leader: None,
                    term: self.terms.get(&id).copied().unwrap_or_default(),
                    silent_since: None,
                    tracker: MasterTracker::new(),
                };
                assert!(self.running.insert(id, process).is_none(), "{rest} runs already");
            }
            "kill" => {
                let id = self.id(rest);
                let process = self.running.remove(&id).expect("only who runs is killed");
                self.terms.insert(id, process.term);
            }
            "cut" => {
                let pair: Vec<_> = self.ids(rest).into_iter().collect();
                self.cut.insert((pair[0], pair[1]));
            }
            "heal" => self.cut.clear(),
            "voters" => (self.voters, self.outgoing) = (self.ids(rest), BTreeSet::new()),
            "joint" => {
                let (before, after) = rest.split_once('>').expect("joint A > B");
                (self.outgoing, self.voters) = (self.ids(before), self.ids(after));
            }
            "lead" => {
                let (name, term) = rest.split_once(' ').expect("lead NAME TERM");
                let (leader, term) = (self.id(name), term.parse().unwrap());
                let followers: Vec<_> =
                    self.running.keys().copied().filter(|id| self.reaches(*id, leader)).collect();
                for id in followers {
                    let process = self.running.get_mut(&id).unwrap();
                    (process.leader, process.term, process.silent_since) = (Some(leader), term, None);
                }
            }
            _ => panic!("no such event: {event}"),
        }
    }

    fn tick(&mut self) {
        let ids: Vec<_> = self.running.keys().copied().collect();
        let leads: BTreeSet<_> =
            ids.iter().copied().filter(|id| self.running[id].leader == Some(*id)).collect();
        for me in ids.iter().copied() {
            let reached: BTreeMap<RaftId, Now> = ids
                .iter()
                .filter(|id| **id != me && self.reaches(me, **id))
                .map(|id| (*id, self.running[id].started))
                .collect();
            let quorum = |voters: &BTreeSet<RaftId>| {
                let there = voters.iter().filter(|id| **id == me || reached.contains_key(id)).count();
                voters.is_empty() || there > voters.len() / 2
            };
            let quorum = quorum(&self.voters) && quorum(&self.outgoing);
            let now = self.now;
            let process = self.running.get_mut(&me).unwrap();
            let lost = match process.leader {
                Some(leader) if leader == me => !quorum,
                Some(leader) => !(reached.contains_key(&leader) && leads.contains(&leader)),
                None => false,
            };
            process.silent_since = lost.then(|| process.silent_since.unwrap_or(now));
            if process
                .silent_since
                .is_some_and(|since| now.since(since).as_millis() >= u128::from(SILENCE_MS))
            {
                (process.leader, process.silent_since) = (None, None);
            }
            let leads = process.leader == Some(me);
            let raft = RaftSight { leader: process.leader, term: process.term, leads, leader_ready: leads };
            let sight = MasterSight {
                me,
                started: process.started,
                raft,
                voters: [&self.voters, &self.outgoing],
                reached: &reached,
                state: &self.state,
            };
            let wall = u64::try_from(now.0.as_millis()).unwrap();
            process.tracker.handle_sight(&sight, now, UnixMs(wall));
            if let Some(title) = process.tracker.title().filter(|title| !title.provisional) {
                let holder = self.holders.entry(title.term).or_insert(title.id);
                assert_eq!(*holder, title.id, "two unflagged titles in term {}", title.term);
            }
        }
        self.now = self.now + MasterTracker::LOOK_EVERY;
    }

    fn said(&self, id: RaftId) -> String {
        let Some(process) = self.running.get(&id) else { return "down".into() };
        let mark = |provisional| if provisional { " ?" } else { "" };
        match process.tracker.title() {
            Some(title) => format!("{} {}{}", title.name, title.term, mark(title.provisional)),
            None => "-".into(),
        }
    }
}

fn play(script: &str) {
    let (mut world, mut played, mut differs) = (None::<World>, String::new(), false);
    for line in script.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells.len() < 3 {
            writeln!(played, "{line}").unwrap();
            continue;
        }
        let Some(world) = &mut world else {
            world = Some(World::new(cells[2..].iter().map(|name| (*name).to_owned()).collect()));
            writeln!(played, "{line}").unwrap();
            continue;
        };
        let until: u64 = cells[0].parse().unwrap_or_else(|_| panic!("no second: {line}"));
        while world.now < Now::from_ms(until * 1_000) {
            world.tick();
        }
        cells[1]
            .split(',')
            .map(str::trim)
            .filter(|event| !event.is_empty())
            .for_each(|event| world.event(event));
        for _ in 0..10 {
            world.tick();
        }
        let said: Vec<String> = (1..=world.names.len() as RaftId).map(|id| world.said(id)).collect();
        differs |= said.iter().ne(cells[2..].iter());
        let row: Vec<String> = said.iter().map(|said| format!("{said:<6}")).collect();
        writeln!(played, "{:>3} | {:<34} | {}", cells[0], cells[1], row.join(" | ").trim_end()).unwrap();
    }
    assert!(!differs, "it went like this instead:\n{played}");
}

#[test]
fn one_and_two_servers() {
    play(include_str!("../testdata/master_two_servers.txt"));
}

#[test]
fn three_servers_and_two_dead() {
    play(include_str!("../testdata/master_three_servers.txt"));
}

#[test]
fn five_servers_in_two_parts() {
    play(include_str!("../testdata/master_five_servers.txt"));
}
