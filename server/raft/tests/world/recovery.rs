//! The end of a world: the faults stop, and everything must come back.

use std::collections::BTreeSet;

use p2p_common::member::RaftId;
use p2p_server_raft::EntryKind;

use super::{Faults, Weather, World};

impl World {
    /// Whether, started from its disk, the node would know of the last change of the members in its log that it was
    /// committed. Raft counts by the members before it until then, and so needs those who voted before.
    pub fn would_know_members(&self, id: RaftId) -> bool {
        let (loaded, _) = self.nodes[&id].disk.load();
        let changes = loaded.entries.iter().filter(|entry| entry.kind == EntryKind::Membership);
        changes.map(|entry| entry.index).max().is_none_or(|last| last <= loaded.hard_state.commit)
    }

    /// Nothing goes wrong by itself from now on.
    pub fn calm_down(&mut self) {
        self.network.heal();
        self.network.weather = Weather::CALM;
        self.faults = Faults { write_state: self.faults.write_state, ..Faults::NONE };
    }

    /// After the last fault: everyone returns, agrees, and has all that was acknowledged.
    pub fn check_recovery(&mut self) {
        self.calm_down();
        for id in self.ids() {
            if !self.is_running(id) {
                self.start(id);
            }
        }
        let settled =
            |world: &World| world.leader().is_some_and(|id| !world.core(id).membership().is_joint());
        self.run_ms(2_000);
        assert!(self.run_until(20_000, settled), "no leader, or joint for ever: {}", self.describe());
        assert!(self.write_gets_through(), "no write gets through: {}", self.describe());
        self.run_ms(2_000);
        let leader = self.leader().expect("a calm cluster has a leader");
        let members = self.core(leader).membership().clone();
        let target = self.core(leader).committed();
        let level = |world: &World| members.all().iter().all(|id| world.core(*id).applied() >= target);
        assert!(self.run_until(10_000, level), "a member stays behind: {}", self.describe());
        let has: BTreeSet<u64> = self.state(leader).tokens.keys().map(|id| id.0).collect();
        for request in self.oracle.acknowledged() {
            assert!(has.contains(&request), "acknowledged request {request} is lost");
        }
        assert!(self.core(leader).committed() >= self.oracle.acknowledged_max());
        let reads = self.oracle.reads;
        self.read(leader);
        assert!(self.run_until(5_000, |world| world.oracle.reads > reads), "no read gets through");
    }

    pub fn write_gets_through(&mut self) -> bool {
        let before = self.oracle.acknowledged_max();
        for _ in 0..40 {
            if let Some(leader) = self.leader() {
                self.propose(leader, 1);
            }
            if self.run_until(500, |world| world.oracle.acknowledged_max() > before) {
                return true;
            }
        }
        false
    }
}
