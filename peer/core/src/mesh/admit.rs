//! Which links are taken, and which make room for them.

use p2p_common::{Incarnation, KeyHash, NodeId, NodeKind};

use super::{ACCEPTED_PER_PEER_MAX, LinkEnding, LinkOpened, LinkToken, MeshEffect, MeshLinks};
use crate::moment::Moment;

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
}
