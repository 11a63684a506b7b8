//! Which of a Peer's addresses this Server passes on.
//!
//! A Peer that names other people's public addresses as its own would have every other Peer knock there. So a
//! public address is passed on only when it is where the session comes from, or when an operator listed it:
//!
//! - `Advertised`: passed on. It is the operator of the reporting Peer who lists, so this Server takes the
//!   Peer's word; a lie costs each reader a dial that ends at the key pin, and readers dial within a budget.
//! - `Host` and `Mapped`: private addresses are passed on as reported, public ones only with the session's IP.
//!   A host name is no interface's address and is dropped.
//! - `Reflexive`: never taken from a report. This Server adds the one it saw: the session's IP with the port the
//!   Peer listens on. The session's own source port belongs to an outgoing connection, and nobody listens there.
//!   Behind a NAT it is worth a try only where the port is forwarded unchanged.
//!
//! The order is the Peer's, best first; the reflexive one comes last unless it is there already, and takes the
//! place of the last when there are the most allowed.

use std::net::IpAddr;

use p2p_common::addr::{Candidate, CandidateKind, HostPort, NetInfo};

pub(super) fn passed_on(reported: NetInfo, seen_from: IpAddr) -> NetInfo {
    let seen_from = seen_from.to_canonical();
    let NetInfo { listen, mut candidates } = reported;
    candidates.retain(|candidate| passes(candidate, seen_from));
    if let Some(reflexive) = listen.and_then(|listen| reflexive(seen_from, listen.port()))
        && candidates.iter().all(|candidate| candidate.addr != reflexive)
    {
        candidates.truncate(NetInfo::CANDIDATES_MAX - 1);
        candidates.push(Candidate { kind: CandidateKind::Reflexive, addr: reflexive });
    }
    NetInfo { listen, candidates }
}

fn passes(candidate: &Candidate, seen_from: IpAddr) -> bool {
    match candidate.kind {
        CandidateKind::Advertised => true,
        CandidateKind::Reflexive => false,
        CandidateKind::Host | CandidateKind::Mapped => match candidate.addr.socket_addr() {
            Some(addr) => {
                let ip = addr.ip().to_canonical();
                ip == seen_from || !is_public(ip)
            }
            None => false,
        },
    }
}

/// A session from this machine or this wire alone says nothing about where others find the Peer.
fn reflexive(seen_from: IpAddr, listen_port: u16) -> Option<HostPort> {
    let local = match seen_from {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let useful = !local && !seen_from.is_loopback() && !seen_from.is_unspecified() && listen_port != 0;
    useful.then(|| HostPort::from(std::net::SocketAddr::new(seen_from, listen_port)))
}

/// Whether an address may belong to anybody in the world.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared)
        }
        IpAddr::V6(ip) => {
            let local = ip.is_unique_local() || ip.is_unicast_link_local();
            !(local || ip.is_loopback() || ip.is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(seen_from: &str, listen: &str, reported: &[(CandidateKind, &str)]) -> Vec<String> {
        let candidate =
            |(kind, addr): &(CandidateKind, &str)| Candidate { kind: *kind, addr: addr.parse().unwrap() };
        let net = NetInfo {
            listen: (!listen.is_empty()).then(|| listen.parse().unwrap()),
            candidates: reported.iter().map(candidate).collect(),
        };
        let passed = passed_on(net, seen_from.parse().unwrap());
        passed.candidates.iter().map(|c| format!("{:?} {}", c.kind, c.addr)).collect()
    }

    use CandidateKind::{Advertised, Host, Mapped, Reflexive};

    #[test]
    fn private_addresses_pass_and_public_ones_only_when_seen() {
        let reported = [
            (Host, "10.1.2.3:6443"),
            (Host, "100.64.0.9:6443"),
            (Host, "[fd00::1]:6443"),
            (Host, "127.0.0.1:6443"),
            (Host, "203.0.113.7:6443"),
            (Host, "198.51.100.1:6443"),
            (Host, "[2001:db8::1]:6443"),
            (Mapped, "198.51.100.1:7777"),
            (Mapped, "203.0.113.7:7777"),
            (Host, "victim.example:6443"),
            (Reflexive, "198.51.100.1:1"),
            (Advertised, "edge.example:443"),
        ];
        assert_eq!(
            shown("203.0.113.7", "0.0.0.0:6443", &reported),
            [
                "Host 10.1.2.3:6443",
                "Host 100.64.0.9:6443",
                "Host [fd00::1]:6443",
                "Host 127.0.0.1:6443",
                "Host 203.0.113.7:6443",
                "Mapped 203.0.113.7:7777",
                "Advertised edge.example:443",
            ]
        );
    }

    #[test]
    fn the_session_gives_one_more_candidate_where_the_peer_listens() {
        let host = [(Host, "10.1.2.3:6443")];
        let with = |addr: &str| vec!["Host 10.1.2.3:6443".to_owned(), format!("Reflexive {addr}")];
        let without = ["Host 10.1.2.3:6443"];
        assert_eq!(shown("203.0.113.7", "0.0.0.0:6443", &host), with("203.0.113.7:6443"));
        assert_eq!(shown("::ffff:203.0.113.7", "[::]:6443", &host), with("203.0.113.7:6443"));
        assert_eq!(shown("2001:db8::7", "[::]:6443", &host), with("[2001:db8::7]:6443"));
        assert_eq!(shown("10.1.2.3", "0.0.0.0:6443", &host), without, "it is there already");
        for here in ["127.0.0.1", "::1", "169.254.1.1", "fe80::1"] {
            assert_eq!(shown(here, "0.0.0.0:6443", &host), without);
        }
        assert_eq!(shown("203.0.113.7", "", &host), without, "it does not listen");
        let most = vec![(Host, "10.1.2.3:6443"); NetInfo::CANDIDATES_MAX];
        let passed = shown("203.0.113.7", "0.0.0.0:6443", &most);
        assert_eq!(passed.len(), NetInfo::CANDIDATES_MAX);
        assert_eq!(passed.last().map(String::as_str), Some("Reflexive 203.0.113.7:6443"));
    }
}
