//! What linked Peers are shown: each the own services it may see and, if this Peer carries on, what other linked
//! Peers own.
//!
//! A list is built for each Peer when something changed, at most once in [`GATHER`], and sent to those whose list
//! is another than before. Numbers of lists rise over all Peers, so that a Peer that was away and returns never
//! gets a lower one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::NetInfo;
use p2p_common::push::PeerReport;
use p2p_common::service::{ServiceName, ServiceOffer, ServiceState, Visibility};
use p2p_common::wire::link::{LIST_BYTES_MAX, LinkMessage, ServiceList, TRANSIT_MAX, TransitService};
use p2p_common::{NodeId, Now};

use super::{MeshEffect, MeshLinks};
use crate::moment::Moment;
use crate::routes::is_carried_on;
use crate::services::OwnServices;

/// Changes that come within this time are told together.
const GATHER: Duration = Duration::from_millis(100);

/// What is shown, and what each Peer was shown last.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(super) own: Arc<OwnServices>,
    pub(super) net: NetInfo,
    /// Services of linked Peers are shown, too.
    pub(super) transit: bool,
    name: String,
    zone: String,
    lists: BTreeMap<NodeId, ServiceList>,
    number: u64,
    /// When lists are built anew.
    due: Option<Now>,
    last: Option<Now>,
}

impl Shown {
    /// Of a Peer of this name and zone.
    pub(crate) fn new(report: &PeerReport, own: Arc<OwnServices>, transit: bool) -> Self {
        Shown {
            own,
            net: report.net.clone(),
            transit,
            name: report.name.clone(),
            zone: report.zone.clone(),
            lists: BTreeMap::new(),
            number: 0,
            due: None,
            last: None,
        }
    }

    pub(super) fn due(&self) -> Option<Now> {
        self.due
    }

    /// Something that is shown may have changed.
    pub(super) fn mark(&mut self, now: Now) {
        let due = self.last.map_or(now, |last| now.max(last + GATHER));
        self.due.get_or_insert(due);
    }

    pub(super) fn forget(&mut self, peer: NodeId) {
        self.lists.remove(&peer);
    }

    fn services(&self, peer: NodeId) -> Vec<ServiceOffer> {
        self.own.offers_to(peer)
    }

    /// The Peers that some service names: their lists differ from those of others.
    fn named(&self) -> BTreeSet<NodeId> {
        let named = self.own.iter().filter_map(|(_, own)| match &own.visibility {
            Visibility::Ids(ids) => Some(ids),
            _ => None,
        });
        named.flatten().copied().collect()
    }

    /// The list of `peer`; the one it was shown before if that says the same.
    fn update(&mut self, peer: NodeId, services: &[ServiceOffer], transit: Vec<TransitService>) -> bool {
        let same = self.lists.get(&peer).is_some_and(|list| {
            list.report.net == self.net && list.report.services == services && list.transit == transit
        });
        if !same {
            self.number += 1;
            let report = PeerReport {
                seq: self.number,
                name: self.name.clone(),
                zone: self.zone.clone(),
                net: self.net.clone(),
                services: services.to_vec(),
            };
            self.lists.insert(peer, ServiceList { report: Arc::new(report), transit });
        }
        !same
    }
}

impl MeshLinks {
    /// What `peer` is told now.
    pub(super) fn list_for(&mut self, peer: NodeId) -> ServiceList {
        if !self.shown.lists.contains_key(&peer) {
            let services = self.shown.services(peer);
            let transit = self.transit_for(peer, &services);
            self.shown.update(peer, &services, transit);
        }
        self.shown.lists.get(&peer).cloned().expect("it was made above")
    }

    /// Tells those whose list has changed.
    pub(super) fn show(&mut self, at: Moment, effects: &mut Vec<MeshEffect>) {
        self.shown.due = None;
        self.shown.last = Some(at.now);
        let named = self.shown.named();
        let mut common = None;
        let peers: Vec<NodeId> = self.shown.lists.keys().copied().collect();
        for peer in peers {
            let services = if named.contains(&peer) {
                self.shown.services(peer)
            } else {
                common.get_or_insert_with(|| self.shown.services(peer)).clone()
            };
            let transit = self.transit_for(peer, &services);
            if !self.shown.update(peer, &services, transit) {
                continue;
            }
            // An acceptor speaks when it is spoken to first.
            let told = self.links_of(peer).filter(|(_, link)| link.registered.is_some());
            let told: Vec<_> = told.map(|(link, open)| (link, open.slot.is_some())).collect();
            for (link, dialled) in told {
                if dialled {
                    self.register(link, at, effects);
                } else {
                    let list = self.list_for(peer);
                    self.send(link, LinkMessage::Sync(list), at, effects);
                }
            }
        }
    }

    /// What other linked Peers own themselves and `peer` may see: one owner per name, one that is up if there
    /// is. What does not fit is left out, the last by name first.
    fn transit_for(&self, peer: NodeId, own: &[ServiceOffer]) -> Vec<TransitService> {
        if !self.shown.transit {
            return Vec::new();
        }
        let mut carried: BTreeMap<ServiceName, TransitService> = BTreeMap::new();
        for (source, known) in self.peers.iter().filter(|(source, _)| **source != peer) {
            let Some(entry) = known.offered() else { continue };
            let connected = !known.links.is_empty();
            for offer in entry.report.services.iter().filter(|offer| is_carried_on(&offer.visibility)) {
                let state = if connected { offer.state } else { ServiceState::Down };
                let is_up = |state| state == ServiceState::Up;
                if carried.get(&offer.name).is_none_or(|other| is_up(state) && !is_up(other.offer.state)) {
                    let offer = ServiceOffer { state, ..offer.clone() };
                    carried.insert(offer.name.clone(), TransitService { offer, source: *source });
                }
            }
        }
        let own_names: BTreeSet<&ServiceName> = own.iter().map(|offer| &offer.name).collect();
        let mut bytes: usize = own.iter().map(ServiceOffer::estimated_bytes).sum();
        let carried = carried.into_values().filter(|service| !own_names.contains(&service.offer.name));
        let fits = carried.take(TRANSIT_MAX).take_while(|service| {
            bytes += service.estimated_bytes();
            bytes <= LIST_BYTES_MAX
        });
        fits.collect()
    }
}
