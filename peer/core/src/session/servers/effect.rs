//! What the slots of Servers ask of the agent.

use std::sync::Arc;

use p2p_common::addr::HostPort;
use p2p_common::grants::Grants;
use p2p_common::push::{PeerPush, RevocationPush};
use p2p_common::{Epoch, Incarnation, NodeId};

use super::known::DialServer;
use crate::session::{SessionToken, ToServer};

/// What the slots ask of their owner.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Dial(DialServer),
    Send(SessionToken, ToServer),
    Close(SessionToken, String),
    /// A session is up.
    Welcomed {
        session: SessionToken,
        server: NodeId,
        address: String,
        seen_from: Option<std::net::SocketAddr>,
    },
    /// Keys that open nothing any more, told in this epoch.
    Revocations {
        epoch: Epoch,
        push: RevocationPush,
    },
    /// A Server says that this Peer's own key opens nothing any more.
    ThrownOut(String),
    Push {
        server: NodeId,
        incarnation: Incarnation,
        push: PeerPush,
    },
    /// What this Peer may do, and which of its addresses are passed on to nobody.
    OwnGrants {
        server: NodeId,
        grants: Arc<Grants>,
        withheld: Vec<HostPort>,
    },
    /// There is no session with this Server any more, or still none.
    Down {
        server: NodeId,
        reason: String,
    },
    /// The cluster lives in this higher epoch now.
    Epoch(Epoch),
    /// Table C has a newer version.
    Members,
    /// No longer in table C.
    Left(NodeId),
}
