//! Which links are taken, which make room for them, and which end since their keys count no more.

use std::sync::Arc;

use p2p_common::{Incarnation, KeyHash, NodeId, NodeKind};

use super::{ACCEPTED_PER_PEER_MAX, LinkEnding, LinkOpened, LinkToken, LinkedPeer, MeshEffect, MeshLinks};
use crate::moment::Moment;
use crate::revoked::RevokedKeys;

impl MeshLinks {
    /// Why a link is not taken, if it is not.
    pub(super) fn check_opened(&self, opened: &LinkOpened, pinned: Option<KeyHash>) -> Result<(), String> {
        let peer = opened.peer;
        if peer == self.me {
            return Err("this Peer itself answers there".into());
        }
        if peer.kind() != NodeKind::Peer {
            return Err(format!("{peer} is not a Peer"));
        }
        if self.revoked.contains_key(&opened.key_hash) {
            return Err(format!("{peer} is revoked"));
        }
        let linked = self.peers.get(&peer).map(|known| known.key_hash);
        if let Some(key) = linked.into_iter().chain(pinned).find(|key| *key != opened.key_hash) {
            return Err(format!("{peer} showed the key {}, it is known here with {key}", opened.key_hash));
        }
        if self.links_of(peer).any(|(_, link)| link.incarnation > opened.incarnation) {
            return Err(format!("a newer run of {peer} is linked"));
        }
        Ok(())
    }

    /// Closes what a new link of `peer` replaces.
    pub(super) fn make_room(
        &mut self,
        peer: NodeId,
        incarnation: Incarnation,
        accepted: bool,
        at: Moment,
        effects: &mut Vec<MeshEffect>,
    ) {
        let older: Vec<LinkToken> = self
            .links_of(peer)
            .filter(|(_, link)| link.incarnation < incarnation)
            .map(|(link, _)| link)
            .collect();
        for link in older {
            let reason = format!("a newer run of {peer} is linked");
            self.close(link, (reason, LinkEnding::Replaced), at, effects);
        }
        let accepted_links = || self.links_of(peer).filter(|(_, link)| link.slot.is_none());
        if accepted && accepted_links().count() >= ACCEPTED_PER_PEER_MAX {
            let silent = accepted_links().min_by_key(|(_, link)| link.last_heard).map(|(link, _)| link);
            if let Some(link) = silent {
                let reason = format!("{peer} opened more than {ACCEPTED_PER_PEER_MAX}");
                self.close(link, (reason, LinkEnding::Replaced), at, effects);
            }
        }
    }

    /// Servers say that `peer` has this key: links that showed another are not its.
    pub(crate) fn pin(&mut self, peer: NodeId, key_hash: KeyHash, at: Moment) -> Vec<MeshEffect> {
        let mut effects = Vec::new();
        if self.peers.get(&peer).is_some_and(|known| known.key_hash != key_hash) {
            let links: Vec<LinkToken> = self.links_of(peer).map(|(link, _)| link).collect();
            for link in links {
                let reason = format!("{peer} has another key by now, as Servers say");
                self.close(link, (reason, LinkEnding::OtherKey), at, &mut effects);
            }
            self.forget(peer, at, &mut effects);
        }
        effects
    }

    /// These keys open nothing any more: their links end, and what they brought is forgotten.
    pub(crate) fn set_revoked(&mut self, revoked: Arc<RevokedKeys>, at: Moment) -> Vec<MeshEffect> {
        self.revoked = revoked;
        let mut effects = Vec::new();
        let is_revoked = |known: &LinkedPeer| self.revoked.contains_key(&known.key_hash);
        let peers: Vec<NodeId> =
            self.peers.iter().filter(|(_, known)| is_revoked(known)).map(|(peer, _)| *peer).collect();
        for peer in peers {
            let links: Vec<LinkToken> = self.links_of(peer).map(|(link, _)| link).collect();
            for link in links {
                self.close(link, (format!("{peer} is revoked"), LinkEnding::Revoked), at, &mut effects);
            }
            self.forget(peer, at, &mut effects);
        }
        effects
    }
}
