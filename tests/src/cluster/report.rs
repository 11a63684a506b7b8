//! What the command lines print with `--json`, as far as tests look at it. Unknown fields are ignored: a new
//! one breaks no test.

use serde::Deserialize;

/// `p2p-server members --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Members {
    /// Raised by each change of the table.
    pub version: u64,
    /// Whether it was read without asking the Master.
    pub stale: bool,
    /// The registered Servers.
    pub members: Vec<Member>,
}

/// A row of [`Members`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// `S` and a UUID.
    pub id: String,
    /// As given with `--name`.
    pub name: String,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// Its number inside raft.
    pub raft_id: u64,
    /// `voter` or `learner`.
    pub role: String,
    /// `no`, `yes` or `provisional`, as the asked Server sees it.
    pub master: String,
    /// As the asked Server sees it.
    pub connected: bool,
}

/// `p2p-server master --json`, and each line of `master --watch --json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Master {
    /// `S` and a UUID.
    pub id: String,
    /// As given with `--name`.
    pub name: String,
    /// Raised by each election.
    pub term: u64,
    /// Of the cluster, minted at bootstrap.
    pub cluster_id: String,
    /// Raised by a forced recovery.
    pub epoch: u64,
    /// Named without a quorum.
    pub provisional: bool,
}

/// `p2p-server peers --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Peers {
    /// The Peers the asked Server knows.
    pub peers: Vec<Peer>,
}

/// A row of [`Peers`].
#[derive(Debug, Clone, Deserialize)]
pub struct Peer {
    /// `C` and a UUID.
    pub id: String,
    /// As given with `--name`, else made up.
    pub name: String,
    /// What it offers.
    pub services: Vec<serde_json::Value>,
    /// As the asked Server sees it.
    pub connected: bool,
}

/// `p2p-peer status --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct PeerStatus {
    /// `C` and a UUID.
    pub id: String,
    /// `working`, or why not.
    pub state: String,
    /// The Servers it knows of.
    pub servers: Vec<ServerLink>,
    /// Its mesh links, and the configured addresses that have none.
    pub mesh_links: Vec<MeshLink>,
}

/// A row of [`PeerStatus::mesh_links`].
#[derive(Debug, Clone, Deserialize)]
pub struct MeshLink {
    /// The configured address; empty when the other Peer dialled.
    pub configured: String,
    /// Who is there, or was last.
    pub peer_id: String,
    /// Whether it is open.
    pub connected: bool,
    /// Why it is as it is.
    pub reason: String,
}

/// `p2p-peer tables --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Tables {
    /// The route table.
    pub routes: Vec<Route>,
    /// The services of each Peer.
    pub peer_services: Vec<PeerServices>,
}

/// A row of [`Tables::routes`].
#[derive(Debug, Clone, Deserialize)]
pub struct Route {
    /// The service.
    pub name: String,
    /// The Id of its Peer, or `local`.
    pub source: String,
    /// Whether forwards to it may be tried.
    pub connected: bool,
}

/// A row of [`Tables::peer_services`].
#[derive(Debug, Clone, Deserialize)]
pub struct PeerServices {
    /// `C` and a UUID.
    pub peer_id: String,
    /// What it offers.
    pub services: Vec<serde_json::Value>,
}

/// One Server in [`PeerStatus`].
#[derive(Debug, Clone, Deserialize)]
pub struct ServerLink {
    /// `S` and a UUID.
    pub id: String,
    /// Whether a session to it is up.
    pub connected: bool,
}

/// `p2p-peer links --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Links {
    /// To which Peers there is a link.
    pub links: Vec<Link>,
}

/// A row of [`Links`].
#[derive(Debug, Clone, Deserialize)]
pub struct Link {
    /// `C` and a UUID.
    pub id: String,
    /// `direct`, `punched` or `relayed`.
    pub path: String,
    /// Bytes received for forwards.
    pub bytes_in: u64,
    /// Bytes sent for forwards.
    pub bytes_out: u64,
}
