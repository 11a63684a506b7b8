//! Every printed line, byte for byte.

use std::sync::Arc;

use p2p_common::service::Visibility;
use p2p_common::{Now, UnixMs};

use super::*;
use crate::fixture::{entry, known_peer, offering, peer};
use crate::routes::{KnownPeer, RouteLink};
use crate::services::OwnServices;

const ID: &str = "C00000000-0000-0000-0000-000000000063";

fn tables(own: &[&str]) -> Tables {
    let own = OwnServices::new(own.iter().map(|text| text.parse().unwrap()), &Visibility::Cluster).unwrap();
    Tables::new(peer(99), String::new(), Arc::new(own), UnixMs(1))
}

fn known(n: u8, address: &str, services: &[&str]) -> Option<KnownPeer> {
    let entry = if address.is_empty() { entry(n, 1) } else { offering(n, 1, address, "", services) };
    Some(known_peer(entry, UnixMs(1_234_567_890_999)))
}

fn seed_example() -> Tables {
    let mut tables = tables(&["service1=127.0.0.1:80"]);
    let services = ["service1=127.0.0.1:80", "example-service2=192.0.2.10:8080"];
    tables.apply(peer(1), known(1, "192.0.2.10:6443", &services));
    tables.apply(peer(2), known(2, "192.0.2.2:6443", &[]));
    tables
}

fn at(ms: u64) -> Now {
    Now::from_ms(ms)
}

/// With `peer_id=xxx` for the Id, as the examples write it.
fn text(lines: Vec<String>) -> String {
    lines.iter().map(|line| format!("{}\n", line.replace(ID, "xxx"))).collect()
}

const SEED_EXAMPLE: &str = "\
[registry] services peer_id=xxx svc_map={total=3}
[registry] services peer_id=xxx   | peer | name | backend |
[registry] services peer_id=xxx   | ---- | ---- | ------- |
[registry] services peer_id=xxx   | local | service1 | 127.0.0.1:80 |
[registry] services peer_id=xxx   | 192.0.2.10 | example-service2 | 192.0.2.10:8080 |
[registry] services peer_id=xxx   | 192.0.2.10 | service1 | 127.0.0.1:80 |
[registry] peer_services_map peer_id=xxx {total_peers=2}
[registry] peer_services_map peer_id=xxx   peer=192.0.2.10 {services=2 last_sync=1234567890}
[registry] peer_services_map peer_id=xxx     | name | backend |
[registry] peer_services_map peer_id=xxx     | ---- | ------- |
[registry] peer_services_map peer_id=xxx     | example-service2 | 192.0.2.10:8080 |
[registry] peer_services_map peer_id=xxx     | service1 | 127.0.0.1:80 |
[registry] peer_services_map peer_id=xxx   peer=192.0.2.2 {services=0 last_sync=1234567890}
";

#[test]
fn log_lines_are_those_of_the_specification() {
    assert_eq!(text(render(&seed_example(), LinePrefix::Log)), SEED_EXAMPLE);
}

#[test]
fn people_get_them_without_the_prefix() {
    assert_eq!(
        text(render(&seed_example(), LinePrefix::Plain)),
        "\
services svc_map={total=3}
  | peer | name | backend |
  | ---- | ---- | ------- |
  | local | service1 | 127.0.0.1:80 |
  | 192.0.2.10 | example-service2 | 192.0.2.10:8080 |
  | 192.0.2.10 | service1 | 127.0.0.1:80 |
peer_services_map {total_peers=2}
  peer=192.0.2.10 {services=2 last_sync=1234567890}
    | name | backend |
    | ---- | ------- |
    | example-service2 | 192.0.2.10:8080 |
    | service1 | 127.0.0.1:80 |
  peer=192.0.2.2 {services=0 last_sync=1234567890}
"
    );
}

#[test]
fn empty_tables_are_their_first_lines() {
    assert_eq!(
        text(render(&tables(&[]), LinePrefix::Log)),
        "[registry] services peer_id=xxx svc_map={total=0}\n\
         [registry] peer_services_map peer_id=xxx {total_peers=0}\n"
    );
    assert_eq!(
        text(render(&tables(&[]), LinePrefix::Plain)),
        "services svc_map={total=0}\npeer_services_map {total_peers=0}\n"
    );
}

#[test]
fn unusual_ports_ipv6_and_peers_without_an_address() {
    let mut tables = tables(&[]);
    tables.apply(peer(1), known(1, "192.0.2.1:6444", &["a=[::1]:1"]));
    tables.apply(peer(2), known(2, "[2001:db8::1]:6443", &["b=host.example:2"]));
    tables.apply(peer(3), known(3, "[2001:db8::1]:7", &["c=h:3"]));
    tables.apply(peer(4), known(4, "", &[]));
    assert_eq!(
        text(render(&tables, LinePrefix::Plain)),
        "\
services svc_map={total=3}
  | peer | name | backend |
  | ---- | ---- | ------- |
  | 192.0.2.1:6444 | a | [::1]:1 |
  | 2001:db8::1 | b | host.example:2 |
  | [2001:db8::1]:7 | c | h:3 |
peer_services_map {total_peers=4}
  peer=192.0.2.1:6444 {services=1 last_sync=1234567890}
    | name | backend |
    | ---- | ------- |
    | a | [::1]:1 |
  peer=2001:db8::1 {services=1 last_sync=1234567890}
    | name | backend |
    | ---- | ------- |
    | b | host.example:2 |
  peer=C00000000-0000-0000-0000-000000000004 {services=0 last_sync=1234567890}
  peer=[2001:db8::1]:7 {services=1 last_sync=1234567890}
    | name | backend |
    | ---- | ------- |
    | c | h:3 |
"
    );
}

/// With the first print behind it.
fn printer(mode: PrintTables, tables: &Tables) -> Printer {
    let mut printer = Printer::new(mode, at(0));
    printer.take(&Arc::new(tables.clone()), at(0));
    printer
}

#[test]
fn the_first_print_comes_by_itself_and_changes_together_print_once() {
    let mut tables = seed_example();
    let mut printer = Printer::new(PrintTables::Full, at(7));
    assert_eq!(printer.next_due(), Some(at(7)));
    assert_eq!(text(printer.take(&Arc::new(tables.clone()), at(7)).unwrap()), SEED_EXAMPLE);
    assert_eq!((printer.next_due(), printer.take(&Arc::new(tables.clone()), at(8))), (None, None));
    tables.apply(peer(2), None);
    printer.on_changed(peer(2), at(1000));
    tables.apply(peer(1), None);
    printer.on_changed(peer(1), at(1050));
    assert_eq!(printer.next_due(), Some(at(1100)));
    assert_eq!(printer.take(&Arc::new(tables.clone()), at(1099)), None);
    assert_eq!(
        text(printer.take(&Arc::new(tables), at(1100)).unwrap()),
        "\
[registry] services peer_id=xxx svc_map={total=1}
[registry] services peer_id=xxx   | peer | name | backend |
[registry] services peer_id=xxx   | ---- | ---- | ------- |
[registry] services peer_id=xxx   | local | service1 | 127.0.0.1:80 |
[registry] peer_services_map peer_id=xxx {total_peers=0}
"
    );
}

#[test]
fn what_no_row_shows_prints_nothing() {
    let mut tables = seed_example();
    let mut printer = printer(PrintTables::Full, &tables);
    let again = known(1, "192.0.2.10:6443", &["service1=127.0.0.1:80", "example-service2=192.0.2.10:8080"]);
    let again = again.map(|known| KnownPeer { synced_at: UnixMs(5), link: RouteLink::Failing, ..known });
    assert!(tables.apply(peer(1), again));
    printer.on_changed(peer(1), at(10));
    assert_eq!(printer.take(&Arc::new(tables), at(1000)), None);
}

#[test]
fn changes_alone_on_request() {
    let mut tables = seed_example();
    let mut printer = printer(PrintTables::Change, &tables);
    tables.apply(
        peer(1),
        known(1, "192.0.2.10:6443", &["service1=127.0.0.1:81", "example-service2=192.0.2.10:8080"]),
    );
    tables.apply(peer(2), None);
    tables.apply(peer(3), known(3, "192.0.2.3:6443", &[]));
    for n in [1, 2, 3] {
        printer.on_changed(peer(n), at(10));
    }
    assert_eq!(
        text(printer.take(&Arc::new(tables), at(1000)).unwrap()),
        "\
[registry] services peer_id=xxx svc_map={total=3}
[registry] services peer_id=xxx   | peer | name | backend |
[registry] services peer_id=xxx   | ---- | ---- | ------- |
[registry] services peer_id=xxx   | 192.0.2.10 | service1 | 127.0.0.1:80 | removed |
[registry] services peer_id=xxx   | 192.0.2.10 | service1 | 127.0.0.1:81 |
[registry] peer_services_map peer_id=xxx {total_peers=2}
[registry] peer_services_map peer_id=xxx   peer=192.0.2.10 {services=2 last_sync=1234567890}
[registry] peer_services_map peer_id=xxx     | name | backend |
[registry] peer_services_map peer_id=xxx     | ---- | ------- |
[registry] peer_services_map peer_id=xxx     | service1 | 127.0.0.1:80 | removed |
[registry] peer_services_map peer_id=xxx     | service1 | 127.0.0.1:81 |
[registry] peer_services_map peer_id=xxx   peer=192.0.2.2 {services=0 last_sync=1234567890} removed
[registry] peer_services_map peer_id=xxx   peer=192.0.2.3 {services=0 last_sync=1234567890}
"
    );
}

#[test]
fn large_tables_print_their_changes() {
    let many: Vec<String> = (0..ROWS_MAX).map(|n| format!("s{n:03}=h:1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut tables = tables(&[]);
    tables.apply(peer(1), known(1, "192.0.2.1:6443", &many));
    let mut printer = printer(PrintTables::Full, &tables);
    // 200 rows are printed whole ...
    tables.apply(peer(2), known(2, "192.0.2.2:6443", &[]));
    printer.on_changed(peer(2), at(10));
    let lines = printer.take(&Arc::new(tables.clone()), at(1000)).unwrap();
    assert_eq!(lines.len(), 1 + 2 + 200 + 1 + 1 + 2 + 200 + 1);
    // ... 201 are not.
    tables.apply(peer(2), known(2, "192.0.2.2:6443", &["web=h:2"]));
    printer.on_changed(peer(2), at(2000));
    assert_eq!(
        text(printer.take(&Arc::new(tables), at(3000)).unwrap()),
        "\
[registry] services peer_id=xxx svc_map={total=201}
[registry] services peer_id=xxx   | peer | name | backend |
[registry] services peer_id=xxx   | ---- | ---- | ------- |
[registry] services peer_id=xxx   | 192.0.2.2 | web | h:2 |
[registry] peer_services_map peer_id=xxx {total_peers=2}
[registry] peer_services_map peer_id=xxx   peer=192.0.2.2 {services=1 last_sync=1234567890}
[registry] peer_services_map peer_id=xxx     | name | backend |
[registry] peer_services_map peer_id=xxx     | ---- | ------- |
[registry] peer_services_map peer_id=xxx     | web | h:2 |
"
    );
}

#[test]
fn off_prints_nothing_ever() {
    let mut printer = Printer::new(PrintTables::Off, at(0));
    printer.on_changed(peer(1), at(0));
    assert_eq!(printer.next_due(), None);
    assert_eq!(printer.take(&Arc::new(seed_example()), at(1000)), None);
}
