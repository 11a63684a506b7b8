//! When a session is due a heartbeat, and when its Peer counts as offline (SPEC P5).
//!
//! ```text
//! sent nothing for `every`      -> a heartbeat is due, until something is sent
//! heard nothing for `silence`   -> offline
//! ```
//!
//! Data counts as a heartbeat in both directions; a heartbeat due on a session whose reader is slow is not sent,
//! since what waits there serves as well.

use std::collections::BTreeMap;
use std::time::Duration;

use p2p_common::Now;

use crate::session::SessionId;

/// After this long without other data a heartbeat is sent, unless configured.
pub const HEARTBEAT: Duration = Duration::from_secs(3);
/// After this long of silence a Peer is offline, unless configured: ten heartbeats.
pub const SILENCE: Duration = Duration::from_secs(30);

/// When each session was last used.
#[derive(Debug)]
pub struct Heartbeats {
    every: Duration,
    silence: Duration,
    sessions: BTreeMap<SessionId, LastUse>,
}

#[derive(Debug, Clone, Copy)]
struct LastUse {
    sent: Now,
    heard: Now,
}

impl Heartbeats {
    /// Watches no session yet.
    pub fn new(every: Duration, silence: Duration) -> Self {
        Heartbeats { every, silence, sessions: BTreeMap::new() }
    }

    /// A session begins: it was heard, and its welcome is sent.
    pub fn open(&mut self, session: SessionId, now: Now) {
        self.sessions.insert(session, LastUse { sent: now, heard: now });
    }

    /// A session ended.
    pub fn close(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    /// Something was sent.
    pub fn sent(&mut self, session: SessionId, now: Now) {
        if let Some(last) = self.sessions.get_mut(&session) {
            last.sent = now;
        }
    }

    /// Something was heard.
    pub fn heard(&mut self, session: SessionId, now: Now) {
        if let Some(last) = self.sessions.get_mut(&session) {
            last.heard = now;
        }
    }

    /// Whether a heartbeat is due.
    pub fn is_due(&self, session: SessionId, now: Now) -> bool {
        self.sessions.get(&session).is_some_and(|last| now.since(last.sent) >= self.every)
    }

    /// The sessions on which a heartbeat is due.
    pub fn due(&self, now: Now) -> impl Iterator<Item = SessionId> {
        let due = move |last: &LastUse| now.since(last.sent) >= self.every;
        self.sessions.iter().filter(move |(_, last)| due(last)).map(|(session, _)| *session)
    }

    /// The sessions that are offline, and for how long nothing was heard.
    pub fn silent(&self, now: Now) -> impl Iterator<Item = (SessionId, Duration)> {
        let silence = move |last: &LastUse| Some(now.since(last.heard)).filter(|d| *d >= self.silence);
        self.sessions.iter().filter_map(move |(session, last)| Some((*session, silence(last)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_puts_heartbeats_off_and_silence_ends_sessions() {
        let mut beats = Heartbeats::new(HEARTBEAT, SILENCE);
        let (quiet, busy) = (SessionId(1), SessionId(2));
        beats.open(quiet, Now::ZERO);
        beats.open(busy, Now::ZERO);
        let at = Now::from_ms;
        assert_eq!(beats.due(at(2_999)).count(), 0);
        beats.sent(busy, at(2_000));
        beats.heard(busy, at(20_000));
        assert_eq!(beats.due(at(3_000)).collect::<Vec<_>>(), [quiet]);
        assert!(beats.is_due(quiet, at(3_000)) && !beats.is_due(busy, at(4_999)));
        assert!(beats.is_due(busy, at(5_000)));
        assert_eq!(beats.silent(at(29_999)).count(), 0);
        assert_eq!(beats.silent(at(30_000)).collect::<Vec<_>>(), [(quiet, Duration::from_secs(30))]);
        assert_eq!(beats.silent(at(50_000)).count(), 2);
        beats.close(quiet);
        beats.close(busy);
        beats.heard(busy, at(0));
        assert_eq!((beats.silent(at(99_000)).count(), beats.due(at(99_000)).count()), (0, 0));
        assert!(!beats.is_due(quiet, at(99_000)));
    }
}
