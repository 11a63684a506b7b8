//! The own services: which names this Peer answers for, where they really run, who may learn of them.
//!
//! Immutable once built; a change is a new [`OwnServices`]. It is the only place a FORWARD's backend comes
//! from: a name that is not here is never dialled, whatever somebody else says (SPEC F7). Source: SPEC F1, F3.

use std::collections::BTreeMap;

use p2p_common::NodeId;
use p2p_common::addr::HostPort;
use p2p_common::service::{LocalService, SERVICES_PER_PEER_MAX, ServiceName, ServiceOffer, Visibility};

/// A service of this Peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnService {
    /// Where it runs.
    pub backend: HostPort,
    /// Who may learn of it.
    pub visibility: Visibility,
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
    /// Takes the services in any order.
    ///
    /// # Errors
    /// The first service that cannot be taken.
    pub fn new(
        services: impl IntoIterator<Item = (LocalService, Visibility)>,
    ) -> Result<Self, ServicesError> {
        let mut taken: BTreeMap<ServiceName, OwnService> = BTreeMap::new();
        for (LocalService { name, backend }, visibility) in services {
            if let Some(first) = taken.get(&name) {
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
            if taken.len() == SERVICES_PER_PEER_MAX {
                return Err(ServicesError::TooMany);
            }
            taken.insert(name, OwnService { backend, visibility });
        }
        Ok(OwnServices { services: taken })
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

    /// What Servers are told: private services stay here.
    pub fn offers(&self) -> Vec<ServiceOffer> {
        let told = self.services.iter().filter(|(_, service)| service.visibility != Visibility::Private);
        told.map(|(name, OwnService { backend, visibility })| ServiceOffer {
            name: name.clone(),
            backend: backend.clone(),
            visibility: visibility.clone(),
        })
        .collect()
    }
}

impl OwnService {
    /// Whether `caller` may learn of this service.
    pub fn is_visible_to(&self, caller: NodeId) -> bool {
        match &self.visibility {
            Visibility::Cluster => true,
            Visibility::Private => false,
            Visibility::Ids(ids) => ids.contains(&caller),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> (LocalService, Visibility) {
        (text.parse().unwrap(), Visibility::Cluster)
    }

    fn peer(n: u8) -> NodeId {
        format!("C00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
    }

    #[test]
    fn one_name_twice_names_both() {
        let error = OwnServices::new([service("web=10.0.0.1:80"), service("WEB.=[::1]:81")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "service 'web' is given twice, as web=10.0.0.1:80 and as web=[::1]:81: rename or remove one"
        );
    }

    #[test]
    fn bounds_hold() {
        let many = |n: usize| (0..n).map(|i| service(&format!("s{i}=h:1")));
        assert_eq!(OwnServices::new(many(SERVICES_PER_PEER_MAX)).unwrap().len(), SERVICES_PER_PEER_MAX);
        assert_eq!(OwnServices::new(many(SERVICES_PER_PEER_MAX + 1)), Err(ServicesError::TooMany));
        let ids = Visibility::Ids(vec![peer(1); Visibility::IDS_MAX + 1]);
        let error = OwnServices::new([(service("a=h:1").0, ids)]).unwrap_err();
        assert!(matches!(error, ServicesError::TooManyIds { ids: 257, .. }), "{error}");
        assert!(matches!(OwnServices::new([service("a=h:0")]), Err(ServicesError::NoPort { .. })));
    }

    #[test]
    fn private_services_are_told_nobody() {
        let own = OwnServices::new([
            service("b=h:1"),
            (service("a=h:2").0, Visibility::Private),
            (service("c=h:3").0, Visibility::Ids(vec![peer(1)])),
        ])
        .unwrap();
        let told: Vec<String> = own.offers().iter().map(|offer| offer.name.to_string()).collect();
        assert_eq!(told, ["b", "c"]);
        assert!(!own.get("a").unwrap().is_visible_to(peer(1)));
        assert!(own.get("b").unwrap().is_visible_to(peer(2)));
        assert!(own.get("c").unwrap().is_visible_to(peer(1)));
        assert!(!own.get("c").unwrap().is_visible_to(peer(2)));
    }
}
