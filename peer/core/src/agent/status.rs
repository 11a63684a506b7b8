//! What people are shown of a Peer.

use p2p_common::addr::{HostPort, NetInfo};
use p2p_common::member::Member;
use p2p_common::{NodeId, NodeKind, UnixMs};

use super::{Agent, AgentState};
use crate::links::Link;
use crate::mesh::{MeshCounts, MeshLinkStatus};

/// Forwards of this Peer, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forwards {
    /// Open now.
    pub active: u64,
    /// Since the start.
    pub total: u64,
}

/// What people are shown of this Peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentStatus {
    /// Its state.
    pub state: AgentState,
    /// Table D.
    pub net: NetInfo,
    /// The Servers it knows.
    pub servers: Vec<ServerStatus>,
    /// Its mesh links, and the configured addresses that have none.
    pub mesh_links: Vec<MeshLinkStatus>,
    /// How many Peers are in the tables.
    pub peers: usize,
    /// Its forwards.
    pub forwards: Forwards,
    /// What is said of it and passed on by no Server, with what to type.
    pub withheld: Vec<String>,
}

/// A Server as this Peer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// Its Id; none for a configured address as long as no Server has told table C.
    pub id: Option<NodeId>,
    /// What people call it.
    pub name: String,
    /// Where it is dialled.
    pub addresses: Vec<HostPort>,
    /// A session with it is up.
    pub connected: bool,
    /// In this state since; none before anything happened.
    pub since: Option<UnixMs>,
    /// Why connected there, or why not.
    pub reason: String,
    /// Round trip in microseconds, once measured.
    pub rtt_us: Option<u32>,
}

impl Agent {
    /// What people call `node`, while it is known.
    pub fn name_of(&self, node: NodeId) -> Option<&str> {
        match node.kind() {
            NodeKind::Peer => self.tables.peer(node).map(|known| known.entry.report.name.as_str()),
            NodeKind::Server => {
                let mut members = self.servers.members()?.members.iter();
                members.find(|member| member.id == node).map(|member| member.name.as_str())
            }
        }
    }

    /// What people are shown of this Peer.
    pub fn status(&self) -> AgentStatus {
        AgentStatus {
            state: self.state,
            net: self.report.net.clone(),
            servers: self.server_status(),
            mesh_links: self.mesh_links.status(),
            peers: self.tables.peers().len(),
            forwards: self.forwards,
            withheld: self.withheld().map(|what| what.explain(self.tables.me())).collect(),
        }
    }

    /// What mesh links count, since the start.
    pub fn mesh_counts(&self) -> MeshCounts {
        self.mesh_links.counts()
    }

    fn server_status(&self) -> Vec<ServerStatus> {
        let Some(table) = self.servers.members() else {
            let introducers = self.servers.introducers().map(|(addr, reason)| ServerStatus {
                id: None,
                name: String::new(),
                addresses: vec![addr.clone()],
                connected: false,
                since: None,
                reason: reason.to_owned(),
                rtt_us: None,
            });
            return introducers.collect();
        };
        let status = |member: &Member| {
            let row = self.links.get(member.id).map(Link::row);
            ServerStatus {
                id: Some(member.id),
                name: member.name.clone(),
                addresses: member.addresses.clone(),
                connected: row.is_some_and(|row| row.path.is_some()),
                since: row.map(|row| row.since),
                reason: row.map(|row| row.reason.clone()).unwrap_or_default(),
                rtt_us: row.and_then(|row| row.rtt_us),
            }
        };
        table.members.iter().map(status).collect()
    }
}
