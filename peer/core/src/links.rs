//! Table F: this Peer's links to Peers and Servers, which path each takes, and why.
//!
//! A link has a row from the moment its node is known until it is neither known nor connected. A row says
//! what the link is now and remembers the last [`TRIED_MAX`] things that were tried, so that `why` can answer.
//!
//! # Reports
//!
//! Servers get the whole table when it changed: at most once in a second after changes of state, and once in
//! half a minute when nothing but bytes and round trips moved; these change all the time and decide nothing.
//! Owner: the agent. Source: SPEC P4, N1, N5.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use p2p_common::link::{LINKS_PER_REPORT_MAX, LinkRow, PathKind, REASON_MAX_BYTES};
use p2p_common::{NodeId, Now, UnixMs};

use crate::moment::Moment;
use crate::routes::RouteLink;

/// So many tries are remembered per link; the oldest is forgotten first.
pub const TRIED_MAX: usize = 16;
/// Changes of state are reported at most once in this time.
const REPORT_STATE_EVERY: Duration = Duration::from_secs(1);
/// Bytes and round trips alone are reported at most once in this time.
const REPORT_TRAFFIC_EVERY: Duration = Duration::from_secs(30);

/// Which Peers are linked ahead of need (SPEC N1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mesh {
    /// Every one.
    Full,
    /// None: a link opens at first need.
    Lazy,
    /// Every one while there are at most [`Mesh::AUTO_MAX`], none beyond.
    #[default]
    Auto,
}

impl Mesh {
    /// Up to so many Peers are linked ahead of need by [`Mesh::Auto`].
    pub const AUTO_MAX: usize = 32;

    /// Whether Peers are linked ahead of need when there are `peers` of them.
    pub fn links_ahead(self, peers: usize) -> bool {
        match self {
            Mesh::Full => true,
            Mesh::Lazy => false,
            Mesh::Auto => peers <= Mesh::AUTO_MAX,
        }
    }
}

/// Something that was tried for a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// When it ended.
    pub at: UnixMs,
    /// Where.
    pub address: String,
    /// How it ended.
    pub outcome: String,
}

/// A dial that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialFailure {
    /// What was dialled.
    pub address: String,
    /// Why it failed.
    pub error: String,
}

impl DialFailure {
    /// All of them as one reason.
    pub(crate) fn join(failures: &[DialFailure]) -> String {
        if failures.is_empty() {
            return "no address to dial".into();
        }
        let each = failures.iter().map(|failure| format!("{}: {}", failure.address, failure.error));
        each.collect::<Vec<_>>().join("; ")
    }
}

/// What moved over a link since the last time it was told, and its newest round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Payload bytes sent.
    pub bytes_out: u64,
    /// Round trip in microseconds, when it was measured.
    pub rtt_us: Option<u32>,
}

/// A tunnel or session that has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// How its bytes travel.
    pub path: PathKind,
    /// The other end as dialled or seen.
    pub address: String,
    /// This side dialled.
    pub dialled: bool,
    /// Forwards from this Peer go over it, because it dialled, or because the dialler said OFFER. Of a session:
    /// true.
    pub carries: bool,
}

/// A row and its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    row: LinkRow,
    known: bool,
    /// The last dial failed and nothing is open.
    failing: bool,
    /// Its key opens nothing any more.
    revoked: bool,
    tried: VecDeque<Tried>,
}

impl Link {
    /// The row as it is reported.
    pub fn row(&self) -> &LinkRow {
        &self.row
    }

    /// What routing makes of it.
    pub fn route_link(&self) -> RouteLink {
        match self.row.path {
            Some(path) => RouteLink::Up(path),
            None if self.failing => RouteLink::Failing,
            None => RouteLink::Idle,
        }
    }

    /// What was tried, newest first.
    pub fn tried(&self) -> impl Iterator<Item = &Tried> {
        self.tried.iter().rev()
    }
}

/// So many rows of revoked nodes stay, for people to see what became of them; the oldest goes first.
const REVOKED_ROWS_MAX: usize = 64;
/// Why there is no link to a node whose key is revoked.
const REVOKED: &str = "revoked: its key opens nothing any more";

/// Table F.
#[derive(Debug, Default)]
pub(crate) struct LinkTable {
    links: BTreeMap<NodeId, Link>,
    state_changed: bool,
    traffic_changed: bool,
    reported: Option<Now>,
}

impl LinkTable {
    /// `id` is to have a row.
    pub(crate) fn on_known(&mut self, id: NodeId, unix: UnixMs) {
        if !self.links.contains_key(&id) {
            self.state_changed = true;
        }
        let link = self.row_mut(id, unix);
        link.known = true;
        // With another key, or it would not be known.
        link.revoked = false;
    }

    /// The key of `id` opens nothing any more: its row says so and stays for a while.
    pub(crate) fn on_revoked(&mut self, id: NodeId, unix: UnixMs) {
        let rows = self.links.iter().filter(|(_, link)| link.revoked);
        if rows.clone().count() >= REVOKED_ROWS_MAX
            && let Some(oldest) = rows.min_by_key(|(_, link)| link.row.since).map(|(id, _)| *id)
        {
            self.links.remove(&oldest);
        }
        self.state_changed = true;
        let link = self.row_mut(id, unix);
        link.revoked = true;
        link.failing = false;
        link.row.since = unix;
        link.row.reason = REVOKED.into();
        link.remember(unix, String::new(), REVOKED.into());
    }

    /// `id` is gone; its row goes with its last tunnel.
    pub(crate) fn on_unknown(&mut self, id: NodeId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.known = false;
            if !link.revoked {
                link.row.reason = "no longer known, kept by its open tunnels".into();
            }
            self.state_changed = true;
            self.drop_if_over(id);
        }
    }

    pub(crate) fn on_opened(&mut self, id: NodeId, opened: Opened, unix: UnixMs) {
        self.state_changed = true;
        let link = self.row_mut(id, unix);
        let verb = if opened.dialled { "dialled" } else { "accepted" };
        link.failing = false;
        let row = &mut link.row;
        row.tunnels = row.tunnels.saturating_add(1);
        // The best path in use is the link's; a dialled address says more than the port of an accepted one.
        let better = row.path.is_none_or(|path| opened.path < path);
        if better {
            row.since = unix;
            row.path = Some(opened.path);
        }
        if better || (opened.dialled && row.path == Some(opened.path)) {
            row.address.clone_from(&opened.address);
            row.reason = cut(format!("{}: {verb} {}", opened.path, opened.address));
        }
        link.remember(unix, opened.address, format!("{}: open", opened.path));
    }

    pub(crate) fn on_closed(&mut self, id: NodeId, reason: &str, unix: UnixMs) {
        let Some(link) = self.links.get_mut(&id).filter(|link| link.row.tunnels > 0) else { return };
        self.state_changed = true;
        link.row.tunnels -= 1;
        let address = link.row.address.clone();
        link.remember(unix, address, format!("closed: {reason}"));
        if link.row.tunnels == 0 {
            link.row.path = None;
            link.row.rtt_us = None;
            link.row.since = unix;
            let closed = || cut(format!("closed: {reason}"));
            link.row.reason = if link.revoked { REVOKED.into() } else { closed() };
        }
        self.drop_if_over(id);
    }

    /// Dials failed; `skipped` are the addresses that were not even tried.
    pub(crate) fn on_failed(&mut self, id: NodeId, failures: Vec<DialFailure>, skipped: &str, unix: UnixMs) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let mut reason = DialFailure::join(&failures);
        for failure in failures {
            link.remember(unix, failure.address, failure.error);
        }
        if !skipped.is_empty() {
            reason.push_str(&format!("; not dialled: {skipped}"));
        }
        // A failed dial says nothing about a link that is up by another tunnel.
        if link.row.path.is_none() {
            link.failing = true;
            let reason = cut(reason);
            self.state_changed |= link.row.reason != reason;
            link.row.reason = reason;
        }
    }

    /// There is no session with Server `id`: the one there was has ended, or none came about.
    pub(crate) fn on_down(&mut self, id: NodeId, reason: &str, unix: UnixMs) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.row.tunnels > 0 {
            self.on_closed(id, reason, unix);
        } else if link.row.reason != reason {
            link.remember(unix, link.row.address.clone(), reason.into());
            link.row.reason = cut(reason.into());
            self.state_changed = true;
        }
    }

    /// Former failures say nothing any more.
    pub(crate) fn forgive(&mut self, id: NodeId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.failing = false;
        }
    }

    pub(crate) fn on_traffic(&mut self, id: NodeId, traffic: Traffic) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.row.bytes_in = link.row.bytes_in.saturating_add(traffic.bytes_in);
        link.row.bytes_out = link.row.bytes_out.saturating_add(traffic.bytes_out);
        link.row.rtt_us = traffic.rtt_us.or(link.row.rtt_us);
        self.traffic_changed |= traffic != Traffic::default();
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Link> {
        self.links.get(&id)
    }

    /// All links by Id: Servers before Peers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The report, if one is due.
    pub(crate) fn take_report(&mut self, at: Moment) -> Option<Arc<[LinkRow]>> {
        if self.next_due().is_none_or(|due| due > at.now) {
            return None;
        }
        self.state_changed = false;
        self.traffic_changed = false;
        self.reported = Some(at.now);
        Some(self.report())
    }

    /// The report as of now, for a Server that has none yet.
    pub(crate) fn report(&self) -> Arc<[LinkRow]> {
        self.links.values().take(LINKS_PER_REPORT_MAX).map(|link| link.row.clone()).collect()
    }

    /// When [`LinkTable::take_report`] has one.
    pub(crate) fn next_due(&self) -> Option<Now> {
        let wait = match (self.state_changed, self.traffic_changed) {
            (true, _) => REPORT_STATE_EVERY,
            (false, true) => REPORT_TRAFFIC_EVERY,
            (false, false) => return None,
        };
        Some(self.reported.map_or(Now::ZERO, |reported| reported + wait))
    }

    fn drop_if_over(&mut self, id: NodeId) {
        if self.links.get(&id).is_some_and(|link| !link.known && !link.revoked && link.row.tunnels == 0) {
            self.links.remove(&id);
        }
    }

    fn row_mut(&mut self, id: NodeId, unix: UnixMs) -> &mut Link {
        self.links.entry(id).or_insert_with(|| Link::new(id, unix))
    }
}

impl Link {
    fn new(id: NodeId, unix: UnixMs) -> Self {
        Link {
            row: LinkRow {
                id,
                path: None,
                address: String::new(),
                rtt_us: None,
                bytes_in: 0,
                bytes_out: 0,
                since: unix,
                tunnels: 0,
                reason: "not dialled yet".into(),
            },
            known: false,
            failing: false,
            revoked: false,
            tried: VecDeque::new(),
        }
    }

    /// The link to a node that was revoked before it had one here.
    pub(crate) fn revoked(id: NodeId) -> Self {
        let mut link = Link { revoked: true, ..Link::new(id, UnixMs(0)) };
        link.row.reason = REVOKED.into();
        link
    }

    fn remember(&mut self, at: UnixMs, address: String, outcome: String) {
        if self.tried.len() == TRIED_MAX {
            self.tried.pop_front();
        }
        self.tried.push_back(Tried { at, address: cut(address), outcome: cut(outcome) });
    }
}

fn cut(mut text: String) -> String {
    if text.len() > REASON_MAX_BYTES {
        let end = (0..=REASON_MAX_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::peer;

    fn at(ms: u64) -> Moment {
        Moment { now: Now::from_ms(ms), unix: UnixMs(1_000_000 + ms) }
    }

    fn opened(path: PathKind, address: &str, dialled: bool) -> Opened {
        Opened { path, address: address.into(), dialled, carries: dialled }
    }

    fn failure(address: &str, error: &str) -> DialFailure {
        DialFailure { address: address.into(), error: error.into() }
    }

    #[test]
    fn a_row_says_the_best_path_and_why() {
        let mut links = LinkTable::default();
        links.on_known(peer(1), UnixMs(1));
        assert_eq!(links.get(peer(1)).unwrap().row().reason, "not dialled yet");
        links.on_failed(
            peer(1),
            vec![failure("10.0.0.1:1", "refused"), failure("10.0.0.2:1", "timed out")],
            "127.0.0.1:1 (loopback)",
            UnixMs(2),
        );
        let row = links.get(peer(1)).unwrap().row().clone();
        assert_eq!(
            row.reason,
            "10.0.0.1:1: refused; 10.0.0.2:1: timed out; not dialled: 127.0.0.1:1 (loopback)"
        );
        links.on_opened(peer(1), opened(PathKind::Relayed, "s1", true), UnixMs(3));
        links.on_opened(peer(1), opened(PathKind::Direct, "10.0.0.9:5", false), UnixMs(4));
        links.on_opened(peer(1), opened(PathKind::Direct, "10.0.0.1:1", true), UnixMs(5));
        let row = links.get(peer(1)).unwrap().row().clone();
        assert_eq!((row.path, row.tunnels, row.since), (Some(PathKind::Direct), 3, UnixMs(4)));
        assert_eq!((row.address.as_str(), row.reason.as_str()), ("10.0.0.1:1", "direct: dialled 10.0.0.1:1"));
        for _ in 0..3 {
            links.on_closed(peer(1), "reset", UnixMs(9));
        }
        let link = links.get(peer(1)).unwrap();
        assert_eq!((link.row().path, link.row().tunnels, link.row().since), (None, 0, UnixMs(9)));
        assert_eq!(link.row().reason, "closed: reset");
        assert_eq!(link.tried().next().unwrap().outcome, "closed: reset");
        assert_eq!(link.tried().last().unwrap().outcome, "refused");
    }

    #[test]
    fn a_row_lives_while_known_or_connected() {
        let mut links = LinkTable::default();
        links.on_known(peer(1), UnixMs(1));
        links.on_opened(peer(1), opened(PathKind::Direct, "a", true), UnixMs(1));
        links.on_unknown(peer(1));
        assert_eq!(links.iter().count(), 1);
        links.on_closed(peer(1), "end", UnixMs(2));
        assert_eq!(links.iter().count(), 0);
        links.on_closed(peer(1), "end", UnixMs(2));
        links.on_failed(peer(1), vec![], "", UnixMs(2));
        assert_eq!(links.iter().count(), 0);
    }

    #[test]
    fn a_revoked_row_says_so_and_stays_until_the_id_has_another_key() {
        let mut links = LinkTable::default();
        links.on_known(peer(1), UnixMs(1));
        links.on_opened(peer(1), opened(PathKind::Direct, "a", true), UnixMs(1));
        links.on_revoked(peer(1), UnixMs(2));
        links.on_unknown(peer(1));
        assert_eq!(links.get(peer(1)).unwrap().row().reason, REVOKED);
        links.on_closed(peer(1), "reset", UnixMs(3));
        let row = links.get(peer(1)).unwrap().row().clone();
        assert_eq!((row.path, row.tunnels, row.reason.as_str()), (None, 0, REVOKED));
        for n in 2..=REVOKED_ROWS_MAX as u8 + 1 {
            links.on_known(peer(n), UnixMs(4));
            links.on_revoked(peer(n), UnixMs(4));
            links.on_unknown(peer(n));
        }
        assert_eq!(links.iter().count(), REVOKED_ROWS_MAX);
        assert!(links.get(peer(1)).is_none(), "the oldest went");
        links.on_known(peer(2), UnixMs(5));
        links.on_unknown(peer(2));
        assert!(links.get(peer(2)).is_none());
    }

    #[test]
    fn history_and_texts_are_bounded() {
        let mut links = LinkTable::default();
        links.on_known(peer(1), UnixMs(1));
        for n in 0..40 {
            links.on_failed(peer(1), vec![failure(&format!("a{n}"), &"é".repeat(600))], "", UnixMs(n));
        }
        let link = links.get(peer(1)).unwrap();
        assert_eq!(link.tried().count(), TRIED_MAX);
        assert_eq!(link.tried().next().unwrap().address, "a39");
        assert!(link.row().reason.len() <= REASON_MAX_BYTES);
    }

    #[test]
    fn reports_are_coalesced() {
        let mut links = LinkTable::default();
        assert_eq!(links.take_report(at(0)), None);
        links.on_known(peer(1), UnixMs(1));
        assert_eq!(links.take_report(at(0)).unwrap().len(), 1);
        links.on_known(peer(1), UnixMs(1));
        assert_eq!(links.next_due(), None, "nothing new");
        links.on_known(peer(2), UnixMs(1));
        links.on_opened(peer(2), opened(PathKind::Direct, "a", true), UnixMs(1));
        assert_eq!(links.take_report(at(999)), None);
        assert_eq!(links.next_due(), Some(at(1000).now));
        assert_eq!(links.take_report(at(1000)).unwrap().len(), 2);
        links.on_traffic(peer(2), Traffic { bytes_in: 5, bytes_out: 6, rtt_us: Some(7) });
        assert_eq!(links.next_due(), Some(at(31_000).now));
        let rows = links.take_report(at(31_000)).unwrap();
        assert_eq!((rows[1].bytes_in, rows[1].bytes_out, rows[1].rtt_us), (5, 6, Some(7)));
        links.on_traffic(peer(2), Traffic::default());
        assert_eq!(links.next_due(), None);
    }

    #[test]
    fn who_is_linked_ahead() {
        assert!(Mesh::Full.links_ahead(5_000));
        assert!(!Mesh::Lazy.links_ahead(1));
        assert!(Mesh::Auto.links_ahead(32) && !Mesh::Auto.links_ahead(33));
    }
}
