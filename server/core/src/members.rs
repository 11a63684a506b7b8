//! Table C as Peers are told of it: whole, at each of its versions, the newest only.
//!
//! It is small and changes rarely, so there are no deltas. The table itself is replicated and changed elsewhere;
//! this room remembers which version each session has. Source: SPEC P1, C3.

use std::collections::BTreeMap;
use std::sync::Arc;

use p2p_common::cluster_state::ClusterState;

use crate::session::SessionId;

/// Which version of table C each session has.
#[derive(Debug)]
pub struct MemberNews {
    state: Arc<ClusterState>,
    told: BTreeMap<SessionId, u64>,
}

impl MemberNews {
    /// Starts with the replicated state as it is.
    pub fn new(state: Arc<ClusterState>) -> Self {
        MemberNews { state, told: BTreeMap::new() }
    }

    /// The replicated state, the newest this Server has.
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// Takes a newer state. Says whether table C is another.
    pub fn update(&mut self, state: Arc<ClusterState>) -> bool {
        let changed = state.members_version != self.state.members_version;
        self.state = state;
        changed
    }

    /// A session begins; it is told the current table as its welcome.
    pub fn open(&mut self, session: SessionId) {
        self.told.insert(session, self.state.members_version);
    }

    /// A session ended.
    pub fn close(&mut self, session: SessionId) {
        self.told.remove(&session);
    }

    /// The state whose table C `session` is to be told; none when it has it.
    pub fn poll_news(&mut self, session: SessionId) -> Option<Arc<ClusterState>> {
        let told = self.told.get_mut(&session)?;
        if *told == self.state.members_version {
            return None;
        }
        *told = self.state.members_version;
        Some(self.state.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::{ClusterId, Epoch};
    use uuid::Uuid;

    fn state(members_version: u64) -> Arc<ClusterState> {
        let state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), Vec::new());
        Arc::new(ClusterState { members_version, ..state })
    }

    #[test]
    fn each_version_is_told_once_and_only_the_newest() {
        let mut news = MemberNews::new(state(1));
        news.open(SessionId(1));
        assert_eq!(news.poll_news(SessionId(1)), None, "the welcome told it");
        assert!(!news.update(state(1)), "a change of something else is no news");
        assert!(news.update(state(2)));
        assert!(news.update(state(3)));
        news.open(SessionId(2));
        assert_eq!(news.poll_news(SessionId(1)).map(|state| state.members_version), Some(3));
        assert_eq!(news.poll_news(SessionId(1)), None);
        assert_eq!(news.poll_news(SessionId(2)), None);
        news.update(state(4));
        news.close(SessionId(2));
        assert_eq!(news.poll_news(SessionId(2)), None);
    }
}
