//! One configured address: when it is dialled, and how far that is.

use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::{NodeId, Now, UnixMs};

use super::{LinkSettings, LinkToken};
use crate::moment::Moment;

/// Attempts are never closer together, whatever the settings.
const REDIAL_MIN: Duration = Duration::from_millis(100);
/// The first waits, each twice the one before, until the redial interval is reached: two Peers that start together,
/// or one that is restarted, find each other in the time that takes.
const REDIAL_FIRST: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) address: HostPort,
    pub(super) state: SlotState,
    /// Who answered there last.
    pub(super) peer: Option<NodeId>,
    /// In this state since; none before anything happened.
    pub(super) since: Option<UnixMs>,
    pub(super) reason: String,
    /// When the last attempt began.
    dialled_at: Now,
    /// In a row.
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    Waiting {
        until: Now,
    },
    Dialling,
    Open(LinkToken),
    /// Not dialled any more.
    Over,
}

impl Slot {
    pub(super) fn new(address: HostPort) -> Self {
        Slot {
            address,
            state: SlotState::Waiting { until: Now::ZERO },
            peer: None,
            since: None,
            reason: "not dialled yet".into(),
            dialled_at: Now::ZERO,
            failures: 0,
        }
    }

    /// When it is dialled next.
    pub(super) fn due(&self) -> Option<Now> {
        match self.state {
            SlotState::Waiting { until } => Some(until),
            SlotState::Dialling | SlotState::Open(_) | SlotState::Over => None,
        }
    }

    /// The link that is open there.
    pub(super) fn link(&self) -> Option<LinkToken> {
        match self.state {
            SlotState::Open(link) => Some(link),
            SlotState::Waiting { .. } | SlotState::Dialling | SlotState::Over => None,
        }
    }

    pub(super) fn on_dialled(&mut self, now: Now) {
        self.state = SlotState::Dialling;
        self.dialled_at = now;
    }

    pub(super) fn on_opened(&mut self, link: LinkToken, peer: NodeId, unix: UnixMs) {
        self.state = SlotState::Open(link);
        self.peer = Some(peer);
        self.failures = 0;
        self.since = Some(unix);
        self.reason = "connected".into();
    }

    pub(super) fn on_failed(&mut self, reason: &str, settings: &LinkSettings, at: Moment) {
        self.failures = self.failures.saturating_add(1);
        self.since.get_or_insert(at.unix);
        self.reason = reason.to_owned();
        if settings.redials_max.is_some_and(|max| self.failures > max) {
            self.reason = format!("given up after {} attempts: {reason}", self.failures);
            self.state = SlotState::Over;
        } else {
            self.wait(settings, at.now);
        }
    }

    pub(super) fn on_closed(&mut self, reason: &str, settings: &LinkSettings, at: Moment) {
        self.since = Some(at.unix);
        self.reason = reason.to_owned();
        self.wait(settings, at.now);
    }

    /// It leads to this Peer itself.
    pub(super) fn leave_out(&mut self, reason: &str, unix: UnixMs) {
        self.state = SlotState::Over;
        self.peer = None;
        self.since = Some(unix);
        self.reason = format!("left out: {reason}");
    }

    /// A link that lasted is opened anew at once. Where attempts are counted, they are as far apart as the settings
    /// say from the first on.
    fn wait(&mut self, settings: &LinkSettings, now: Now) {
        let apart = match self.failures {
            failures @ 1.. if settings.redials_max.is_none() => {
                settings.redial.min(REDIAL_FIRST * 2u32.saturating_pow(failures - 1).min(1 << 10))
            }
            _ => settings.redial,
        };
        let until = now.max(self.dialled_at + apart.max(REDIAL_MIN));
        self.state = SlotState::Waiting { until };
    }
}
