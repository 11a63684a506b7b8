//! Table D: what this Peer knows of its own network, and the kinds of IP addresses.
//!
//! [`NetSources`] collects what the shell and the Servers see and derives [`NetInfo`] from it: a pure function
//! of its fields, in an order that does not depend on the order of the interfaces, so that an unchanged
//! network is no change to report.
//!
//! # What is offered
//!
//! Best first, at most [`NetInfo::CANDIDATES_MAX`], each address once:
//!
//! 1. what an operator advertises, as it stands;
//! 2. the addresses of the interfaces the listener covers, public ones first;
//! 3. the addresses Servers see this Peer come from, with the port of the listener: right for hosts whose
//!    public address is mapped one to one, as clouds do; where it is wrong, the dial fails.
//!
//! Loopback is offered only when the listener is bound to loopback: then it is the one address there is, and
//! other Peers of the same host reach it (see [`crate::DialRule`]). Link-local, multicast and metadata
//! addresses are never offered. Owner: the agent. Source: SPEC C1, P2; RFC 8445 for the kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use p2p_common::NodeId;
use p2p_common::addr::{Candidate, CandidateKind, HostPort, NetInfo};

/// An address of one of this host's interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddr {
    /// The address.
    pub ip: IpAddr,
    /// Whether its interface is up.
    pub up: bool,
}

/// All that is known of the own network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetSources {
    /// The addresses of the host's interfaces.
    pub interfaces: Vec<InterfaceAddr>,
    /// The listener, with the port it really got; none when this Peer takes no connections.
    pub listen: Option<SocketAddr>,
    /// Addresses an operator wants others to dial.
    pub advertised: Vec<HostPort>,
    /// From where each Server sees this Peer come.
    pub seen_from: BTreeMap<NodeId, SocketAddr>,
}

impl NetSources {
    /// Table D as it follows from these.
    pub fn net_info(&self) -> NetInfo {
        let advertised = self.advertised.iter().map(|addr| (CandidateKind::Advertised, addr.clone()));
        let host = self.host_addrs().into_iter().map(|addr| (CandidateKind::Host, addr.into()));
        let reflexive =
            self.reflexive_addrs().into_iter().map(|addr| (CandidateKind::Reflexive, addr.into()));
        let mut seen = BTreeSet::new();
        let candidates = advertised
            .chain(host)
            .chain(reflexive)
            .filter(|(_, addr)| seen.insert(addr.clone()))
            .map(|(kind, addr)| Candidate { kind, addr })
            .take(NetInfo::CANDIDATES_MAX)
            .collect();
        NetInfo { listen: self.listen, candidates }
    }

    fn host_addrs(&self) -> Vec<SocketAddr> {
        let Some(listen) = self.listen else { return Vec::new() };
        if !listen.ip().is_unspecified() {
            return vec![listen];
        }
        let covered = |ip: &IpAddr| listen.is_ipv6() || ip.is_ipv4();
        let mut ips: Vec<(Scope, IpAddr)> = self
            .interfaces
            .iter()
            .filter(|addr| addr.up)
            .map(|addr| addr.ip.to_canonical())
            .filter(covered)
            .map(|ip| (Scope::of(ip), ip))
            .filter(|(scope, _)| scope.is_offered())
            .collect();
        ips.sort();
        ips.into_iter().map(|(_, ip)| SocketAddr::new(ip, listen.port())).collect()
    }

    fn reflexive_addrs(&self) -> BTreeSet<SocketAddr> {
        let Some(listen) = self.listen else { return BTreeSet::new() };
        let from_outside = Scope::of(listen.ip()) != Scope::Loopback;
        let seen = self.seen_from.values().map(|addr| addr.ip().to_canonical());
        seen.filter(|ip| from_outside && Scope::of(*ip).is_offered())
            .filter(|ip| ip.is_ipv4() == listen.is_ipv4() || listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED))
            .map(|ip| SocketAddr::new(ip, listen.port()))
            .collect()
    }
}

/// How far an IP address reaches. The order is that of preference among a host's own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everywhere.
    Public,
    /// Within a site: RFC 1918, RFC 6598 and unique local addresses.
    Private,
    /// This host only.
    Loopback,
    /// One link only.
    LinkLocal,
    /// A cloud's metadata or host service: answers anybody on the machine with secrets.
    Metadata,
    /// Many hosts at once, broadcast included.
    Multicast,
    /// Unspecified, reserved or otherwise no host's address.
    Unusable,
}

/// Addresses at which clouds serve metadata outside the link-local range.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

impl Scope {
    /// The scope of `ip`; an IPv4 address written as IPv6 counts as what it is.
    pub fn of(ip: IpAddr) -> Scope {
        let ip = ip.to_canonical();
        if METADATA.contains(&ip) || ip == IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)) {
            return Scope::Metadata;
        }
        match ip {
            IpAddr::V4(ip) => Scope::of_v4(ip),
            IpAddr::V6(ip) => Scope::of_v6(ip),
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Scope {
        let [a, b, ..] = ip.octets();
        match a {
            0 => Scope::Unusable,
            127 => Scope::Loopback,
            169 if b == 254 => Scope::LinkLocal,
            224..=239 => Scope::Multicast,
            _ if ip.is_broadcast() => Scope::Multicast,
            240.. => Scope::Unusable,
            100 if (64..128).contains(&b) => Scope::Private,
            _ if ip.is_private() => Scope::Private,
            _ => Scope::Public,
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Scope {
        let [first, second, ..] = ip.segments();
        match first {
            _ if ip.is_loopback() => Scope::Loopback,
            // Unspecified and the deprecated IPv4-compatible form, which hides an IPv4 address.
            0 if ip.segments()[1..6].iter().all(|part| *part == 0) => Scope::Unusable,
            0xfe80..=0xfebf => Scope::LinkLocal,
            0xff00.. => Scope::Multicast,
            0xfc00..=0xfdff => Scope::Private,
            // A translator would carry these to the IPv4 address inside.
            0x64 if second == 0xff9b => Scope::Unusable,
            0x2002 => Scope::Unusable,
            _ => Scope::Public,
        }
    }

    /// Whether a host's own address of this scope is any use to others.
    fn is_offered(self) -> bool {
        matches!(self, Scope::Public | Scope::Private)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(ip: &str) -> InterfaceAddr {
        InterfaceAddr { ip: ip.parse().unwrap(), up: true }
    }

    fn server(n: u8) -> NodeId {
        format!("S00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
    }

    fn offered(sources: &NetSources) -> Vec<String> {
        let letter = |kind| match kind {
            CandidateKind::Host => 'h',
            CandidateKind::Reflexive => 'r',
            CandidateKind::Mapped => 'm',
            CandidateKind::Advertised => 'a',
        };
        let net = sources.net_info();
        net.candidates.iter().map(|c| format!("{} {}", letter(c.kind), c.addr)).collect()
    }

    fn host(listen: &str) -> NetSources {
        NetSources {
            interfaces: [
                "127.0.0.1",
                "::1",
                "192.168.1.5",
                "203.0.113.9",
                "fe80::1",
                "fd12::5",
                "2001:db8:1::5",
                "169.254.3.4",
            ]
            .map(up)
            .into(),
            listen: Some(listen.parse().unwrap()),
            ..NetSources::default()
        }
    }

    #[test]
    fn an_unspecified_listener_offers_every_interface_others_can_use() {
        assert_eq!(offered(&host("0.0.0.0:6443")), ["h 203.0.113.9:6443", "h 192.168.1.5:6443"]);
        assert_eq!(
            offered(&host("[::]:6443")),
            ["h 203.0.113.9:6443", "h [2001:db8:1::5]:6443", "h 192.168.1.5:6443", "h [fd12::5]:6443"]
        );
    }

    #[test]
    fn a_bound_listener_offers_its_address_alone() {
        assert_eq!(offered(&host("192.168.1.5:7")), ["h 192.168.1.5:7"]);
        assert_eq!(offered(&host("127.0.0.1:7")), ["h 127.0.0.1:7"]);
        assert_eq!(offered(&NetSources { listen: None, ..host("127.0.0.1:7") }), [""; 0]);
    }

    #[test]
    fn the_order_of_interfaces_and_those_that_are_down_change_nothing() {
        let sources = host("0.0.0.0:1");
        let mut other = sources.clone();
        other.interfaces.reverse();
        other.interfaces.push(InterfaceAddr { up: false, ..up("10.9.9.9") });
        assert_eq!(sources.net_info(), other.net_info());
    }

    #[test]
    fn what_operators_and_servers_say_goes_first_and_last() {
        let mut sources = host("0.0.0.0:6443");
        sources.advertised = vec!["peer.example:443".parse().unwrap()];
        sources.seen_from = BTreeMap::from([
            (server(1), "198.51.100.7:50123".parse().unwrap()),
            (server(2), "198.51.100.7:50999".parse().unwrap()),
            (server(3), "192.168.1.5:41000".parse().unwrap()),
            (server(4), "127.0.0.1:41000".parse().unwrap()),
        ]);
        assert_eq!(
            offered(&sources),
            ["a peer.example:443", "h 203.0.113.9:6443", "h 192.168.1.5:6443", "r 198.51.100.7:6443"]
        );
        sources.listen = Some("127.0.0.1:6443".parse().unwrap());
        assert_eq!(offered(&sources), ["a peer.example:443", "h 127.0.0.1:6443"]);
    }

    #[test]
    fn there_are_never_too_many() {
        let interfaces = (0..40).map(|n| up(&format!("10.0.0.{n}"))).collect();
        let sources = NetSources { interfaces, ..host("0.0.0.0:1") };
        assert_eq!(sources.net_info().candidates.len(), NetInfo::CANDIDATES_MAX);
    }

    #[test]
    fn scopes() {
        for (ip, scope) in [
            ("8.8.8.8", Scope::Public),
            ("2606:4700::1", Scope::Public),
            ("10.1.2.3", Scope::Private),
            ("100.64.0.1", Scope::Private),
            ("fd00::1", Scope::Private),
            ("127.8.8.8", Scope::Loopback),
            ("::1", Scope::Loopback),
            ("::ffff:127.0.0.1", Scope::Loopback),
            ("169.254.1.1", Scope::LinkLocal),
            ("fe80::1", Scope::LinkLocal),
            ("169.254.169.254", Scope::Metadata),
            ("::ffff:169.254.169.254", Scope::Metadata),
            ("100.100.100.200", Scope::Metadata),
            ("fd00:ec2::254", Scope::Metadata),
            ("224.0.0.1", Scope::Multicast),
            ("255.255.255.255", Scope::Multicast),
            ("ff02::1", Scope::Multicast),
            ("0.0.0.0", Scope::Unusable),
            ("0.1.2.3", Scope::Unusable),
            ("240.0.0.1", Scope::Unusable),
            ("::", Scope::Unusable),
            ("::127.0.0.1", Scope::Unusable),
            ("64:ff9b::7f00:1", Scope::Unusable),
        ] {
            assert_eq!(Scope::of(ip.parse().unwrap()), scope, "{ip}");
        }
    }
}
