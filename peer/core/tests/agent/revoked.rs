//! Keys that are revoked while a Peer looks on, or is away.

use p2p_common::push::{RevocationPush, RevokedKey};
use p2p_common::{Epoch, ErrorCode, KeyHash};
use p2p_peer_core::{AgentState, FromServer, Revoked};

use crate::world::{Setup, World, entry, peer, server};

const WEB: &[&str] = &["web.example=127.0.0.1:8080"];

fn piece(keys: &[(u64, u8)], up_to: u64, done: bool) -> FromServer {
    let key =
        |(number, n): &(u64, u8)| RevokedKey { number: *number, id: peer(*n), key_hash: KeyHash([*n; 32]) };
    FromServer::Revocations(RevocationPush { keys: keys.iter().map(key).collect(), up_to, done })
}

/// Two Peers known through three Servers, both linked.
fn linked() -> World {
    let mut world = World::new(Setup::default(), &[1, 2, 3]);
    world.reachable = vec![peer(11), peer(12)];
    for n in [1, 2, 3] {
        world.online(n, entry(11, 1, WEB));
        world.online(n, entry(12, 1, &["db.example=127.0.0.1:5432"]));
    }
    world.run_to(1_000);
    assert_eq!(world.warmed.len(), 2);
    world
}

#[test]
fn a_revoked_peer_is_gone_at_once_whatever_other_servers_still_say() {
    let mut world = linked();
    world.tell(1, piece(&[(1, 11)], 1, true));
    assert_eq!(world.revoked, [KeyHash([11; 32])]);
    assert!(world.tables().peer(peer(11)).is_none() && world.tables().peer(peer(12)).is_some());
    assert!(world.tables().is_revoked(&KeyHash([11; 32])));
    assert!(world.tables().resolve("web.example", 0, &[]).is_err());
    // The others tell of it, once each, and still have it in their tables.
    for n in [2, 3] {
        world.tell(n, piece(&[(1, 11)], 1, true));
        world.online(n, entry(11, 2, WEB));
    }
    world.run_to(60_000);
    assert_eq!((world.revoked.len(), world.warmed.len()), (1, 2));
    assert!(world.tables().peer(peer(11)).is_none());
    let link = world.agent.why(peer(11)).unwrap();
    assert!(link.row().reason.starts_with("revoked"), "{:?}", link.row());
    // Its Id, enrolled anew, has another key.
    let mut anew = (*entry(11, 1, WEB)).clone();
    anew.key_hash = KeyHash([0xaa; 32]);
    for n in [1, 2, 3] {
        world.online(n, std::sync::Arc::new(anew.clone()));
    }
    assert_eq!(world.tables().peer(peer(11)).unwrap().entry.key_hash, KeyHash([0xaa; 32]));
}

#[test]
fn who_was_away_hears_who_is_revoked_before_it_works_again() {
    let mut world = linked();
    for n in [1, 2, 3] {
        world.kill(n);
    }
    world.run_to(60_000);
    assert_eq!(world.agent.state(), AgentState::Stopped);
    world.servers.get_mut(&1).unwrap().warns = true;
    world.heal(1);
    world.run_to(90_000);
    assert_eq!(world.connected(), [server(1)]);
    assert_eq!(world.agent.state(), AgentState::Stopped, "its view is there, the revocations are not");
    world.tell(1, piece(&[(1, 11)], 1, false));
    assert_eq!(world.agent.state(), AgentState::Stopped);
    world.tell(1, piece(&[], 1, true));
    assert_eq!(world.agent.state(), AgentState::Working);
    assert!(world.tables().peer(peer(11)).is_none());
    assert!(world.tables().resolve("db.example", 0, &[]).is_ok());
}

#[test]
fn a_server_is_told_what_is_known_of_its_epoch_also_after_a_restart() {
    let mut world = linked();
    world.tell(1, piece(&[(7, 9)], 7, true));
    world.kill(2);
    world.heal(2);
    world.run_to(30_000);
    assert_eq!(world.servers[&2].revocations_known, [0, 7]);

    let kept = world.agent.revoked().clone();
    let mut world = World::new(Setup::default(), &[1]);
    let at = world.at();
    world.agent.remember_revoked(kept, at);
    world.online(1, entry(9, 1, WEB));
    world.run_to(1_000);
    assert_eq!(world.servers[&1].revocations_known, [7]);
    assert!(world.tables().peer(peer(9)).is_none(), "it was revoked in the run before");
    let other = Revoked::restore(Epoch(9), 7, []);
    let mut world = World::new(Setup::default(), &[1]);
    let at = world.at();
    world.agent.remember_revoked(other, at);
    world.run_to(1_000);
    assert_eq!(world.servers[&1].revocations_known, [0], "numbers of another epoch mean nothing");
}

#[test]
fn a_revoked_server_is_left_and_not_dialled_again() {
    let mut world = linked();
    let key = RevokedKey { number: 1, id: server(3), key_hash: KeyHash([3; 32]) };
    world.tell(1, FromServer::Revocations(RevocationPush { keys: vec![key], up_to: 1, done: true }));
    world.run_to(2_000);
    assert_eq!(world.connected(), [server(1), server(2)]);
    assert!(world.servers_told.iter().all(|known| known.id != server(3)), "its key is nobody's pin");
    // It stays in table C until it is removed.
    world.set_members(&[1, 2, 3]);
    world.run_to(60_000);
    assert_eq!(world.connected(), [server(1), server(2)]);
}

#[test]
fn who_is_revoked_itself_says_so() {
    let mut world = linked();
    world.tell(2, FromServer::End { code: ErrorCode::Revoked, message: "stolen".into() });
    assert_eq!(world.thrown_out, ["stolen"]);
}
