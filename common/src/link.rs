//! Links between nodes as they are reported and shown (the seed's tables F and B).

use std::fmt;

use crate::id::NodeId;
use crate::units::UnixMs;

/// How bytes travel on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathKind {
    /// One side dialled the other.
    Direct,
    /// Both sides opened their NATs at the same time.
    Punched,
    /// Through a Server that cannot read it.
    Relayed,
}

impl PathKind {
    /// The name in tables and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            PathKind::Direct => "direct",
            PathKind::Punched => "punched",
            PathKind::Relayed => "relayed",
        }
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One row of table F: a node's link to another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkRow {
    /// To whom.
    pub id: NodeId,
    /// The path while connected.
    pub path: Option<PathKind>,
    /// The other end as dialled or seen; empty when never connected.
    pub address: String,
    /// Round trip in microseconds, once measured.
    pub rtt_us: Option<u32>,
    /// Payload bytes received over this link.
    pub bytes_in: u64,
    /// Payload bytes sent over this link.
    pub bytes_out: u64,
    /// In this state since.
    pub since: UnixMs,
    /// Open tunnels.
    pub tunnels: u32,
    /// Why on this path, or why not connected.
    pub reason: String,
}

/// At most this many rows in one report; a Peer with more reports the first by Id.
pub const LINKS_PER_REPORT_MAX: usize = 4_096;
/// At most this many bytes of a reason.
pub const REASON_MAX_BYTES: usize = 512;
