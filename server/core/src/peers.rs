//! Table A: the Peers online at this Server, one session each.
//!
//! A Peer is here from the opening of its session until it is closed, replaced or found silent. One Id has one
//! session: a newer session of the same run, or one of a newer run, replaces the older; a session of an *older*
//! run is refused, so that two processes with one data directory do not throw each other out for ever.
//!
//! What a Peer says is checked ([`ReportRefused`]), and what it says is only partly passed on: private
//! services are dropped where they come in; services outside `may_offer`, and addresses that may be somebody
//! else's, are [`Withheld`], and pass when the grants change. It does not authenticate
//! ([`check_identity`](crate::check_identity)) and knows no time but the wall time it is told for people.
//!
//! Source: SPEC I8, P2, R7.

mod candidates;
mod report;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use p2p_common::grants::Grants;
use p2p_common::push::{PeerEntry, PeerReport};
use p2p_common::{ErrorCode, Incarnation, KeyHash, NodeId, NodeKind, UnixMs};

pub use self::report::{REPORT_BYTES_MAX, ReportRefused, Withheld};
use crate::session::SessionId;

/// At most this many sessions unless configured: with a file each, below the usual hard limit of 20,000 open
/// files there is less room anyway.
pub const SESSIONS_MAX: usize = 20_000;

/// A Peer that has been authenticated and opens a session.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Its Id, as in its certificate.
    pub id: NodeId,
    /// Its run.
    pub incarnation: Incarnation,
    /// The key in its certificate.
    pub key_hash: KeyHash,
    /// The source address of the session.
    pub seen_from: SocketAddr,
    /// What it says of itself.
    pub report: PeerReport,
    /// The wall time, for people.
    pub since: UnixMs,
}

/// A row of table A.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRow {
    /// Its session.
    pub session: SessionId,
    /// What is passed on of it.
    pub entry: Arc<PeerEntry>,
    /// The source address of the session.
    pub seen_from: SocketAddr,
    /// When the session was opened.
    pub since: UnixMs,
    /// What is not passed on of it.
    pub withheld: Arc<Withheld>,
    /// What it said last, while something of it is withheld.
    said: Option<Arc<PeerReport>>,
}

impl PeerRow {
    /// The same Peer under other grants.
    fn regranted(&self, grants: Arc<Grants>, grants_revision: u64) -> PeerRow {
        let said = self.said.as_deref().unwrap_or(&self.entry.report).clone();
        let entry = PeerEntry { grants, grants_revision, ..PeerEntry::clone(&self.entry) };
        self.saying(said, entry)
    }

    /// The same session, whose Peer says this; all else is as in `entry`.
    fn saying(&self, said: PeerReport, entry: PeerEntry) -> PeerRow {
        let (report, withheld) = report::granted(said.clone(), self.seen_from.ip(), &entry.grants);
        PeerRow {
            entry: Arc::new(PeerEntry { report, ..entry }),
            said: (!withheld.is_empty()).then(|| Arc::new(said)),
            withheld: Arc::new(withheld),
            ..self.clone()
        }
    }
}

/// Why a session is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArrivalRefused {
    /// A Server has no session.
    #[error("{id} is not the Id of a peer: only peers open sessions")]
    NotAPeer {
        /// Who it is.
        id: NodeId,
    },
    /// A newer run is online.
    #[error("a newer run of {id} is online here: is its data directory used twice?")]
    OlderRun {
        /// Which Peer.
        id: NodeId,
    },
    /// No room.
    #[error("this server holds its {max} sessions: try another server")]
    Full {
        /// The bound.
        max: usize,
    },
    /// It says what no Peer says.
    #[error(transparent)]
    Report(#[from] ReportRefused),
}

impl ArrivalRefused {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            ArrivalRefused::NotAPeer { .. } => ErrorCode::Forbidden,
            ArrivalRefused::OlderRun { .. } => ErrorCode::Replaced,
            ArrivalRefused::Full { .. } => ErrorCode::Exhausted,
            ArrivalRefused::Report(refused) => refused.code(),
        }
    }
}

/// Table A.
#[derive(Debug)]
pub struct PeerTable {
    rows: BTreeMap<NodeId, PeerRow>,
    /// Whose each session is; exactly the sessions in `rows`.
    sessions: BTreeMap<SessionId, NodeId>,
    sessions_max: usize,
    opened: u64,
}

impl PeerTable {
    /// An empty table of at most `sessions_max` sessions; more are refused.
    pub fn new(sessions_max: usize) -> Self {
        PeerTable { rows: BTreeMap::new(), sessions: BTreeMap::new(), sessions_max, opened: 0 }
    }

    /// Takes a Peer in, which may do what `grants` say, as of their change `grants_revision`. Gives its row
    /// and the session that it replaces.
    ///
    /// # Errors
    /// When it is no Peer, an older run, one too many, or says what it must not.
    pub fn open(
        &mut self,
        arrival: Arrival,
        (grants, grants_revision): (Arc<Grants>, u64),
    ) -> Result<(&PeerRow, Option<SessionId>), ArrivalRefused> {
        let Arrival { id, incarnation, key_hash, seen_from, report, since } = arrival;
        if id.kind() != NodeKind::Peer {
            return Err(ArrivalRefused::NotAPeer { id });
        }
        let former = self.rows.get(&id);
        if former.is_some_and(|row| row.entry.incarnation > incarnation) {
            return Err(ArrivalRefused::OlderRun { id });
        }
        if former.is_none() && self.rows.len() >= self.sessions_max {
            return Err(ArrivalRefused::Full { max: self.sessions_max });
        }
        let replaced = former.map(|row| row.session);
        let said = report::checked(report)?;
        if let Some(replaced) = replaced {
            self.sessions.remove(&replaced);
        }
        self.opened += 1;
        let session = SessionId(self.opened);
        let report = PeerReport::default();
        let entry = PeerEntry { id, incarnation, key_hash, grants, grants_revision, report };
        let empty = PeerRow {
            session,
            entry: Arc::new(entry.clone()),
            seen_from,
            since,
            withheld: Arc::default(),
            said: None,
        };
        self.sessions.insert(session, id);
        self.rows.insert(id, empty.saying(said, entry));
        Ok((&self.rows[&id], replaced))
    }

    /// Takes in what the Peer of `session` says now. Gives the new row; none when nothing is new, since only a
    /// greater `seq` is newer.
    ///
    /// # Errors
    /// When it says what it must not; what it said before stays.
    pub fn report(
        &mut self,
        session: SessionId,
        report: PeerReport,
    ) -> Result<Option<&PeerRow>, ReportRefused> {
        let id = self.sessions.get(&session);
        let Some(row) = id.and_then(|id| self.rows.get_mut(id)) else {
            return Ok(None);
        };
        if report.seq <= row.entry.report.seq {
            return Ok(None);
        }
        *row = row.saying(report::checked(report)?, PeerEntry::clone(&row.entry));
        Ok(Some(row))
    }

    /// The Peer `id` may do this from now on. Gives its new row; none when it is not here, or may do the same.
    pub fn regrant(&mut self, id: NodeId, grants: &Grants, grants_revision: u64) -> Option<&PeerRow> {
        let row = self.rows.get_mut(&id)?;
        if row.entry.grants_revision == grants_revision && *row.entry.grants == *grants {
            return None;
        }
        *row = row.regranted(Arc::new(grants.clone()), grants_revision);
        Some(row)
    }

    /// What is withheld of the Peer `id`; nothing when it is not here.
    pub fn withheld_of(&self, id: NodeId) -> Arc<Withheld> {
        self.rows.get(&id).map(|row| row.withheld.clone()).unwrap_or_default()
    }

    /// The row of the Peer of `session`.
    pub fn row_of(&self, session: SessionId) -> Option<&PeerRow> {
        self.rows.get(self.sessions.get(&session)?)
    }

    /// Forgets the Peer of `session`. Gives its Id; none when the session is not here.
    pub fn close(&mut self, session: SessionId) -> Option<NodeId> {
        let id = self.sessions.remove(&session)?;
        self.rows.remove(&id);
        Some(id)
    }

    /// Whose session it is.
    pub fn peer_of(&self, session: SessionId) -> Option<NodeId> {
        self.sessions.get(&session).copied()
    }

    /// All rows in the order of their Ids.
    pub fn rows(&self) -> impl Iterator<Item = &PeerRow> {
        self.rows.values()
    }

    /// How many Peers are online.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nobody is online.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::service::{ServiceOffer, ServiceState, Visibility};
    use uuid::Uuid;

    fn peer(n: u128) -> NodeId {
        NodeId::new(NodeKind::Peer, Uuid::from_u128(n))
    }

    fn arrival(n: u128, run: u128, seq: u64) -> Arrival {
        Arrival {
            id: peer(n),
            incarnation: Incarnation::new(Uuid::from_u128(run)),
            key_hash: KeyHash([1; 32]),
            seen_from: "10.0.0.1:5000".parse().unwrap(),
            report: report(seq),
            since: UnixMs(7),
        }
    }

    fn report(seq: u64) -> PeerReport {
        PeerReport { seq, name: format!("at {seq}"), ..PeerReport::default() }
    }

    #[test]
    fn one_session_per_id_and_newer_ones_win() {
        let mut table = PeerTable::new(2);
        let (row, replaced) = table.open(arrival(1, 5, 1), Default::default()).unwrap();
        let first = row.session;
        assert_eq!(replaced, None);
        let (row, replaced) = table.open(arrival(1, 5, 2), Default::default()).unwrap();
        let second = row.session;
        assert_eq!((replaced, second > first), (Some(first), true));
        assert_eq!(
            table.open(arrival(1, 4, 9), Default::default()).unwrap_err(),
            ArrivalRefused::OlderRun { id: peer(1) }
        );
        let (row, replaced) = table.open(arrival(1, 6, 1), Default::default()).unwrap();
        let third = row.session;
        assert_eq!(replaced, Some(second));
        assert_eq!(table.close(second), None, "a late close of a replaced session touches nothing");
        assert_eq!(table.report(second, report(99)), Ok(None));
        assert_eq!((table.len(), table.peer_of(third)), (1, Some(peer(1))));
        assert_eq!(table.close(third), Some(peer(1)));
        assert!(table.is_empty());
    }

    #[test]
    fn sessions_are_bounded_but_a_peer_may_come_back() {
        let mut table = PeerTable::new(1);
        table.open(arrival(1, 1, 1), Default::default()).unwrap();
        let refused = table.open(arrival(2, 1, 1), Default::default()).unwrap_err();
        assert_eq!(refused, ArrivalRefused::Full { max: 1 });
        assert_eq!(refused.code(), ErrorCode::Exhausted);
        table.open(arrival(1, 1, 2), Default::default()).unwrap();
    }

    #[test]
    fn servers_and_bad_reports_are_refused_and_change_nothing() {
        let mut table = PeerTable::new(2);
        let server = NodeId::new(NodeKind::Server, Uuid::from_u128(1));
        let refused = table.open(Arrival { id: server, ..arrival(1, 1, 1) }, Default::default()).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Forbidden);
        let session = table.open(arrival(1, 1, 1), Default::default()).unwrap().0.session;
        let bad = PeerReport { name: "x".repeat(1_000), ..report(2) };
        let again = Arrival { report: bad.clone(), ..arrival(1, 1, 2) };
        assert_eq!(table.open(again, Default::default()).unwrap_err().code(), ErrorCode::BadRequest);
        assert_eq!(table.report(session, bad).unwrap_err().code(), ErrorCode::BadRequest);
        assert_eq!(table.rows().next().unwrap().entry.report, report(1));
        assert_eq!(table.rows().next().unwrap().session, session);
    }

    #[test]
    fn only_a_greater_seq_is_news() {
        let mut table = PeerTable::new(1);
        let session = table.open(arrival(1, 1, 5), Default::default()).unwrap().0.session;
        for seq in [0, 4, 5] {
            assert_eq!(table.report(session, report(seq)), Ok(None));
        }
        let row = table.report(session, report(6)).unwrap().unwrap().clone();
        assert_eq!((row.entry.id, row.entry.report.seq), (peer(1), 6));
        assert_eq!(table.rows().next().unwrap(), &row);
    }

    #[test]
    fn changed_grants_bring_back_what_was_withheld() {
        let services = ["a", "b"].map(|name| ServiceOffer {
            name: name.parse().unwrap(),
            backend: "127.0.0.1:80".parse().unwrap(),
            visibility: Visibility::Cluster,
            state: ServiceState::Up,
        });
        let mut table = PeerTable::new(1);
        let report = PeerReport { services: services.to_vec(), ..report(1) };
        let session =
            table.open(Arrival { report, ..arrival(1, 1, 1) }, Default::default()).unwrap().0.session;
        let offered = |table: &PeerTable| {
            let row = table.row_of(session).unwrap();
            let names = |of: &PeerRow| {
                of.entry.report.services.iter().map(|s| s.name.to_string()).collect::<Vec<_>>().join(",")
            };
            (names(row), row.withheld.services.len(), row.said.is_some())
        };
        let may = |offer: &str| Grants { may_offer: offer.parse().unwrap(), ..Grants::default() };
        assert_eq!(offered(&table), ("a,b".to_owned(), 0, false));
        for (revision, offer, expected) in [
            (1, "b", ("b".to_owned(), 1, true)),
            (2, "", (String::new(), 2, true)),
            (3, "*", ("a,b".to_owned(), 0, false)),
        ] {
            let row = table.regrant(peer(1), &may(offer), revision).unwrap();
            assert_eq!((row.entry.grants_revision, row.entry.report.seq), (revision, 1));
            assert_eq!(offered(&table), expected);
            assert_eq!(table.regrant(peer(1), &may(offer), revision), None);
        }
        assert_eq!(table.regrant(peer(2), &may("a"), 1), None);
    }
}
