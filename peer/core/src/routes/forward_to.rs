//! Where a FORWARD of another Peer goes: what the tables answer the owner's side of a tunnel (SPEC F3, F7, I8).

use p2p_common::addr::HostPort;
use p2p_common::service::{ServiceName, ServiceState};
use p2p_common::wire::tunnel::Hop;
use p2p_common::{ErrorCode, NodeId};

use super::{Route, RouteLink, Tables, is_carried_on};

/// Why another Peer's FORWARD is refused: what goes into the REFUSE frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({code})")]
pub struct ForwardRefusal {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub text: String,
}

/// Where a FORWARD of another Peer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardTo {
    /// To this backend of an own service.
    Backend(HostPort),
    /// On to one of its owners, each joined to this Peer by a mesh link: best first, at least one.
    Carry {
        /// By Id.
        owners: Vec<NodeId>,
    },
}

impl Tables {
    /// Where a FORWARD of `caller` goes, whose certificate has been checked: to a service registered here; or,
    /// if this Peer carries on and `caller` has a mesh link, to the Peers with one that own the service. Only for
    /// Peers that are known and may reach the service, and a service that is hidden from the caller is unknown to it.
    ///
    /// A Peer that carries on is the caller of the owner: here its caller is checked, there it is itself.
    ///
    /// # Errors
    /// What to answer with.
    pub fn may_forward(
        &self,
        caller: NodeId,
        service: &ServiceName,
        hop: Hop,
    ) -> Result<ForwardTo, ForwardRefusal> {
        let Some(known) = self.peers.get(&caller) else {
            return Err(ForwardRefusal {
                code: ErrorCode::Forbidden,
                text: format!("{caller} is not known to {}: neither by a mesh link nor by a Server", self.me),
            });
        };
        if !known.grants.may_reach.matches(service.as_str()) {
            return Err(ForwardRefusal {
                code: ErrorCode::NotGranted,
                text: format!(
                    "{caller} may not reach '{service}'; an operator allows it with `p2p-server identity set {caller} \
                     --may-reach ...`"
                ),
            });
        }
        let own = self.own.get(service.as_str()).filter(|own| own.is_visible_to(caller, known.linked));
        if let Some(own) = own.filter(|own| own.state == ServiceState::Up) {
            return Ok(ForwardTo::Backend(own.backend.clone()));
        }
        // Once is enough: two Peers with old news of each other would pass it to and fro.
        let carries = self.transit && known.linked && hop == Hop::First;
        let carried: Vec<&Route> = if carries { self.carried(caller, service).collect() } else { Vec::new() };
        let mut open: Vec<(bool, NodeId)> = carried
            .iter()
            .filter(|route| route.connected && route.state == ServiceState::Up)
            .filter_map(|route| Some((route.link == RouteLink::Failing, route.source.peer()?)))
            .collect();
        open.sort_unstable();
        if !open.is_empty() {
            return Ok(ForwardTo::Carry { owners: open.into_iter().map(|(_, owner)| owner).collect() });
        }
        Err(match own {
            Some(own) => ForwardRefusal {
                code: ErrorCode::ServiceDown,
                text: format!("service '{service}' of {} is {}", self.me, own.state),
            },
            None if !carried.is_empty() => ForwardRefusal {
                code: ErrorCode::OwnerOffline,
                text: format!("nobody who has '{service}' is connected to {}", self.me),
            },
            None => ForwardRefusal {
                code: ErrorCode::ServiceUnknown,
                text: format!("{} has no service '{service}'", self.me),
            },
        })
    }

    /// The routes to owners of `service` that `caller` may be carried on to.
    fn carried(&self, caller: NodeId, service: &ServiceName) -> impl Iterator<Item = &Route> {
        let routes = self.routes.get(service).into_iter().flatten().filter(|route| !route.transit);
        routes.filter(move |route| {
            let owner = route.source.peer().filter(|owner| *owner != caller);
            owner.and_then(|owner| self.peers.get(&owner)).is_some_and(|known| {
                let offers = &known.entry.report.services;
                let offer = offers.iter().find(|offer| offer.name == route.name);
                known.linked && offer.is_some_and(|offer| is_carried_on(&offer.visibility))
            })
        })
    }
}
