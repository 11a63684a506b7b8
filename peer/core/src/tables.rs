//! The printed form of both tables (SPEC F11): the one place that knows it.
//!
//! [`render`] gives both tables whole. [`Printer`] decides what is printed at a change: both tables whole,
//! and of a table with more than [`ROWS_MAX`] rows its head line and the rows that changed; with
//! [`PrintTables::Change`] always just these. A row that has gone is printed once more with a cell `removed`, a
//! peer that has gone with the word behind it.
//! Changes within [`GATHER`] of each other print once. When only times or links changed nothing is printed:
//! no row shows them.
//!
//! Rows are sorted: local ones first, then by the peer shown, then by name. A peer is shown by its address,
//! without the port when that is the usual [`PEER_PORT`]; a peer without an address by its Id.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::service::ServiceName;
use p2p_common::{NodeId, Now};

use crate::routes::{PeerServiceList, Source, Tables};

/// Larger tables are printed by their changes.
pub const ROWS_MAX: usize = 200;
/// The usual port of Peers.
pub const PEER_PORT: u16 = 6443;
/// Changes that come within this time are printed together.
pub const GATHER: Duration = Duration::from_millis(100);

/// What a change prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrintTables {
    /// Both tables.
    #[default]
    Full,
    /// Head lines and what changed.
    Change,
    /// Nothing.
    Off,
}

/// What stands in front of each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinePrefix {
    /// The log's: table and Id.
    Log,
    /// Nothing: head lines keep the table's name, rows their indent.
    Plain,
}

/// Both tables, whole, a line each.
pub fn render(tables: &Tables, prefix: LinePrefix) -> Vec<String> {
    let mut page = Page { me: tables.me(), prefix, lines: Vec::new() };
    page.services(tables.routes_len(), &service_rows(tables));
    page.peers(tables.peer_services().len(), &peer_blocks(tables));
    page.lines
}

/// A row of the first table: whether it is remote, then what is shown. The order is that of printing.
type ServiceRow = (bool, String, String, String, Fate);

/// Whether a row is there or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Present,
    Removed,
}

/// A peer of the second table with its rows.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PeerBlock {
    shown: String,
    peer: NodeId,
    services: usize,
    last_sync: u64,
    fate: Fate,
    rows: Vec<(String, String, Fate)>,
}

fn service_rows(tables: &Tables) -> Vec<ServiceRow> {
    let rows = tables.routes().map(|route| match route.source {
        Source::Local => row(None, &route.name, &route.backend, Fate::Present),
        Source::Peer(peer) => {
            row(Some(&shown(route.address.as_ref(), peer)), &route.name, &route.backend, Fate::Present)
        }
    });
    let mut rows: Vec<ServiceRow> = rows.collect();
    rows.sort();
    rows
}

fn row(peer: Option<&str>, name: &ServiceName, backend: &HostPort, fate: Fate) -> ServiceRow {
    (peer.is_some(), peer.unwrap_or("local").to_owned(), name.to_string(), backend.to_string(), fate)
}

fn peer_blocks(tables: &Tables) -> Vec<PeerBlock> {
    let mut blocks: Vec<PeerBlock> = tables.peer_services().values().map(block).collect();
    blocks.sort();
    blocks
}

fn block(list: &PeerServiceList) -> PeerBlock {
    let rows = list.services.iter();
    PeerBlock {
        shown: shown(list.address.as_ref(), list.peer),
        peer: list.peer,
        services: list.services.len(),
        last_sync: list.last_sync.secs(),
        fate: Fate::Present,
        rows: rows.map(|(name, of)| (name.to_string(), of.backend.to_string(), Fate::Present)).collect(),
    }
}

fn shown(address: Option<&HostPort>, peer: NodeId) -> String {
    match address {
        Some(address) if address.port() == PEER_PORT => address.host().to_owned(),
        Some(address) => address.to_string(),
        None => peer.to_string(),
    }
}

struct Page {
    me: NodeId,
    prefix: LinePrefix,
    lines: Vec<String>,
}

impl Page {
    fn services(&mut self, total: usize, rows: &[ServiceRow]) {
        self.head("services", &format!("svc_map={{total={total}}}"));
        if rows.is_empty() {
            return;
        }
        self.row("services", "  | peer | name | backend |");
        self.row("services", "  | ---- | ---- | ------- |");
        for (_, peer, name, backend, fate) in rows {
            self.row("services", &format!("  | {peer} | {name} | {backend} |{}", fate.cell()));
        }
    }

    fn peers(&mut self, total: usize, blocks: &[PeerBlock]) {
        const TABLE: &str = "peer_services_map";
        self.head(TABLE, &format!("{{total_peers={total}}}"));
        for block in blocks {
            let PeerBlock { shown, services, last_sync, fate, .. } = block;
            let gone = if *fate == Fate::Removed { " removed" } else { "" };
            self.row(TABLE, &format!("  peer={shown} {{services={services} last_sync={last_sync}}}{gone}"));
            if block.rows.is_empty() {
                continue;
            }
            self.row(TABLE, "    | name | backend |");
            self.row(TABLE, "    | ---- | ------- |");
            for (name, backend, fate) in &block.rows {
                self.row(TABLE, &format!("    | {name} | {backend} |{}", fate.cell()));
            }
        }
    }

    fn head(&mut self, table: &str, text: &str) {
        self.lines.push(match self.prefix {
            LinePrefix::Log => format!("[registry] {table} peer_id={} {text}", self.me),
            LinePrefix::Plain => format!("{table} {text}"),
        });
    }

    fn row(&mut self, table: &str, text: &str) {
        let mut line = String::new();
        if self.prefix == LinePrefix::Log {
            // Writing to a String cannot fail.
            let _ = write!(line, "[registry] {table} peer_id={} ", self.me);
        }
        line.push_str(text);
        self.lines.push(line);
    }
}

impl Fate {
    fn cell(self) -> &'static str {
        match self {
            Fate::Present => "",
            Fate::Removed => " removed |",
        }
    }
}

/// Decides when a change is printed, and what of it.
#[derive(Debug)]
pub(crate) struct Printer {
    mode: PrintTables,
    printed: Option<Arc<Tables>>,
    changed: BTreeSet<NodeId>,
    own_changed: bool,
    due: Option<Now>,
}

impl Printer {
    /// The first print, of whatever there is, comes by itself.
    pub(crate) fn new(mode: PrintTables, now: Now) -> Self {
        let due = (mode != PrintTables::Off).then_some(now);
        Printer { mode, printed: None, changed: BTreeSet::new(), own_changed: false, due }
    }

    /// Something of `peer` has changed in the tables.
    pub(crate) fn on_changed(&mut self, peer: NodeId, now: Now) {
        if self.mode != PrintTables::Off {
            self.changed.insert(peer);
            self.due.get_or_insert(now + GATHER);
        }
    }

    /// The own services have changed.
    pub(crate) fn on_own_changed(&mut self, now: Now) {
        if self.mode != PrintTables::Off {
            self.own_changed = true;
            self.due.get_or_insert(now + GATHER);
        }
    }

    /// When [`Printer::take`] has something to look at.
    pub(crate) fn next_due(&self) -> Option<Now> {
        self.due
    }

    /// The lines to print now; none when nothing that is shown has changed.
    pub(crate) fn take(&mut self, tables: &Arc<Tables>, now: Now) -> Option<Vec<String>> {
        self.due.take_if(|due| *due <= now)?;
        let peers = std::mem::take(&mut self.changed);
        let own = std::mem::take(&mut self.own_changed);
        let Some(before) = self.printed.replace(tables.clone()) else {
            return Some(self.print(tables, changes_since_nothing(tables)));
        };
        let mut changes = Changes::between(&before, tables, &peers);
        if own {
            changes.add_own(&before, tables);
        }
        if changes.is_empty() { None } else { Some(self.print(tables, changes)) }
    }

    fn print(&self, tables: &Tables, changes: Changes) -> Vec<String> {
        let mut page = Page { me: tables.me(), prefix: LinePrefix::Log, lines: Vec::new() };
        let whole = |rows: usize| self.mode == PrintTables::Full && rows <= ROWS_MAX;
        let Changes { services, peers } = changes;
        let routes = tables.routes_len();
        page.services(routes, &if whole(routes) { service_rows(tables) } else { services });
        let rows = tables.peer_services().values().map(|list| list.services.len()).sum();
        page.peers(tables.peer_services().len(), &if whole(rows) { peer_blocks(tables) } else { peers });
        page.lines
    }
}

/// The rows that differ, as they are printed.
struct Changes {
    services: Vec<ServiceRow>,
    peers: Vec<PeerBlock>,
}

fn changes_since_nothing(tables: &Tables) -> Changes {
    Changes { services: service_rows(tables), peers: peer_blocks(tables) }
}

impl Changes {
    fn between(before: &Tables, after: &Tables, peers: &BTreeSet<NodeId>) -> Changes {
        let mut changes = Changes { services: Vec::new(), peers: Vec::new() };
        for peer in peers {
            let before = before.peer_services().get(peer).map(block);
            let after = after.peer_services().get(peer).map(block);
            changes.add(before, after);
        }
        changes.services.sort();
        changes.peers.sort();
        changes
    }

    fn add(&mut self, before: Option<PeerBlock>, after: Option<PeerBlock>) {
        let rows = |block: &Option<PeerBlock>| -> BTreeMap<(String, String, String), Fate> {
            let rows = block.iter().flat_map(|block| block.rows.iter().map(|row| (&block.shown, row)));
            rows.map(|(shown, (name, backend, _))| {
                ((shown.clone(), name.clone(), backend.clone()), Fate::Present)
            })
            .collect()
        };
        let (old, new) = (rows(&before), rows(&after));
        let added = new.keys().filter(|row| !old.contains_key(row)).map(|row| (row, Fate::Present));
        let gone = old.keys().filter(|row| !new.contains_key(row)).map(|row| (row, Fate::Removed));
        let changed: Vec<_> = added.chain(gone).collect();
        let moved = before.as_ref().map(|block| &block.shown) != after.as_ref().map(|block| &block.shown);
        if changed.is_empty() && !moved {
            return;
        }
        for ((shown, name, backend), fate) in &changed {
            self.services.push((true, shown.clone(), name.clone(), backend.clone(), *fate));
        }
        let fate = if after.is_some() { Fate::Present } else { Fate::Removed };
        if let Some(mut block) = after.or(before) {
            block.fate = fate;
            block.services = new.len();
            block.rows = changed
                .into_iter()
                .map(|((_, name, backend), fate)| (name.clone(), backend.clone(), fate))
                .collect();
            block.rows.sort();
            self.peers.push(block);
        }
    }

    fn add_own(&mut self, before: &Tables, after: &Tables) {
        let rows = |tables: &Tables| -> BTreeSet<(ServiceName, HostPort)> {
            tables.own().iter().map(|(name, own)| (name.clone(), own.backend.clone())).collect()
        };
        let (old, new) = (rows(before), rows(after));
        let gone = old.difference(&new).map(|service| (service, Fate::Removed));
        let added = new.difference(&old).map(|service| (service, Fate::Present));
        for ((name, backend), fate) in gone.chain(added) {
            self.services.push(row(None, name, backend, fate));
        }
        self.services.sort();
    }

    fn is_empty(&self) -> bool {
        self.services.is_empty() && self.peers.is_empty()
    }
}

#[cfg(test)]
mod tests;
