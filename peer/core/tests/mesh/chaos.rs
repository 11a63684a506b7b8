//! Anything may happen to nodes, connections and services, in any order; once it is quiet, each Peer's tables are
//! what the others' own services and visibility say.

use std::collections::{BTreeMap, BTreeSet};

use p2p_common::NodeId;
use p2p_common::service::{ServiceState, Visibility};
use p2p_peer_core::{OwnServices, Source};
use proptest::prelude::*;

use crate::world::{Setup, World, peer};

const NODES: u8 = 4;

#[derive(Debug, Clone)]
enum Step {
    Kill(u8),
    Restart(u8),
    Stop(u8),
    Resume(u8),
    Cut(u8, u8),
    Mend(u8, u8),
    Reset(u8, u8),
    Services(u8, Vec<(u8, u8, u8)>),
    Delay(u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 1..=NODES;
    let own = proptest::collection::vec((0u8..5, 0u8..6, 0u8..4), 0..5);
    prop_oneof![
        2 => node.clone().prop_map(Step::Kill),
        3 => node.clone().prop_map(Step::Restart),
        2 => node.clone().prop_map(Step::Stop),
        2 => node.clone().prop_map(Step::Resume),
        1 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Cut(a, b)),
        1 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Mend(a, b)),
        2 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Reset(a, b)),
        4 => (node, own).prop_map(|(n, own)| Step::Services(n, own)),
        1 => prop_oneof![Just(0), 1u64..2_000].prop_map(Step::Delay),
        5 => prop_oneof![1u64..500, 1u64..40_000].prop_map(Step::Wait),
    ]
}

/// Services by small numbers: which name, who may see it, whether it is up.
fn own(n: u8, services: &[(u8, u8, u8)]) -> OwnServices {
    let mut own = OwnServices::default();
    for (name, visibility, state) in services {
        let visibility = match visibility {
            0 => Visibility::Private,
            1 => Visibility::Ids(vec![peer(1), peer(3)]),
            2 => Visibility::Cluster,
            _ => Visibility::Linked,
        };
        // One name twice is refused; the first stays.
        let _ = own.add(format!("s{name}=h:{n}").parse().unwrap(), &visibility);
        let state = [ServiceState::Up, ServiceState::Up, ServiceState::Down, ServiceState::Draining]
            [usize::from(*state)];
        own.set_state(&format!("s{name}"), state);
    }
    own
}

fn play(world: &mut World, step: Step) {
    match step {
        Step::Kill(n) => world.kill(n),
        Step::Restart(n) => {
            world.kill(n);
            let own = world.nodes[&n].own.clone();
            world.restart(n);
            world.set_services(n, own);
        }
        Step::Stop(n) => world.stop(n),
        Step::Resume(n) => world.resume(n),
        Step::Cut(a, b) => world.cut(a, b),
        Step::Mend(a, b) => world.mend(a, b),
        Step::Reset(a, b) => world.reset(a, b),
        Step::Services(n, services) => world.set_services(n, own(n, &services)),
        Step::Delay(ms) => world.delay_ms = ms,
        Step::Wait(ms) => world.run_for(ms),
    }
}

type Row = (String, NodeId, String, ServiceState);

/// What `viewer` should know of `owner`: name, true owner, backend, state.
fn expected(world: &World, viewer: u8, carrier: u8, linked: &BTreeSet<(u8, u8)>) -> BTreeSet<Row> {
    let node = &world.nodes[&carrier];
    let offers = node.own.offers_to(peer(viewer));
    let mut rows: BTreeMap<String, Row> = offers
        .iter()
        .map(|of| {
            (of.name.to_string(), (of.name.to_string(), peer(carrier), of.backend.to_string(), of.state))
        })
        .collect();
    if node.setup.transit {
        let mut carried: BTreeMap<String, Row> = BTreeMap::new();
        let others = (1..=NODES).filter(|n| *n != viewer && linked.contains(&(carrier, *n)));
        for other in others {
            for offer in world.nodes[&other].own.offers_to(peer(carrier)) {
                let is_for_all = matches!(offer.visibility, Visibility::Linked | Visibility::Cluster);
                let name = offer.name.to_string();
                let better = |row: &Row| offer.state == ServiceState::Up && row.3 != ServiceState::Up;
                if is_for_all && carried.get(&name).is_none_or(better) {
                    carried.insert(name.clone(), (name, peer(other), offer.backend.to_string(), offer.state));
                }
            }
        }
        for (name, row) in carried {
            rows.entry(name).or_insert(row);
        }
    }
    rows.into_values().collect()
}

fn check(world: &World) -> Result<(), TestCaseError> {
    let mut linked = BTreeSet::new();
    for (n, node) in &world.nodes {
        for address in &node.setup.remote_peers {
            let to: u8 = address.split(['.', ':']).nth(3).unwrap().parse().unwrap();
            if to != *n {
                linked.extend([(*n, to), (to, *n)]);
            }
        }
    }
    for n in 1..=NODES {
        let tables = world.tables(n);
        let others: Vec<NodeId> = linked.iter().filter(|(a, _)| *a == n).map(|(_, b)| peer(*b)).collect();
        prop_assert_eq!(tables.peers().keys().copied().collect::<Vec<_>>(), others.clone());
        prop_assert_eq!(tables.peer_services().keys().copied().collect::<Vec<_>>(), others);
        for (_, other) in linked.iter().filter(|(a, _)| *a == n) {
            let known = tables.peer(peer(*other)).unwrap();
            prop_assert!(known.linked && known.connected, "{} is away from {}", other, n);
            let list = &tables.peer_services()[&peer(*other)];
            let found: BTreeSet<Row> = list
                .services
                .iter()
                .map(|(name, service)| {
                    let route = tables.route(name.as_str(), Source::Peer(peer(*other))).unwrap();
                    (name.to_string(), service.source, service.backend.to_string(), route.state)
                })
                .collect();
            prop_assert_eq!(found, expected(world, n, *other, &linked), "{} as {} sees it", other, n);
        }
        let rows: usize = tables.peer_services().values().map(|list| list.services.len()).sum();
        prop_assert_eq!(tables.routes_len(), rows + tables.own().len());
        prop_assert_eq!(tables.own(), &world.nodes[&n].own);
        prop_assert_eq!(
            tables.revision(),
            world.nodes[&n].agent.as_ref().unwrap().tables().revision(),
            "all is published"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn quiet_tables_are_what_the_others_own(
        dials in proptest::collection::vec(proptest::sample::subsequence(vec![1u8, 2, 3, 4], 0..=3), 4),
        transit in proptest::collection::vec(any::<bool>(), 4),
        steps in proptest::collection::vec(step(), 0..40),
        changer in 1..=NODES,
        changed in proptest::collection::vec((0u8..5, 0u8..6, 0u8..4), 0..5),
    ) {
        let mut world = World::new();
        for n in 1..=NODES {
            let at = usize::from(n - 1);
            // An own address among them is recognised.
            world.start(n, Setup { transit: transit[at], ..Setup::new(&[], &dials[at]) });
        }
        for step in steps {
            play(&mut world, step);
        }
        for n in 1..=NODES {
            if world.nodes[&n].agent.is_none() {
                play(&mut world, Step::Restart(n));
            }
            world.resume(n);
            for other in 1..=NODES {
                world.mend(n, other);
            }
        }
        world.delay_ms = 0;
        world.run_for(120_000);
        check(&world)?;
        let before: Vec<u64> = (1..=NODES).map(|n| world.tables(n).revision()).collect();
        let printed: Vec<usize> = (1..=NODES).map(|n| world.nodes[&n].printed.len()).collect();
        world.run_for(20_000);
        prop_assert_eq!(&printed, &(1..=NODES).map(|n| world.nodes[&n].printed.len()).collect::<Vec<_>>());
        let changes: u64 = (1..=NODES).map(|n| world.tables(n).revision()).zip(before).map(|(a, b)| a - b).sum();
        prop_assert!(changes <= 24, "{} changes while nothing happens", changes);
        check(&world)?;

        // A change is seen as soon as it can travel two links, and needs no list that comes anyway.
        world.set_services(changer, own(changer, &changed));
        world.run_for(5_000);
        check(&world)?;
    }
}
