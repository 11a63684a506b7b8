//! What a Peer decides: views, routes, sniffing and framing of client bytes; no IO, no clock.

mod agent;
mod connect;
#[cfg(test)]
mod fixture;
mod framing;
mod links;
mod mesh;
mod moment;
mod netinfo;
mod reply;
mod routes;
mod services;
mod session;
mod sniff;
mod tables;
mod view;

pub use agent::{
    Agent, AgentConfig, AgentState, AgentStatus, Forwards, GRACE, OnServersLost, Output, ServerStatus,
};
pub use connect::{DialPlan, DialRule, Skip};
pub use framing::{
    After, BodyLength, FramingError, FramingLimits, HttpVersion, RequestFramer, RequestHead, RequestHeads,
    ResponseFramer, Step, TargetForm, Then, after,
};
pub use links::{DialFailure, Link, Mesh, Opened, TRIED_MAX, Traffic, Tried};
pub use mesh::{
    ACCEPTED_MAX, ACCEPTED_PER_PEER_MAX, LinkOpened, LinkSettings, LinkToken, MeshLinkStatus, REGISTER_EVERY,
};
pub use moment::Moment;
pub use netinfo::{InterfaceAddr, NetSources, Scope};
pub use reply::{ErrorReply, Status};
pub use routes::{
    ForwardRefusal, ForwardTo, KnownPeer, LookupError, PeerService, PeerServiceList, Reach, RemoteWork,
    Route, RouteLink, Source, Tables,
};
pub use services::{OwnService, OwnServices, ServicesError};
pub use session::servers::DialServer;
pub use session::{FromServer, Heartbeat, Identity, MemberTable, SessionToken, ToServer};
pub use sniff::{BadHost, ClientHello, Host, PEER_ALPNS, SniffLimits, Sniffed, Unrecognised, sniff};
pub use tables::{LinePrefix, PEER_PORT, PrintTables, ROWS_MAX, render};
