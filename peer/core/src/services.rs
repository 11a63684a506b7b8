//! The own services: which names this Peer answers for, where they really run, who may learn of them.
//!
//! A value: whoever changes the services at run time changes a copy and hands it to the agent whole. It is the only place a FORWARD's backend comes
//! from: a name that is not here is never dialled, whatever somebody else says (SPEC F7). Source: SPEC F1, F3.

use std::collections::BTreeMap;

use p2p_common::NodeId;
use p2p_common::addr::HostPort;
use p2p_common::service::{
    HealthCheck, LocalService, SERVICES_PER_PEER_MAX, ServiceName, ServiceOffer, ServiceState, Visibility,
};

/// A service of this Peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnService {
    /// Where it runs.
    pub backend: HostPort,
    /// Who may learn of it.
    pub visibility: Visibility,
    /// How its backend is checked; none: not at all.
    pub check: Option<HealthCheck>,
    /// Whether it can be used now.
    pub state: ServiceState,
}

/// The services of this Peer by name; at most [`SERVICES_PER_PEER_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnServices {
    services: BTreeMap<ServiceName, OwnService>,
}

/// Why a set of services is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServicesError {
    /// One name twice.
    #[error(
        "service '{name}' is given twice, as {name}={first} and as {name}={second}: rename or remove one"
    )]
    Duplicate {
        /// The name.
        name: ServiceName,
        /// The backend given first.
        first: HostPort,
        /// The backend given second.
        second: HostPort,
    },
    /// More than a Peer may have.
    #[error("a Peer has at most {SERVICES_PER_PEER_MAX} services: run another Peer for the rest")]
    TooMany,
    /// A longer list of Ids than a visibility may have.
    #[error("service '{name}' names {ids} Ids that may see it, at most {} are allowed", Visibility::IDS_MAX)]
    TooManyIds {
        /// The name.
        name: ServiceName,
        /// How many.
        ids: usize,
    },
    /// A backend that nothing can connect to.
    #[error("service '{name}' has the backend {backend}: port 0 takes no connections")]
    NoPort {
        /// The name.
        name: ServiceName,
        /// The backend.
        backend: HostPort,
    },
}

impl OwnServices {
    /// Takes the services in any order; those that do not say who may learn of them get `visibility`.
    ///
    /// # Errors
    /// The first service that cannot be taken.
    pub fn new(
        services: impl IntoIterator<Item = LocalService>,
        visibility: &Visibility,
    ) -> Result<Self, ServicesError> {
        let mut own = OwnServices::default();
        for service in services {
            own.add(service, visibility)?;
        }
        Ok(own)
    }

    /// Adds a service; if it does not say who may learn of it, `visibility` decides.
    ///
    /// # Errors
    /// When it cannot be taken; then nothing has changed.
    pub fn add(&mut self, service: LocalService, visibility: &Visibility) -> Result<(), ServicesError> {
        let LocalService { name, backend, check, visibility: said } = service;
        let visibility = said.unwrap_or_else(|| visibility.clone());
        if let Some(first) = self.services.get(&name) {
            let first = first.backend.clone();
            return Err(ServicesError::Duplicate { name, first, second: backend });
        }
        if backend.port() == 0 {
            return Err(ServicesError::NoPort { name, backend });
        }
        if let Visibility::Ids(ids) = &visibility
            && ids.len() > Visibility::IDS_MAX
        {
            return Err(ServicesError::TooManyIds { name, ids: ids.len() });
        }
        if self.services.len() == SERVICES_PER_PEER_MAX {
            return Err(ServicesError::TooMany);
        }
        let state = ServiceState::Up;
        self.services.insert(name, OwnService { backend, visibility, check, state });
        Ok(())
    }

    /// Takes a service away; none if there is none of this name.
    pub fn remove(&mut self, name: &str) -> Option<OwnService> {
        self.services.remove(name)
    }

    /// Says whether a service can be used now. Returns whether that changed anything.
    pub fn set_state(&mut self, name: &str, state: ServiceState) -> bool {
        self.services.get_mut(name).is_some_and(|own| std::mem::replace(&mut own.state, state) != state)
    }

    /// The service called `name`.
    pub fn get(&self, name: &str) -> Option<&OwnService> {
        self.services.get(name)
    }

    /// All services by name.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, &OwnService)> {
        self.services.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// What Servers are told: private services, and those for linked Peers alone, stay here.
    pub fn offers(&self) -> Vec<ServiceOffer> {
        let told = self
            .services
            .iter()
            .filter(|(_, service)| matches!(service.visibility, Visibility::Cluster | Visibility::Ids(_)));
        told.map(|(name, service)| service.offer(name, service.visibility.clone())).collect()
    }

    /// What a Peer joined by a mesh link is told. A Peer that a service names learns that it is named, and not
    /// who else is.
    pub fn offers_to(&self, peer: NodeId) -> Vec<ServiceOffer> {
        let told = self.services.iter().filter(|(_, service)| service.is_visible_to(peer, true));
        told.map(|(name, service)| {
            let visibility = match &service.visibility {
                Visibility::Ids(_) => Visibility::Ids(vec![peer]),
                other => other.clone(),
            };
            service.offer(name, visibility)
        })
        .collect()
    }
}

impl OwnService {
    /// Whether `caller` may learn of this service; `linked` says whether a mesh link joins it.
    pub fn is_visible_to(&self, caller: NodeId, linked: bool) -> bool {
        match &self.visibility {
            Visibility::Linked => linked,
            Visibility::Cluster => true,
            Visibility::Private => false,
            Visibility::Ids(ids) => ids.contains(&caller),
        }
    }

    fn offer(&self, name: &ServiceName, visibility: Visibility) -> ServiceOffer {
        ServiceOffer { name: name.clone(), backend: self.backend.clone(), visibility, state: self.state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> LocalService {
        text.parse().unwrap()
    }

    fn own(services: impl IntoIterator<Item = LocalService>) -> Result<OwnServices, ServicesError> {
        OwnServices::new(services, &Visibility::Cluster)
    }

    fn peer(n: u8) -> NodeId {
        format!("C00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
    }

    #[test]
    fn one_name_twice_names_both() {
        let error = own([service("web=10.0.0.1:80"), service("WEB.=[::1]:81")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "service 'web' is given twice, as web=10.0.0.1:80 and as web=[::1]:81: rename or remove one"
        );
    }

    #[test]
    fn bounds_hold() {
        let many = |n: usize| (0..n).map(|i| service(&format!("s{i}=h:1")));
        assert_eq!(own(many(SERVICES_PER_PEER_MAX)).unwrap().len(), SERVICES_PER_PEER_MAX);
        assert_eq!(own(many(SERVICES_PER_PEER_MAX + 1)), Err(ServicesError::TooMany));
        let ids = Visibility::Ids(vec![peer(1); Visibility::IDS_MAX + 1]);
        let error = OwnServices::new([service("a=h:1")], &ids).unwrap_err();
        assert!(matches!(error, ServicesError::TooManyIds { ids: 257, .. }), "{error}");
        assert!(matches!(own([service("a=h:0")]), Err(ServicesError::NoPort { .. })));
    }

    #[test]
    fn services_are_told_to_those_who_may_learn_of_them() {
        let own = own([
            service("b=h:1"),
            service("a=h:2 visibility=private"),
            service(&format!("c=h:3 visibility=ids:{},{}", peer(1), peer(2))),
            service("d=h:4 visibility=linked"),
        ])
        .unwrap();
        let names =
            |offers: Vec<ServiceOffer>| offers.iter().map(|of| of.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(own.offers()), ["b", "c"]);
        assert_eq!(names(own.offers_to(peer(1))), ["b", "c", "d"]);
        assert_eq!(names(own.offers_to(peer(3))), ["b", "d"]);
        assert_eq!(own.offers_to(peer(1))[1].visibility, Visibility::Ids(vec![peer(1)]));
        for (name, linked, at_all, named) in [
            ("a", false, false, false),
            ("b", true, true, true),
            ("c", false, false, true),
            ("d", true, false, false),
        ] {
            let service = own.get(name).unwrap();
            assert_eq!(service.is_visible_to(peer(3), true), linked, "{name}");
            assert_eq!(service.is_visible_to(peer(3), false), at_all, "{name}");
            assert_eq!(service.is_visible_to(peer(1), false), named, "{name}");
        }
    }

    #[test]
    fn services_come_go_and_change_state_at_run_time() {
        let mut own = own([service("a=h:1 check=tcp")]).unwrap();
        assert_eq!(own.get("a").unwrap().check, Some(HealthCheck::Tcp));
        own.add(service("b=h:2"), &Visibility::Linked).unwrap();
        own.add(service("A=h:3"), &Visibility::Linked).unwrap_err();
        assert!(own.set_state("b", ServiceState::Draining) && !own.set_state("b", ServiceState::Draining));
        assert!(!own.set_state("none", ServiceState::Down));
        assert_eq!(own.offers_to(peer(1))[1].state, ServiceState::Draining);
        assert_eq!(own.remove("b").unwrap().visibility, Visibility::Linked);
        assert_eq!((own.remove("b"), own.len()), (None, 1));
    }
}
