//! Look-ups, permissions, and that stepwise changes equal building anew.

use super::*;
use crate::fixture::{known_peer, offering, peer};
use p2p_common::service::Visibility;
use p2p_common::wire::link::TransitService;
use p2p_common::wire::tunnel::Hop;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn own(services: &[&str]) -> Arc<OwnServices> {
    let services = services.iter().map(|text| text.parse().unwrap());
    Arc::new(OwnServices::new(services, &Visibility::Cluster).unwrap())
}

fn tables(services: &[&str]) -> Tables {
    Tables::new(peer(99), "z1".into(), own(services), UnixMs(1))
}

fn known(n: u8, seq: u64, zone: &str, services: &[&str], link: RouteLink) -> Option<KnownPeer> {
    let entry = offering(n, seq, &format!("10.0.0.{n}:6443"), zone, services);
    Some(KnownPeer { link, ..known_peer(entry, UnixMs(seq)) })
}

fn picks(tables: &Tables, name: &str, tried: &[NodeId]) -> BTreeSet<Source> {
    (0..12).filter_map(|pick| Some(tables.resolve(name, pick, tried).ok()?.source)).collect()
}

#[test]
fn local_goes_first_then_what_works_then_the_own_zone() {
    let mut tables = tables(&["here=127.0.0.1:1"]);
    tables.apply(peer(1), known(1, 1, "z1", &["here=h:1", "web=h:1"], RouteLink::Idle));
    tables.apply(peer(2), known(2, 1, "z1", &["web=h:2"], RouteLink::Up(PathKind::Direct)));
    tables.apply(peer(3), known(3, 1, "z2", &["web=h:3"], RouteLink::Idle));
    tables.apply(peer(4), known(4, 1, "z1", &["web=h:4"], RouteLink::Failing));
    let set = |peers: &[u8]| peers.iter().map(|n| Source::Peer(peer(*n))).collect::<BTreeSet<_>>();
    assert_eq!(picks(&tables, "here", &[]), [Source::Local].into());
    assert_eq!(picks(&tables, "web", &[]), set(&[1, 2]));
    assert_eq!(picks(&tables, "web", &[peer(1), peer(2)]), set(&[3]));
    assert_eq!(picks(&tables, "web", &[peer(1), peer(2), peer(3)]), set(&[4]));
    let all = [peer(1), peer(2), peer(3), peer(4)];
    assert_eq!(tables.resolve("web", 0, &all).unwrap_err().code(), ErrorCode::OwnerOffline);
    assert_eq!(tables.resolve("none", 0, &[]).unwrap_err().code(), ErrorCode::ServiceUnknown);
    assert_eq!(tables.routes_len(), 6);
    assert_eq!(tables.route("web", Source::Peer(peer(3))).unwrap().key(), format!("web@{}", peer(3)));
}

#[test]
fn without_servers_only_local_services_are_left() {
    let mut tables = tables(&["here=127.0.0.1:1"]);
    tables.apply(peer(1), known(1, 1, "", &["web=h:1"], RouteLink::Idle));
    assert!(tables.set_remote(RemoteWork::Stopped));
    assert_eq!(tables.resolve("web", 0, &[]), Err(LookupError::NoServer));
    assert!(tables.resolve("here", 0, &[]).is_ok());
    assert!(tables.routes().any(|route| route.name.as_str() == "web"), "it is still shown");
    assert!(tables.set_remote(RemoteWork::Taken));
    assert!(tables.resolve("web", 0, &[]).is_ok());
}

#[test]
fn forwards_go_to_own_services_of_known_callers_only() {
    let mut tables = tables(&["web=127.0.0.1:80"]);
    let web: ServiceName = "web".parse().unwrap();
    let other: ServiceName = "other".parse().unwrap();
    assert_eq!(tables.may_forward(peer(1), &web, Hop::First).unwrap_err().code, ErrorCode::Forbidden);
    tables.apply(peer(1), known(1, 1, "", &["other=h:1"], RouteLink::Idle));
    let backend = ForwardTo::Backend("127.0.0.1:80".parse().unwrap());
    assert_eq!(tables.may_forward(peer(1), &web, Hop::First), Ok(backend));
    assert_eq!(tables.may_forward(peer(1), &other, Hop::First).unwrap_err().code, ErrorCode::ServiceUnknown);
    let hidden = OwnServices::new(["web=h:1".parse().unwrap()], &Visibility::Ids(vec![peer(2)])).unwrap();
    let mut tables = Tables::new(peer(99), String::new(), Arc::new(hidden), UnixMs(1));
    for n in [1, 2] {
        tables.apply(peer(n), known(n, 1, "", &[], RouteLink::Idle));
    }
    assert_eq!(tables.may_forward(peer(1), &web, Hop::First).unwrap_err().code, ErrorCode::ServiceUnknown);
    assert!(tables.may_forward(peer(2), &web, Hop::First).is_ok());
}

/// A Peer with a mesh link, which offers `services` and carries `transit` of Peer 9 on.
fn linked(n: u8, connected: bool, services: &[&str], transit: &[&str]) -> Option<KnownPeer> {
    let carried = offering(9, 1, "10.0.0.9:1", "", transit);
    let carried = carried.report.services.iter().cloned();
    let transit = carried.map(|offer| TransitService { offer, source: peer(9) }).collect();
    let known = known(n, 1, "z1", services, RouteLink::Idle)?;
    Some(KnownPeer { linked: true, connected, reach: Reach::Ask, transit, ..known })
}

fn in_state(known: Option<KnownPeer>, state: ServiceState) -> Option<KnownPeer> {
    let mut known = known?;
    let entry = Arc::make_mut(&mut known.entry);
    entry.report.services.iter_mut().for_each(|offer| offer.state = state);
    Some(known)
}

#[test]
fn what_is_not_up_is_passed_over() {
    let mut tables = tables(&["web=127.0.0.1:1"]);
    tables.apply(peer(1), in_state(known(1, 1, "z1", &["web=h:1"], RouteLink::Idle), ServiceState::Down));
    tables.apply(peer(2), known(2, 1, "z2", &["web=h:2"], RouteLink::Failing));
    assert_eq!(picks(&tables, "web", &[]), [Source::Local].into());
    let mut own = tables.own().clone();
    own.set_state("web", ServiceState::Draining);
    tables.set_own(Arc::new(own), UnixMs(9));
    assert_eq!(tables.route("web", Source::Local).unwrap().last_seen, UnixMs(1), "it is the same service");
    assert_eq!(
        picks(&tables, "web", &[]),
        [Source::Peer(peer(2))].into(),
        "even a link that fails is better"
    );
    assert_eq!(tables.resolve("web", 0, &[peer(2)]).unwrap_err().code(), ErrorCode::ServiceDown);
    tables.apply(peer(2), None);
    assert_eq!(tables.resolve("web", 0, &[]).unwrap_err().code(), ErrorCode::ServiceDown);
    let web = "web".parse().unwrap();
    assert_eq!(tables.may_forward(peer(1), &web, Hop::First).unwrap_err().code, ErrorCode::ServiceDown);
}

#[test]
fn owners_go_before_those_who_carry_on() {
    let mut tables = tables(&[]);
    tables.apply(peer(1), linked(1, true, &["own=h:1"], &["web=h:9", "own=h:9"]));
    tables.apply(peer(2), known(2, 1, "z2", &["web=h:2"], RouteLink::Idle));
    assert_eq!(tables.peer_services()[&peer(1)].services["own"].source, peer(1), "what it owns goes first");
    assert_eq!(tables.peer_services()[&peer(1)].services["web"].source, peer(9));
    assert_eq!(tables.routes_len(), 3);
    assert_eq!(picks(&tables, "web", &[]), [Source::Peer(peer(2))].into());
    assert_eq!(picks(&tables, "web", &[peer(2)]), [Source::Peer(peer(1))].into());
    tables.apply(peer(1), linked(1, false, &["own=h:1"], &["web=h:9"]));
    assert_eq!(tables.resolve("web", 0, &[peer(2)]).unwrap_err().code(), ErrorCode::OwnerOffline);
    tables.apply(peer(1), None);
    assert_eq!(tables.routes_len(), 1);
}

#[test]
fn linked_peers_work_on_without_servers() {
    let mut tables = tables(&[]);
    tables.apply(peer(1), linked(1, true, &["a=h:1"], &[]));
    tables.apply(peer(2), known(2, 1, "", &["a=h:2", "b=h:2"], RouteLink::Idle));
    tables.set_remote(RemoteWork::Stopped);
    assert_eq!(picks(&tables, "a", &[]), [Source::Peer(peer(1))].into());
    assert_eq!(tables.resolve("b", 0, &[]), Err(LookupError::NoServer));
    tables.apply(peer(2), None);
    assert!(matches!(tables.resolve("a", 0, &[peer(1)]), Err(LookupError::Offline { .. })));
}

#[test]
fn forwards_are_carried_on_between_linked_peers_alone() {
    let web: ServiceName = "web".parse().unwrap();
    let carry = |owners: &[u8]| Ok(ForwardTo::Carry { owners: owners.iter().map(|n| peer(*n)).collect() });
    let mut tables = tables(&[]).with_transit(true);
    tables.apply(peer(1), linked(1, true, &[], &[]));
    tables.apply(peer(2), linked(2, true, &["web=h:2"], &[]));
    tables.apply(peer(3), linked(3, true, &[], &["web=h:9"]));
    tables.apply(peer(4), known(4, 1, "", &["web=h:4"], RouteLink::Idle));
    assert_eq!(
        tables.may_forward(peer(1), &web, Hop::First),
        carry(&[2]),
        "not by a second hop, not met through Servers"
    );
    assert_eq!(tables.may_forward(peer(2), &web, Hop::First).unwrap_err().code, ErrorCode::ServiceUnknown);
    assert_eq!(tables.may_forward(peer(4), &web, Hop::First).unwrap_err().code, ErrorCode::ServiceUnknown);
    let failing =
        linked(5, true, &["web=h:5"], &[]).map(|known| KnownPeer { link: RouteLink::Failing, ..known });
    tables.apply(peer(5), failing.clone());
    tables.apply(peer(6), linked(6, true, &["web=h:6"], &[]));
    assert_eq!(tables.may_forward(peer(1), &web, Hop::First), carry(&[2, 6, 5]));
    let again = tables.may_forward(peer(1), &web, Hop::Carried);
    assert_eq!(again.unwrap_err().code, ErrorCode::ServiceUnknown, "carried on once");
    for n in [2, 5, 6] {
        tables.apply(peer(n), linked(n, false, &["web=h:1"], &[]));
    }
    assert_eq!(tables.may_forward(peer(1), &web, Hop::First).unwrap_err().code, ErrorCode::OwnerOffline);
    tables = tables.with_transit(false);
    tables.apply(peer(2), linked(2, true, &["web=h:2"], &[]));
    assert_eq!(tables.may_forward(peer(1), &web, Hop::First).unwrap_err().code, ErrorCode::ServiceUnknown);
}

#[test]
fn equal_input_is_no_change() {
    let mut tables = tables(&[]);
    assert!(tables.apply(peer(1), known(1, 1, "", &["a=h:1", "a=h:2"], RouteLink::Idle)));
    assert!(!tables.apply(peer(1), known(1, 1, "", &["a=h:1", "a=h:2"], RouteLink::Idle)));
    assert_eq!((tables.revision(), tables.routes_len()), (1, 1), "a name twice counts once");
    assert!(!tables.apply(peer(2), None));
    assert!(tables.apply(peer(1), None));
    assert_eq!((tables.routes_len(), tables.routes().count()), (0, 0));
}

type Step = (u8, Option<(u64, Vec<u8>, u8, bool, Vec<u8>)>, bool, Vec<u8>);

fn step() -> impl Strategy<Value = Step> {
    let names = || proptest::collection::vec(0u8..6, 0..4);
    let entry = (1u64..5, names(), 0u8..3, any::<bool>(), names());
    (1u8..6, proptest::option::of(entry), any::<bool>(), names())
}

proptest! {
    #[test]
    fn changes_one_by_one_equal_building_anew(steps in proptest::collection::vec(step(), 0..30)) {
        let mut tables = tables(&["s0=127.0.0.1:1", "own=127.0.0.1:2"]);
        let mut last = BTreeMap::new();
        for (n, entry, taken, own_names) in steps {
            let own_names: BTreeSet<String> = own_names.iter().map(|s| format!("s{s}=127.0.0.1:{}", s + 1)).collect();
            tables.set_own(own(&own_names.iter().map(String::as_str).collect::<Vec<_>>()), UnixMs(1));
            let remote = if taken { RemoteWork::Taken } else { RemoteWork::Stopped };
            tables.set_remote(remote);
            let now = entry.and_then(|(seq, services, link_no, is_linked, transit)| {
                let services: Vec<String> = services.iter().map(|s| format!("s{s}=h:{n}")).collect();
                let services: Vec<&str> = services.iter().map(String::as_str).collect();
                let transit: Vec<String> = transit.iter().map(|s| format!("s{s}=h:9")).collect();
                let link = [RouteLink::Idle, RouteLink::Failing, RouteLink::Up(PathKind::Direct)];
                known(n, seq, if n % 2 == 0 { "z1" } else { "z2" }, &services, link[usize::from(link_no)])
                    .zip(linked(n, true, &[], &transit.iter().map(String::as_str).collect::<Vec<_>>()))
                    .map(|(known, with)| KnownPeer {
                        synced_at: UnixMs(seq),
                        linked: is_linked,
                        transit: if is_linked { with.transit } else { known.transit },
                        ..known
                    })
            });
            tables.apply(peer(n), now.clone());
            last.insert(n, (now, remote));
        }
        let mut anew = Tables::new(peer(99), "z1".into(), tables.own.clone(), UnixMs(1));
        anew.set_remote(tables.remote);
        for (n, (known, _)) in last {
            anew.apply(peer(n), known);
        }
        anew.revision = tables.revision;
        prop_assert_eq!(anew.routes_len, anew.routes().count());
        prop_assert_eq!(tables, anew);
    }
}
