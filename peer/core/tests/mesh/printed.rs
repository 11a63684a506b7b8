//! The printed tables of linked Peers, byte for byte.

use p2p_common::wire::link::LinkMessage;

use crate::world::{Setup, World, peer};

fn last_print(world: &World, n: u8) -> String {
    let lines = world.nodes[&n].printed.last().unwrap();
    lines.iter().map(|line| format!("{}\n", line.replace(&peer(n).to_string(), "xxx"))).collect()
}

/// The lines of the example of the first table, whose third row the example leaves out.
const SERVICES: &[&str] = &[
    "[registry] services peer_id=xxx svc_map={total=3}",
    "[registry] services peer_id=xxx   | peer | name | backend |",
    "[registry] services peer_id=xxx   | ---- | ---- | ------- |",
    "[registry] services peer_id=xxx   | local | service1 | 127.0.0.1:80 |",
    "[registry] services peer_id=xxx   | 192.0.2.10 | example-service2 | 192.0.2.10:8080 |",
];

/// The lines of the example of the second table, whose second peer the example leaves out.
const PEER_SERVICES: &[&str] = &[
    "[registry] peer_services_map peer_id=xxx {total_peers=2}",
    "[registry] peer_services_map peer_id=xxx   peer=192.0.2.10 {services=2 last_sync=1234567890}",
    "[registry] peer_services_map peer_id=xxx     | name | backend |",
    "[registry] peer_services_map peer_id=xxx     | ---- | ------- |",
    "[registry] peer_services_map peer_id=xxx     | service1 | 127.0.0.1:80 |",
    "[registry] peer_services_map peer_id=xxx     | example-service2 | 192.0.2.100:8080 |",
];

#[test]
fn the_first_table_is_printed_as_in_the_example() {
    let mut world = World::new();
    world.start(1, Setup::new(&["service1=127.0.0.1:80"], &[]));
    world.start(10, Setup::new(&["example-service2=192.0.2.10:8080", "service1=127.0.0.1:80"], &[1]));
    world.run_to(900);
    let printed = last_print(&world, 1);
    for line in SERVICES {
        assert!(printed.lines().any(|printed| printed == *line), "{line:?} is not in\n{printed}");
    }
    assert_eq!(
        printed,
        "\
[registry] services peer_id=xxx svc_map={total=3}
[registry] services peer_id=xxx   | peer | name | backend |
[registry] services peer_id=xxx   | ---- | ---- | ------- |
[registry] services peer_id=xxx   | local | service1 | 127.0.0.1:80 |
[registry] services peer_id=xxx   | 192.0.2.10 | example-service2 | 192.0.2.10:8080 |
[registry] services peer_id=xxx   | 192.0.2.10 | service1 | 127.0.0.1:80 |
[registry] peer_services_map peer_id=xxx {total_peers=1}
[registry] peer_services_map peer_id=xxx   peer=192.0.2.10 {services=2 last_sync=1234567890}
[registry] peer_services_map peer_id=xxx     | name | backend |
[registry] peer_services_map peer_id=xxx     | ---- | ------- |
[registry] peer_services_map peer_id=xxx     | example-service2 | 192.0.2.10:8080 |
[registry] peer_services_map peer_id=xxx     | service1 | 127.0.0.1:80 |
"
    );
}

#[test]
fn the_second_table_is_printed_as_in_the_example() {
    let mut world = World::new();
    world.start(10, Setup::new(&["service1=127.0.0.1:80", "example-service2=192.0.2.100:8080"], &[]));
    world.start(1, Setup::new(&[], &[10]));
    world.start(2, Setup { listen: "0.0.0.0:6444", ..Setup::new(&[], &[1]) });
    world.run_to(900);
    let printed = last_print(&world, 1);
    for line in PEER_SERVICES {
        assert!(printed.lines().any(|printed| printed == *line), "{line:?} is not in\n{printed}");
    }
    assert_eq!(
        printed,
        "\
[registry] services peer_id=xxx svc_map={total=2}
[registry] services peer_id=xxx   | peer | name | backend |
[registry] services peer_id=xxx   | ---- | ---- | ------- |
[registry] services peer_id=xxx   | 192.0.2.10 | example-service2 | 192.0.2.100:8080 |
[registry] services peer_id=xxx   | 192.0.2.10 | service1 | 127.0.0.1:80 |
[registry] peer_services_map peer_id=xxx {total_peers=2}
[registry] peer_services_map peer_id=xxx   peer=192.0.2.10 {services=2 last_sync=1234567890}
[registry] peer_services_map peer_id=xxx     | name | backend |
[registry] peer_services_map peer_id=xxx     | ---- | ------- |
[registry] peer_services_map peer_id=xxx     | example-service2 | 192.0.2.100:8080 |
[registry] peer_services_map peer_id=xxx     | service1 | 127.0.0.1:80 |
[registry] peer_services_map peer_id=xxx   peer=192.0.2.2:6444 {services=0 last_sync=1234567890}
"
    );
}

#[test]
fn a_peer_that_dialled_is_shown_where_it_says_it_is() {
    let mut world = World::new();
    world.start(1, Setup::new(&[], &[]));
    world.start(2, Setup { advertised: vec!["peer-b.example.com:6443"], ..Setup::new(&["b=h:1"], &[1]) });
    world.start(3, Setup { advertised: vec!["203.0.113.3:443"], ..Setup::new(&["c=h:1"], &[1]) });
    world.start(4, Setup { listen: "[::]:7000", ..Setup::new(&["d=h:1"], &[1]) });
    world.run_to(900);
    let shown: Vec<String> = world
        .tables(1)
        .peer_services()
        .values()
        .map(|list| list.address.as_ref().unwrap().to_string())
        .collect();
    assert_eq!(shown, ["peer-b.example.com:6443", "203.0.113.3:443", "192.0.2.4:7000"]);
    let printed = last_print(&world, 1);
    for row in
        ["| peer-b.example.com | b | h:1 |", "| 203.0.113.3:443 | c | h:1 |", "| 192.0.2.4:7000 | d | h:1 |"]
    {
        assert!(printed.contains(row), "{row} is not in\n{printed}");
    }
    // Whom we dial is shown where we were told that it is.
    assert_eq!(
        world.tables(2).peer(peer(1)).unwrap().address.as_ref().unwrap().to_string(),
        "192.0.2.1:6443"
    );
}

#[test]
fn lists_without_news_print_nothing() {
    let mut world = World::new();
    world.start(1, Setup::new(&["a=h:1"], &[]));
    world.start(2, Setup::new(&["b=h:1"], &[1]));
    world.run_to(1_000);
    let printed = world.nodes[&1].printed.len();
    world.run_to(100_000);
    assert_eq!(world.nodes[&1].printed.len(), printed);
    let registers =
        world.sent.iter().filter(|(.., message)| matches!(message, LinkMessage::Register(_))).count();
    assert_eq!(registers, 4);
    assert_eq!(
        world.tables(1).peer_services()[&peer(2)].last_sync.secs(),
        1_234_567_980,
        "but the time is kept"
    );
    world.kill(2);
    world.run_for(1_000);
    assert_eq!(world.nodes[&1].printed.len(), printed, "a closed link changes no row");
    world.run_for(30_000);
    assert_eq!(world.nodes[&1].printed.len(), printed + 1);
    // Own services are printed at their changes, too.
    let node = world.nodes[&1].own.clone();
    let mut own = node;
    own.remove("a");
    world.set_services(1, own);
    world.run_for(1_000);
    assert!(last_print(&world, 1).starts_with("[registry] services peer_id=xxx svc_map={total=0}\n"));
}
