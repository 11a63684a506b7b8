//! Getting to another Peer: which of its addresses to dial, in which order, and when to try again.
//!
//! [`DialRule`] makes the list, [`Remotes`] the times, [`DialBudget`] bounds what one host gets. Opening connections, verifying who answers and the
//! pool of tunnels are the shell's.
//!
//! # What is never dialled
//!
//! Candidates are what another node says, so a hostile one could point a Peer at things beside it: never
//! dialled are link-local, multicast and metadata addresses, whatever is no host's address, and the own
//! addresses, where *own* means an own address with the own port: another Peer of the same host listens on
//! another port and is as good a target as any (SPEC P2).
//!
//! Loopback candidates are dialled only by a Peer that itself listens on loopback. Such a Peer is reached
//! from its own host alone, so its world is this host by the choice of whoever configured it, and the Peers it
//! meets there have nothing but loopback to offer. A Peer that listens on anything else never dials loopback:
//! there a loopback candidate could only come from a mistake or from somebody who probes this host.
//!
//! A DNS name is checked by what it resolves to: after resolving, the shell asks [`DialRule::check`] for every
//! address.

mod budget;
mod remotes;

pub use budget::{BudgetSpent, DialBudget};
pub(crate) use remotes::Remotes;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use p2p_common::addr::{Candidate, CandidateKind, HostPort, NetInfo};

use crate::netinfo::Scope;

/// Why an address is not dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// It is this Peer's own.
    Own,
    /// It is loopback, and this Peer does not listen on loopback.
    Loopback,
    /// It reaches one link only.
    LinkLocal,
    /// It is a cloud's metadata service.
    Metadata,
    /// It is a multicast or broadcast address.
    Multicast,
    /// It is no host's address, or its port is 0.
    Unusable,
}

impl Skip {
    /// The reason in tables and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Skip::Own => "an own address",
            Skip::Loopback => "loopback, and this Peer does not listen on loopback",
            Skip::LinkLocal => "link-local",
            Skip::Metadata => "a metadata service",
            Skip::Multicast => "multicast",
            Skip::Unusable => "not an address of a host",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where to dial a Peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DialPlan {
    /// What to dial, best first.
    pub addresses: Vec<HostPort>,
    /// What is not dialled, and why.
    pub skipped: Vec<(HostPort, Skip)>,
}

/// What this Peer may dial, given its own network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DialRule {
    own: BTreeSet<SocketAddr>,
    own_ips: BTreeSet<IpAddr>,
    loopback: bool,
}

impl DialRule {
    /// The rule of a Peer with this table D.
    pub fn new(own: &NetInfo) -> Self {
        let hosts = own.candidates.iter().filter(|candidate| candidate.kind == CandidateKind::Host);
        DialRule {
            own: own
                .candidates
                .iter()
                .filter_map(|candidate| candidate.addr.socket_addr())
                .chain(own.listen)
                .map(canonical)
                .collect(),
            own_ips: hosts
                .filter_map(|host| host.addr.socket_addr())
                .map(|addr| canonical(addr).ip())
                .collect(),
            loopback: own.listen.is_some_and(|listen| Scope::of(listen.ip()) == Scope::Loopback),
        }
    }

    /// Whether `addr` may be dialled.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, addr: SocketAddr) -> Result<(), Skip> {
        let addr = canonical(addr);
        match Scope::of(addr.ip()) {
            _ if addr.port() == 0 => Err(Skip::Unusable),
            _ if self.own.contains(&addr) => Err(Skip::Own),
            Scope::Loopback if !self.loopback => Err(Skip::Loopback),
            Scope::LinkLocal => Err(Skip::LinkLocal),
            Scope::Metadata => Err(Skip::Metadata),
            Scope::Multicast => Err(Skip::Multicast),
            Scope::Unusable => Err(Skip::Unusable),
            Scope::Public | Scope::Private | Scope::Loopback => Ok(()),
        }
    }

    /// Orders the candidates of another Peer and sorts out what is not dialled. What looks closest comes
    /// first; the other Peer's own order decides between equals.
    pub fn plan(&self, candidates: &[Candidate]) -> DialPlan {
        let mut plan = DialPlan::default();
        let mut ranked = Vec::new();
        let mut seen = BTreeSet::new();
        for Candidate { kind, addr } in candidates.iter().take(NetInfo::CANDIDATES_MAX) {
            let checked = match addr.socket_addr() {
                Some(addr) => self.check(addr),
                None if addr.port() == 0 => Err(Skip::Unusable),
                None => Ok(()),
            };
            match checked {
                _ if !seen.insert(addr) => {}
                Ok(()) => ranked.push((self.rank(*kind, addr), addr)),
                Err(skip) => plan.skipped.push((addr.clone(), skip)),
            }
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        plan.addresses = ranked.into_iter().map(|(_, addr)| addr.clone()).collect();
        plan
    }

    /// Closest first. Private addresses of another network come last: they mostly lead nowhere, slowly.
    fn rank(&self, kind: CandidateKind, addr: &HostPort) -> u8 {
        let ip = addr.socket_addr().map(|addr| addr.ip().to_canonical());
        let scope = ip.map(Scope::of);
        match kind {
            _ if scope == Some(Scope::Loopback) => 0,
            _ if ip.is_some_and(|ip| self.own_ips.iter().any(|own| same_network(*own, ip))) => 1,
            CandidateKind::Advertised => 2,
            CandidateKind::Host if scope != Some(Scope::Private) => 3,
            CandidateKind::Mapped => 4,
            CandidateKind::Reflexive => 5,
            CandidateKind::Host => 6,
        }
    }
}

/// A guess without knowing the prefix: the usual size of a LAN, /24 and /64.
fn same_network(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.segments()[..4] == b.segments()[..4],
        _ => false,
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(list: &[&str]) -> Vec<Candidate> {
        let parse = |text: &&str| {
            let (kind, addr) = text.split_once(' ').unwrap();
            let kind = match kind {
                "h" => CandidateKind::Host,
                "r" => CandidateKind::Reflexive,
                "m" => CandidateKind::Mapped,
                _ => CandidateKind::Advertised,
            };
            Candidate { kind, addr: addr.parse().unwrap() }
        };
        list.iter().map(parse).collect()
    }

    fn rule(listen: &str, own: &[&str]) -> DialRule {
        DialRule::new(&NetInfo { listen: Some(listen.parse().unwrap()), candidates: candidates(own) })
    }

    fn dialled(plan: &DialPlan) -> Vec<String> {
        plan.addresses.iter().map(HostPort::to_string).collect()
    }

    #[test]
    fn closest_first() {
        let rule = rule("0.0.0.0:6443", &["h 192.168.1.5:6443"]);
        let plan = rule.plan(&candidates(&[
            "r 198.51.100.1:6443",
            "h 10.0.0.9:6443",
            "m 198.51.100.1:7000",
            "h 203.0.113.4:6443",
            "a peer.example:443",
            "h 192.168.1.9:6443",
            "h 192.168.1.9:6443",
        ]));
        assert_eq!(
            dialled(&plan),
            [
                "192.168.1.9:6443",
                "peer.example:443",
                "203.0.113.4:6443",
                "198.51.100.1:7000",
                "198.51.100.1:6443",
                "10.0.0.9:6443"
            ]
        );
        assert_eq!(plan.skipped, []);
    }

    #[test]
    fn what_could_hurt_this_host_is_skipped_with_a_reason() {
        let rule = rule("0.0.0.0:6443", &["h 192.168.1.5:6443", "r 198.51.100.1:6443"]);
        let plan = rule.plan(&candidates(&[
            "h 127.0.0.1:22",
            "h [::1]:22",
            "h [::ffff:127.0.0.1]:22",
            "h 169.254.169.254:80",
            "h 169.254.7.7:80",
            "h [fe80::1]:80",
            "h 224.0.0.1:80",
            "h 0.0.0.0:80",
            "h 10.0.0.1:0",
            "a name.example:0",
            "h 192.168.1.5:6443",
            "r 198.51.100.1:6443",
            "h 192.168.1.5:6444",
        ]));
        assert_eq!(dialled(&plan), ["192.168.1.5:6444"]);
        let reasons: Vec<Skip> = plan.skipped.iter().map(|(_, skip)| *skip).collect();
        use Skip::*;
        assert_eq!(
            reasons,
            [
                Loopback, Loopback, Loopback, Metadata, LinkLocal, LinkLocal, Multicast, Unusable, Unusable,
                Unusable, Own, Own
            ]
        );
    }

    #[test]
    fn a_peer_that_listens_on_loopback_dials_loopback() {
        let rule = rule("127.0.0.1:6451", &["h 127.0.0.1:6451"]);
        let plan = rule.plan(&candidates(&["h 10.0.0.1:6443", "h 127.0.0.1:6452", "h 127.0.0.1:6451"]));
        assert_eq!(dialled(&plan), ["127.0.0.1:6452", "10.0.0.1:6443"]);
        assert_eq!(plan.skipped, [("127.0.0.1:6451".parse().unwrap(), Skip::Own)]);
    }

    #[test]
    fn a_peer_that_does_not_listen_dials_no_loopback() {
        let rule = DialRule::new(&NetInfo::default());
        assert_eq!(rule.check("127.0.0.1:80".parse().unwrap()), Err(Skip::Loopback));
        assert_eq!(rule.check("10.0.0.1:80".parse().unwrap()), Ok(()));
    }
}
