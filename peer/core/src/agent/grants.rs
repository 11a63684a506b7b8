//! What identities may do, as this Peer knows it: its own, which Servers tell it, and those of others.
//!
//! Of another Peer what Servers say counts; when none holds it now, what they said last in this run; else what its
//! certificate said when its mesh link was opened; a Peer that is known by none of these may do what everybody may.
//! Source: SPEC I8, P2.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use p2p_common::NodeId;
use p2p_common::addr::HostPort;
use p2p_common::grants::{Grants, NamePatterns};
use p2p_common::push::PeerReport;
use p2p_common::service::{ServiceName, Visibility};
use p2p_common::wire::link::TransitService;

use super::{Agent, Output};

/// So many Peers that went are remembered; of the one that went first the certificate counts again then.
const REMEMBERED_MAX: usize = 4_096;

/// What this Peer says of itself and no Server passes on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Withheld {
    /// An own service that it may not offer.
    Service {
        /// Which.
        name: ServiceName,
        /// What it may.
        may_offer: NamePatterns,
    },
    /// An address that may be somebody else's.
    Address(HostPort),
}

impl Withheld {
    /// Why, and what an operator types to change it. `me` is this Peer.
    pub fn explain(&self, me: NodeId) -> String {
        match self {
            Withheld::Service { name, may_offer } => {
                let may = if may_offer.is_empty() { "none".to_owned() } else { format!("'{may_offer}'") };
                let all = if may_offer.is_empty() { name.to_string() } else { format!("{may_offer},{name}") };
                format!(
                    "service {name} is not passed on: this Peer may offer {may}; \
                     `p2p-server identity set {me} --may-offer '{all}'` allows it"
                )
            }
            Withheld::Address(address) => format!(
                "address {address} is not passed on: Servers do not see this Peer there; \
                 `p2p-server identity set {me} --may-advertise '{address}'` allows it"
            ),
        }
    }
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Withheld::Service { name, .. } => write!(f, "service {name}"),
            Withheld::Address(address) => write!(f, "address {address}"),
        }
    }
}

/// What a Server told of the own grants.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    grants: Arc<Grants>,
    addresses: Vec<HostPort>,
}

/// What is known of grants beside table E.
#[derive(Debug, Default)]
pub(super) struct KnownGrants {
    /// The own, by the Server with a session that told it; one that told nothing means everybody's.
    told: BTreeMap<NodeId, Told>,
    withheld: BTreeSet<Withheld>,
    /// Of others, as a Server said last.
    remembered: BTreeMap<NodeId, Arc<Grants>>,
    /// Who is remembered, the longest first.
    order: VecDeque<NodeId>,
}

impl KnownGrants {
    /// What is withheld now.
    pub(super) fn withheld(&self) -> impl Iterator<Item = &Withheld> {
        self.withheld.iter()
    }

    fn remember(&mut self, peer: NodeId, grants: &Arc<Grants>) {
        if self.remembered.insert(peer, grants.clone()).is_some() {
            return;
        }
        self.order.push_back(peer);
        if self.order.len() > REMEMBERED_MAX
            && let Some(first) = self.order.pop_front()
        {
            self.remembered.remove(&first);
        }
    }

    /// Derives what is withheld of `report`; what was not before comes out.
    fn update(&mut self, report: &PeerReport) -> Vec<Withheld> {
        let mut withheld = BTreeSet::new();
        for told in self.told.values() {
            let may_offer = &told.grants.may_offer;
            let told_to_servers = report
                .services
                .iter()
                .filter(|offer| !matches!(offer.visibility, Visibility::Private | Visibility::Linked));
            let refused = told_to_servers.filter(|offer| !may_offer.matches(offer.name.as_str()));
            withheld.extend(
                refused.map(|offer| Withheld::Service {
                    name: offer.name.clone(),
                    may_offer: may_offer.clone(),
                }),
            );
            withheld.extend(told.addresses.iter().cloned().map(Withheld::Address));
        }
        let newly = withheld.difference(&self.withheld).cloned().collect();
        self.withheld = withheld;
        newly
    }
}

impl Agent {
    /// What is said of this Peer to Servers and passed on by none, or not by all.
    pub fn withheld(&self) -> impl Iterator<Item = &Withheld> {
        self.grants.withheld()
    }

    /// A Server told what this Peer may do.
    pub(super) fn on_own_grants(&mut self, server: NodeId, grants: Arc<Grants>, addresses: Vec<HostPort>) {
        self.grants.told.insert(server, Told { grants, addresses });
        self.update_withheld();
    }

    /// A session with `server` began or ended: what it told no longer counts.
    pub(super) fn forget_own_grants(&mut self, server: NodeId) {
        if self.grants.told.remove(&server).is_some() {
            self.update_withheld();
        }
    }

    pub(super) fn update_withheld(&mut self) {
        let newly = self.grants.update(&self.report);
        if !newly.is_empty() {
            self.outputs.push_back(Output::Withheld(newly));
        }
    }

    /// What `peer` may do, to be remembered should it go.
    pub(super) fn grants_of(&mut self, peer: NodeId) -> Arc<Grants> {
        if let Some(online) = self.views.get(peer) {
            self.grants.remember(peer, &online.entry.grants);
        }
        self.known_grants(peer).unwrap_or_default()
    }

    /// What `peer` may do, if anybody said so.
    pub(super) fn known_grants(&self, peer: NodeId) -> Option<Arc<Grants>> {
        let told = self.views.get(peer).map(|online| online.entry.grants.clone());
        let told = told.or_else(|| self.grants.remembered.get(&peer).cloned());
        told.or_else(|| self.mesh_links.certified(peer))
    }

    /// What of `transit` its owners may offer, as far as that is known. Whether the Peer that carries them on may is
    /// checked with its list.
    pub(super) fn offered_on(&self, transit: Arc<[TransitService]>) -> Arc<[TransitService]> {
        let may = |service: &TransitService| {
            let owner = self.known_grants(service.source);
            owner.is_none_or(|owner| owner.may_offer.matches(service.offer.name.as_str()))
        };
        if transit.iter().all(may) {
            return transit;
        }
        transit.iter().filter(|service| may(service)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::peer;

    #[test]
    fn those_who_went_are_remembered_up_to_a_bound() {
        let mut known = KnownGrants::default();
        let id = |n: usize| format!("C00000000-0000-4000-8000-{n:012x}").parse::<NodeId>().unwrap();
        for n in 0..REMEMBERED_MAX + 10 {
            known.remember(id(n), &Arc::default());
            known.remember(id(n), &Arc::default());
        }
        assert_eq!((known.remembered.len(), known.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert!(!known.remembered.contains_key(&id(9)) && known.remembered.contains_key(&id(10)));
    }

    #[test]
    fn what_is_withheld_says_what_to_type() {
        let service = |may_offer: &str| Withheld::Service {
            name: "db".parse().unwrap(),
            may_offer: may_offer.parse().unwrap(),
        };
        let text = service("web*").explain(peer(1));
        assert!(text.contains(&format!("identity set {} --may-offer 'web*,db'", peer(1))), "{text}");
        assert!(service("").explain(peer(1)).contains("--may-offer 'db'"));
        let address = Withheld::Address("192.0.2.1:6443".parse().unwrap());
        assert!(address.explain(peer(1)).contains("--may-advertise '192.0.2.1:6443'"));
        assert_eq!(
            (service("").to_string(), address.to_string()),
            ("service db".into(), "address 192.0.2.1:6443".into())
        );
    }
}
