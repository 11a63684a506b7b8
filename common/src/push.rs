//! What Peers report and what Servers push: [`PeerReport`] goes up, [`PeerEntry`] (a row of the seed's
//! tables A and E) comes down.

use std::sync::Arc;

use crate::addr::NetInfo;
use crate::grants::Grants;
use crate::id::{Incarnation, KeyHash, NodeId};
use crate::revision::Push;
use crate::service::ServiceOffer;

/// One message of table E from a Server to a Peer, keyed by the Peer's Id.
pub type PeerPush = Push<NodeId, Arc<PeerEntry>>;

/// What a Peer says of itself, whole at each change. The Peer alone stamps `seq` (SPEC R7).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerReport {
    /// Raised by the Peer with every change within its incarnation.
    pub seq: u64,
    /// What people call it.
    pub name: String,
    /// Its room or region; empty when not set.
    pub zone: String,
    /// Its own network (table D).
    pub net: NetInfo,
    /// What it offers to others.
    pub services: Vec<ServiceOffer>,
}

/// A Peer as Servers keep it and push it to other Peers. Ordered by (incarnation, seq): newer wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerEntry {
    /// Its Id; starts with `C`.
    pub id: NodeId,
    /// Its run.
    pub incarnation: Incarnation,
    /// The key its certificates must carry (SPEC I6).
    pub key_hash: KeyHash,
    /// What it may do, as the Servers know it (SPEC I8).
    pub grants: Arc<Grants>,
    /// The number of their last change: of two Servers' word the higher one counts.
    pub grants_revision: u64,
    /// What it said last.
    pub report: PeerReport,
}

impl PeerReport {
    /// About how many bytes it takes on a wire or in memory; for bounds and the size of pieces.
    pub fn estimated_bytes(&self) -> usize {
        let candidates = self.net.candidates.iter().map(|c| CANDIDATE_BYTES + c.addr.host().len());
        let services = self.services.iter().map(ServiceOffer::estimated_bytes);
        let lists = candidates.sum::<usize>() + services.sum::<usize>();
        self.name.len() + self.zone.len() + lists
    }
}

/// What a candidate takes besides its host: tags, lengths, port.
const CANDIDATE_BYTES: usize = 16;
/// What an entry takes besides its report: Id, run, key and lengths.
const ENTRY_BYTES: usize = 128;

impl PeerEntry {
    /// About how many bytes it takes on a wire or in memory.
    pub fn estimated_bytes(&self) -> usize {
        ENTRY_BYTES + self.grants.bytes() + self.report.estimated_bytes()
    }

    /// Orders two entries of one Peer: the greater one is newer.
    pub fn version(&self) -> (Incarnation, u64) {
        (self.incarnation, self.report.seq)
    }
}

/// A key that opens nothing any more, as Peers are told of it (SPEC I7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RevokedKey {
    /// Its place among the revocations of the epoch; 0 is an emergency, which is not replicated yet.
    pub number: u64,
    /// Whose it was.
    pub id: NodeId,
    /// The key.
    pub key_hash: KeyHash,
}

/// Some revocations, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationPush {
    /// At most [`RevocationPush::KEYS_MAX`].
    pub keys: Vec<RevokedKey>,
    /// Who has this piece and those before it knows every revocation up to this number.
    pub up_to: u64,
    /// Nothing more follows for now.
    pub done: bool,
}

impl RevocationPush {
    /// The most keys in one piece.
    pub const KEYS_MAX: usize = 256;
}
