//! [`Pair`]: two Peers, one with the services, the other with the clients.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::cluster::{Cluster, Lifetime, PATIENCE, PeerProcess, binaries, run, wait_for};

/// How the two Peers come to know each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// A Server introduces them.
    Server,
    /// There is no Server; the ingress was told of the owner, and dials it.
    IngressDials,
    /// There is no Server; the owner was told of the ingress, which must ask it for tunnels.
    OwnerDials,
}

/// The owner and the ingress.
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
        Pair::met(Meeting::Server, services, bound)
    }

    /// The same, having met in another way.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn met(meeting: Meeting, services: &[(&str, SocketAddr)], bound: &[&str]) -> anyhow::Result<Self> {
        let cluster = match meeting {
            Meeting::Server => Cluster::start(1)?,
            Meeting::IngressDials | Meeting::OwnerDials => Cluster::empty(Lifetime::Bound)?,
        };
        let mut pair = Pair { cluster, bound: Vec::new() };
        let started = match meeting {
            Meeting::Server => pair.add_peers(services, bound),
            _ => pair.link_peers(meeting, services, bound),
        };
        let started =
            started.and_then(|()| services.iter().try_for_each(|(name, _)| pair.wait_service(name)));
        pair.cluster.explain(started)?;
        Ok(pair)
    }

    fn link_peers(
        &mut self,
        meeting: Meeting,
        services: &[(&str, SocketAddr)],
        bound: &[&str],
    ) -> anyhow::Result<()> {
        self.cluster.new_peer()?;
        self.cluster.new_peer()?;
        let addrs = [self.owner().listen(), self.ingress().listen()];
        let mut mint = Command::new(&binaries()?.peer);
        mint.arg("mesh-key");
        let key = run(mint, PATIENCE)?.success()?;
        for (name, backend) in services {
            self.cluster.peers[0].set("--service", &format!("{name}={backend} visibility=linked"));
        }
        for service in bound {
            let port = self.cluster.peers[1].bind(service)?;
            self.bound.push(((*service).to_owned(), port));
        }
        let (dialler, dialled) = if meeting == Meeting::OwnerDials { (0, 1) } else { (1, 0) };
        self.cluster.peers[dialler].set("--remote-peer", &addrs[dialled].to_string());
        for peer in &mut self.cluster.peers {
            peer.set_variable("PEER_MESH_KEY", key.trim());
            peer.start()?;
        }
        Ok(())
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
    between_met(Meeting::Server, services, bound, test)
}

/// The same with Peers that met in another way.
///
/// # Errors
/// As for [`between`].
pub fn between_met(
    meeting: Meeting,
    services: &[(&str, SocketAddr)],
    bound: &[&str],
    test: impl FnOnce(&mut Pair) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut pair = Pair::met(meeting, services, bound)?;
    let tested = test(&mut pair);
    pair.cluster.explain(tested)?;
    pair.cluster.stop(Duration::from_secs(15))
}
