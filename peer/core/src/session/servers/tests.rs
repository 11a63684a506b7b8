//! Which Servers get a session, found how, and what happens when they go.

use p2p_common::KeyHash;
use p2p_common::member::Member;
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{Epoch, ErrorCode};

use super::*;
use crate::fixture::{peer, run, server};

fn at(ms: u64) -> Now {
    Now::from_ms(ms)
}

fn identity() -> Identity {
    let cluster_id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
    Identity { id: peer(1), incarnation: run(1), cluster_id, epoch: Epoch(1) }
}

fn report() -> Arc<PeerReport> {
    Arc::new(PeerReport { seq: 1, ..PeerReport::default() })
}

fn servers(introducers: &[&str]) -> Servers {
    let introducers: Vec<HostPort> = introducers.iter().map(|text| text.parse().unwrap()).collect();
    Servers::new(identity(), Heartbeat::default(), &introducers, 1, at(0))
}

fn table(version: u64, ids: &[u8]) -> MemberTable {
    let member = |n: &u8| Member {
        id: server(*n),
        name: format!("s{n}"),
        addresses: vec![format!("10.0.0.{n}:7400").parse().unwrap()],
        zone: String::new(),
        raft_id: u64::from(*n),
        key_hash: KeyHash([*n; 32]),
    };
    MemberTable { version, members: ids.iter().map(member).collect() }
}

fn welcome(n: u8, members: MemberTable) -> FromServer {
    welcome_in(Epoch(1), n, members)
}

fn welcome_in(epoch: Epoch, n: u8, members: MemberTable) -> FromServer {
    let hello = Hello {
        versions: VERSIONS,
        cluster_id: Some(identity().cluster_id),
        from: server(n),
        to: Some(peer(1)),
        epoch,
        recovery_id: None,
        raft_id: 0,
        incarnation: run(n),
        features: 0,
    };
    FromServer::Welcome { hello, seen_from: None, members, revocations_follow: false }
}

type Dialled = (SessionToken, Option<NodeId>, Vec<String>);

fn dials(effects: &[Effect]) -> Vec<Dialled> {
    let dial = |effect: &Effect| match effect {
        Effect::Dial(dial) => {
            let addresses = dial.addresses.iter().map(HostPort::to_string).collect();
            Some((dial.session, dial.server, addresses))
        }
        _ => None,
    };
    effects.iter().filter_map(dial).collect()
}

fn closes(effects: &[Effect]) -> Vec<(SessionToken, &str)> {
    let close = |effect: &'_ Effect| matches!(effect, Effect::Close(..));
    let closed = effects.iter().filter(|effect| close(effect));
    closed
        .map(|effect| match effect {
            Effect::Close(token, reason) => (*token, reason.as_str()),
            _ => unreachable!("filtered above"),
        })
        .collect()
}

/// Opens attempt `token` as Server `n`.
fn open(servers: &mut Servers, token: SessionToken, n: u8, ms: u64) -> Vec<Effect> {
    servers.handle_opened((token, server(n), format!("addr{n}")), &report(), Resume::default, at(ms))
}

/// Connects through the one introducer to Server 1, whose table C has `ids`; gives the dials that follow.
fn introduced(ids: &[u8]) -> (Servers, Vec<Dialled>) {
    let mut servers = servers(&["seed:7400"]);
    let token = dials(&servers.tick(at(0)))[0].0;
    open(&mut servers, token, 1, 10);
    servers.handle_message(token, welcome(1, table(5, ids)), &report(), at(20));
    let dialled = dials(&servers.tick(at(20)));
    (servers, dialled)
}

#[test]
fn any_one_server_introduces_all() {
    let (mut servers, dialled) = introduced(&[1, 2, 3]);
    let whom: Vec<_> = dialled.iter().map(|(_, server, addresses)| (*server, addresses.clone())).collect();
    assert_eq!(
        whom,
        [
            (Some(server(2)), vec!["10.0.0.2:7400".to_owned()]),
            (Some(server(3)), vec!["10.0.0.3:7400".to_owned()])
        ]
    );
    for (token, id, _) in dialled {
        let n = if id == Some(server(2)) { 2 } else { 3 };
        open(&mut servers, token, n, 30);
        servers.handle_message(token, welcome(n, table(5, &[1, 2, 3])), &report(), at(40));
    }
    assert_eq!(servers.up().collect::<Vec<_>>(), [server(1), server(2), server(3)]);
    assert_eq!(servers.alone_since(), None);
}

#[test]
fn the_newest_table_counts() {
    let (mut servers, dialled) = introduced(&[1, 2]);
    let token = dialled[0].0;
    open(&mut servers, token, 2, 30);
    let effects = servers.handle_message(token, welcome(2, table(4, &[2])), &report(), at(40));
    assert!(!effects.contains(&Effect::Members), "an older one changes nothing");
    let effects = servers.handle_message(token, FromServer::Members(table(6, &[2, 3])), &report(), at(50));
    assert_eq!(
        closes(&effects),
        [(SessionToken(1), format!("{} is not in the table of Servers", server(1)).as_str())]
    );
    assert!(effects.contains(&Effect::Left(server(1))));
    assert_eq!(dials(&servers.tick(at(50)))[0].1, Some(server(3)));
}

#[test]
fn a_removed_server_behind_a_configured_address_gets_no_session() {
    let mut servers = servers(&["seed:7400"]);
    let token = dials(&servers.tick(at(0)))[0].0;
    open(&mut servers, token, 9, 10);
    let effects = servers.handle_message(token, welcome(9, table(5, &[1])), &report(), at(20));
    assert_eq!(closes(&effects).len(), 1);
    assert_eq!(servers.up().count(), 0);
    assert_eq!(dials(&servers.tick(at(20)))[0].1, Some(server(1)), "its table is believed");
}

#[test]
fn a_server_that_answers_twice_gets_one_session() {
    let mut servers = servers(&["a:1", "b:1"]);
    let dialled = dials(&servers.tick(at(0)));
    open(&mut servers, dialled[0].0, 1, 10);
    let effects = open(&mut servers, dialled[1].0, 1, 20);
    assert_eq!(closes(&effects)[0].0, dialled[1].0);
    servers.handle_message(dialled[0].0, welcome(1, table(1, &[1])), &report(), at(30));
    assert_eq!(servers.up().count(), 1);
}

#[test]
fn who_answers_for_another_is_refused_and_dialled_again_later() {
    let (mut servers, dialled) = introduced(&[1, 2]);
    let effects = open(&mut servers, dialled[0].0, 3, 30);
    assert!(closes(&effects)[0].1.contains("answers as"), "{effects:?}");
    assert_eq!(dials(&servers.tick(at(30))), []);
    assert_eq!(dials(&servers.tick(at(300)))[0].1, Some(server(2)));
}

#[test]
fn lost_servers_are_dialled_for_ever_and_at_last_through_the_configured_address() {
    let (mut servers, _) = introduced(&[1]);
    let mut now = at(20_000);
    let down = servers.handle_closed(SessionToken(1), "reset".into(), now);
    assert_eq!(down, [Effect::Down { server: server(1), reason: "reset".into() }]);
    assert_eq!(servers.alone_since(), Some(now));
    let mut member = 0;
    let mut introducer = 0;
    while now < at(620_000) {
        now = servers.next_due().unwrap();
        for (token, server, addresses) in dials(&servers.tick(now)) {
            match server {
                Some(_) => {
                    member += 1;
                    assert_eq!(
                        addresses,
                        ["10.0.0.1:7400", "seed:7400"],
                        "where it once was found comes last"
                    );
                }
                None => {
                    introducer += 1;
                    assert!(now >= at(30_000), "not before 10 s alone: {now:?}");
                }
            }
            servers.handle_closed(token, "refused".into(), now);
        }
    }
    // Ten minutes at 7.5 to 15 s each, and the quick ones at the beginning.
    assert!((40..100).contains(&member), "{member}");
    assert!((35..100).contains(&introducer), "{introducer}");
}

#[test]
fn inputs_about_attempts_that_are_over_change_nothing() {
    let (mut servers, dialled) = introduced(&[1, 2]);
    let token = dialled[0].0;
    servers.handle_closed(token, "refused".into(), at(30));
    assert_eq!(closes(&open(&mut servers, token, 2, 40)), [(token, "the attempt is over")]);
    assert_eq!(servers.handle_message(token, FromServer::Heartbeat, &report(), at(40)), []);
    assert_eq!(servers.handle_closed(token, "again".into(), at(40)), []);
}

#[test]
fn a_dial_without_a_result_ends() {
    let mut servers = servers(&["a:1"]);
    let token = dials(&servers.tick(at(0)))[0].0;
    assert_eq!(servers.next_due(), Some(at(30_000)));
    let effects = servers.tick(at(30_000));
    assert_eq!(closes(&effects), [(token, "no answer within 30 s")]);
    assert!(servers.next_due().unwrap() > at(30_000));
}

#[test]
fn an_end_from_the_server_is_a_reason_people_see() {
    let mut servers = servers(&["a:1"]);
    let token = dials(&servers.tick(at(0)))[0].0;
    open(&mut servers, token, 1, 10);
    let end = FromServer::End { code: ErrorCode::IdTaken, message: "another key".into() };
    let effects = servers.handle_message(token, end, &report(), at(20));
    assert_eq!(closes(&effects)[0].1, "the Server ended the session: another key (id_taken)");
}

#[test]
fn new_addresses_are_dialled_at_once() {
    let (mut servers, dialled) = introduced(&[1, 2]);
    servers.handle_closed(dialled[0].0, "refused".into(), at(30));
    let mut moved = table(6, &[1, 2]);
    moved.members[1].addresses = vec!["10.9.9.9:7400".parse().unwrap()];
    servers.handle_message(SessionToken(1), FromServer::Members(moved), &report(), at(31));
    assert_eq!(dials(&servers.tick(at(31)))[0].2, ["10.9.9.9:7400"]);
}

#[test]
fn a_higher_epoch_begins_anew() {
    let (mut servers, dialled) = introduced(&[1, 2]);
    let token = dialled[0].0;
    open(&mut servers, token, 2, 30);
    let effects = servers.handle_message(token, welcome_in(Epoch(2), 2, table(1, &[2])), &report(), at(40));
    assert!(effects.contains(&Effect::Epoch(Epoch(2))), "{effects:?}");
    assert_eq!(closes(&effects)[0], (SessionToken(1), "the cluster has moved on to epoch 2"));
    assert_eq!(servers.members().unwrap().version, 1, "versions count within an epoch");
    assert_eq!(servers.up().collect::<Vec<_>>(), [server(2)]);
    assert!(effects.contains(&Effect::Left(server(1))));
}

#[test]
fn servers_of_an_earlier_run_are_dialled_until_table_c_says_who_there_is() {
    let mut servers = servers(&[]);
    assert!(servers.is_empty());
    servers.remember(table(9, &[1, 2]).members.iter().map(KnownServer::of).collect(), at(0));
    let dialled: Vec<_> = servers
        .tick(at(0))
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Dial(dial) => Some(dial),
            _ => None,
        })
        .collect();
    let whom: Vec<_> = dialled.iter().map(|dial| (dial.server, dial.key_hash)).collect();
    assert_eq!(whom, [1, 2].map(|n| (Some(server(n)), Some(KeyHash([n; 32])))));
    let token = dialled[0].session;
    open(&mut servers, token, 1, 10);
    let effects = servers.handle_message(token, welcome(1, table(1, &[1, 3])), &report(), at(20));
    assert!(effects.contains(&Effect::Members) && effects.contains(&Effect::Left(server(2))));
    assert_eq!(dials(&servers.tick(at(20)))[0].1, Some(server(3)));
}

#[test]
fn who_is_not_reached_is_dialled_at_once_when_it_is_hurried() {
    let mut servers = servers(&["seed:7400"]);
    for ms in [0, 1_000, 3_000, 10_000] {
        let token = dials(&servers.tick(at(ms)))[0].0;
        servers.handle_closed(token, "no".into(), at(ms));
    }
    assert!(servers.next_due().unwrap() > at(10_100));
    servers.hurry(at(10_100));
    assert_eq!(dials(&servers.tick(at(10_100))).len(), 1);
}
