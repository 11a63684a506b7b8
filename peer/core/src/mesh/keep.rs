//! What happens on open links: what is sent when, what a received list means, and their end.

use std::sync::Arc;

use p2p_common::push::PeerEntry;
use p2p_common::wire::link::{LinkMessage, ServiceList};
use p2p_common::{Incarnation, NodeId, Now};

use super::{
    LinkEnding, LinkSettings, LinkSide, LinkToken, Listed, MeshEffect, MeshLinks, OpenLink, REGISTER_EVERY,
    listed,
};
use crate::moment::Moment;

impl MeshLinks {
    /// Ends `link` if it is silent, else says what is due on it.
    pub(super) fn keep(&mut self, link: LinkToken, at: Moment, effects: &mut Vec<MeshEffect>) {
        let Some(open) = self.open.get_mut(&link) else { return };
        self.counts.heartbeats_missed += open.newly_missed(at.now, &self.settings);
        if open.due(&self.settings) > at.now {
            return;
        }
        if at.now >= open.last_heard + self.settings.offline_after {
            let reason = format!("nothing heard for {} s", self.settings.offline_after.as_secs());
            self.close(link, (reason, LinkEnding::Silent), at, effects);
        } else if open.slot.is_some() && open.registered.is_none_or(|last| at.now >= last + REGISTER_EVERY) {
            self.register(link, at, effects);
        } else {
            self.send(link, LinkMessage::Heartbeat, at, effects);
        }
    }

    pub(super) fn register(&mut self, link: LinkToken, at: Moment, effects: &mut Vec<MeshEffect>) {
        let Some(open) = self.open.get_mut(&link) else { return };
        open.registered = Some(at.now);
        let peer = open.peer;
        let list = self.list_for(peer);
        self.send(link, LinkMessage::Register(list), at, effects);
    }

    pub(super) fn send(
        &mut self,
        link: LinkToken,
        message: LinkMessage,
        at: Moment,
        effects: &mut Vec<MeshEffect>,
    ) {
        if let Some(open) = self.open.get_mut(&link) {
            match &message {
                LinkMessage::Register(_) => self.counts.registers_sent += 1,
                LinkMessage::Sync(_) => self.counts.syncs_sent += 1,
                LinkMessage::Heartbeat => self.counts.heartbeats_sent += 1,
                _ => {}
            }
            open.last_sent = at.now;
            effects.push(MeshEffect::Send { link, message });
        }
    }

    pub(super) fn close(
        &mut self,
        link: LinkToken,
        (reason, ending): (String, LinkEnding),
        at: Moment,
        effects: &mut Vec<MeshEffect>,
    ) {
        effects.push(MeshEffect::Close { link, reason: reason.clone() });
        self.on_over(link, (&reason, ending), at, effects);
    }

    /// `link` is no more, however that came.
    pub(super) fn on_over(
        &mut self,
        link: LinkToken,
        (reason, ending): (&str, LinkEnding),
        at: Moment,
        effects: &mut Vec<MeshEffect>,
    ) {
        let (open, pending) = (self.open.remove(&link), self.pending.remove(&link));
        match (&open, &pending) {
            (Some(open), _) => self.counts.closed(LinkSide::of(open.slot), ending),
            (None, Some(pending)) => self.counts.failed[LinkSide::of(pending.slot) as usize] += 1,
            (None, None) => {}
        }
        let slot = pending.map_or(open.as_ref().and_then(|open| open.slot), |of| of.slot);
        if let Some(slot) = slot {
            match open {
                Some(_) => self.slots[slot].on_closed(reason, &self.settings, at),
                None => self.slots[slot].on_failed(reason, &self.settings, at),
            }
        }
        if let Some(open) = open {
            if let Some(known) = self.peers.get_mut(&open.peer) {
                known.links.remove(&link);
            }
            self.on_changed(open.peer, at, effects);
        }
    }

    /// Takes what a Peer says; returns how many services are known of it now.
    pub(super) fn take(
        &mut self,
        peer: NodeId,
        incarnation: Incarnation,
        list: ServiceList,
        at: Moment,
        effects: &mut Vec<MeshEffect>,
    ) -> Result<u32, listed::ListError> {
        listed::check(&list, peer, self.me)?;
        let Some(known) = self.peers.get_mut(&peer) else { return Ok(0) };
        let ServiceList { report, transit } = list;
        let before = known.listed.as_ref();
        // A list that another link brought may have overtaken this one.
        let stale = before.is_some_and(|before| {
            before.entry.incarnation == incarnation && before.entry.report.seq > report.seq
        });
        if !stale {
            let report = Arc::unwrap_or_clone(report);
            let entry = PeerEntry {
                id: peer,
                incarnation,
                key_hash: known.key_hash,
                grants: Arc::default(),
                grants_revision: 0,
                report,
            };
            let entry = match before.filter(|before| *before.entry == entry) {
                Some(before) => before.entry.clone(),
                None => Arc::new(entry),
            };
            known.listed = Some(Listed { entry, transit: transit.into(), synced_at: at.unix });
            self.on_changed(peer, at, effects);
        }
        let count = self.peers.get(&peer).and_then(|known| known.listed.as_ref());
        let count = count.map_or(0, |listed| listed.entry.report.services.len() + listed.transit.len());
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    pub(super) fn on_changed(&mut self, peer: NodeId, at: Moment, effects: &mut Vec<MeshEffect>) {
        effects.push(MeshEffect::Changed(peer));
        if self.shown.transit {
            self.shown.mark(at.now);
        }
    }
}

impl OpenLink {
    /// How many heartbeats are missing that were not the last time. The first is late by its way to here.
    pub(super) fn newly_missed(&mut self, now: Now, settings: &LinkSettings) -> u64 {
        let silent_ms = now.since(self.last_heard).as_millis();
        let missed = silent_ms.checked_div(settings.heartbeat.as_millis()).unwrap_or(0).saturating_sub(1);
        let missed = u64::try_from(missed).unwrap_or(u64::MAX);
        let newly = missed.saturating_sub(self.missed);
        self.missed += newly;
        newly
    }

    /// When something must be done about it.
    pub(super) fn due(&self, settings: &LinkSettings) -> Now {
        let speak = self.last_sent + settings.heartbeat;
        let silent = self.last_heard + settings.offline_after;
        let register = self.slot.map(|_| self.registered.map_or(Now::ZERO, |last| last + REGISTER_EVERY));
        speak.min(silent).min(register.unwrap_or(silent))
    }
}
