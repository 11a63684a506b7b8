//! The links to Peers that an operator named (`REMOTE_PEER_ADDR`): opening them, keeping them, and what is told
//! over them.
//!
//! Not here: connections and their handshakes (the shell's), forwards and tunnels, which go beside a link and
//! never over it, and Peers met through Servers (see [`crate::view`]).
//!
//! # Configured addresses
//!
//! ```text
//!           until reached             HELLOs exchanged
//! waiting ────────────────► dialling ──────────────────► open ──┐
//!    ▲  ▲   failed, or 30 s    │  │ it is this Peer's own       │ closed, or silent for 30 s
//!    │  └──────────────────────┘  └──────► left out for good    │
//!    └──────────────────────────────────────────────────────────┘
//! ```
//!
//! Attempts at one address start at least the redial interval apart, the first after a failure sooner, for ever,
//! or until so many in a row have failed as the settings allow. Who answers at an address is known by its certificate alone; behind a load
//! balancer it may be somebody else each time.
//!
//! # Peers
//!
//! Several links may lead to one Peer, some dialled by it, some by this one. What a Peer says replaces what it
//! said before, whichever link brings it; of lists of one run the one with the higher number is newer. While it
//! has an open link it is connected; it is forgotten once nothing was heard of it on any link for the offline
//! time. As long as it is remembered, its Id cannot be linked with another key.
//!
//! # Bounds
//!
//! [`ACCEPTED_MAX`] accepted links: further ones are not taken. [`ACCEPTED_PER_PEER_MAX`] of one Peer: the one
//! that was silent the longest makes room. Lists as in [`p2p_common::wire::link`]: one that is too long, names a
//! service twice or speaks for somebody it may not is refused, and the former one still counts. What is told is
//! cut to what fits.
//!
//! Owner: the agent. Source: SPEC F1-F3, P5.

mod admit;
mod counts;
mod keep;
mod linked;
mod listed;
mod shown;
mod slot;
mod status;

pub use counts::{LinkEnding, LinkSide, MeshCounts};
pub use status::MeshLinkStatus;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::{HostPort, NetInfo};
use p2p_common::grants::Grants;
use p2p_common::push::PeerEntry;
use p2p_common::wire::link::{LinkMessage, TUNNELS_ASKED_MAX, TransitService};
use p2p_common::{ErrorCode, Incarnation, KeyHash, NodeId, Now, UnixMs};

pub(crate) use self::shown::Shown;
use self::slot::Slot;
use crate::moment::Moment;
use crate::revoked::RevokedKeys;
use crate::services::OwnServices;

/// So many links that others opened are taken.
pub const ACCEPTED_MAX: usize = 1_024;
/// So many of them from one Peer.
pub const ACCEPTED_PER_PEER_MAX: usize = 4;
/// The dialler says what it has at least this often.
pub const REGISTER_EVERY: Duration = Duration::from_secs(30);
/// An attempt of which nothing was reported by then has failed.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// Names one mesh link, from its dial or its acceptance to its end. Inputs about a link that is over are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkToken(pub u64);

/// Times of mesh links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkSettings {
    /// A heartbeat is sent after so long without sending anything else on a link.
    pub heartbeat: Duration,
    /// A Peer is offline after so long without a byte from it; longer than `heartbeat`.
    pub offline_after: Duration,
    /// Attempts at an address start at least this far apart.
    pub redial: Duration,
    /// So many attempts in a row may fail before an address is given up; none: it is tried for ever.
    pub redials_max: Option<u32>,
}

impl Default for LinkSettings {
    /// SPEC P5 and F2.
    fn default() -> Self {
        LinkSettings {
            heartbeat: Duration::from_secs(3),
            offline_after: Duration::from_secs(30),
            redial: Duration::from_secs(5),
            redials_max: None,
        }
    }
}

/// A link on which both HELLOs are exchanged and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkOpened {
    /// Who is there, by its certificate.
    pub peer: NodeId,
    /// The key it showed.
    pub key_hash: KeyHash,
    /// Its run, by its HELLO.
    pub incarnation: Incarnation,
    /// The other end as dialled or seen.
    pub address: String,
    /// What its certificate says that it may do.
    pub grants: Arc<Grants>,
}

/// What the links ask of their owner.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MeshEffect {
    Dial {
        link: LinkToken,
        address: HostPort,
    },
    Send {
        link: LinkToken,
        message: LinkMessage,
    },
    Close {
        link: LinkToken,
        reason: String,
    },
    /// Open so many tunnels to `peer`, which it forwards over.
    Offer {
        peer: NodeId,
        count: u32,
    },
    /// What is known of this Peer, or how it is linked, may have changed.
    Changed(NodeId),
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct MeshLinks {
    me: NodeId,
    settings: LinkSettings,
    slots: Vec<Slot>,
    pending: BTreeMap<LinkToken, Pending>,
    open: BTreeMap<LinkToken, OpenLink>,
    peers: BTreeMap<NodeId, LinkedPeer>,
    /// Links of these keys are not taken.
    revoked: Arc<RevokedKeys>,
    shown: Shown,
    last_token: u64,
    counts: MeshCounts,
}

/// An attempt, or a connection that was taken and has not said who it is.
#[derive(Debug)]
struct Pending {
    /// The configured address; none if it was accepted.
    slot: Option<usize>,
    until: Now,
}

#[derive(Debug)]
struct OpenLink {
    peer: NodeId,
    slot: Option<usize>,
    incarnation: Incarnation,
    since: UnixMs,
    address: String,
    last_sent: Now,
    last_heard: Now,
    /// How many heartbeats of the other side are missing since then.
    missed: u64,
    /// When the last REGISTER was sent, or, if accepted, received.
    registered: Option<Now>,
}

#[derive(Debug)]
struct LinkedPeer {
    key_hash: KeyHash,
    /// Its open links.
    links: BTreeSet<LinkToken>,
    last_heard: Now,
    /// Where the last accepted link came from.
    seen_from: Option<IpAddr>,
    listed: Option<Listed>,
    /// What it may do, by the certificate of its last link.
    certified: Arc<Grants>,
    /// What it may do, as the agent found.
    grants: Arc<Grants>,
}

/// What a Peer said last.
#[derive(Debug)]
struct Listed {
    entry: Arc<PeerEntry>,
    transit: Arc<[TransitService]>,
    synced_at: UnixMs,
}

impl MeshLinks {
    pub(crate) fn new(me: NodeId, settings: LinkSettings, addresses: &[HostPort], shown: Shown) -> Self {
        let mut slots: Vec<Slot> = Vec::new();
        for address in addresses {
            if slots.iter().all(|slot| slot.address != *address) {
                slots.push(Slot::new(address.clone()));
            }
        }
        MeshLinks {
            me,
            settings,
            slots,
            pending: BTreeMap::new(),
            open: BTreeMap::new(),
            peers: BTreeMap::new(),
            revoked: Arc::default(),
            shown,
            last_token: 0,
            counts: MeshCounts::default(),
        }
    }

    /// When [`MeshLinks::tick`] is due.
    pub(crate) fn next_due(&self) -> Option<Now> {
        let slots = self.slots.iter().filter_map(Slot::due);
        let pending = self.pending.values().map(|pending| pending.until);
        let open = self.open.values().map(|link| link.due(&self.settings));
        let lapses = self.lapses().map(|(_, due)| due);
        slots.chain(pending).chain(open).chain(lapses).chain(self.shown.due()).min()
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, at: Moment) -> Vec<MeshEffect> {
        let mut effects = Vec::new();
        let late: Vec<LinkToken> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.until <= at.now)
            .map(|(link, _)| *link)
            .collect();
        for link in late {
            let reason = format!("not open within {} s", OPEN_WITHIN.as_secs());
            effects.push(MeshEffect::Close { link, reason: reason.clone() });
            // It never was open: how it ended is of no matter.
            self.on_over(link, (&reason, LinkEnding::Lost), at, &mut effects);
        }
        let links: Vec<LinkToken> = self.open.keys().copied().collect();
        for link in links {
            self.keep(link, at, &mut effects);
        }
        let lapsed: Vec<NodeId> =
            self.lapses().filter(|(_, due)| *due <= at.now).map(|(peer, _)| peer).collect();
        for peer in lapsed {
            self.counts.offline += 1;
            self.forget(peer, at, &mut effects);
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].due().is_some_and(|due| due <= at.now) {
                self.dial(slot, at, &mut effects);
            }
        }
        if self.shown.due().is_some_and(|due| due <= at.now) {
            self.show(at, &mut effects);
        }
        effects
    }

    /// Somebody wants to open a link; none when there are too many.
    pub(crate) fn accept(&mut self, at: Moment) -> Option<LinkToken> {
        let pending = self.pending.values().filter(|pending| pending.slot.is_none()).count();
        let open = self.open.values().filter(|link| link.slot.is_none()).count();
        if pending + open >= ACCEPTED_MAX {
            self.counts.failed[LinkSide::Accepted as usize] += 1;
            return None;
        }
        let link = self.new_token();
        self.pending.insert(link, Pending { slot: None, until: at.now + OPEN_WITHIN });
        Some(link)
    }

    /// Both HELLOs of `link` are exchanged. `pinned` is the key that Servers say the Peer has, if they do.
    pub(crate) fn handle_opened(
        &mut self,
        link: LinkToken,
        opened: LinkOpened,
        pinned: Option<KeyHash>,
        at: Moment,
    ) -> Vec<MeshEffect> {
        let Some(Pending { slot, .. }) = self.pending.remove(&link) else { return Vec::new() };
        let mut effects = Vec::new();
        if let Err(reason) = self.check_opened(&opened, pinned) {
            self.counts.failed[LinkSide::of(slot) as usize] += 1;
            if let Some(slot) = slot {
                if opened.peer == self.me {
                    self.slots[slot].leave_out(&reason, at.unix);
                } else {
                    self.slots[slot].on_failed(&reason, &self.settings, at);
                }
            }
            return vec![MeshEffect::Close { link, reason }];
        }
        let LinkOpened { peer, key_hash, incarnation, address, grants } = opened;
        self.counts.opened[LinkSide::of(slot) as usize] += 1;
        self.make_room(peer, incarnation, slot.is_none(), at, &mut effects);
        let source = address.parse::<SocketAddr>().ok().map(|source| source.ip().to_canonical());
        self.open.insert(
            link,
            OpenLink {
                peer,
                slot,
                incarnation,
                since: at.unix,
                address,
                last_sent: at.now,
                last_heard: at.now,
                missed: 0,
                registered: None,
            },
        );
        let known = self.peers.entry(peer).or_insert(LinkedPeer {
            key_hash,
            links: BTreeSet::new(),
            last_heard: at.now,
            seen_from: None,
            listed: None,
            certified: grants.clone(),
            grants: grants.clone(),
        });
        known.certified = grants;
        known.last_heard = at.now;
        known.links.insert(link);
        match slot {
            Some(slot) => {
                self.slots[slot].on_opened(link, peer, at.unix);
                self.register(link, at, &mut effects);
            }
            None => known.seen_from = source.or(known.seen_from),
        }
        self.on_changed(peer, at, &mut effects);
        effects
    }

    /// Nothing came of `link`.
    pub(crate) fn handle_failed(&mut self, link: LinkToken, error: &str, at: Moment) -> Vec<MeshEffect> {
        let mut effects = Vec::new();
        self.on_over(link, (error, LinkEnding::Lost), at, &mut effects);
        effects
    }

    /// Bytes came over `link`.
    pub(crate) fn handle_heard(&mut self, link: LinkToken, now: Now) {
        let Some(open) = self.open.get_mut(&link) else { return };
        self.counts.heartbeats_missed += open.newly_missed(now, &self.settings);
        open.last_heard = now;
        open.missed = 0;
        if let Some(known) = self.peers.get_mut(&open.peer) {
            known.last_heard = now;
        }
    }

    /// A message came over `link`.
    pub(crate) fn handle_message(
        &mut self,
        link: LinkToken,
        message: LinkMessage,
        at: Moment,
    ) -> Vec<MeshEffect> {
        let mut effects = Vec::new();
        self.handle_heard(link, at.now);
        let Some(open) = self.open.get_mut(&link) else { return effects };
        let (peer, dialled, incarnation) = (open.peer, open.slot, open.incarnation);
        match (message, dialled) {
            (LinkMessage::Heartbeat, _) => {}
            (LinkMessage::Register(list), None) => {
                open.registered = Some(at.now);
                let answer = match self.take(peer, incarnation, list, at, &mut effects) {
                    Ok(count) => {
                        self.counts.registers_taken += 1;
                        LinkMessage::Registered { count }
                    }
                    Err(error) => {
                        self.counts.registers_turned_away += 1;
                        LinkMessage::Refused { code: ErrorCode::BadRequest, text: error.to_string() }
                    }
                };
                self.send(link, answer, at, &mut effects);
                let list = self.list_for(peer);
                self.send(link, LinkMessage::Sync(list), at, &mut effects);
            }
            (LinkMessage::Sync(list), Some(_)) => {
                self.counts.syncs_received += 1;
                if let Err(error) = self.take(peer, incarnation, list, at, &mut effects) {
                    self.close(
                        link,
                        (format!("{peer} told what it may not: {error}"), LinkEnding::Protocol),
                        at,
                        &mut effects,
                    );
                }
            }
            (LinkMessage::Registered { count }, Some(slot)) => {
                self.counts.registers_accepted += 1;
                self.slots[slot].reason = format!("connected; {count} services are known of this Peer there");
            }
            (LinkMessage::Refused { code, text }, Some(slot)) => {
                self.counts.registers_refused += 1;
                self.slots[slot].reason =
                    format!("connected, but services are refused there: {text} ({code})");
            }
            (LinkMessage::OpenTunnels { count }, Some(_)) => {
                let count = count.min(TUNNELS_ASKED_MAX);
                if count > 0 {
                    effects.push(MeshEffect::Offer { peer, count });
                }
            }
            (message, _) => {
                let reason = format!("{peer} sent {} out of turn", name_of(&message));
                self.close(link, (reason, LinkEnding::Protocol), at, &mut effects);
            }
        }
        effects
    }

    /// `link` has ended.
    pub(crate) fn handle_closed(&mut self, link: LinkToken, reason: &str, at: Moment) -> Vec<MeshEffect> {
        let mut effects = Vec::new();
        self.on_over(link, (reason, LinkEnding::Lost), at, &mut effects);
        effects
    }

    /// `count` tunnels from `peer` are needed, which opened its links itself.
    pub(crate) fn ask_for_tunnels(&mut self, peer: NodeId, count: u32, at: Moment) -> Vec<MeshEffect> {
        let mut effects = Vec::new();
        let accepted = self.links_of(peer).filter(|(_, link)| link.slot.is_none());
        let newest = accepted.max_by_key(|(_, link)| link.last_heard).map(|(link, _)| link);
        if let Some(link) = newest.filter(|_| count > 0) {
            let count = count.min(TUNNELS_ASKED_MAX);
            self.send(link, LinkMessage::OpenTunnels { count }, at, &mut effects);
        }
        effects
    }

    /// The own services are now these.
    pub(crate) fn set_own(&mut self, own: Arc<OwnServices>, now: Now) {
        self.shown.own = own;
        self.shown.mark(now);
    }

    /// Table D is now this.
    pub(crate) fn set_net(&mut self, net: NetInfo, now: Now) {
        self.shown.net = net;
        self.shown.mark(now);
    }

    fn dial(&mut self, slot: usize, at: Moment, effects: &mut Vec<MeshEffect>) {
        let link = self.new_token();
        self.slots[slot].on_dialled(at.now);
        self.pending.insert(link, Pending { slot: Some(slot), until: at.now + OPEN_WITHIN });
        effects.push(MeshEffect::Dial { link, address: self.slots[slot].address.clone() });
    }

    fn forget(&mut self, peer: NodeId, at: Moment, effects: &mut Vec<MeshEffect>) {
        self.peers.remove(&peer);
        self.shown.forget(peer);
        self.on_changed(peer, at, effects);
    }

    /// Peers without an open link, and when they are offline.
    fn lapses(&self) -> impl Iterator<Item = (NodeId, Now)> {
        let waiting = self.peers.iter().filter(|(_, known)| known.links.is_empty());
        waiting.map(|(peer, known)| (*peer, known.last_heard + self.settings.offline_after))
    }

    fn links_of(&self, peer: NodeId) -> impl Iterator<Item = (LinkToken, &OpenLink)> {
        let links = self.peers.get(&peer).into_iter().flat_map(|known| &known.links);
        links.filter_map(|link| Some((*link, self.open.get(link)?)))
    }

    fn new_token(&mut self) -> LinkToken {
        self.last_token += 1;
        LinkToken(self.last_token)
    }
}

fn name_of(message: &LinkMessage) -> &'static str {
    match message {
        LinkMessage::Hello(_) => "a second HELLO",
        LinkMessage::Register(_) => "REGISTER",
        LinkMessage::Registered { .. } => "REGISTERED",
        LinkMessage::Refused { .. } => "REFUSED",
        LinkMessage::Sync(_) => "SYNC",
        LinkMessage::Heartbeat => "HEARTBEAT",
        LinkMessage::OpenTunnels { .. } => "OPEN_TUNNELS",
    }
}
