//! Care for ephemeral identities: that those of Peers that are gone are forgotten, and no others (SPEC I2).
//!
//! ```text
//! session here, not told for 15 min ─► See        session here ended ─► See       both raise `seen_at`
//! no session here, `seen_at` stood still for 1 h by this Server's own clock, and it leads ─► Forget
//! ```
//!
//! `seen_at` is only a mark that moves: how long it stood still is measured by each Server's monotonic clock from when
//! it saw it first, so that no clock that is wrong, and no cluster that was off for a day, forgets anybody. A Server
//! that has just started, or leads since just now, waits as long as any other. Forgetting names the mark it saw, and
//! does nothing when the Peer was seen meanwhile.
//!
//! Bounds: one entry per ephemeral identity; as many commands to see as the sessions here need, and [`FORGETS_MAX`]
//! to forget at a time, the rest with the next look.
//! It proposes nothing itself. Owner: the shell's upkeep.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{EPHEMERAL_FOR, IDENTITIES_PER_COMMAND_MAX};
use p2p_common::{NodeId, Now, UnixMs};

/// How often [`EphemeralCare::look`] is called.
pub const EPHEMERAL_LOOK: Duration = Duration::from_secs(30);
/// Peers with a session are told to be there so often: a quarter of the time after which they would be forgotten.
const SEE_EVERY: Duration = Duration::from_secs(900);
/// A Peer that some Server told of not longer ago than this is not told again in such a round.
const FRESH: Duration = Duration::from_secs(450);
/// A Peer whose session ended is told once more, unless some Server told of it just before: all notice the end.
const JUST_TOLD: Duration = Duration::from_secs(60);
/// Commands to forget of one look.
const FORGETS_MAX: usize = 8;

/// What is to be put to raft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EphemeralCommand {
    /// These are there, or were until just now.
    See(Vec<NodeId>),
    /// These have not been seen for too long since those times.
    Forget(Vec<(NodeId, UnixMs)>),
}

/// The mark of an identity, and since when it is seen to stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    seen_at: UnixMs,
    since: Now,
}

/// See the [module](self).
#[derive(Debug)]
pub struct EphemeralCare {
    marks: BTreeMap<NodeId, Mark>,
    /// Those with a session here at the last look.
    online: BTreeSet<NodeId>,
    /// Those whose session ended and who are not told yet.
    ended: BTreeSet<NodeId>,
    round: Now,
}

impl EphemeralCare {
    /// Begins to watch.
    pub fn new(now: Now) -> Self {
        EphemeralCare { marks: BTreeMap::new(), online: BTreeSet::new(), ended: BTreeSet::new(), round: now }
    }

    /// Looks at the identities and at who has a session here. `leads`: this Server leads the cluster.
    pub fn look(
        &mut self,
        state: &ClusterState,
        online: &BTreeSet<NodeId>,
        leads: bool,
        now: Now,
    ) -> Vec<EphemeralCommand> {
        self.watch(state, now);
        let went = self.online.difference(online).filter(|id| self.marks.contains_key(*id));
        self.ended.extend(went.copied());
        self.ended.retain(|id| !online.contains(id) && self.marks.contains_key(id));
        self.online.clone_from(online);

        let stood = |mark: &Mark, time| now.since(mark.since) >= time;
        let mut seen: Vec<NodeId> = Vec::new();
        if now.since(self.round) >= SEE_EVERY {
            self.round = now;
            let here = self.marks.iter().filter(|(id, _)| online.contains(id));
            seen.extend(here.filter(|(_, mark)| stood(mark, FRESH)).map(|(id, _)| *id));
        }
        for id in std::mem::take(&mut self.ended) {
            if self.marks.get(&id).is_some_and(|mark| stood(mark, JUST_TOLD)) {
                seen.push(id);
            }
        }
        let gone = self.marks.iter().filter(|(id, _)| leads && !online.contains(id));
        let gone = gone.filter(|(_, mark)| stood(mark, EPHEMERAL_FOR));
        let gone: Vec<(NodeId, UnixMs)> = gone.map(|(id, mark)| (*id, mark.seen_at)).collect();
        let see = seen.chunks(IDENTITIES_PER_COMMAND_MAX).map(|ids| EphemeralCommand::See(ids.to_vec()));
        let forget =
            gone.chunks(IDENTITIES_PER_COMMAND_MAX).map(|ids| EphemeralCommand::Forget(ids.to_vec()));
        see.chain(forget.take(FORGETS_MAX)).collect()
    }

    fn watch(&mut self, state: &ClusterState, now: Now) {
        let before = std::mem::take(&mut self.marks);
        let ephemeral = state.identities.values().filter(|identity| identity.ephemeral);
        let mark = |id: &NodeId, seen_at| match before.get(id) {
            Some(mark) if mark.seen_at == seen_at => *mark,
            _ => Mark { seen_at, since: now },
        };
        self.marks = ephemeral.map(|identity| (identity.id, mark(&identity.id, identity.seen_at))).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::command::IdentityRecord;
    use p2p_common::{ClusterId, Epoch, KeyHash, NodeKind};
    use uuid::Uuid;

    const MINUTE: Duration = Duration::from_secs(60);

    fn peer(n: u128) -> NodeId {
        NodeId::new(NodeKind::Peer, Uuid::from_u128(n))
    }

    /// Three Servers that care, in virtual time; raft is at once. Wall clocks are as wrong as they can be.
    struct World {
        state: ClusterState,
        cares: Vec<EphemeralCare>,
        online: Vec<BTreeSet<NodeId>>,
        leader: usize,
        now: Now,
        wall: UnixMs,
        sees: usize,
    }

    impl World {
        fn new() -> World {
            let now = Now::from_ms(77_000);
            World {
                state: ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), Vec::new()),
                cares: (0..3).map(|_| EphemeralCare::new(now)).collect(),
                online: vec![BTreeSet::new(); 3],
                leader: 0,
                now,
                wall: UnixMs(1_000_000_000_000),
                sees: 0,
            }
        }

        fn enrol(&mut self, n: u128, ephemeral: bool) {
            let record = IdentityRecord::new(peer(n), String::new(), KeyHash([n as u8; 32]), self.wall);
            self.state.identities.insert(peer(n), IdentityRecord { ephemeral, ..record });
        }

        fn connect(&mut self, n: u128, servers: &[usize]) {
            for (at, online) in self.online.iter_mut().enumerate() {
                if servers.contains(&at) {
                    online.insert(peer(n));
                } else {
                    online.remove(&peer(n));
                }
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.now = self.now + EPHEMERAL_LOOK;
                for at in 0..self.cares.len() {
                    let leads = at == self.leader;
                    for command in self.cares[at].look(&self.state, &self.online[at], leads, self.now) {
                        self.apply(command);
                    }
                }
            }
        }

        /// As the state machine does.
        fn apply(&mut self, command: EphemeralCommand) {
            match command {
                EphemeralCommand::See(ids) => {
                    assert!(!ids.is_empty() && ids.len() <= IDENTITIES_PER_COMMAND_MAX);
                    self.sees += 1;
                    for id in ids {
                        let identity = self.state.identities.get_mut(&id).unwrap();
                        identity.seen_at = UnixMs(self.wall.0.max(identity.seen_at.0 + 1));
                    }
                }
                EphemeralCommand::Forget(ids) => {
                    for (id, seen_at) in ids {
                        assert_eq!(self.state.identities[&id].seen_at, seen_at);
                        self.state.identities.remove(&id);
                    }
                }
            }
        }

        fn knows(&self, n: u128) -> bool {
            self.state.identities.contains_key(&peer(n))
        }
    }

    #[test]
    fn an_ephemeral_identity_is_forgotten_an_hour_after_its_last_session() {
        let mut world = World::new();
        world.enrol(1, true);
        world.enrol(2, false);
        world.connect(1, &[1, 2]);
        world.connect(2, &[1]);
        world.run(MINUTE * 600);
        assert!(world.knows(1), "it was there all the time, though not at the leader");
        world.connect(1, &[]);
        world.connect(2, &[]);
        world.run(MINUTE * 59);
        assert!(world.knows(1));
        world.run(MINUTE * 3);
        assert!(!world.knows(1));
        world.run(MINUTE * 6_000);
        assert!(world.knows(2), "others stay");
    }

    #[test]
    fn one_that_never_came_goes_too_and_one_that_comes_back_in_time_stays() {
        let mut world = World::new();
        world.enrol(1, true);
        world.enrol(2, true);
        world.run(MINUTE * 50);
        world.connect(2, &[0]);
        world.run(MINUTE * 2);
        world.connect(2, &[]);
        world.run(MINUTE * 20);
        assert!(!world.knows(1) && world.knows(2));
        world.run(MINUTE * 41);
        assert!(!world.knows(2));
    }

    #[test]
    fn no_wall_clock_and_no_pause_of_the_cluster_decides() {
        let mut world = World::new();
        world.enrol(1, true);
        world.run(MINUTE * 30);
        // The clock jumps a year, and the leader changes: each has watched for itself.
        world.wall = UnixMs(world.wall.0 + 365 * 86_400_000);
        world.leader = 2;
        world.run(MINUTE * 29);
        assert!(world.knows(1));
        // All Servers were off: whoever starts watches anew.
        world.now = Now::ZERO;
        world.cares = (0..3).map(|_| EphemeralCare::new(Now::ZERO)).collect();
        world.wall = UnixMs(0);
        world.run(MINUTE * 59);
        assert!(world.knows(1));
        world.run(MINUTE * 3);
        assert!(!world.knows(1));
    }

    #[test]
    fn raft_hears_little_of_many() {
        let mut world = World::new();
        for n in 0..2_500 {
            world.enrol(n, true);
            world.connect(n, &[0, 1, 2]);
        }
        world.run(MINUTE * 150);
        assert!((27..=36).contains(&world.sees), "{} commands in 10 rounds of 3", world.sees);
        // All go at once: one Server's word does.
        let before = world.sees;
        (0..2_500).for_each(|n| world.connect(n, &[]));
        world.run(MINUTE * 2);
        assert!(world.sees - before <= 3, "{}", world.sees - before);
        world.run(MINUTE * 70);
        assert!(world.state.identities.is_empty());
    }
}
