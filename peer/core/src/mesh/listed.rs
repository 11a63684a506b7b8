//! What of a list is refused.

use std::collections::BTreeSet;

use p2p_common::addr::NetInfo;
use p2p_common::service::{SERVICES_PER_PEER_MAX, ServiceName};
use p2p_common::wire::link::{ServiceList, TRANSIT_MAX};
use p2p_common::{NodeId, NodeKind};

/// Why a list is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ListError {
    #[error("{count} {what} are more than the {max} allowed")]
    TooMany { what: &'static str, count: usize, max: usize },
    #[error("service '{0}' is named twice")]
    Twice(ServiceName),
    #[error("service '{name}' is carried on to {owner}, which is its sender, its receiver or no Peer")]
    Owner { name: ServiceName, owner: NodeId },
}

/// Checks a list of `sender` that `me` received.
pub(super) fn check(list: &ServiceList, sender: NodeId, me: NodeId) -> Result<(), ListError> {
    let ServiceList { report, transit } = list;
    bounded("services", report.services.len(), SERVICES_PER_PEER_MAX)?;
    bounded("services carried on", transit.len(), TRANSIT_MAX)?;
    bounded("addresses", report.net.candidates.len(), NetInfo::CANDIDATES_MAX)?;
    let mut names = BTreeSet::new();
    let own = report.services.iter().map(|offer| &offer.name);
    for name in own.chain(transit.iter().map(|service| &service.offer.name)) {
        if !names.insert(name) {
            return Err(ListError::Twice(name.clone()));
        }
    }
    let speaks_for = |owner: NodeId| owner.kind() == NodeKind::Peer && owner != sender && owner != me;
    match transit.iter().find(|service| !speaks_for(service.source)) {
        Some(service) => Err(ListError::Owner { name: service.offer.name.clone(), owner: service.source }),
        None => Ok(()),
    }
}

fn bounded(what: &'static str, count: usize, max: usize) -> Result<(), ListError> {
    if count > max { Err(ListError::TooMany { what, count, max }) } else { Ok(()) }
}
