//! What people are shown of mesh links.

use p2p_common::addr::HostPort;
use p2p_common::{NodeId, UnixMs};

use super::{MeshCounts, MeshLinks};

/// A mesh link, or a configured address that has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshLinkStatus {
    /// The configured address; none if the other Peer opened the link.
    pub configured: Option<HostPort>,
    /// Who is there, or was last.
    pub peer: Option<NodeId>,
    /// The other end as dialled or seen; empty when never connected.
    pub address: String,
    /// The link is open.
    pub connected: bool,
    /// In this state since; none before anything happened.
    pub since: Option<UnixMs>,
    /// Why it is as it is.
    pub reason: String,
}

impl MeshLinks {
    /// What is counted.
    pub(crate) fn counts(&self) -> MeshCounts {
        self.counts
    }

    /// The configured addresses in their order, then the links others opened.
    pub(crate) fn status(&self) -> Vec<MeshLinkStatus> {
        let configured = self.slots.iter().map(|slot| MeshLinkStatus {
            configured: Some(slot.address.clone()),
            peer: slot.peer,
            address: slot
                .link()
                .and_then(|link| self.open.get(&link))
                .map_or_else(String::new, |link| link.address.clone()),
            connected: slot.link().is_some(),
            since: slot.since,
            reason: slot.reason.clone(),
        });
        let accepted = self.open.values().filter(|link| link.slot.is_none()).map(|link| MeshLinkStatus {
            configured: None,
            peer: Some(link.peer),
            address: link.address.clone(),
            connected: true,
            since: Some(link.since),
            reason: "connected: it opened the link".into(),
        });
        configured.chain(accepted).collect()
    }
}
