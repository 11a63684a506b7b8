//! Anything may happen to Servers and Peers, in any order; once it is quiet, all tables are right.

use std::collections::{BTreeMap, BTreeSet};

use p2p_common::NodeId;
use p2p_peer_core::AgentState;
use proptest::prelude::*;

use crate::world::{Setup, World, entry, peer};

#[derive(Debug, Clone)]
enum Step {
    Kill(u8),
    Heal(u8),
    Silence(u8),
    Restart(u8),
    Members(Vec<u8>),
    Online { server: u8, peer: u8, seq: u64 },
    Offline { server: u8, peer: u8 },
    Reachable(u8),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let server = 1u8..4;
    let peers = 1u8..6;
    prop_oneof![
        2 => server.clone().prop_map(Step::Kill),
        2 => server.clone().prop_map(Step::Heal),
        1 => server.clone().prop_map(Step::Silence),
        1 => server.clone().prop_map(Step::Restart),
        1 => proptest::sample::subsequence(vec![1u8, 2, 3], 1..=3).prop_map(Step::Members),
        6 => (server.clone(), peers.clone(), 1u64..50)
            .prop_map(|(server, peer, seq)| Step::Online { server, peer, seq }),
        2 => (server, peers.clone()).prop_map(|(server, peer)| Step::Offline { server, peer }),
        1 => peers.prop_map(Step::Reachable),
        4 => (1u64..60_000).prop_map(Step::Wait),
    ]
}

fn play(world: &mut World, step: Step) {
    match step {
        Step::Kill(n) => world.kill(n),
        Step::Heal(n) => world.heal(n),
        Step::Silence(n) => world.servers.get_mut(&n).unwrap().silent = true,
        Step::Restart(n) => {
            world.kill(n);
            world.restart(n);
        }
        Step::Members(members) => world.set_members(&members),
        Step::Online { server, peer, seq } => {
            let service = format!("s{}=h:{}", seq % 3, seq);
            world.online(server, entry(peer, seq, &[&service]));
        }
        Step::Offline { server, peer: n } => world.offline(server, peer(n)),
        Step::Reachable(n) => world.reachable.push(peer(n)),
        Step::Wait(ms) => world.run_to(world.now_ms + ms),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn quiet_tables_are_what_the_servers_say(steps in proptest::collection::vec(step(), 0..40)) {
        become_quiet(steps)?;
    }
}

/// Both Servers are found again at one moment, long after the grace: the first makes the tables count again,
/// and what the second said must not lapse while it is being asked to go on from there.
#[test]
fn a_view_that_is_being_resumed_does_not_lapse() {
    use Step::{Heal, Kill, Members, Online, Restart, Silence, Wait};
    let steps = vec![
        Silence(2),
        Wait(22_224),
        Members(vec![1, 3]),
        Kill(1),
        Restart(3),
        Wait(8_370),
        Online { server: 3, peer: 1, seq: 1 },
        Kill(3),
        Wait(126_379),
        Kill(2),
        Wait(5_800),
        Heal(2),
        Wait(2_456),
    ];
    become_quiet(steps).unwrap();
}

/// A Server that was silent while table C changed is heard late, not never.
#[test]
fn a_silent_server_tells_late_that_it_was_replaced() {
    use Step::{Members, Silence, Wait};
    become_quiet(vec![Members(vec![1]), Wait(1), Silence(1), Members(vec![3])]).unwrap();
}

/// Plays `steps`, lets it become quiet, and compares.
fn become_quiet(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let setup =
        Setup { introducers: &["10.0.0.1:7400", "10.0.0.2:7400", "10.0.0.3:7400"], ..Setup::default() };
    let mut world = World::new(setup, &[1, 2, 3]);
    for step in steps {
        play(&mut world, step);
    }
    for n in [1, 2, 3] {
        world.heal(n);
    }
    world.run_to(world.now_ms + 300_000);

    let members: Vec<NodeId> = world.members.members.iter().map(|member| member.id).collect();
    prop_assert_eq!(world.connected(), members.clone());
    prop_assert_eq!(world.agent.state(), AgentState::Working);
    let mut newest: BTreeMap<NodeId, u64> = BTreeMap::new();
    for member in &world.members.members {
        let n = u8::try_from(member.raft_id).unwrap();
        for (id, entry) in world.servers[&n].log.iter() {
            let seq = newest.entry(*id).or_default();
            *seq = (*seq).max(entry.report.seq);
        }
    }
    let tables = world.tables();
    let known: BTreeMap<NodeId, u64> =
        tables.peers().iter().map(|(id, known)| (*id, known.entry.report.seq)).collect();
    prop_assert_eq!(&known, &newest);
    prop_assert_eq!(tables.peer_services().keys().collect::<Vec<_>>(), known.keys().collect::<Vec<_>>());
    prop_assert_eq!(tables.routes_len(), known.len() + 1);
    prop_assert!(tables.routes().all(|route| route.connected));
    let rows: BTreeSet<NodeId> = world.agent.links().map(|link| link.row().id).collect();
    prop_assert!(members.iter().chain(known.keys()).all(|id| rows.contains(id)));
    prop_assert!(Some(tables.revision()) == world.agent.tables().revision().into(), "all is published");
    Ok(())
}
