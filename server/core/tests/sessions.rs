//! Sessions of several Peers at one Server, in virtual time: joins, a slow reader, silence, replacement, resuming
//! after a lost connection and after a restart of the Server, visibility.
//!
//! The world drives the hub as its owner would, and each Peer keeps its view as a real one does.

mod world;

use std::sync::Arc;
use std::time::Duration;

use p2p_common::ErrorCode;
use p2p_common::grants::Grants;
use p2p_common::service::Visibility;
use p2p_server_core::Viewer;
use world::{Seen, World, offer, peer};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn everybody_learns_of_everybody() {
    let mut world = World::new();
    for n in 1..=5 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.names(3), ["p1", "p2", "p4", "p5"]);
    world.report(2, vec![offer("web", Visibility::Cluster)]);
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.services(5), ["web@p2"]);
    world.close(2);
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.names(5), ["p1", "p3", "p4"]);
    // Later ones came by deltas: one snapshot each, in one piece.
    assert!((1..=5).all(|n| world.seen(n).snapshots == 1));
}

#[test]
fn a_slow_reader_gets_what_counts_and_nothing_is_queued_for_it() {
    let mut world = World::new();
    for n in 1..=3 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    world.stop_reading(1);
    let pushes_before = world.seen(1).pushes;
    for _ in 0..500 {
        world.report(2, vec![offer("web", Visibility::Cluster)]);
        world.report(3, vec![]);
        world.drain();
    }
    assert_eq!(world.seen(1).pushes, pushes_before);
    assert!(world.seen(2).pushes >= 500, "a fast reader got each change");
    world.resume_reading(1);
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.seen(1).pushes, pushes_before + 1, "a thousand changes in one push");
    assert_eq!(world.seen(1).snapshots, 1);
}

#[test]
fn heartbeats_fill_the_gaps_only() {
    let mut world = World::new();
    world.join(1).unwrap();
    world.join(2).unwrap();
    world.run(SECOND);
    let quiet = world.seen(1).heartbeats;
    world.run(12 * SECOND);
    let beats = world.seen(1).heartbeats - quiet;
    assert!((3..=4).contains(&beats), "{beats} heartbeats in 12 s");
    // While data flows there is none.
    let busy = world.seen(1).heartbeats;
    for _ in 0..12 {
        world.report(2, vec![]);
        world.run(SECOND);
    }
    assert_eq!(world.seen(1).heartbeats, busy);
    // The one that does not see its own changes gets them still.
    assert!(world.seen(2).heartbeats > 0);
}

#[test]
fn silence_is_offline_and_everybody_learns_it() {
    let mut world = World::new();
    for n in 1..=3 {
        world.join(n).unwrap();
    }
    world.fall_silent(2);
    world.run(29 * SECOND);
    assert_eq!(world.names(1), ["p2", "p3"]);
    world.run(2 * SECOND);
    assert_eq!(world.names(1), ["p3"]);
    assert_eq!(world.seen(2).ended, Some(ErrorCode::Unavailable));
    assert_eq!(world.hub.sessions(), 2);
    world.join(2).unwrap();
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.names(1), ["p2", "p3"]);
}

#[test]
fn a_newer_session_replaces_the_older_without_a_gap() {
    let mut world = World::new();
    for n in 1..=2 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    let older = world.session(2);
    let revision = world.hub.revision();
    world.join(2).unwrap();
    world.run(SECOND);
    assert_eq!(world.ended(older), Some(ErrorCode::Replaced));
    assert_eq!(world.hub.sessions(), 2);
    assert_eq!(world.hub.revision(), revision + 1, "changed, and never gone");
    // What still arrives from the older one is ignored.
    world.hub.handle_closed(older);
    world.hub.handle_heartbeat(older, world.now());
    world.drain();
    world.check_views();
    assert_eq!(world.names(1), ["p2"]);
    // An older run does not come back while the newer is here.
    world.start_older_run(2);
    let refused = world.join(2).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Replaced);
    assert_eq!(world.names(1), ["p2"]);
}

#[test]
fn a_lost_connection_resumes_by_revision() {
    let mut world = World::new();
    for n in 1..=4 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    world.close(1);
    world.close(4);
    world.report(3, vec![offer("db", Visibility::Cluster)]);
    world.run(SECOND);
    world.join(1).unwrap();
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.names(1), ["p2", "p3"]);
    assert_eq!(world.seen(1).snapshots, 1, "the second session brought deltas only");
}

#[test]
fn a_lost_connection_amid_a_snapshot_starts_it_anew() {
    let mut world = World::new();
    for n in 1..=100 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    world.join(101).unwrap();
    world.read_one(101);
    assert_eq!(world.names(101), [""; 0], "the snapshot comes in pieces");
    world.close(101);
    world.report(50, vec![]);
    world.join(101).unwrap();
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.names(101).len(), 100);
}

#[test]
fn a_restarted_server_starts_its_peers_from_a_snapshot() {
    let mut world = World::new();
    for n in 1..=4 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    world.restart_server();
    for n in 1..=3 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.names(1), ["p2", "p3"], "the fourth did not come back");
    assert!((1..=3).all(|n| world.seen(n).snapshots == 2));
}

#[test]
fn services_are_seen_by_those_who_may() {
    let mut world = World::new();
    for n in 1..=3 {
        world.join(n).unwrap();
    }
    let hidden = |ids: Vec<_>| {
        vec![
            offer("all", Visibility::Cluster),
            offer("own", Visibility::Private),
            offer("some", Visibility::Ids(ids)),
        ]
    };
    world.report(1, hidden(vec![peer(2)]));
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.services(2), ["all@p1", "some@p1"]);
    assert_eq!(world.services(3), ["all@p1"]);
    world.report(1, hidden(vec![peer(3)]));
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.services(2), ["all@p1"], "taken back");
    assert_eq!(world.services(3), ["all@p1", "some@p1"]);
    let listed = |viewer| {
        let peers = world.hub.peers(viewer);
        let services = peers.iter().flat_map(|listing| &listing.peer.entry.report.services);
        services.map(|service| service.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed(Viewer::Operator), ["all", "some"]);
    assert_eq!(listed(Viewer::Peer(peer(2))), ["all"]);
}

#[test]
fn an_id_opens_sessions_with_its_own_key_only() {
    let mut world = World::new();
    world.join(1).unwrap();
    world.steal_key(2, 1);
    assert_eq!(world.join(2).unwrap_err().code(), ErrorCode::IdTaken);
    world.forget_identity(3);
    assert_eq!(world.join(3).unwrap_err().code(), ErrorCode::Unauthenticated);
    assert_eq!(world.hub.sessions(), 1);
    world.enrol(3);
    world.join(3).unwrap();
}

#[test]
fn what_no_peer_says_costs_its_own_session() {
    let mut world = World::new();
    for n in 1..=3 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    world.report(1, vec![offer("twice", Visibility::Cluster), offer("twice", Visibility::Cluster)]);
    let links = vec![world::link("a\nb")];
    world.hub.handle_links(world.session(2), links, world.now());
    world.run(SECOND);
    assert_eq!(world.seen(1).ended, Some(ErrorCode::BadRequest));
    assert_eq!(world.seen(2).ended, Some(ErrorCode::BadRequest));
    assert_eq!(world.names(3), [""; 0]);
    assert_eq!(world.hub.sessions(), 1);
}

#[test]
fn table_c_reaches_every_session_once_per_version() {
    let mut world = World::new();
    for n in 1..=2 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    assert_eq!(world.seen(1).members_version, Some(0));
    world.change_members();
    world.change_members();
    world.run(SECOND);
    for n in 1..=2 {
        let Seen { members_version, members_messages, .. } = world.seen(n);
        assert_eq!((*members_version, *members_messages), (Some(2), 1));
    }
    world.enrol(9);
    world.run(SECOND);
    assert_eq!(world.seen(1).members_messages, 1, "an enrolment is no news");
}

#[test]
fn links_are_shown_with_their_peer_and_go_with_it() {
    let mut world = World::new();
    world.join(1).unwrap();
    let session = world.session(1);
    world.hub.handle_links(session, vec![world::link("fine")], world.now());
    let listing = &world.hub.peers(Viewer::Operator)[0];
    assert_eq!((listing.links.len(), listing.peer.since), (1, world.wall()));
    assert_eq!(listing.peer.seen_from.to_string(), "203.0.113.7:5000");
    world.join(1).unwrap();
    assert!(world.hub.peers(Viewer::Operator)[0].links.is_empty(), "a new session reports anew");
    world.close(1);
    assert!(world.hub.peers(Viewer::Operator).is_empty());
}

#[test]
fn a_crowd_joins_leaves_and_agrees() {
    let mut world = World::new();
    let crowd = 200;
    for n in 1..=crowd {
        world.join(n).unwrap();
        if n % 3 == 0 {
            world.stop_reading(n);
        }
    }
    for n in (1..=crowd).filter(|n| n % 5 == 0) {
        world.close(n);
    }
    for n in 1..=crowd {
        world.resume_reading(n);
    }
    world.run(SECOND);
    world.check_views();
    assert_eq!(world.names(1).len(), 159);
    // One entry, however many read it.
    let entries = |n| world.view(n).entries().get(&peer(2)).cloned().unwrap();
    assert!(Arc::ptr_eq(&entries(1), &entries(3)));
}

#[test]
fn a_revoked_peer_is_thrown_out_told_why_and_not_let_in_again() {
    let mut world = World::new();
    for n in 1..=3 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    assert!((1..=3).all(|n| world.seen(n).revoked_first), "also who has nothing to learn hears so first");
    let session = world.session(2);
    world.revoke(2);
    world.drain();
    assert_eq!(world.ended(session), Some(ErrorCode::Revoked));
    for n in [1, 3] {
        assert_eq!(world.seen(n).revoked, [(1, peer(2))], "{n}");
    }
    world.check_views();
    assert_eq!(world.names(1), ["p3"]);
    assert_eq!(world.join(2).unwrap_err().code(), ErrorCode::Revoked);
    // Who comes later hears of it before it hears of anybody.
    world.join(4).unwrap();
    world.drain();
    assert_eq!(world.seen(4).revoked, [(1, peer(2))]);
    assert!(world.seen(4).revoked_first);
}

#[test]
fn an_emergency_acts_before_it_is_replicated_and_is_told_once() {
    let mut world = World::new();
    for n in 1..=3 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    let session = world.session(3);
    world.emergencies(&[3]);
    world.drain();
    assert_eq!(world.ended(session), Some(ErrorCode::Revoked));
    assert_eq!(world.join(3).unwrap_err().code(), ErrorCode::Revoked);
    assert_eq!(world.seen(1).revoked, [(0, peer(3))]);
    // Replicated and forgotten as an emergency: nobody comes in between.
    world.revoke(3);
    world.emergencies(&[]);
    world.drain();
    assert_eq!(world.join(3).unwrap_err().code(), ErrorCode::Revoked);
    assert_eq!(world.seen(1).revoked, [(0, peer(3)), (1, peer(3))]);
}

#[test]
fn a_slow_reader_hears_of_revocations_before_the_table() {
    let mut world = World::new();
    for n in 1..=3 {
        world.join(n).unwrap();
    }
    world.run(SECOND);
    world.stop_reading(1);
    world.report(2, vec![offer("web", Visibility::Cluster)]);
    world.revoke(3);
    world.drain();
    assert_eq!(world.seen(1).revoked, []);
    let pushes = world.seen(1).pushes;
    assert!(world.read_one(1));
    assert_eq!((world.seen(1).revoked.len(), world.seen(1).pushes), (1, pushes));
}

#[test]
fn changed_grants_are_felt_by_open_sessions() {
    let mut world = World::new();
    for n in 1..=2 {
        world.join(n).unwrap();
    }
    world.report(1, vec![offer("team-a", Visibility::Cluster), offer("team-b", Visibility::Cluster)]);
    world.run(SECOND);
    assert_eq!(world.services(2), ["team-a@p1", "team-b@p1"]);
    assert!(world.seen(1).grants.is_empty(), "everybody's are not told");
    let pushes = world.seen(2).pushes;

    let may = |offer: &str, reach: &str| Grants {
        may_offer: offer.parse().unwrap(),
        may_reach: reach.parse().unwrap(),
        ..Grants::default()
    };
    world.change_grants(1, may("*-a", "*"));
    world.run(SECOND);
    assert_eq!(world.services(2), ["team-a@p1"]);
    assert_eq!(world.seen(1).grants.last().map(|own| own.grants.as_ref().clone()), Some(may("*-a", "*")));
    assert_eq!(world.withheld.len(), 1);
    assert_eq!((world.withheld[0].peer, world.withheld[0].services[0].as_str()), (peer(1), "team-b"));

    // A change that hides nothing is pushed as well: those who are asked to forward go by it.
    world.change_grants(1, may("*-a", "db"));
    world.run(SECOND);
    let entry = world.view(2).entries()[&peer(1)].clone();
    assert_eq!((&*entry.grants, entry.grants_revision), (&may("*-a", "db"), 2));
    assert_eq!(world.seen(2).pushes, pushes + 2);
    assert!(world.seen(2).grants.is_empty(), "another's are not its own");

    // The same said again is not news; what was withheld comes back.
    world.report(1, vec![offer("team-a", Visibility::Cluster), offer("team-b", Visibility::Cluster)]);
    world.run(SECOND);
    assert_eq!(world.withheld.len(), 1);
    world.change_grants(1, Grants::default());
    world.run(SECOND);
    assert_eq!(world.services(2), ["team-a@p1", "team-b@p1"]);
    assert_eq!(world.seen(1).grants.len(), 3);
    // A new session is told anew.
    world.change_grants(1, may("", "*"));
    world.close(1);
    world.join(1).unwrap();
    world.run(SECOND);
    assert_eq!(world.seen(1).grants.last().map(|own| own.grants.as_ref().clone()), Some(may("", "*")));
    world.check_views();
}
