//! [`Linked`]: a Peer as its links show it.

use std::net::SocketAddr;
use std::sync::Arc;

use p2p_common::addr::{CandidateKind, HostPort, NetInfo};
use p2p_common::push::PeerEntry;
use p2p_common::wire::link::TransitService;
use p2p_common::{NodeId, UnixMs};

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
        let Listed { entry, transit, synced_at } = listed;
        Some(Linked {
            entry: entry.clone(),
            transit: transit.clone(),
            synced_at: *synced_at,
            connected,
            reach,
            address,
        })
    }
}

impl LinkedPeer {
    /// Where a Peer that dialled us is shown to be: where it says, else where it came from, at its own port.
    fn address(&self, net: &NetInfo) -> Option<HostPort> {
        let mut candidates = net.candidates.iter();
        let advertised = candidates.find(|candidate| candidate.kind == CandidateKind::Advertised);
        let seen = || Some(HostPort::from(SocketAddr::new(self.seen_from?, net.listen?.port())));
        advertised.map(|candidate| candidate.addr.clone()).or_else(seen)
    }
}
