//! What mesh links count, for those who watch a Peer.

/// Who dialled a mesh link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkSide {
    /// This Peer.
    Dialled,
    /// The other one.
    Accepted,
}

impl LinkSide {
    /// Both.
    pub const ALL: [LinkSide; 2] = [LinkSide::Dialled, LinkSide::Accepted];

    /// The side in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            LinkSide::Dialled => "dialled",
            LinkSide::Accepted => "accepted",
        }
    }

    pub(super) fn of(slot: Option<usize>) -> Self {
        if slot.is_some() { LinkSide::Dialled } else { LinkSide::Accepted }
    }
}

/// Why an open mesh link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEnding {
    /// The connection broke, the other side closed it, or it took no messages.
    Lost,
    /// Nothing was heard for the offline time.
    Silent,
    /// A newer run or a newer link of the same Peer has taken its place.
    Replaced,
    /// The other side said what it may not.
    Protocol,
    /// Servers say that the Peer has another key.
    OtherKey,
    /// Servers say that its key opens nothing any more.
    Revoked,
}

impl LinkEnding {
    /// Each.
    pub const ALL: [LinkEnding; 6] = [
        LinkEnding::Lost,
        LinkEnding::Silent,
        LinkEnding::Replaced,
        LinkEnding::Protocol,
        LinkEnding::OtherKey,
        LinkEnding::Revoked,
    ];

    /// The reason in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            LinkEnding::Lost => "lost",
            LinkEnding::Silent => "silent",
            LinkEnding::Replaced => "replaced",
            LinkEnding::Protocol => "protocol",
            LinkEnding::OtherKey => "other_key",
            LinkEnding::Revoked => "revoked",
        }
    }
}

/// Counts since the start. Arrays are in the order of [`LinkSide::ALL`] and [`LinkEnding::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MeshCounts {
    /// Links that came about, by side.
    pub opened: [u64; 2],
    /// Links of those that ended, by side and reason.
    pub closed: [[u64; 6]; 2],
    /// Attempts and offers that became no link, by side.
    pub failed: [u64; 2],
    /// REGISTERs sent.
    pub registers_sent: u64,
    /// Those of them that the other side took.
    pub registers_accepted: u64,
    /// Those of them that it refused.
    pub registers_refused: u64,
    /// REGISTERs of others that were taken.
    pub registers_taken: u64,
    /// Those that were refused.
    pub registers_turned_away: u64,
    /// SYNCs sent.
    pub syncs_sent: u64,
    /// SYNCs that came.
    pub syncs_received: u64,
    /// Heartbeats sent.
    pub heartbeats_sent: u64,
    /// Heartbeat times, past the first, that went by without a byte from the other side of an open link.
    pub heartbeats_missed: u64,
    /// Peers forgotten since nothing was heard of them for the offline time.
    pub offline: u64,
}

impl MeshCounts {
    /// Links that are open now, by side.
    pub fn open(&self) -> [u64; 2] {
        [0, 1].map(|side| self.opened[side].saturating_sub(self.closed[side].iter().sum()))
    }

    pub(super) fn closed(&mut self, side: LinkSide, ending: LinkEnding) {
        self.closed[side as usize][ending as usize] += 1;
    }
}
