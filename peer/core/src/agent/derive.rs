//! What hangs on one Peer, derived from what links and Servers say of it: its row in the tables, its row in
//! table F, whether it is dialled ahead of need.

use std::sync::Arc;

use p2p_common::NodeId;

use super::{Agent, Output};
use crate::links::Link;
use crate::moment::Moment;
use crate::routes::{KnownPeer, Reach, RemoteWork, RouteLink};

impl Agent {
    /// Derives everything that hangs on `peer` from its links, its merged row and the own network.
    pub(super) fn refresh_peer(&mut self, peer: NodeId, at: Moment) {
        if let Some(key) = self.views.get(peer).map(|online| online.entry.key_hash) {
            // Links that showed another key are closed; what they said is gone when this returns.
            let effects = self.mesh_links.pin(peer, key, at);
            if !effects.is_empty() {
                return self.run_mesh(effects, at);
            }
        }
        let grants = self.grants_of(peer);
        self.mesh_links.set_grants(peer, &grants, at.now);
        let before = self.tables.peer(peer).cloned();
        let mut after = self.known(peer);
        if let Some(after) = &after {
            if before.is_none() {
                self.links.on_known(peer, at.unix);
            }
            if before.as_ref().is_none_or(|before| before.reach != after.reach) {
                self.links.forgive(peer);
                self.remotes.on_addresses(peer, at.now);
            }
        } else if before.is_some() {
            self.links.on_unknown(peer);
            self.remotes.remove(peer);
        }
        if let Some(after) = &mut after {
            after.grants = grants;
            after.link = self.links.get(peer).map(Link::route_link).unwrap_or_default();
        }
        if before.as_deref() == after.as_ref() {
            return self.refresh_wanted(peer, at);
        }
        let key = |known: &KnownPeer| known.entry.key_hash;
        if before.is_some() && before.as_deref().map(key) != after.as_ref().map(key) {
            self.outputs.push_back(Output::DropIdleTunnels { peer });
        }
        Arc::make_mut(&mut self.tables).apply(peer, after);
        self.printer.on_changed(peer, at.now);
        self.refresh_wanted(peer, at);
    }

    /// What is known of `peer`; the state of its tunnels and what it may do are still to be added.
    pub(super) fn known(&self, peer: NodeId) -> Option<KnownPeer> {
        // A Server may not have heard yet that it is revoked.
        let is_revoked = |key_hash| self.tables.is_revoked(key_hash);
        let online = self.views.get(peer).filter(|online| !is_revoked(&online.entry.key_hash));
        let plan = || {
            let candidates = &online?.entry.report.net.candidates;
            Some(Reach::Dial(self.tables.dial_rule().plan(candidates)))
        };
        let servers = online.map(|online| online.servers.clone()).unwrap_or_default();
        let link = RouteLink::default();
        if let Some(linked) = self.mesh_links.linked(peer) {
            let told = plan().filter(|_| !linked.connected && self.tables.remote() == RemoteWork::Taken);
            return Some(KnownPeer {
                entry: linked.entry,
                servers,
                synced_at: linked.synced_at,
                linked: true,
                connected: linked.connected || told.is_some(),
                reach: told.unwrap_or(linked.reach),
                transit: self.offered_on(linked.transit),
                address: linked.address,
                link,
                grants: Arc::default(),
            });
        }
        let (online, reach) = (online?, plan()?);
        Some(KnownPeer {
            entry: online.entry.clone(),
            servers,
            synced_at: online.synced_at,
            address: reach.address(&online.entry.report.net),
            reach,
            linked: false,
            connected: true,
            transit: Arc::default(),
            link,
            grants: Arc::default(),
        })
    }

    /// A link that failed is tried in the background whatever the mesh, so that routing can trust it again.
    pub(super) fn refresh_wanted(&mut self, peer: NodeId, at: Moment) {
        let Some(connected) = self.tables.peer(peer).map(|known| known.connected) else { return };
        let failing = self.links.get(peer).is_some_and(|link| link.route_link() == RouteLink::Failing);
        self.remotes.set_wanted(peer, connected && (self.ahead || failing), at.now);
    }

    pub(super) fn warm(&mut self, peer: NodeId, at: Moment) {
        let Some(known) = self.tables.peer(peer) else {
            self.remotes.remove(peer);
            return;
        };
        if matches!(&known.reach, Reach::Dial(plan) if plan.addresses.is_empty()) {
            self.handle_tunnel_failed(peer, Vec::new(), at);
        } else {
            let reach = known.reach.clone();
            self.outputs.push_back(Output::WarmPeer { peer, reach });
        }
    }
}
