//! What the raft thread publishes: an immutable [`View`] after every change.

use std::collections::BTreeMap;
use std::sync::Arc;

use p2p_common::cluster_state::ClusterState;
use p2p_common::member::{Member, MemberRole, RaftId};
use p2p_common::{KeyHash, NodeId};
use p2p_server_core::{IdentityRefused, check_identity};
use p2p_server_raft::{Membership, Role, Status};

/// This Server's raft and the replicated state, as of one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// This Server's number inside raft.
    pub raft_id: RaftId,
    /// Role, leader and term.
    pub status: Status,
    /// Who belongs to the raft group.
    pub membership: Membership,
    /// The last applied entry; 0 while a joiner has received nothing: `state` is then what its introducer said.
    pub applied: u64,
    /// The last entry known to be committed.
    pub committed: u64,
    /// The replicated state after `applied`.
    pub state: Arc<ClusterState>,
}

impl View {
    /// This Server leads and its state is current.
    pub fn leads(&self) -> bool {
        self.status.role == Role::Leader && self.status.leader_ready
    }

    /// The leader's row of table C.
    pub fn leader(&self) -> Option<&Member> {
        self.state.member_by_raft_id(self.status.leader?)
    }

    /// This Server's row of table C; none until its join is applied here.
    pub fn me(&self) -> Option<&Member> {
        self.state.member_by_raft_id(self.raft_id)
    }

    /// A member's part in the raft group.
    pub fn role_of(&self, raft_id: RaftId) -> MemberRole {
        match raft_id {
            id if self.membership.voters.contains(&id) => MemberRole::Voter,
            id if self.membership.contains(id) => MemberRole::Learner,
            _ => MemberRole::Joining,
        }
    }

    /// This Server's part in the raft group as a word.
    pub fn role_name(&self) -> &'static str {
        match (self.status.role, self.role_of(self.raft_id)) {
            (Role::Leader, _) => "leader",
            (Role::Candidate | Role::PreCandidate, _) => "candidate",
            (Role::Follower, MemberRole::Voter) => "follower",
            (Role::Follower, MemberRole::Learner) => "learner",
            (Role::Follower, MemberRole::Joining) => "joining",
        }
    }

    /// Whether table C has `id` with this key.
    pub fn has_member(&self, id: NodeId, key_hash: KeyHash) -> bool {
        self.state.members.get(&id).is_some_and(|member| member.key_hash == key_hash)
    }

    /// Whether `id` may come with this key: as a Server of table C, or as an identity.
    pub fn is_bound(&self, id: NodeId, key_hash: KeyHash) -> bool {
        match check_identity(&self.state, id, key_hash) {
            Ok(_) => true,
            // A Server that has just joined knows the others from its introducer, before their identities arrive.
            Err(IdentityRefused::Unknown { .. }) => self.has_member(id, key_hash),
            Err(_) => false,
        }
    }

    /// The other Servers by raft id.
    pub fn others(&self) -> BTreeMap<RaftId, Member> {
        let others = self.state.members.values().filter(|member| member.raft_id != self.raft_id);
        others.map(|member| (member.raft_id, member.clone())).collect()
    }
}
