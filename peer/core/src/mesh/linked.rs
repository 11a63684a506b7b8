//! [`Linked`]: a Peer as its links show it.

use std::net::SocketAddr;
use std::sync::Arc;

use p2p_common::addr::{CandidateKind, HostPort, NetInfo};
use p2p_common::grants::Grants;
use p2p_common::push::PeerEntry;
use p2p_common::service::ServiceOffer;
use p2p_common::wire::link::TransitService;
use p2p_common::{NodeId, Now, UnixMs};

use super::{LinkedPeer, Listed, MeshLinks};
use crate::routes::Reach;

/// A Peer as its links show it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Linked {
    pub(crate) entry: Arc<PeerEntry>,
    pub(crate) transit: Arc<[TransitService]>,
    pub(crate) synced_at: UnixMs,
    /// A link is open.
    pub(crate) connected: bool,
    /// [`Reach::Configured`] or [`Reach::Ask`].
    pub(crate) reach: Reach,
    pub(crate) address: Option<HostPort>,
}

impl MeshLinks {
    /// What the certificate of `peer` said that it may do, while it is linked.
    pub(crate) fn certified(&self, peer: NodeId) -> Option<Arc<Grants>> {
        self.peers.get(&peer).map(|known| known.certified.clone())
    }

    /// `peer` may do this, as far as it is known: what it says beyond that does not count, here and for those it is
    /// told on to.
    pub(crate) fn set_grants(&mut self, peer: NodeId, grants: &Arc<Grants>, now: Now) {
        let Some(known) = self.peers.get_mut(&peer).filter(|known| known.grants != *grants) else { return };
        known.grants = grants.clone();
        self.shown.mark(now);
    }

    /// What the links of `peer` show; none when it has not said anything, or is offline.
    pub(crate) fn linked(&self, peer: NodeId) -> Option<Linked> {
        let known = self.peers.get(&peer)?;
        let listed = known.listed.as_ref()?;
        let connected = !known.links.is_empty();
        let dialled: Vec<HostPort> = if connected {
            let slots = self.links_of(peer).filter_map(|(_, link)| link.slot);
            slots.map(|slot| self.slots[slot].address.clone()).collect()
        } else {
            let led_here = self.slots.iter().filter(|slot| slot.peer == Some(peer));
            led_here.map(|slot| slot.address.clone()).collect()
        };
        let address = dialled.first().cloned().or_else(|| known.address(&listed.entry.report.net));
        let reach = if dialled.is_empty() { Reach::Ask } else { Reach::Configured(dialled) };
        let Listed { synced_at, .. } = listed;
        Some(Linked {
            entry: known.offered()?,
            transit: known.carried()?,
            synced_at: *synced_at,
            connected,
            reach,
            address,
        })
    }
}

impl LinkedPeer {
    /// What it carries on, as far as it may offer the names itself: else a Peer would offer what it may not by calling
    /// it somebody else's.
    fn carried(&self) -> Option<Arc<[TransitService]>> {
        let transit = &self.listed.as_ref()?.transit;
        let may = |service: &TransitService| self.grants.may_offer.matches(service.offer.name.as_str());
        if transit.iter().all(may) {
            return Some(transit.clone());
        }
        Some(transit.iter().filter(|service| may(service)).cloned().collect())
    }

    /// What it says, as far as it may (SPEC I8).
    pub(super) fn offered(&self) -> Option<Arc<PeerEntry>> {
        let entry = &self.listed.as_ref()?.entry;
        let may = |offer: &ServiceOffer| self.grants.may_offer.matches(offer.name.as_str());
        if entry.report.services.iter().all(may) {
            return Some(entry.clone());
        }
        let mut entry = PeerEntry::clone(entry);
        entry.report.services.retain(may);
        Some(Arc::new(entry))
    }

    /// Where a Peer that dialled us is shown to be: where it says, else where it came from, at its own port.
    fn address(&self, net: &NetInfo) -> Option<HostPort> {
        let mut candidates = net.candidates.iter();
        let advertised = candidates.find(|candidate| candidate.kind == CandidateKind::Advertised);
        let seen = || Some(HostPort::from(SocketAddr::new(self.seen_from?, net.listen?.port())));
        advertised.map(|candidate| candidate.addr.clone()).or_else(seen)
    }
}
