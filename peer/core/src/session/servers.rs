//! With which Servers there is a session: all of table C, found through the configured ones (SPEC P1, P6).
//!
//! Every wanted Server has a slot that dials, holds its [`Session`], and dials again for ever:
//!
//! ```text
//!            until reached              stream opened
//! waiting ────────────────► dialling ────────────────► live
//!    ▲   ▲   failed, or 30 s   │                         │
//!    │   └─────────────────────┘                         │
//!    └──────────── back-off with jitter ─────────────────┘ ended
//! ```
//!
//! Slots of members carry an Id and come and go with table C, of which the newest version counts. Slots of
//! configured addresses do not know who answers there: when somebody does, the session moves to that Server's
//! slot. They dial until table C is known, and again when no session is up for 10 s: should every address in
//! table C have become wrong, the configured ones still lead back.
//!
//! A higher epoch begins a new history: sessions in the lower one end, and the first table C of the new one
//! counts whatever its version.
//!
//! A Server that answers at two addresses gets one session; the later stream is closed. A Server that is not
//! in table C gets none. Owner: the agent.

mod effect;
mod known;
mod slot;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::backoff::Jitter;
use p2p_common::link::LinkRow;
use p2p_common::member::MEMBERS_MAX;
use p2p_common::push::PeerReport;
use p2p_common::{Epoch, ErrorCode, Incarnation, NodeId, Now};

pub(crate) use effect::Effect;
pub use known::{DialServer, KnownServer};
use slot::{Key, Phase, Slot};

use super::{
    FromServer, Heard, Heartbeat, Identity, MemberTable, Resume, Session, SessionError, SessionToken,
    ToServer,
};
use crate::revoked::RevokedKeys;

/// A session that was open this long was no failure.
const LASTED: Duration = Duration::from_secs(10);
/// A dial that nobody reported on by then is taken for failed.
const DIAL_MAX: Duration = Duration::from_secs(30);
/// Without any session for so long the configured addresses are dialled besides table C.
const INTRODUCE_AFTER: Duration = Duration::from_secs(10);

/// All slots.
#[derive(Debug)]
pub(crate) struct Servers {
    identity: Identity,
    heartbeat: Heartbeat,
    slots: BTreeMap<Key, Slot>,
    members: Option<MemberTable>,
    /// The epoch `members` is of.
    members_epoch: Epoch,
    /// Servers of these keys are none.
    revoked: Arc<RevokedKeys>,
    last_token: u64,
    /// Since when no session is up; none while one is.
    alone_since: Option<Now>,
    jitter: Jitter,
}

impl Servers {
    pub(crate) fn new(
        identity: Identity,
        heartbeat: Heartbeat,
        introducers: &[HostPort],
        seed: u64,
        now: Now,
    ) -> Self {
        let slot =
            |addr: &HostPort| (Key::Introducer(addr.clone()), Slot::new(vec![addr.clone()], None, now));
        Servers {
            identity,
            heartbeat,
            slots: introducers.iter().map(slot).collect(),
            members: None,
            members_epoch: identity.epoch,
            revoked: Arc::default(),
            last_token: 0,
            alone_since: Some(now),
            jitter: Jitter::new(seed),
        }
    }

    /// Dials these, too, which an earlier run knew. The first table C of this run says which of them there still are.
    pub(crate) fn remember(&mut self, known: Vec<KnownServer>, now: Now) {
        for server in known.into_iter().take(MEMBERS_MAX) {
            let slot = Slot::new(server.addresses, Some(server.key_hash), now);
            self.slots.entry(Key::Member(server.id)).or_insert(slot);
        }
    }

    /// Whoever is not reached is dialled now: what kept this Peer out may be over.
    pub(crate) fn hurry(&mut self, now: Now) {
        for slot in self.slots.values_mut() {
            if let Phase::Waiting { until } = &mut slot.phase {
                slot.backoff.reset();
                *until = now;
            }
        }
    }

    /// Table C, once a Server told it.
    pub(crate) fn members(&self) -> Option<&MemberTable> {
        self.members.as_ref()
    }

    /// The Servers with a session that is up.
    pub(crate) fn up(&self) -> impl Iterator<Item = NodeId> {
        self.slots.iter().filter(|(_, slot)| slot.is_up()).filter_map(|(key, _)| key.member())
    }

    /// Whether a stream to `server` is open, welcomed or not.
    pub(crate) fn has_stream(&self, server: NodeId) -> bool {
        let slot = self.slots.get(&Key::Member(server));
        matches!(slot.map(|slot| &slot.phase), Some(Phase::Live { .. }))
    }

    /// The run of `server`, while a session with it is up.
    pub(crate) fn incarnation(&self, server: NodeId) -> Option<Incarnation> {
        match &self.slots.get(&Key::Member(server))?.phase {
            Phase::Live { session, .. } => session.incarnation(),
            Phase::Waiting { .. } | Phase::Dialling { .. } => None,
        }
    }

    /// Configured addresses with why there is no session through them.
    pub(crate) fn introducers(&self) -> impl Iterator<Item = (&HostPort, &str)> {
        self.slots.iter().filter_map(|(key, slot)| match key {
            Key::Introducer(addr) => Some((addr, slot.reason.as_str())),
            Key::Member(_) => None,
        })
    }

    /// Whether any Server is configured or known.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Since when no session is up; none while one is.
    pub(crate) fn alone_since(&self) -> Option<Now> {
        self.alone_since
    }

    /// Which Server an attempt is about; none when the attempt is over or nobody has answered yet.
    pub(crate) fn server_of(&self, token: SessionToken) -> Option<NodeId> {
        self.key_of(token).and_then(|key| key.member())
    }

    /// Servers of these keys have no session and are dialled no more.
    pub(crate) fn set_revoked(&mut self, revoked: Arc<RevokedKeys>, now: Now) -> Vec<Effect> {
        self.revoked = revoked;
        let mut effects = Vec::new();
        if let Some(mut table) = self.members.take() {
            let before = table.members.len();
            table.members.retain(|member| !self.revoked.contains_key(&member.key_hash));
            let fewer = table.members.len() != before;
            self.members = Some(table);
            if fewer {
                effects.push(Effect::Members);
                self.drop_strangers(now, &mut effects);
            }
        } else {
            // Of an earlier run; nobody has told table C yet.
            self.slots.retain(|_, slot| {
                let revoked = slot.key_hash.is_some_and(|key| self.revoked.contains_key(&key));
                if revoked && let Some(token) = slot.token() {
                    effects.push(Effect::Close(token, "its key is revoked".into()));
                }
                !revoked
            });
        }
        effects
    }

    /// Whether a session with `server` is up, and has told which keys are revoked.
    pub(crate) fn is_warned(&self, server: NodeId) -> bool {
        let slot = self.slots.get(&Key::Member(server));
        matches!(slot.map(|slot| &slot.phase), Some(Phase::Live { session, .. }) if session.is_warned())
    }

    /// The epoch the Servers live in.
    pub(crate) fn epoch(&self) -> Epoch {
        self.identity.epoch
    }

    /// `server` answered at `address` and the stream is open. `resume` is asked only if the session begins.
    pub(crate) fn handle_opened(
        &mut self,
        (token, server, address): (SessionToken, NodeId, String),
        report: &Arc<PeerReport>,
        resume: impl FnOnce() -> Resume,
        now: Now,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let key = match self.key_of(token) {
            Some(key) if matches!(self.slots[&key].phase, Phase::Dialling { .. }) => key,
            _ => return vec![Effect::Close(token, "the attempt is over".into())],
        };
        match key {
            Key::Member(wanted) if wanted != server => {
                let reason = format!("{address} answers as {server}, not as {wanted}");
                self.end(token, reason, now, &mut effects);
                return effects;
            }
            Key::Member(_) => {}
            Key::Introducer(addr) => {
                self.put_off(&Key::Introducer(addr.clone()), format!("leads to {server}"), now);
                let target =
                    self.slots.entry(Key::Member(server)).or_insert_with(|| Slot::new(vec![], None, now));
                target.introduced_at = Some(addr);
                match target.phase {
                    Phase::Live { .. } => {
                        let reason = format!("there is a session with {server} already");
                        return vec![Effect::Close(token, reason)];
                    }
                    Phase::Dialling { token, .. } => {
                        effects.push(Effect::Close(token, "another address answered first".into()));
                    }
                    Phase::Waiting { .. } => {}
                }
            }
        }
        let (session, open) =
            Session::open(self.identity, self.heartbeat, server, report.clone(), resume(), now);
        let slot =
            self.slots.get_mut(&Key::Member(server)).expect("either branch leaves a slot of the member");
        slot.phase = Phase::Live { token, session, address };
        effects.push(Effect::Send(token, open));
        effects
    }

    /// A message of the Server of attempt `token`.
    pub(crate) fn handle_message(
        &mut self,
        token: SessionToken,
        message: FromServer,
        report: &Arc<PeerReport>,
        now: Now,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(server) = self.server_of(token) else { return effects };
        let Some(slot) = self.slots.get_mut(&Key::Member(server)) else { return effects };
        let Phase::Live { session, address, .. } = &mut slot.phase else { return effects };
        match session.handle(message, now) {
            Ok(Heard::Nothing) => {}
            Ok(Heard::Push(push)) => {
                let incarnation = session.incarnation().expect("pushes are heard after the welcome only");
                effects.push(Effect::Push { server, incarnation, push });
            }
            Ok(Heard::Revocations(push)) => {
                effects.push(Effect::Revocations { epoch: session.epoch(), push })
            }
            Ok(Heard::OwnGrants { grants, withheld }) => {
                effects.push(Effect::OwnGrants { server, grants, withheld });
            }
            Ok(Heard::Members(members)) => self.take_members(members, now, &mut effects),
            Ok(Heard::Welcome { epoch, seen_from, members }) => {
                let address = address.clone();
                self.alone_since = None;
                slot.reason.clear();
                effects.push(Effect::Welcomed { session: token, server, address, seen_from });
                effects.extend(session.report(report, now).map(|message| Effect::Send(token, message)));
                self.follow(epoch, now, &mut effects);
                self.take_members(members, now, &mut effects);
            }
            Err(error) => {
                if let SessionError::Ended { code: ErrorCode::Revoked, message } = &error {
                    effects.push(Effect::ThrownOut(message.clone()));
                }
                self.end(token, error.to_string(), now, &mut effects);
            }
        }
        effects
    }

    /// Attempt `token` failed or its stream ended, seen by the shell.
    pub(crate) fn handle_closed(&mut self, token: SessionToken, reason: String, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.end(token, reason, now, &mut effects);
        // The shell has closed it already.
        effects.retain(|effect| !matches!(effect, Effect::Close(..)));
        effects
    }

    /// Ends the session with `server` because of what came over it.
    pub(crate) fn reject(&mut self, server: NodeId, reason: String, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        let token = self.slots.get(&Key::Member(server)).and_then(Slot::token);
        if let Some(token) = token {
            self.end(token, reason, now, &mut effects);
        }
        effects
    }

    /// Tells every Server that does not have `report` yet.
    pub(crate) fn send_report(&mut self, report: &Arc<PeerReport>, now: Now) -> Vec<Effect> {
        self.send_each(|session| session.report(report, now))
    }

    /// Tells every Server table F.
    pub(crate) fn send_links(&mut self, links: &Arc<[LinkRow]>, now: Now) -> Vec<Effect> {
        self.send_each(|session| session.links(links, now))
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        let keys: Vec<Key> = self.slots.keys().cloned().collect();
        for key in keys {
            if self.due(&key).is_none_or(|due| due > now) {
                continue;
            }
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            match &mut slot.phase {
                Phase::Waiting { .. } => {
                    self.last_token += 1;
                    let token = SessionToken(self.last_token);
                    slot.phase = Phase::Dialling { token, until: now + DIAL_MAX };
                    effects.push(Effect::Dial(DialServer {
                        session: token,
                        server: key.member(),
                        key_hash: slot.key_hash,
                        addresses: slot.dialled(),
                    }));
                }
                Phase::Dialling { token, .. } => {
                    let (token, reason) = (*token, format!("no answer within {} s", DIAL_MAX.as_secs()));
                    self.end(token, reason, now, &mut effects);
                }
                Phase::Live { token, session, .. } => {
                    let token = *token;
                    match session.tick(now) {
                        Ok(message) => effects.extend(message.map(|message| Effect::Send(token, message))),
                        Err(error) => self.end(token, error.to_string(), now, &mut effects),
                    }
                }
            }
        }
        effects
    }

    /// When [`Servers::tick`] has something to do.
    pub(crate) fn next_due(&self) -> Option<Now> {
        self.slots.keys().filter_map(|key| self.due(key)).min()
    }

    fn due(&self, key: &Key) -> Option<Now> {
        match &self.slots.get(key)?.phase {
            Phase::Waiting { until } => match key {
                Key::Member(_) => Some(*until),
                Key::Introducer(_) if self.members.is_none() => Some(*until),
                Key::Introducer(_) => Some((*until).max(self.alone_since? + INTRODUCE_AFTER)),
            },
            Phase::Dialling { until, .. } => Some(*until),
            Phase::Live { session, .. } => Some(session.next_due()),
        }
    }

    /// Moves on to `epoch` if it is a higher one.
    fn follow(&mut self, epoch: Epoch, now: Now, effects: &mut Vec<Effect>) {
        if epoch <= self.identity.epoch {
            return;
        }
        self.identity.epoch = epoch;
        effects.push(Effect::Epoch(epoch));
        let left_behind = |slot: &Slot| match &slot.phase {
            Phase::Live { token, session, .. } if session.epoch() < epoch => Some(*token),
            _ => None,
        };
        let tokens: Vec<SessionToken> = self.slots.values().filter_map(left_behind).collect();
        for token in tokens {
            self.end(token, format!("the cluster has moved on to epoch {epoch}"), now, effects);
        }
    }

    /// Takes a table C if it is newer than what is known.
    fn take_members(&mut self, mut table: MemberTable, now: Now, effects: &mut Vec<Effect>) {
        table.members.truncate(MEMBERS_MAX);
        table.members.retain(|member| !self.revoked.contains_key(&member.key_hash));
        let is_newer =
            |known: &MemberTable| (self.identity.epoch, table.version) > (self.members_epoch, known.version);
        if self.members.as_ref().is_none_or(is_newer) {
            self.members_epoch = self.identity.epoch;
            for member in &table.members {
                let slot =
                    self.slots.entry(Key::Member(member.id)).or_insert_with(|| Slot::new(vec![], None, now));
                let moved = slot.addresses != member.addresses || slot.key_hash != Some(member.key_hash);
                slot.addresses.clone_from(&member.addresses);
                slot.key_hash = Some(member.key_hash);
                if let Phase::Waiting { until } = &mut slot.phase
                    && moved
                {
                    slot.backoff.reset();
                    *until = now;
                }
            }
            self.members = Some(table);
            effects.push(Effect::Members);
        }
        // Not only on a change: a removed Server may just have been reached through a configured address.
        self.drop_strangers(now, effects);
    }

    /// Ends the sessions with those that are not in table C.
    fn drop_strangers(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let known = self.members.iter().flat_map(|table| &table.members).map(|member| member.id);
        let known: Vec<NodeId> = known.collect();
        let strangers: Vec<NodeId> =
            self.slots.keys().filter_map(Key::member).filter(|id| !known.contains(id)).collect();
        for id in strangers {
            // One that just answered and has not said its table C yet may be newer than the one known here.
            if matches!(&self.slots[&Key::Member(id)].phase, Phase::Live { session, .. } if session.incarnation().is_none())
            {
                continue;
            }
            let slot = self.slots.remove(&Key::Member(id)).expect("the key was just listed");
            if let Some(token) = slot.token() {
                effects.push(Effect::Close(token, format!("{id} is not in the table of Servers")));
            }
            effects.push(Effect::Left(id));
        }
        self.note_up(now);
    }

    /// Ends attempt `token`, whatever its phase.
    fn end(&mut self, token: SessionToken, reason: String, now: Now, effects: &mut Vec<Effect>) {
        let Some(key) = self.key_of(token) else { return };
        let slot = self.slots.get_mut(&key).expect("the key was just found");
        if let Phase::Live { session, .. } = &slot.phase
            && session.age(now) >= LASTED
        {
            slot.backoff.reset();
        }
        slot.phase = Phase::Waiting { until: now + slot.backoff.fail(&mut self.jitter) };
        slot.reason.clone_from(&reason);
        effects.push(Effect::Close(token, reason.clone()));
        if let Some(server) = key.member() {
            effects.push(Effect::Down { server, reason });
            // Found through a configured address, and not known from table C: that address finds it again.
            if slot.addresses.is_empty() {
                self.slots.remove(&key);
            }
        }
        self.note_up(now);
    }

    /// A configured address led somewhere: it rests until it is needed again.
    fn put_off(&mut self, key: &Key, reason: String, now: Now) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.phase = Phase::Waiting { until: now + INTRODUCE_AFTER };
            slot.backoff.reset();
            slot.reason = reason;
        }
    }

    fn note_up(&mut self, now: Now) {
        let up = self.up().next().is_some();
        self.alone_since = if up { None } else { self.alone_since.or(Some(now)) };
    }

    fn send_each(&mut self, message: impl Fn(&mut Session) -> Option<ToServer>) -> Vec<Effect> {
        let sent = |slot: &mut Slot| match &mut slot.phase {
            Phase::Live { token, session, .. } => Some(Effect::Send(*token, message(session)?)),
            Phase::Waiting { .. } | Phase::Dialling { .. } => None,
        };
        self.slots.values_mut().filter_map(sent).collect()
    }

    fn key_of(&self, token: SessionToken) -> Option<Key> {
        self.slots.iter().find(|(_, slot)| slot.token() == Some(token)).map(|(key, _)| key.clone())
    }
}

#[cfg(test)]
mod tests;
