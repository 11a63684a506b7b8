//! The trusted CAs as Peers are told of them: whole, first thing after the welcome and at each change, the newest only.
//!
//! The bundle is replicated and changed elsewhere ([`crate::ca_rotation`]); this room remembers which version each session
//! has. Source: SPEC I6.

use std::collections::BTreeMap;
use std::sync::Arc;

use p2p_common::cluster_state::ClusterState;

use crate::session::SessionId;

/// Which version of the trust bundle each session has.
#[derive(Debug, Default)]
pub struct TrustNews {
    /// None has been told: the welcome does not hold it.
    told: BTreeMap<SessionId, Option<u64>>,
}

impl TrustNews {
    /// Starts without sessions.
    pub fn new() -> Self {
        Self::default()
    }

    /// A session begins.
    pub fn open(&mut self, session: SessionId) {
        self.told.insert(session, None);
    }

    /// A session ended.
    pub fn close(&mut self, session: SessionId) {
        self.told.remove(&session);
    }

    /// `state` when `session` is to be told its bundle; none when it has it.
    pub fn poll_news(&mut self, session: SessionId, state: &Arc<ClusterState>) -> Option<Arc<ClusterState>> {
        let told = self.told.get_mut(&session)?;
        // A state without a CA is not the cluster's yet.
        if *told == Some(state.trust_version) || state.trust_bundle.is_empty() {
            return None;
        }
        *told = Some(state.trust_version);
        Some(Arc::clone(state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::{ClusterId, Epoch};
    use uuid::Uuid;

    fn state(trust_version: u64) -> Arc<ClusterState> {
        let state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), vec![vec![1]]);
        Arc::new(ClusterState { trust_version, ..state })
    }

    #[test]
    fn every_session_is_told_and_told_once() {
        let mut news = TrustNews::new();
        let told = |news: &mut TrustNews, session, version| {
            news.poll_news(SessionId(session), &state(version)).map(|state| state.trust_version)
        };
        assert_eq!(told(&mut news, 1, 0), None, "there is no such session");
        news.open(SessionId(1));
        assert_eq!(told(&mut news, 1, 0), Some(0));
        assert_eq!(told(&mut news, 1, 0), None);
        news.open(SessionId(2));
        assert_eq!((told(&mut news, 1, 2), told(&mut news, 2, 2)), (Some(2), Some(2)));
        news.close(SessionId(2));
        assert_eq!(told(&mut news, 2, 3), None);
        let empty = Arc::new(ClusterState { trust_bundle: Vec::new(), ..ClusterState::clone(&state(9)) });
        assert_eq!(news.poll_news(SessionId(1), &empty), None);
    }
}
