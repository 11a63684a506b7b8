//! Servers on top of the raft world: table C by the real commands, the real autopilot on whoever leads, the real rule
//! who is Master on each, connections that come and go, and operators who let Servers join, leave and stop.
//!
//! After every step: at most one unflagged title per (epoch, term), none that goes back where it is shown, and
//! a Master to name, if only a provisional one, wherever neither a leader nor a quorum is in reach for long.

mod care;

use std::collections::{BTreeMap, BTreeSet};

use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{Command, CommandBody, IdentityRecord, Outcome};
use p2p_common::member::{MasterTitle, RaftId};
use p2p_common::setting::SettingName;
use p2p_common::{ClusterId, Epoch, KeyHash, NodeId, NodeKind, Now, RequestId, UnixMs};
use p2p_server_core::{Autopilot, MasterSight, MasterTracker, RaftSight, target_voters};
use p2p_server_raft::{Fsm, Role};
use rand::Rng;
use uuid::Uuid;

use super::{Attempt, Planted, World};

/// A Server, whatever raft ids it had.
pub type Name = u8;

/// How often every Server looks at who is Master while nothing changes.
const LOOK_EVERY_MS: u64 = 100;
/// How long a Server is given for handing over before it stops anyway.
const HAND_OVER_MS: u64 = 2_000;
/// How long a joiner waits for an answer before it asks again.
const ASK_AGAIN_MS: u64 = 1_000;
/// Without a leader and a quorum for this long, somebody is named: half a second, and a look.
const NAMED_WITHIN_MS: u64 = 700;

/// One process, or the wish for one.
struct Server {
    raft_id: Option<RaftId>,
    /// The request by which it joins, and when to ask again.
    joins: Option<(Attempt, u64)>,
    started_ms: u64,
    tracker: MasterTracker,
    pilot: Autopilot,
    leaving: BTreeMap<RaftId, u64>,
    stops_at_ms: Option<u64>,
    newest: Option<(Epoch, u64)>,
    alone_since_ms: Option<u64>,
}

/// A connection as one side sees it.
#[derive(Default)]
struct Link {
    up: bool,
    changes_at_ms: Option<u64>,
}

/// What an operator waits for.
struct Leave {
    name: Name,
    request: Option<u64>,
    until_ms: u64,
}

pub struct Servers {
    pub world: World,
    servers: BTreeMap<Name, Server>,
    links: BTreeMap<(Name, Name), Link>,
    leaves: Vec<Leave>,
    holders: BTreeMap<(Epoch, u64), NodeId>,
    /// Titles shown that named nobody before.
    pub provisional_titles: u64,
    pub removals: u64,
    pub hand_overs: u64,
    pub new_logs: u64,
}

fn node_id(name: Name) -> NodeId {
    NodeId::new(NodeKind::Server, Uuid::from_u128(name.into()))
}

fn record(name: Name, new_log: bool) -> CommandBody {
    CommandBody::UpsertMember {
        id: node_id(name),
        name: format!("s{name}"),
        addresses: vec!["127.0.0.1:7400".parse().unwrap()],
        zone: String::new(),
        key_hash: KeyHash([name; 32]),
        new_log,
    }
}

impl Servers {
    /// One Server, which founded a cluster; `names` are enrolled. A silent voter is replaced after `replace_after_s`.
    pub fn found(mut world: World, names: std::ops::RangeInclusive<Name>, replace_after_s: u64) -> Self {
        let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), Vec::new());
        for name in names {
            let (id, key_hash) = (node_id(name), KeyHash([name; 32]));
            let enrolled_at = UnixMs(0);
            state.identities.insert(id, IdentityRecord::new(id, format!("s{name}"), key_hash, enrolled_at));
        }
        let mut fsm = Fsm::new(state);
        let replace = CommandBody::ChangeSetting {
            name: SettingName::VoterReplaceAfter,
            value: Some(format!("{replace_after_s}s")),
            expected: None,
        };
        for (number, body) in [record(1, false), replace].into_iter().enumerate() {
            let request_id = RequestId::new(Uuid::from_u128(u128::MAX - number as u128));
            let outcome = fsm.apply(&Command { request_id, body });
            assert!(!matches!(outcome, Outcome::Refused { .. }), "{outcome:?}");
        }
        world.found(1, ClusterState::clone(fsm.state()));
        let mut servers = Servers {
            world,
            servers: BTreeMap::new(),
            links: BTreeMap::new(),
            leaves: Vec::new(),
            holders: BTreeMap::new(),
            provisional_titles: 0,
            removals: 0,
            hand_overs: 0,
            new_logs: 0,
        };
        servers.begin(1);
        servers.server(1).raft_id = Some(1);
        servers
    }

    fn server(&mut self, name: Name) -> &mut Server {
        self.servers.get_mut(&name).expect("it exists")
    }

    /// A process starts.
    fn begin(&mut self, name: Name) {
        let before = self.servers.remove(&name);
        let server = Server {
            raft_id: before.as_ref().and_then(|server| server.raft_id),
            joins: before.and_then(|server| server.joins),
            started_ms: self.world.now_ms,
            tracker: MasterTracker::new(),
            pilot: Autopilot::new(),
            leaving: BTreeMap::new(),
            stops_at_ms: None,
            newest: None,
            alone_since_ms: None,
        };
        self.servers.insert(name, server);
    }

    pub fn names(&self) -> Vec<Name> {
        self.servers.keys().copied().collect()
    }

    fn raft_id(&self, name: Name) -> Option<RaftId> {
        self.servers.get(&name)?.raft_id
    }

    fn name_of(&self, raft_id: RaftId) -> Option<Name> {
        self.servers.iter().find(|(_, server)| server.raft_id == Some(raft_id)).map(|(name, _)| *name)
    }

    pub fn is_running(&self, name: Name) -> bool {
        self.raft_id(name).is_some_and(|id| self.world.is_running(id))
    }

    /// The raft ids of the Servers of table C, as the leader has it.
    pub fn registered(&self) -> BTreeSet<RaftId> {
        let Some(leader) = self.world.leader() else { return BTreeSet::new() };
        self.world.state(leader).members.values().map(|member| member.raft_id).collect()
    }

    // What people and fate do.

    /// A Server asks to join, or to join again without its log.
    pub fn join(&mut self, name: Name) {
        let Some(leader) = self.world.leader() else { return };
        let new_log = self.servers.contains_key(&name);
        if self.servers.get(&name).is_some_and(|server| server.joins.is_some() || server.raft_id.is_some()) {
            return;
        }
        self.begin(name);
        let request = self.world.propose_body(leader, record(name, new_log));
        let again_ms = self.world.now_ms + ASK_AGAIN_MS;
        self.server(name).joins = Some((Attempt { request, number: 0 }, again_ms));
    }

    pub fn crash(&mut self, name: Name) {
        let Some(id) = self.raft_id(name).filter(|id| self.world.is_running(*id)) else { return };
        let led = self.world.status(id).is_some_and(|status| status.role == Role::Leader);
        self.world.crash(id);
        if led && self.world.rng.random_bool(0.7) {
            self.world.leader_gone(id);
        }
    }

    pub fn start(&mut self, name: Name) {
        if let Some(id) = self.raft_id(name).filter(|id| !self.world.is_running(*id)) {
            self.world.start(id);
            self.begin(name);
        }
    }

    /// A clean stop: it hands over first.
    pub fn stop(&mut self, name: Name) {
        if self.is_running(name) {
            let until_ms = self.world.now_ms + HAND_OVER_MS;
            self.server(name).stops_at_ms.get_or_insert(until_ms);
        }
    }

    /// An operator takes a Server out.
    pub fn leave(&mut self, name: Name) {
        let until_ms = self.world.now_ms + 20_000;
        if self.raft_id(name).is_some() && !self.leaves.iter().any(|leave| leave.name == name) {
            self.leaves.push(Leave { name, request: None, until_ms });
        }
    }

    /// A disk is gone for good, where the others can do without: it will join again under a new raft id.
    pub fn lose_disk(&mut self, name: Name) {
        let (Some(id), Some(leader)) = (self.raft_id(name), self.world.leader()) else { return };
        let members = self.world.core(leader).membership().clone();
        let registered = self.registered();
        // Not before the last one lost is out of the group: each takes its part of the quorum with it.
        let lost = members.all().iter().any(|other| self.name_of(*other).is_none());
        let enough = members.voters.len() >= 3 && registered.len() >= 4 && registered.contains(&id);
        if lost || members.is_joint() || !enough || !self.leaves.is_empty() || self.shrinks() {
            return;
        }
        // Nor while the others, crashed now, would need its vote for a change that it knows to be over.
        let others = members.voters.iter().filter(|other| **other != id);
        if !others.copied().all(|other| self.world.would_know_members(other)) {
            return;
        }
        self.crash(name);
        self.world.destroy(id);
        self.server(name).raft_id = None;
        self.new_logs += 1;
    }

    /// Whether some Server knows of fewer members than there were at another: voters may be about to become fewer.
    fn shrinks(&self) -> bool {
        let ids = self.world.running_ids();
        let sizes = ids.iter().map(|id| self.world.state(*id).members.len()).filter(|size| *size > 0);
        let sizes: BTreeSet<_> = sizes.collect();
        sizes.len() > 1
    }

    // What goes on by itself.

    pub fn step(&mut self) {
        self.world.step();
        self.welcome();
        self.connect();
        self.take_out();
        for name in self.names() {
            self.hand_over(name);
            self.look(name);
            self.tend(name);
        }
    }

    pub fn run_ms(&mut self, ms: u64) {
        let end = self.world.now_ms + ms;
        while self.world.now_ms < end {
            self.step();
        }
    }

    pub fn run_until(&mut self, ms: u64, done: impl Fn(&Servers) -> bool) -> bool {
        let end = self.world.now_ms + ms;
        while self.world.now_ms < end && !done(self) {
            self.step();
        }
        done(self)
    }

    /// Starts those who were told their raft id.
    fn welcome(&mut self) {
        for name in self.names() {
            let Some((attempt, again_ms)) = self.servers[&name].joins else { continue };
            let Some(outcome) = self.world.outcomes.remove(&attempt.request) else {
                if let Some(leader) = self.world.leader().filter(|_| self.world.now_ms >= again_ms) {
                    // Whoever was asked may have died with the answer. The world repeats each of these attempts too, and
                    // counts on from it.
                    let attempt = Attempt { number: attempt.number + (1 << 32), ..attempt };
                    self.server(name).joins = Some((attempt, self.world.now_ms + ASK_AGAIN_MS));
                    self.world.attempt(leader, &[attempt]);
                }
                continue;
            };
            let Outcome::MemberAdded { raft_id } = outcome else { panic!("a join was refused: {outcome:?}") };
            self.server(name).joins = None;
            self.begin(name);
            self.server(name).raft_id = Some(raft_id);
            self.world.add_joiner(raft_id);
        }
    }

    /// Connections break at once with a process, after a while in silence, and are made again after a moment.
    fn connect(&mut self) {
        let now_ms = self.world.now_ms;
        let names = self.names();
        for a in &names {
            for b in names.iter().filter(|b| *b != a) {
                let (from, to) = (self.raft_id(*a), self.raft_id(*b));
                let runs = self.is_running(*a) && self.is_running(*b);
                let knows = |from, to| self.world.state(from).member_by_raft_id(to).is_some();
                let possible = match (from, to) {
                    (Some(from), Some(to)) if runs => {
                        self.world.network.connects(from, to) && (knows(from, to) || knows(to, from))
                    }
                    _ => false,
                };
                let link = self.links.entry((*a, *b)).or_default();
                if !runs {
                    *link = Link::default();
                } else if possible == link.up {
                    link.changes_at_ms = None;
                } else {
                    let wait_ms = if possible { 50..300 } else { 1_000..3_000 };
                    let rng = &mut self.world.rng;
                    let due_ms =
                        *link.changes_at_ms.get_or_insert_with(|| now_ms + rng.random_range(wait_ms));
                    if due_ms <= now_ms {
                        *link = Link { up: possible, changes_at_ms: None };
                    }
                }
            }
        }
    }

    /// The other Servers that `name` is connected with, and when they started.
    fn reached(&self, name: Name) -> BTreeMap<RaftId, Now> {
        let up = self.links.range((name, 0)..=(name, Name::MAX)).filter(|(_, link)| link.up);
        up.filter_map(|((_, other), _)| {
            Some((self.raft_id(*other)?, Now::from_ms(self.servers[other].started_ms)))
        })
        .collect()
    }

    fn look(&mut self, name: Name) {
        let Some(id) = self.raft_id(name).filter(|id| self.world.is_running(*id)) else { return };
        let now_ms = self.world.now_ms;
        let status = self.world.status(id).expect("it runs");
        let reached = self.reached(name);
        let core = self.world.core(id);
        let members = core.membership().clone();
        let state = self.world.state(id).clone();
        let server = self.servers.get_mut(&name).expect("it exists");
        let sight = MasterSight {
            me: id,
            started: Now::from_ms(server.started_ms),
            raft: RaftSight {
                leader: status.leader,
                term: status.term,
                leads: status.role == Role::Leader,
                leader_ready: status.leader_ready,
            },
            voters: [&members.voters, &members.outgoing],
            reached: &reached,
            state: &state,
        };
        let known = server.tracker.title().filter(|title| !title.provisional).map(|title| title.term);
        let due = now_ms % LOOK_EVERY_MS < self.world.step_ms;
        if !due && known == Some(status.term) && status.leader.is_some() {
            return;
        }
        server.tracker.handle_sight(&sight, Now::from_ms(now_ms), UnixMs(now_ms));
        let title = server.tracker.title().cloned();

        let quorum = |voters: &BTreeSet<RaftId>| {
            let there = voters.iter().filter(|voter| **voter == id || reached.contains_key(voter)).count();
            voters.is_empty() || there > voters.len() / 2
        };
        let alone = status.leader.is_none() && !(quorum(&members.voters) && quorum(&members.outgoing));
        let alone = alone && state.member_by_raft_id(id).is_some();
        server.alone_since_ms = if alone { server.alone_since_ms.or(Some(now_ms)) } else { None };
        let named =
            title.is_some() || server.alone_since_ms.is_none_or(|since| now_ms - since < NAMED_WITHIN_MS);
        assert!(named, "s{name} has no Master to name: {}", self.world.describe());
        if let Some(title) = title {
            self.check_title(name, &title);
        }
    }

    fn check_title(&mut self, name: Name, title: &MasterTitle) {
        let token = (title.epoch, title.term);
        if title.provisional && self.world.planted != Planted::StandInUnflagged {
            self.provisional_titles += 1;
            return;
        }
        let holder = *self.holders.entry(token).or_insert(title.id);
        assert_eq!(holder, title.id, "two Masters in {token:?}, one of them as s{name} says");
        let newest = self.server(name).newest.replace(token);
        assert!(newest <= Some(token), "s{name} goes back from {newest:?} to {token:?}");
    }

    /// After the last fault: one group of all Servers of table C, with the right number of voters, a real Master whom
    /// all name, and everything that was acknowledged.
    pub fn check_recovery(&mut self) {
        self.world.calm_down();
        self.leaves.clear();
        for name in self.names() {
            if self.raft_id(name).is_none() {
                continue;
            }
            self.server(name).stops_at_ms = None;
            self.start(name);
        }
        let led = self.run_until(30_000, |servers| servers.world.leader().is_some());
        assert!(led, "no leader: {}", self.world.describe());
        assert!(self.run_until_settled(90_000), "not settled: {}", self.describe());
        // It stays so.
        self.run_ms(1_000);
        assert!(self.run_until_settled(20_000), "unsettled again: {}", self.describe());
        let written = self.world.write_gets_through();
        assert!(written, "no write gets through: {}", self.describe());
        let leader = self.world.leader().expect("a settled cluster has a leader");
        let state = self.world.state(leader);
        let has: BTreeSet<u64> = state.tokens.keys().map(|id| id.0).collect();
        for request in self.world.oracle.acknowledged() {
            assert!(has.contains(&request), "acknowledged request {request} is lost");
        }
    }

    /// Who lost its disk joins again meanwhile.
    fn run_until_settled(&mut self, ms: u64) -> bool {
        let end = self.world.now_ms + ms;
        while self.world.now_ms < end && !self.is_settled() {
            self.run_ms(100);
            for name in self.names() {
                self.join(name);
            }
        }
        self.is_settled()
    }

    fn is_settled(&self) -> bool {
        let Some(leader) = self.world.leader() else { return false };
        let members = self.world.core(leader).membership();
        let registered = self.registered();
        let titles: BTreeSet<_> = registered
            .iter()
            .map(|id| {
                let title = self.name_of(*id).and_then(|name| self.servers[&name].tracker.title());
                title.map(|title| (title.id, title.term, title.provisional))
            })
            .collect();
        let named = titles.len() == 1 && titles.iter().all(|title| title.is_some_and(|title| !title.2));
        let target = target_voters(registered.len());
        named && !members.is_joint() && members.all() == registered && members.voters.len() == target
    }

    fn describe(&self) -> String {
        let servers = self.servers.iter().map(|(name, server)| {
            let title = server.tracker.title().map(|t| (&t.name, t.term, t.provisional));
            format!("\n  s{name}: raft id {:?}, title {title:?}", server.raft_id)
        });
        let failures: Vec<_> = self.world.change_failures.iter().rev().take(3).collect();
        format!(
            "registered {:?}, at {} ms, last refusals {failures:?}{}{}",
            self.registered(),
            self.world.now_ms,
            servers.collect::<String>(),
            self.world.describe()
        )
    }
}
