//! Messages of a mesh link: one long-lived connection between two Peers that one of them was told to open
//! (SPEC F2).
//!
//! On the wire each is a frame: a 4-byte big-endian length and a protobuf message. HELLO comes first in both
//! directions. From then on the dialler tells its services, the acceptor answers and tells its own:
//!
//! ```text
//! dialler  -> acceptor  HELLO
//! acceptor -> dialler   HELLO
//! dialler  -> acceptor  REGISTER(list)                  at once, again every 30 s and at each change
//! acceptor -> dialler   REGISTERED(count) SYNC(list)    or REFUSED(code, text) SYNC(list)
//! acceptor -> dialler   SYNC(list)                      at each change
//! acceptor -> dialler   OPEN_TUNNELS(count)             when it needs tunnels to the dialler
//! both                  HEARTBEAT                       after 3 s without anything else
//! ```
//!
//! A HELLO that does not fit is answered by REFUSED and the end of the connection. A list replaces what its
//! sender said before.

use std::sync::Arc;

use crate::error::ErrorCode;
use crate::id::NodeId;
use crate::push::PeerReport;
use crate::service::ServiceOffer;
use crate::wire::Hello;

/// Bytes of the length in front of every frame.
pub const LENGTH_BYTES: usize = 4;
/// The largest frame; a longer one ends the link.
pub const FRAME_MAX_BYTES: usize = 1024 * 1024;
/// At most this many services in [`ServiceList::transit`].
pub const TRANSIT_MAX: usize = 4_096;
/// A list is built with at most so many estimated bytes, so that its frame is below [`FRAME_MAX_BYTES`].
pub const LIST_BYTES_MAX: usize = FRAME_MAX_BYTES - 128 * 1024;
/// The longest text of a REFUSED; longer ones are cut.
pub const REFUSED_TEXT_MAX_BYTES: usize = 512;
/// At most this many tunnels are asked for at a time.
pub const TUNNELS_ASKED_MAX: u32 = 64;

/// A message of a mesh link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkMessage {
    /// First in both directions.
    Hello(Hello),
    /// The dialler's services.
    Register(ServiceList),
    /// The REGISTER was taken.
    Registered {
        /// How many services are known of the dialler now, those it passes on included.
        count: u32,
    },
    /// The REGISTER, or the HELLO, was not taken; what was known before still counts.
    Refused {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        text: String,
    },
    /// The acceptor's services.
    Sync(ServiceList),
    /// Nothing to say.
    Heartbeat,
    /// The acceptor asks the dialler for tunnels that the dialler serves.
    OpenTunnels {
        /// How many; at most [`TUNNELS_ASKED_MAX`].
        count: u32,
    },
}

/// What a Peer tells over a mesh link, whole at each change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceList {
    /// The sender: its network and the own services that the receiver may see. Its `seq` numbers the lists of
    /// one run, over all links: of two lists the one with the higher number is newer.
    pub report: Arc<PeerReport>,
    /// What the sender carries on to Peers it is linked with; at most [`TRANSIT_MAX`].
    pub transit: Vec<TransitService>,
}

/// A service that the sender of a list carries on to its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransitService {
    /// What its owner offers.
    pub offer: ServiceOffer,
    /// Its owner; neither the sender nor the receiver of the list.
    pub source: NodeId,
}

impl ServiceList {
    /// How many services it names.
    pub fn len(&self) -> usize {
        self.report.services.len() + self.transit.len()
    }

    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl TransitService {
    /// About how many bytes it takes on a wire or in memory.
    pub fn estimated_bytes(&self) -> usize {
        self.offer.estimated_bytes() + NodeId::TEXT_BYTES + 8
    }
}
