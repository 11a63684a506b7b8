//! One session with one Server: reports up, pushes down, on one stream (SPEC P1-P5, T6).
//!
//! [`Session`] is what happens between the opening of the stream and its end; [`servers`] decides with which
//! Servers there is one.
//!
//! ```text
//! stream opened ──► opening: OPEN sent ──WELCOME checked──► up ──► ended
//!                      │ no WELCOME within 10 s                       ▲
//!                      └── END, silence, a message out of turn ───────┘
//! ```
//!
//! While a session is up a heartbeat goes out after 3 s in which nothing else did; 30 s without anything from
//! the Server end it. A Server of the same cluster in a higher epoch is followed: its cluster was recovered by
//! its operator, and the Peer has no history of its own to defend; a lower epoch is refused. A report that changed while the session was opening is sent right after the WELCOME.
//! Owner: the agent.

pub(crate) mod servers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::grants::Grants;
use p2p_common::link::LinkRow;
use p2p_common::member::Member;
use p2p_common::push::{PeerPush, PeerReport, RevocationPush};
use p2p_common::revision::Position;
use p2p_common::wire::{Expected, Hello, HelloError, VERSIONS};
use p2p_common::{ClusterId, Epoch, ErrorCode, Incarnation, NodeId, Now};

/// How long a Server may take for its WELCOME.
const WELCOME_WITHIN: Duration = Duration::from_secs(10);

/// Names one attempt at a session, from its dial to its end. Inputs about an attempt that is over are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionToken(pub u64);

/// Table C at one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberTable {
    /// Raised by each change.
    pub version: u64,
    /// The Servers, by Id.
    pub members: Vec<Member>,
}

/// What goes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToServer {
    /// The first message, once.
    Open {
        /// Who opens.
        hello: Hello,
        /// What this Peer says of itself.
        report: Arc<PeerReport>,
        /// Where the pushes resume; none asks for a snapshot.
        resume: Option<Position>,
        /// Every revocation up to this number is known.
        revocations_known: u64,
    },
    /// What this Peer says of itself, whole, at each change.
    Report(Arc<PeerReport>),
    /// Table F, whole, at each change.
    Links(Arc<[LinkRow]>),
    /// Nothing to say.
    Heartbeat,
}

/// What comes down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromServer {
    /// The first message, once.
    Welcome {
        /// Who answers.
        hello: Hello,
        /// From where the Server sees this Peer come; none when it does not say.
        seen_from: Option<SocketAddr>,
        /// Table C.
        members: MemberTable,
        /// Revocations come next: what this Server knows counts when all of them are there.
        revocations_follow: bool,
    },
    /// Keys that open nothing any more.
    Revocations(RevocationPush),
    /// Table C, at each change.
    Members(MemberTable),
    /// Table E.
    Push(PeerPush),
    /// What this Peer may do, if it is not what everybody may, and at each change.
    OwnGrants {
        /// What it may do.
        grants: Arc<Grants>,
        /// Its addresses that are passed on to nobody.
        withheld: Vec<HostPort>,
    },
    /// Nothing to say.
    Heartbeat,
    /// The last message: why the Server ends the session.
    End {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
    },
}

/// Who this Peer is on every session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// This Peer.
    pub id: NodeId,
    /// Its run.
    pub incarnation: Incarnation,
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// The cluster's epoch.
    pub epoch: Epoch,
}

/// When a connection without data speaks, and when it counts as lost (SPEC P5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Send one after so long without sending anything.
    pub every: Duration,
    /// Offline after so long without hearing anything; longer than `every`.
    pub silence: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Heartbeat { every: Duration::from_secs(3), silence: Duration::from_secs(30) }
    }
}

/// What this Peer knows already when it opens a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Resume {
    /// Where its view of the Server stands.
    pub(crate) view: Option<Position>,
    /// Every revocation up to this number.
    pub(crate) revocations: u64,
}

/// Why this Peer ends a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the Server's first message was not a welcome")]
    NotWelcomed,
    #[error("the Server welcomed twice")]
    WelcomedTwice,
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("the Server ended the session: {message} ({code})")]
    Ended { code: ErrorCode, message: String },
    #[error("no welcome within {} s", WELCOME_WITHIN.as_secs())]
    NoWelcome,
    #[error("nothing heard for {} s", .0.as_secs())]
    Silent(Duration),
}

/// What a message means to the owner of the session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// `epoch` is this Peer's or a higher one.
    Welcome {
        epoch: Epoch,
        seen_from: Option<SocketAddr>,
        members: MemberTable,
    },
    Members(MemberTable),
    Push(PeerPush),
    Revocations(RevocationPush),
    OwnGrants {
        grants: Arc<Grants>,
        withheld: Vec<HostPort>,
    },
    Nothing,
}

/// A session from its OPEN on.
#[derive(Debug)]
pub(crate) struct Session {
    identity: Identity,
    heartbeat: Heartbeat,
    server: NodeId,
    opened: Now,
    /// The Server's run, from its WELCOME.
    incarnation: Option<Incarnation>,
    /// Not all revocations it announced have come.
    revocations_due: bool,
    reported_seq: u64,
    last_sent: Now,
    last_heard: Now,
}

impl Session {
    /// Opens a session on a new stream to `server`.
    pub(crate) fn open(
        identity: Identity,
        heartbeat: Heartbeat,
        server: NodeId,
        report: Arc<PeerReport>,
        resume: Resume,
        now: Now,
    ) -> (Session, ToServer) {
        let session = Session {
            identity,
            heartbeat,
            server,
            opened: now,
            incarnation: None,
            revocations_due: false,
            reported_seq: report.seq,
            last_sent: now,
            last_heard: now,
        };
        let hello = Hello {
            versions: VERSIONS,
            cluster_id: Some(identity.cluster_id),
            from: identity.id,
            to: Some(server),
            epoch: identity.epoch,
            recovery_id: None,
            raft_id: 0,
            incarnation: identity.incarnation,
            features: 0,
        };
        let Resume { view: resume, revocations: revocations_known } = resume;
        (session, ToServer::Open { hello, report, resume, revocations_known })
    }

    /// The Server's run; none before its WELCOME.
    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        self.incarnation
    }

    /// The Server has told all that goes ahead of table E.
    pub(crate) fn is_warned(&self) -> bool {
        self.incarnation.is_some() && !self.revocations_due
    }

    /// The epoch it lives in.
    pub(crate) fn epoch(&self) -> Epoch {
        self.identity.epoch
    }

    /// How long the session has been open.
    pub(crate) fn age(&self, now: Now) -> Duration {
        now.since(self.opened)
    }

    /// Takes a message.
    ///
    /// # Errors
    /// Why the session must end.
    pub(crate) fn handle(&mut self, message: FromServer, now: Now) -> Result<Heard, SessionError> {
        self.last_heard = now;
        match message {
            FromServer::End { code, message } => Err(SessionError::Ended { code, message }),
            FromServer::Welcome { .. } if self.incarnation.is_some() => Err(SessionError::WelcomedTwice),
            FromServer::Welcome { hello, seen_from, members, revocations_follow } => {
                let epoch = hello.epoch.max(self.identity.epoch);
                hello.check(&Expected {
                    cluster_id: self.identity.cluster_id,
                    epoch,
                    recovery_id: None,
                    me: self.identity.id,
                    authenticated: self.server,
                })?;
                self.identity.epoch = epoch;
                self.incarnation = Some(hello.incarnation);
                self.revocations_due = revocations_follow;
                Ok(Heard::Welcome { epoch, seen_from, members })
            }
            _ if self.incarnation.is_none() => Err(SessionError::NotWelcomed),
            FromServer::Members(members) => Ok(Heard::Members(members)),
            FromServer::Push(push) => Ok(Heard::Push(push)),
            FromServer::Revocations(push) => {
                self.revocations_due &= !push.done;
                Ok(Heard::Revocations(push))
            }
            FromServer::OwnGrants { grants, withheld } => Ok(Heard::OwnGrants { grants, withheld }),
            FromServer::Heartbeat => Ok(Heard::Nothing),
        }
    }

    /// The message that brings `report` to the Server, unless it has it or is not ready for it.
    pub(crate) fn report(&mut self, report: &Arc<PeerReport>, now: Now) -> Option<ToServer> {
        if self.incarnation.is_none() || report.seq <= self.reported_seq {
            return None;
        }
        self.reported_seq = report.seq;
        self.last_sent = now;
        Some(ToServer::Report(report.clone()))
    }

    /// The message that brings table F to the Server, if it is ready for it.
    pub(crate) fn links(&mut self, links: &Arc<[LinkRow]>, now: Now) -> Option<ToServer> {
        self.incarnation?;
        self.last_sent = now;
        Some(ToServer::Links(links.clone()))
    }

    /// What time brings: a heartbeat.
    ///
    /// # Errors
    /// Why the session must end.
    pub(crate) fn tick(&mut self, now: Now) -> Result<Option<ToServer>, SessionError> {
        if self.incarnation.is_none() {
            let late = now.since(self.opened) >= WELCOME_WITHIN;
            return if late { Err(SessionError::NoWelcome) } else { Ok(None) };
        }
        if now.since(self.last_heard) >= self.heartbeat.silence {
            return Err(SessionError::Silent(self.heartbeat.silence));
        }
        if now.since(self.last_sent) < self.heartbeat.every {
            return Ok(None);
        }
        self.last_sent = now;
        Ok(Some(ToServer::Heartbeat))
    }

    /// When [`Session::tick`] has something to do.
    pub(crate) fn next_due(&self) -> Now {
        match self.incarnation {
            None => self.opened + WELCOME_WITHIN,
            Some(_) => {
                let speak = self.last_sent + self.heartbeat.every;
                speak.min(self.last_heard + self.heartbeat.silence)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{peer, run, server};

    fn cluster(n: u8) -> ClusterId {
        format!("00000000-0000-4000-8000-0000000000{n:02x}").parse().unwrap()
    }

    fn identity() -> Identity {
        Identity { id: peer(1), incarnation: run(1), cluster_id: cluster(1), epoch: Epoch(1) }
    }

    fn report(seq: u64) -> Arc<PeerReport> {
        Arc::new(PeerReport { seq, ..PeerReport::default() })
    }

    fn at(ms: u64) -> Now {
        Now::from_ms(ms)
    }

    fn opened() -> Session {
        Session::open(identity(), Heartbeat::default(), server(1), report(1), Resume::default(), at(0)).0
    }

    fn hello() -> Hello {
        Hello {
            versions: VERSIONS,
            cluster_id: Some(cluster(1)),
            from: server(1),
            to: Some(peer(1)),
            epoch: Epoch(1),
            recovery_id: None,
            raft_id: 0,
            incarnation: run(7),
            features: 0,
        }
    }

    fn welcome(hello: Hello) -> FromServer {
        let members = MemberTable { version: 1, members: vec![] };
        FromServer::Welcome { hello, seen_from: None, members, revocations_follow: false }
    }

    #[test]
    fn opens_with_who_it_is_and_where_to_resume() {
        let resume = Some(Position { incarnation: run(7), revision: 3 });
        let known = Resume { view: resume, revocations: 4 };
        let (_, open) = Session::open(identity(), Heartbeat::default(), server(1), report(1), known, at(0));
        let ToServer::Open { hello, report, resume: asked, revocations_known } = open else {
            panic!("{open:?}")
        };
        assert_eq!((hello.from, hello.to, report.seq, asked), (peer(1), Some(server(1)), 1, resume));
        assert_eq!(revocations_known, 4);
    }

    #[test]
    fn a_welcome_is_checked() {
        assert!(opened().handle(welcome(hello()), at(1)).is_ok());
        for bad in [
            Hello { cluster_id: Some(cluster(2)), ..hello() },
            Hello { from: server(2), ..hello() },
            Hello { to: Some(peer(2)), ..hello() },
            Hello { epoch: Epoch(0), ..hello() },
            Hello { versions: (9, 9), ..hello() },
        ] {
            let refused = opened().handle(welcome(bad), at(1));
            assert!(matches!(refused, Err(SessionError::Hello(_))), "{refused:?}");
        }
    }

    #[test]
    fn a_higher_epoch_is_followed() {
        let mut session = opened();
        let heard = session.handle(welcome(Hello { epoch: Epoch(2), ..hello() }), at(1));
        assert!(matches!(heard, Ok(Heard::Welcome { epoch: Epoch(2), .. })), "{heard:?}");
        assert_eq!(session.epoch(), Epoch(2));
    }

    #[test]
    fn messages_out_of_turn_end_it() {
        assert_eq!(opened().handle(FromServer::Heartbeat, at(1)), Err(SessionError::NotWelcomed));
        let mut session = opened();
        session.handle(welcome(hello()), at(1)).unwrap();
        assert_eq!(session.handle(welcome(hello()), at(1)), Err(SessionError::WelcomedTwice));
        let end = FromServer::End { code: ErrorCode::Draining, message: "stopping".into() };
        let error = session.handle(end, at(1)).unwrap_err();
        assert_eq!(error.to_string(), "the Server ended the session: stopping (draining)");
    }

    #[test]
    fn speaks_after_3_s_and_gives_up_after_30() {
        let mut session = opened();
        session.handle(welcome(hello()), at(100)).unwrap();
        assert_eq!(session.next_due(), at(3_000));
        assert_eq!(session.tick(at(2_999)), Ok(None));
        assert_eq!(session.tick(at(3_000)), Ok(Some(ToServer::Heartbeat)));
        assert!(session.report(&report(2), at(5_000)).is_some());
        assert_eq!(session.tick(at(7_999)), Ok(None), "a report is as good as a heartbeat");
        assert_eq!(session.tick(at(8_000)), Ok(Some(ToServer::Heartbeat)));
        session.handle(FromServer::Heartbeat, at(20_000)).unwrap();
        assert!(session.tick(at(49_999)).is_ok());
        assert_eq!(session.tick(at(50_000)), Err(SessionError::Silent(Duration::from_secs(30))));
    }

    #[test]
    fn it_is_warned_when_the_announced_revocations_are_there() {
        let mut session = opened();
        let members = MemberTable { version: 1, members: vec![] };
        let follow =
            |hello| FromServer::Welcome { hello, seen_from: None, members, revocations_follow: true };
        session.handle(follow(hello()), at(1)).unwrap();
        let piece = |done| FromServer::Revocations(RevocationPush { keys: vec![], up_to: 1, done });
        for (done, warned) in [(false, false), (true, true), (false, true)] {
            session.handle(piece(done), at(2)).unwrap();
            assert_eq!(session.is_warned(), warned);
        }
        let mut session = opened();
        session.handle(welcome(hello()), at(1)).unwrap();
        assert!(session.is_warned(), "nothing was announced");
    }

    #[test]
    fn waits_10_s_for_the_welcome() {
        let mut session = opened();
        assert_eq!(session.next_due(), at(10_000));
        assert_eq!(session.tick(at(9_999)), Ok(None));
        assert_eq!(session.tick(at(10_000)), Err(SessionError::NoWelcome));
    }

    #[test]
    fn reports_what_is_new_once() {
        let mut session = opened();
        assert_eq!(session.report(&report(2), at(1)), None, "not before the welcome");
        session.handle(welcome(hello()), at(1)).unwrap();
        assert_eq!(session.report(&report(1), at(1)), None);
        assert_eq!(session.report(&report(2), at(1)), Some(ToServer::Report(report(2))));
        assert_eq!(session.report(&report(2), at(1)), None);
    }
}
