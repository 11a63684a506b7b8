//! Servers as they are dialled, and as they are remembered from one run to the next.

use p2p_common::addr::HostPort;
use p2p_common::member::Member;
use p2p_common::{KeyHash, NodeId};

use crate::session::SessionToken;

/// A Server to open a session with: dial the addresses in order until one answers as `server`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialServer {
    /// Names the attempt in all that follows.
    pub session: SessionToken,
    /// Who must answer; none when only the address is known: any Server of the cluster will do.
    pub server: Option<NodeId>,
    /// The key it must show; none when table C is not known yet.
    pub key_hash: Option<KeyHash>,
    /// Where, best first.
    pub addresses: Vec<HostPort>,
}

/// A Server as it is known without any session: from table C, maybe of an earlier run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownServer {
    /// Its Id.
    pub id: NodeId,
    /// The key it must show.
    pub key_hash: KeyHash,
    /// Where, best first.
    pub addresses: Vec<HostPort>,
}

impl KnownServer {
    /// A row of table C.
    pub fn of(member: &Member) -> Self {
        KnownServer { id: member.id, key_hash: member.key_hash, addresses: member.addresses.clone() }
    }
}
