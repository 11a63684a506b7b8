//! What the agent asks its owner to do.

use std::fmt;
use std::sync::Arc;

use p2p_common::addr::HostPort;
use p2p_common::wire::link::LinkMessage;
use p2p_common::{Epoch, KeyHash, NodeId};

use super::grants::Withheld;
use crate::mesh::LinkToken;
use crate::routes::{Reach, Tables};
use crate::session::servers::{DialServer, KnownServer};
use crate::session::{SessionToken, ToServer};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Open a session: dial, check who answers, open the stream, then call
    /// [`Agent::handle_session_opened`](super::Agent::handle_session_opened), or
    /// [`Agent::handle_session_failed`](super::Agent::handle_session_failed).
    DialServer(DialServer),
    /// Send on a session, in order. If its queue is full, close it and say so: a Server that takes nothing is
    /// as good as away.
    Send {
        /// On which.
        session: SessionToken,
        /// What.
        message: ToServer,
    },
    /// End an attempt or a session; nothing is expected to be reported of it afterwards.
    CloseSession {
        /// Which.
        session: SessionToken,
        /// Why, for the log.
        reason: String,
    },
    /// Open a mesh link: dial, check the certificate, exchange HELLOs, then call
    /// [`Agent::handle_link_opened`](super::Agent::handle_link_opened), or
    /// [`Agent::handle_link_failed`](super::Agent::handle_link_failed).
    DialLink {
        /// Names the attempt in all that follows.
        link: LinkToken,
        /// Where.
        address: HostPort,
    },
    /// Send on a mesh link, in order; never a HELLO. If its queue is full, close it and say so.
    SendLink {
        /// On which.
        link: LinkToken,
        /// What.
        message: LinkMessage,
    },
    /// End a mesh link or an attempt; nothing is expected to be reported of it afterwards.
    CloseLink {
        /// Which.
        link: LinkToken,
        /// Why, for the log.
        reason: String,
    },
    /// A Peer whose mesh link this side dialled asks for tunnels: dial so many where it was reached, say OFFER on
    /// each and serve it. What the pool has no room for is not dialled.
    OfferTunnels {
        /// To whom.
        peer: NodeId,
        /// How many; at most [`TUNNELS_ASKED_MAX`](p2p_common::wire::link::TUNNELS_ASKED_MAX).
        count: u32,
    },
    /// Get one tunnel to this Peer ahead of need, by dialling it or by asking it to dial, and report what comes
    /// of it.
    WarmPeer {
        /// To whom.
        peer: NodeId,
        /// How.
        reach: Reach,
    },
    /// This Peer is offline or shows another key than before: close its idle tunnels. Those that carry a forward
    /// run to its end.
    DropIdleTunnels {
        /// Whose.
        peer: NodeId,
    },
    /// The tables have changed: publish them for everyone who reads.
    Publish(Arc<Tables>),
    /// This is said of this Peer, and Servers pass it on to nobody: report it.
    Withheld(Vec<Withheld>),
    /// Log these lines as they stand.
    PrintTables(Vec<String>),
    /// These keys open nothing any more, perhaps none of them: publish the tables, close every tunnel of the keys, the
    /// one a forward runs on as well, and keep what [`Agent::revoked`](super::Agent::revoked) says for the next start.
    Revoked(Vec<KeyHash>),
    /// This Peer's own key is revoked, in these words of a Server: only an operator can go on.
    ThrownOut(String),
    /// The cluster lives in this higher epoch now: say so on every wire from here on, and keep it for the next
    /// start.
    Epoch(Epoch),
    /// The Servers are these now: keep them for the next start, and take their keys for theirs.
    Servers(Vec<KnownServer>),
    /// The agent's state has changed.
    State(AgentState),
}

/// Whether this Peer does its work (SPEC P6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AgentState {
    /// No Server has told what there is yet, and the grace has not passed.
    Starting,
    /// It does; `/readyz` succeeds.
    Working,
    /// No Server has been reachable for longer than the grace: nothing new goes to Peers learned from Servers.
    Stopped,
}

impl AgentState {
    /// The state in tables and for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            AgentState::Starting => "starting",
            AgentState::Working => "working",
            AgentState::Stopped => "stopped: no server",
        }
    }

    /// Whether this Peer takes every kind of work.
    pub const fn is_ready(self) -> bool {
        matches!(self, AgentState::Working)
    }
}

impl fmt::Display for AgentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
