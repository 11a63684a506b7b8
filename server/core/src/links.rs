//! Table B: what each Peer online here last said of its links.
//!
//! For people to read; nothing is decided by it. A report replaces the former one whole and is forgotten with
//! the session it came by. The rows of all Peers together are bounded: what would exceed the bound is not taken
//! and the former report stays. Source: SPEC P4.

use std::collections::BTreeMap;
use std::sync::Arc;

use p2p_common::link::{LINKS_PER_REPORT_MAX, LinkRow, REASON_MAX_BYTES};
use p2p_common::{ErrorCode, NodeId};

/// At most this many rows of all Peers together: 1,000 Peers, each linked with all others; some 300 MiB.
pub const LINKS_MAX: usize = 1_000_000;

/// At most this many bytes of an address: a host name, a port, brackets.
const ADDRESS_MAX_BYTES: usize = 262;

/// Why a report of links is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinksRefused {
    /// Longer than a Peer of ours sends.
    #[error("the report has {count} links: at most {LINKS_PER_REPORT_MAX} are taken")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A text too long, or with control characters.
    #[error("the {what} of the link to {id} is too long or holds control characters")]
    BadText {
        /// Which text.
        what: &'static str,
        /// Which link.
        id: NodeId,
    },
    /// No room; not the Peer's fault.
    #[error("this server holds the {LINKS_MAX} links it takes: the report was not kept")]
    Full,
}

impl LinksRefused {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            LinksRefused::TooMany { .. } | LinksRefused::BadText { .. } => ErrorCode::BadRequest,
            LinksRefused::Full => ErrorCode::Exhausted,
        }
    }
}

/// Table B.
#[derive(Debug, Default)]
pub struct LinkReports {
    reports: BTreeMap<NodeId, Arc<[LinkRow]>>,
    rows: usize,
}

impl LinkReports {
    /// Knows of no links.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces what `peer` said.
    ///
    /// # Errors
    /// When it says what it must not, or there is no room; what it said before stays.
    pub fn report(&mut self, peer: NodeId, links: Vec<LinkRow>) -> Result<(), LinksRefused> {
        if links.len() > LINKS_PER_REPORT_MAX {
            return Err(LinksRefused::TooMany { count: links.len() });
        }
        for link in &links {
            for (what, text, max) in
                [("address", &link.address, ADDRESS_MAX_BYTES), ("reason", &link.reason, REASON_MAX_BYTES)]
            {
                if text.len() > max || text.chars().any(char::is_control) {
                    return Err(LinksRefused::BadText { what, id: link.id });
                }
            }
        }
        let others = self.rows - self.of(peer).len();
        if others + links.len() > LINKS_MAX {
            return Err(LinksRefused::Full);
        }
        self.rows = others + links.len();
        self.reports.insert(peer, links.into());
        Ok(())
    }

    /// Forgets what `peer` said.
    pub fn forget(&mut self, peer: NodeId) {
        if let Some(links) = self.reports.remove(&peer) {
            self.rows -= links.len();
        }
    }

    /// What `peer` said last; empty when it has not.
    pub fn of(&self, peer: NodeId) -> Arc<[LinkRow]> {
        self.reports.get(&peer).cloned().unwrap_or_else(|| Arc::new([]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::{NodeKind, UnixMs};
    use uuid::Uuid;

    fn peer(n: u128) -> NodeId {
        NodeId::new(NodeKind::Peer, Uuid::from_u128(n))
    }

    fn link(n: u128) -> LinkRow {
        LinkRow {
            id: peer(n),
            path: None,
            address: String::new(),
            rtt_us: None,
            bytes_in: 0,
            bytes_out: 0,
            since: UnixMs(0),
            tunnels: 0,
            reason: "not needed yet".to_owned(),
        }
    }

    #[test]
    fn a_report_replaces_the_former_one() {
        let mut links = LinkReports::new();
        links.report(peer(1), vec![link(2), link(3)]).unwrap();
        links.report(peer(2), vec![link(1)]).unwrap();
        links.report(peer(1), vec![link(3)]).unwrap();
        assert_eq!(*links.of(peer(1)), [link(3)]);
        assert_eq!(links.rows, 2);
        links.forget(peer(1));
        links.forget(peer(1));
        assert!(links.of(peer(1)).is_empty());
        assert_eq!(links.rows, 1);
    }

    #[test]
    fn bad_reports_are_refused_and_change_nothing() {
        let mut links = LinkReports::new();
        links.report(peer(1), vec![link(2)]).unwrap();
        let many = vec![link(2); LINKS_PER_REPORT_MAX + 1];
        let long = LinkRow { reason: "x".repeat(REASON_MAX_BYTES + 1), ..link(2) };
        let lines = LinkRow { address: "a\nb".to_owned(), ..link(2) };
        for bad in [many, vec![long], vec![lines]] {
            assert_eq!(links.report(peer(1), bad).unwrap_err().code(), ErrorCode::BadRequest);
        }
        assert_eq!(*links.of(peer(1)), [link(2)]);
    }

    #[test]
    fn all_links_together_are_bounded() {
        let mut links = LinkReports::new();
        let most = LINKS_MAX / LINKS_PER_REPORT_MAX;
        let empty = LinkRow { reason: String::new(), ..link(1) };
        for n in 0..most as u128 {
            links.report(peer(n), vec![empty.clone(); LINKS_PER_REPORT_MAX]).unwrap();
        }
        let more = vec![empty.clone(); LINKS_PER_REPORT_MAX];
        assert_eq!(links.report(peer(9_999), more), Err(LinksRefused::Full));
        links.report(peer(0), vec![empty]).unwrap();
        assert_eq!(links.rows, (most - 1) * LINKS_PER_REPORT_MAX + 1);
    }
}
