//! Which of a Peer's addresses this Server passes on.
//!
//! A Peer that names other people's public addresses as its own would have every other Peer knock there. So a
//! public address is passed on only when it is where the session comes from, or when an operator listed it:
//!
//! - `Advertised`: the reporting Peer's own configuration, so no more than its word. Private addresses are passed
//!   on, and names that mean something in a private network alone: of one label, or under `local`, `internal`,
//!   `home.arpa`, `lan` or `svc`. A public address passes with the session's IP, and what the identity's
//!   `may_advertise` lists, as `host:port`, whatever it is.
//! - `Host` and `Mapped`: the same for addresses. A host name is no interface's address and is dropped.
//! - `Reflexive`: never taken from a report. This Server adds the one it saw: the session's IP with the port the
//!   Peer listens on. The session's own source port belongs to an outgoing connection, and nobody listens there.
//!   Behind a NAT it is worth a try only where the port is forwarded unchanged.
//!
//! The order is the Peer's, best first; the reflexive one comes last unless it is there already, and takes the
//! place of the last when there are the most allowed.

use std::net::IpAddr;

use p2p_common::addr::{Candidate, CandidateKind, HostPort, NetInfo};
use p2p_common::grants::NamePatterns;

/// Private by their names: what resolves them is the network they are in (RFC 6762, RFC 8375, and use).
const PRIVATE_SUFFIXES: [&str; 5] = ["local", "internal", "home.arpa", "lan", "svc"];

/// What is passed on of `reported`, and what is withheld of it.
pub(super) fn passed_on(
    reported: NetInfo,
    seen_from: IpAddr,
    may_advertise: &NamePatterns,
) -> (NetInfo, Vec<Candidate>) {
    let seen_from = seen_from.to_canonical();
    let NetInfo { listen, candidates } = reported;
    let told = candidates.into_iter().filter(|candidate| candidate.kind != CandidateKind::Reflexive);
    let (mut candidates, withheld): (Vec<_>, Vec<_>) =
        told.partition(|candidate| passes(candidate, seen_from, may_advertise));
    if let Some(reflexive) = listen.and_then(|listen| reflexive(seen_from, listen.port()))
        && candidates.iter().all(|candidate| candidate.addr != reflexive)
    {
        candidates.truncate(NetInfo::CANDIDATES_MAX - 1);
        candidates.push(Candidate { kind: CandidateKind::Reflexive, addr: reflexive });
    }
    (NetInfo { listen, candidates }, withheld)
}

fn passes(candidate: &Candidate, seen_from: IpAddr, may_advertise: &NamePatterns) -> bool {
    let listed = || may_advertise.matches(&candidate.addr.to_string());
    match candidate.addr.socket_addr() {
        Some(addr) => {
            let ip = addr.ip().to_canonical();
            ip == seen_from || !is_public(ip) || listed()
        }
        None => {
            let advertised = candidate.kind == CandidateKind::Advertised;
            advertised && (is_private_name(candidate.addr.host()) || listed())
        }
    }
}

/// Whether a name leads nowhere outside a private network. A number is not one: resolvers take it for an address.
fn is_private_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_below =
        |suffix: &str| name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let last = name.rsplit('.').next().unwrap_or(name);
    let number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
    !number && (!name.contains('.') || PRIVATE_SUFFIXES.into_iter().any(is_below))
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
        let may_advertise = "edge.example:443,192.0.2.*:6443".parse().unwrap();
        let (passed, withheld) = passed_on(net, seen_from.parse().unwrap(), &may_advertise);
        let told = reported.iter().filter(|(kind, _)| *kind != Reflexive);
        let added = passed.candidates.iter().filter(|candidate| candidate.kind == Reflexive).count();
        assert!(added + told.count() >= passed.candidates.len() + withheld.len());
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
            (Advertised, "edge.example:444"),
            (Advertised, "192.0.2.9:6443"),
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
                "Advertised 192.0.2.9:6443",
            ]
        );
    }

    #[test]
    fn nobody_is_led_to_a_victim_by_an_advertised_address() {
        for (addr, passes) in [
            ("203.0.113.7:1", true),
            ("[::ffff:203.0.113.7]:1", true),
            ("198.51.100.1:443", false),
            ("[2001:db8::5]:443", false),
            ("[::ffff:198.51.100.1]:443", false),
            ("10.9.9.9:443", true),
            ("[fd00::5]:443", true),
            ("victim.example:443", false),
            ("victim.example.:443", false),
            ("victim:443", true),
            ("a.svc:443", true),
            ("db.prod.svc.cluster.local:443", true),
            ("x.internal:443", true),
            ("nas.lan:443", true),
            ("nas.home.arpa.:443", true),
            ("home.arpa:443", true),
            ("evilhome.arpa:443", false),
            ("notlocal:443", true),
            ("a.notlocal:443", false),
            // What resolvers take for 198.51.100.1.
            ("3325256705:443", false),
            ("0xc6336401:443", false),
            ("0306.063.0144.01:443", false),
        ] {
            let shown = shown("203.0.113.7", "", &[(Advertised, addr)]);
            assert_eq!(!shown.is_empty(), passes, "{addr}");
        }
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
