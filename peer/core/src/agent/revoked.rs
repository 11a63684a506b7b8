//! The agent's part in revocations: whoever has a revoked key is no Peer and no Server any more, from this moment on
//! (SPEC I7).

use std::sync::Arc;

use p2p_common::push::{RevocationPush, RevokedKey};
use p2p_common::{Epoch, NodeId};

use super::{Agent, Output};
use crate::links::Link;
use crate::moment::Moment;
use crate::revoked::Revoked;
use crate::session::servers::Effect;

impl Agent {
    /// An earlier run knew these. Before the first tick.
    pub fn remember_revoked(&mut self, revoked: Revoked, at: Moment) {
        self.revoked = revoked;
        let effects = self.publish_revoked(at);
        self.run(effects, at);
    }

    /// What is known of revocations, to be kept for the next start.
    pub fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// What is said of the link to `node`: its row, or that its key is revoked.
    pub fn why(&self, node: NodeId) -> Option<Link> {
        let is_revoked = || self.revoked.keys().values().any(|id| *id == node);
        self.links.get(node).cloned().or_else(|| is_revoked().then(|| Link::revoked(node)))
    }

    pub(super) fn take_revocations(
        &mut self,
        epoch: Epoch,
        push: &RevocationPush,
        at: Moment,
    ) -> Vec<Effect> {
        let before = (self.revoked.epoch(), self.revoked.known_in(self.revoked.epoch()));
        let new = self.revoked.take(epoch, push);
        if new.is_empty() && before == (self.revoked.epoch(), self.revoked.known_in(self.revoked.epoch())) {
            return Vec::new();
        }
        let effects = self.publish_revoked(at);
        for RevokedKey { id, key_hash, .. } in &new {
            let has_key = self.tables.peer(*id).is_some_and(|known| known.entry.key_hash == *key_hash);
            if has_key {
                self.links.on_revoked(*id, at.unix);
            }
            self.refresh_peer(*id, at);
        }
        self.outputs.push_back(Output::Revoked(new.into_iter().map(|key| key.key_hash).collect()));
        effects
    }

    /// From here on nobody takes up anything with them.
    fn publish_revoked(&mut self, at: Moment) -> Vec<Effect> {
        let keys = Arc::clone(self.revoked.keys());
        Arc::make_mut(&mut self.tables).set_revoked(Arc::clone(&keys));
        let effects = self.mesh_links.set_revoked(Arc::clone(&keys), at);
        self.run_mesh(effects, at);
        self.servers.set_revoked(keys, at.now)
    }
}
