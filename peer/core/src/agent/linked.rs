//! The agent's part in mesh links: what happens on them goes to [`MeshLinks`](crate::mesh), what they ask for
//! comes out.

use std::sync::Arc;

use p2p_common::NodeId;
use p2p_common::wire::link::LinkMessage;

use super::{Agent, Output};
use crate::mesh::{LinkOpened, LinkToken, MeshEffect};
use crate::moment::Moment;
use crate::services::OwnServices;

impl Agent {
    /// Somebody wants to open a mesh link: its token, or none when there are too many and the connection is to
    /// be closed. What becomes of it is reported as of a link that was dialled.
    pub fn accept_link(&mut self, at: Moment) -> Option<LinkToken> {
        self.mesh_links.accept(at)
    }

    /// Both HELLOs of `link` are exchanged and checked.
    pub fn handle_link_opened(&mut self, link: LinkToken, opened: LinkOpened, at: Moment) {
        let pinned = self.views.get(opened.peer).map(|online| online.entry.key_hash);
        let effects = self.mesh_links.handle_opened(link, opened, pinned, at);
        self.run_mesh(effects, at);
    }

    /// No link came about: the dial, the handshake or the HELLOs failed.
    pub fn handle_link_failed(&mut self, link: LinkToken, error: String, at: Moment) {
        let effects = self.mesh_links.handle_failed(link, &error, at);
        self.run_mesh(effects, at);
    }

    /// Bytes came over `link` that are no whole message yet: a long one on a slow way is a sign of life.
    pub fn handle_link_heard(&mut self, link: LinkToken, at: Moment) {
        self.mesh_links.handle_heard(link, at.now);
    }

    /// A message came over `link`.
    pub fn handle_link_message(&mut self, link: LinkToken, message: LinkMessage, at: Moment) {
        let effects = self.mesh_links.handle_message(link, message, at);
        self.run_mesh(effects, at);
    }

    /// The connection of `link` has ended.
    pub fn handle_link_closed(&mut self, link: LinkToken, reason: String, at: Moment) {
        let effects = self.mesh_links.handle_closed(link, &reason, at);
        self.run_mesh(effects, at);
    }

    /// Forwards to `peer`, which is [`Reach::Ask`](crate::Reach::Ask), need `count` more tunnels. Nothing comes of it when no link to
    /// it is open.
    pub fn handle_tunnels_wanted(&mut self, peer: NodeId, count: u32, at: Moment) {
        let effects = self.mesh_links.ask_for_tunnels(peer, count, at);
        self.run_mesh(effects, at);
    }

    /// The own services are now these.
    pub fn handle_services(&mut self, services: OwnServices, at: Moment) {
        if *self.tables.own() == services {
            return;
        }
        let services = Arc::new(services);
        Arc::make_mut(&mut self.tables).set_own(services.clone(), at.unix);
        self.printer.on_own_changed(at.now);
        self.mesh_links.set_own(services.clone(), at.now);
        let offers = services.offers();
        if offers != self.report.services {
            self.update_report(|report| report.services = offers, at);
        }
    }

    pub(super) fn run_mesh(&mut self, effects: Vec<MeshEffect>, at: Moment) {
        let mut changed = Vec::new();
        for effect in effects {
            match effect {
                MeshEffect::Dial { link, address } => {
                    self.outputs.push_back(Output::DialLink { link, address });
                }
                MeshEffect::Send { link, message } => {
                    self.outputs.push_back(Output::SendLink { link, message });
                }
                MeshEffect::Close { link, reason } => {
                    self.outputs.push_back(Output::CloseLink { link, reason });
                }
                MeshEffect::Offer { peer, count } => {
                    self.outputs.push_back(Output::OfferTunnels { peer, count });
                }
                MeshEffect::Changed(peer) => changed.push(peer),
            }
        }
        changed.sort_unstable();
        changed.dedup();
        self.refresh_peers(changed, at);
    }
}
