//! What a Peer may say of itself, and what is kept of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use p2p_common::ErrorCode;
use p2p_common::addr::{Candidate, NetInfo};
use p2p_common::grants::Grants;
use p2p_common::member::Member;
use p2p_common::push::PeerReport;
use p2p_common::service::{SERVICES_PER_PEER_MAX, ServiceName, Visibility};

use super::candidates;

/// At most this many bytes in a report, as estimated: room for the most services with names of usual length.
/// It bounds the table to 2.5 GiB at the default number of sessions, and a push to one entry of this size.
pub const REPORT_BYTES_MAX: usize = 128 * 1024;

/// Why a report is refused: no Peer of ours sends such a one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportRefused {
    /// Too much of something.
    #[error("the report has {count} {what}: at most {max} are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// A text that would break lines in logs and tables.
    #[error("the {what} in the report holds control characters")]
    ControlCharacters {
        /// Which text.
        what: &'static str,
    },
    /// One name, two backends.
    #[error("the report offers {name} twice, at {first} and at {second}: one name has one backend")]
    OfferedTwice {
        /// The service.
        name: String,
        /// Its backend.
        first: String,
        /// Its other backend.
        second: String,
    },
}

impl ReportRefused {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::BadRequest
    }
}

/// What of a report is passed on to nobody, since the identity's grants do not let it (SPEC I8, P2). What the Peer
/// itself hides is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Withheld {
    /// Services outside `may_offer`.
    pub services: Vec<ServiceName>,
    /// Addresses that may be somebody else's.
    pub candidates: Vec<Candidate>,
}

impl Withheld {
    /// Whether everything is passed on.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.candidates.is_empty()
    }
}

/// Checks a report and leaves of it what the cluster may know.
pub(super) fn checked(mut report: PeerReport) -> Result<PeerReport, ReportRefused> {
    check_text("name", &report.name)?;
    check_text("zone", &report.zone)?;
    check_count("candidates", report.net.candidates.len(), NetInfo::CANDIDATES_MAX)?;
    check_count("services", report.services.len(), SERVICES_PER_PEER_MAX)?;
    check_count("bytes", report.estimated_bytes(), REPORT_BYTES_MAX)?;
    let mut backends = BTreeMap::new();
    for service in &report.services {
        if let Visibility::Ids(ids) = &service.visibility {
            check_count("Ids that may see one service", ids.len(), Visibility::IDS_MAX)?;
        }
        if let Some(first) = backends.insert(&service.name, &service.backend) {
            return Err(ReportRefused::OfferedTwice {
                name: service.name.to_string(),
                first: first.to_string(),
                second: service.backend.to_string(),
            });
        }
    }
    // Nobody may learn of these from a Server, so this one need not know them either.
    let passed_on = |visibility: &Visibility| !matches!(visibility, Visibility::Private | Visibility::Linked);
    report.services.retain(|service| passed_on(&service.visibility));
    Ok(report)
}

/// Leaves of a checked report what the Peer may say.
pub(super) fn granted(mut report: PeerReport, seen_from: IpAddr, grants: &Grants) -> (PeerReport, Withheld) {
    let mut withheld = Withheld::default();
    report.services.retain(|service| {
        let may = grants.may_offer.matches(service.name.as_str());
        if !may {
            withheld.services.push(service.name.clone());
        }
        may
    });
    (report.net, withheld.candidates) = candidates::passed_on(report.net, seen_from, &grants.may_advertise);
    (report, withheld)
}

fn check_text(what: &'static str, text: &str) -> Result<(), ReportRefused> {
    if text.chars().any(char::is_control) {
        return Err(ReportRefused::ControlCharacters { what });
    }
    let what = if what == "name" { "bytes in the name" } else { "bytes in the zone" };
    check_count(what, text.len(), Member::NAME_MAX_BYTES)
}

fn check_count(what: &'static str, count: usize, max: usize) -> Result<(), ReportRefused> {
    if count > max {
        return Err(ReportRefused::TooMany { what, count, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::addr::{Candidate, CandidateKind};
    use p2p_common::service::{ServiceOffer, ServiceState};
    use p2p_common::{NodeId, NodeKind};
    use uuid::Uuid;

    fn offer(name: &str, visibility: Visibility) -> ServiceOffer {
        ServiceOffer {
            name: name.parse().unwrap(),
            backend: "127.0.0.1:80".parse().unwrap(),
            visibility,
            state: ServiceState::Up,
        }
    }

    fn check(report: PeerReport) -> Result<PeerReport, ReportRefused> {
        let report = checked(report)?;
        Ok(granted(report, "10.0.0.1".parse().unwrap(), &Grants::default()).0)
    }

    #[test]
    fn what_is_not_granted_is_withheld_and_named() {
        let services =
            vec![offer("team-a.web", Visibility::Cluster), offer("team-b.web", Visibility::Cluster)];
        let candidate =
            |addr: &str| Candidate { kind: CandidateKind::Advertised, addr: addr.parse().unwrap() };
        let net = NetInfo { listen: None, candidates: vec![candidate("198.51.100.1:1"), candidate("a.b:2")] };
        let report = PeerReport { services, net, ..PeerReport::default() };
        let grants = Grants {
            may_offer: "TEAM-A.*".parse().unwrap(),
            may_advertise: "a.b:*".parse().unwrap(),
            ..Grants::default()
        };
        let (passed, withheld) = granted(report, "10.0.0.1".parse().unwrap(), &grants);
        assert_eq!(passed.services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["team-a.web"]);
        assert_eq!(passed.net.candidates, [candidate("a.b:2")]);
        assert_eq!(withheld.services.iter().map(ServiceName::as_str).collect::<Vec<_>>(), ["team-b.web"]);
        assert_eq!(
            (withheld.candidates.as_slice(), withheld.is_empty()),
            (&[candidate("198.51.100.1:1")][..], false)
        );
    }

    #[test]
    fn private_services_are_not_kept() {
        let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(1));
        let services = vec![
            offer("a", Visibility::Cluster),
            offer("b", Visibility::Private),
            offer("d", Visibility::Linked),
            offer("c", Visibility::Ids(vec![id])),
        ];
        let kept = check(PeerReport { services, ..PeerReport::default() }).unwrap();
        assert_eq!(kept.services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(1));
        let many = |n: usize| (0..n).map(|i| offer(&format!("s{i}"), Visibility::Cluster)).collect();
        let long = |n: usize| {
            let name = |i| format!("{i}.{}", "x".repeat(240));
            (0..n).map(|i| offer(&name(i), Visibility::Cluster)).collect()
        };
        let candidate = Candidate { kind: CandidateKind::Host, addr: "10.0.0.1:1".parse().unwrap() };
        let net = |n| NetInfo { listen: None, candidates: vec![candidate.clone(); n] };
        let ids = |n| vec![offer("a", Visibility::Ids(vec![id; n]))];
        let base = PeerReport::default;
        for (report, fits) in [
            (PeerReport { name: "x".repeat(128), zone: "z".repeat(128), ..base() }, true),
            (PeerReport { name: "x".repeat(129), ..base() }, false),
            (PeerReport { zone: "x".repeat(129), ..base() }, false),
            (PeerReport { name: "a\nb".to_owned(), ..base() }, false),
            (PeerReport { zone: "\u{1b}[31m".to_owned(), ..base() }, false),
            (PeerReport { net: net(16), ..base() }, true),
            (PeerReport { net: net(17), ..base() }, false),
            (PeerReport { services: many(1_024), ..base() }, true),
            (PeerReport { services: many(1_025), ..base() }, false),
            (PeerReport { services: long(400), ..base() }, true),
            (PeerReport { services: long(600), ..base() }, false),
            (PeerReport { services: ids(256), ..base() }, true),
            (PeerReport { services: ids(257), ..base() }, false),
        ] {
            let checked = check(report);
            assert_eq!(checked.is_ok(), fits, "{:?}", checked.err());
        }
    }

    #[test]
    fn one_name_twice_is_refused_naming_both() {
        let other =
            ServiceOffer { backend: "127.0.0.1:81".parse().unwrap(), ..offer("A", Visibility::Private) };
        let services = vec![offer("a", Visibility::Cluster), other];
        let refused = check(PeerReport { services, ..PeerReport::default() }).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("127.0.0.1:80") && text.contains("127.0.0.1:81"), "{text}");
    }
}
