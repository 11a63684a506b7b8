//! What Peers may do: what counts of what others say, whom this one serves, and what it hears of itself (SPEC I8).

use std::sync::Arc;

use p2p_common::ErrorCode;
use p2p_common::grants::Grants;
use p2p_common::push::{PeerEntry, PeerReport};
use p2p_common::service::Visibility;
use p2p_common::wire::link::{LinkMessage, ServiceList, TransitService};
use p2p_common::wire::tunnel::Hop;
use p2p_peer_core::{FromServer, Output, Withheld};

use crate::servers::{Solo, entry, name, offer};
use crate::world::{moment, peer};

fn may(offer: &str, reach: &str) -> Grants {
    Grants { may_offer: offer.parse().unwrap(), may_reach: reach.parse().unwrap(), ..Grants::default() }
}

/// Peer 2 as the Server tells of it.
fn granted(grants: Grants, revision: u64) -> Arc<PeerEntry> {
    let entry = PeerEntry::clone(&entry(2, 2, &[]));
    Arc::new(PeerEntry { grants: Arc::new(grants), grants_revision: revision, ..entry })
}

fn refused(solo: &Solo) -> Option<ErrorCode> {
    let tables = solo.agent.tables();
    tables.may_forward(peer(2), &name("mine"), Hop::First).err().map(|refusal| refusal.code)
}

#[test]
fn a_caller_reaches_what_it_may_and_feels_a_change_at_once() {
    let mut solo = Solo::new();
    solo.link(2, &[]);
    solo.push(&[granted(Grants::default(), 0)]);
    assert_eq!(refused(&solo), None);
    solo.push(&[granted(may("*", "m*"), 1)]);
    assert_eq!(refused(&solo), None);
    solo.push(&[granted(may("*", "other"), 2)]);
    assert_eq!(refused(&solo), Some(ErrorCode::NotGranted));
    // Whether a service is here is not told to those who may not reach it.
    let tables = solo.agent.tables();
    let unknown = tables.may_forward(peer(2), &name("nothing"), Hop::First).unwrap_err();
    assert_eq!(unknown.code, ErrorCode::NotGranted);
    assert!(unknown.text.contains("identity set"), "{unknown}");
    solo.push(&[granted(Grants::default(), 3)]);
    assert_eq!(refused(&solo), None);
}

#[test]
fn a_linked_peer_is_taken_at_its_servers_word_then_at_the_last_then_at_its_certificate() {
    let mut solo = Solo::new();
    let link = solo.link_certified(2, &["a", "b"], may("a", "nothing"));
    assert_eq!((solo.finds("a"), solo.finds("b")), (Ok(peer(2)), Err(ErrorCode::ServiceUnknown)));
    assert_eq!(refused(&solo), Some(ErrorCode::NotGranted), "as its certificate says");
    solo.push(&[granted(may("b", "*"), 1)]);
    assert_eq!((solo.finds("a"), solo.finds("b")), (Err(ErrorCode::ServiceUnknown), Ok(peer(2))));
    assert_eq!(refused(&solo), None, "as the Server says");
    solo.push(&[]);
    assert_eq!((solo.finds("b"), refused(&solo)), (Ok(peer(2)), None), "as the Server said last");
    solo.push(&[granted(may("", ""), 2)]);
    assert_eq!(
        (solo.finds("b"), refused(&solo)),
        (Err(ErrorCode::ServiceUnknown), Some(ErrorCode::NotGranted))
    );
    // It may say the same again: that changes nothing.
    let services = vec![offer("a", Visibility::Linked), offer("b", Visibility::Linked)];
    let report = Arc::new(PeerReport { seq: 9, services, ..PeerReport::default() });
    solo.tell(link, LinkMessage::Sync(ServiceList { report, transit: vec![] }));
    assert_eq!(solo.finds("b"), Err(ErrorCode::ServiceUnknown));
}

#[test]
fn nobody_offers_what_it_may_not_by_calling_it_anothers() {
    let mut solo = Solo::new();
    let link = solo.link_certified(2, &[], may("a,b", "*"));
    let owner = PeerEntry::clone(&entry(3, 3, &[]));
    solo.push(&[Arc::new(PeerEntry { grants: Arc::new(may("b,c", "*")), ..owner })]);
    let carried =
        |name, source| TransitService { offer: offer(name, Visibility::Linked), source: peer(source) };
    let transit = [carried("a", 3), carried("b", 3), carried("c", 3), carried("a", 4)];
    // One service has one owner in a list.
    for (listed, name, found) in [
        (&transit[..3], "a", false),
        (&transit[..3], "b", true),
        (&transit[..3], "c", false),
        (&transit[3..], "a", true),
    ] {
        let report = Arc::new(PeerReport { seq: 5, ..PeerReport::default() });
        solo.tell(link, LinkMessage::Sync(ServiceList { report, transit: listed.to_vec() }));
        assert_eq!(solo.finds(name).is_ok(), found, "{name} of {listed:?}");
    }
}

#[test]
fn a_peer_hears_what_of_it_is_not_passed_on() {
    let withheld = |solo: &mut Solo| {
        let outputs = std::mem::take(&mut solo.outputs);
        let newly = outputs.into_iter().filter_map(|output| match output {
            Output::Withheld(newly) => Some(newly),
            _ => None,
        });
        newly.flatten().collect::<Vec<_>>()
    };
    let services = |visibility: Visibility| {
        let mine = "mine=127.0.0.1:1".parse().unwrap();
        p2p_peer_core::OwnServices::new([mine], &visibility).unwrap()
    };
    let mut solo = Solo::new();
    solo.agent.handle_services(services(Visibility::Cluster), moment(1));
    let own = |grants: Grants, withheld: &[&str]| FromServer::OwnGrants {
        grants: Arc::new(grants),
        withheld: withheld.iter().map(|text| text.parse().unwrap()).collect(),
    };
    solo.hear(own(may("web*", "*"), &["192.0.2.77:6443"]));
    let newly = withheld(&mut solo);
    assert!(matches!(&newly[..], [Withheld::Service { .. }, Withheld::Address(_)]), "{newly:?}");
    let shown = solo.agent.status().withheld;
    assert!(shown[0].contains("--may-offer 'web*,mine'"), "{shown:?}");
    assert!(shown[1].contains("--may-advertise '192.0.2.77:6443'"), "{shown:?}");
    // Told again, and of something else: each is reported once.
    solo.hear(own(may("web*", "*"), &["192.0.2.77:6443", "a.b:1"]));
    assert_eq!(withheld(&mut solo), [Withheld::Address("a.b:1".parse().unwrap())]);
    // What it does not offer there is not withheld.
    solo.agent.handle_services(services(Visibility::Private), moment(2));
    assert_eq!(solo.agent.status().withheld.len(), 2);
    solo.agent.handle_services(services(Visibility::Cluster), moment(3));
    solo.drain();
    assert_eq!(withheld(&mut solo).len(), 1);
    solo.hear(own(Grants::default(), &[]));
    assert!(solo.agent.status().withheld.is_empty());
    solo.hear(own(may("", "*"), &[]));
    solo.lose_server();
    assert!(solo.agent.status().withheld.is_empty(), "what a lost Server told counts no more");
}
