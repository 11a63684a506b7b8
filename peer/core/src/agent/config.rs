//! What the agent is told at its start.

use p2p_common::addr::HostPort;

use crate::links::Mesh;
use crate::mesh::LinkSettings;
use crate::netinfo::NetSources;
use crate::services::OwnServices;
use crate::session::{Heartbeat, Identity};
use crate::tables::PrintTables;

/// What a Peer does when it has lost all Servers for longer than [`GRACE`](super::GRACE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnServersLost {
    /// Nothing new goes to Peers learned from Servers.
    #[default]
    Stop,
    /// It goes on with the Peers it knows.
    KeepDirect,
}

/// What a Peer is told at its start.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Who it is.
    pub identity: Identity,
    /// What people call it.
    pub name: String,
    /// Its room or region; empty when not set.
    pub zone: String,
    /// Addresses of Servers to begin with.
    pub servers: Vec<HostPort>,
    /// Its services.
    pub services: OwnServices,
    /// Its network as known at the start.
    pub net: NetSources,
    /// Which Peers are linked ahead of need.
    pub mesh: Mesh,
    /// Addresses of Peers to open mesh links to.
    pub remote_peers: Vec<HostPort>,
    /// Whether services of linked Peers are shown to other linked Peers, and forwards carried on to them.
    pub transit: bool,
    /// Times of mesh links.
    pub link: LinkSettings,
    /// What happens without Servers.
    pub on_servers_lost: OnServersLost,
    /// When connections without data speak.
    pub heartbeat: Heartbeat,
    /// What a change of the tables prints.
    pub print_tables: PrintTables,
    /// Spreads waits; any random number.
    pub seed: u64,
}
