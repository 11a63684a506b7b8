//! [`Pair`]: two Peers, one with the services, the other with the clients.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::cluster::{Cluster, PATIENCE, PeerProcess, wait_for};

/// The owner and the ingress, which a Server introduced to each other.
#[derive(Debug)]
pub struct Pair {
    /// Its first Peer is the owner, its second one the ingress.
    pub cluster: Cluster,
    /// The services of the ports bound at the ingress, and those ports.
    bound: Vec<(String, SocketAddr)>,
}

impl Pair {
    /// An owner of `services`, and an ingress that has a port of its own for each of `bound`; returns when the
    /// ingress knows all services.
    ///
    /// # Errors
    /// When they do not come up; with their logs.
    pub fn start(services: &[(&str, SocketAddr)], bound: &[&str]) -> anyhow::Result<Self> {
        let mut pair = Pair { cluster: Cluster::start(1)?, bound: Vec::new() };
        let started = pair.add_peers(services, bound);
        pair.cluster.explain(started)?;
        Ok(pair)
    }

    fn add_peers(&mut self, services: &[(&str, SocketAddr)], bound: &[&str]) -> anyhow::Result<()> {
        self.cluster.add_peer(services)?;
        let ports = &mut self.bound;
        self.cluster.add_peer_with(|peer| {
            for service in bound {
                ports.push(((*service).to_owned(), peer.bind(service)?));
            }
            Ok(())
        })?;
        for (service, _) in services {
            self.wait_service(service)?;
        }
        Ok(())
    }

    /// Waits until the ingress has a route to `service`.
    pub fn wait_service(&self, service: &str) -> anyhow::Result<()> {
        wait_for(&format!("a route to {service}"), PATIENCE, || {
            let tables = self.cluster.peers[1].cli(&["tables"])?.success()?;
            ensure!(tables.contains(&format!("| {service} |")), "the tables are\n{tables}");
            Ok(())
        })
    }

    /// The Peer that has the services.
    pub fn owner(&mut self) -> &mut PeerProcess {
        &mut self.cluster.peers[0]
    }

    /// The Peer that has the clients.
    pub fn ingress(&mut self) -> &mut PeerProcess {
        &mut self.cluster.peers[1]
    }

    /// The one port of the ingress.
    pub fn port(&self) -> u16 {
        self.addr().port()
    }

    /// The same with its address.
    pub fn addr(&self) -> SocketAddr {
        self.cluster.peers[1].listen()
    }

    /// The port of the ingress that is bound to `service`.
    ///
    /// # Errors
    /// When none is.
    pub fn bound(&self, service: &str) -> anyhow::Result<u16> {
        let found = self.bound.iter().find(|(name, _)| name == service);
        Ok(found.with_context(|| format!("no port is bound to {service}"))?.1.port())
    }
}

/// Runs `test` with a [`Pair`], and stops it in order.
///
/// # Errors
/// When `test` fails, with the logs of all processes; or when one of them does not stop in order.
pub fn between(
    services: &[(&str, SocketAddr)],
    bound: &[&str],
    test: impl FnOnce(&mut Pair) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut pair = Pair::start(services, bound)?;
    let tested = test(&mut pair);
    pair.cluster.explain(tested)?;
    pair.cluster.stop(Duration::from_secs(15))
}
