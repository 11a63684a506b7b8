//! What a Peer decides: views, routes, sniffing and framing of client bytes; no IO, no clock.

mod agent;
mod connect;
#[cfg(test)]
mod fixture;
mod framing;
mod h2c;
mod health;
mod links;
mod mesh;
mod moment;
mod netinfo;
mod proxy_protocol;
mod reply;
mod revoked;
mod routes;
mod services;
mod session;
mod sniff;
mod socks;
mod tables;
mod view;

pub use agent::{
    Agent, AgentConfig, AgentState, AgentStatus, Forwards, GRACE, OnServersLost, Output, ServerStatus,
    Withheld,
};
pub use connect::{BudgetSpent, DialBudget, DialPlan, DialRule, Skip};
pub use framing::{
    After, BodyLength, FramingError, FramingLimits, HttpVersion, RequestFramer, RequestHead, RequestHeads,
    ResponseFramer, Step, TargetForm, Then, after,
};
pub use h2c::{
    H2C_SETTINGS, H2cError, H2cErrorCode, H2cLimits, H2cOpening, H2cReply, H2cRequest, H2cStream, h2c_goaway,
    h2c_opening,
};
pub use health::{CHECK_EVERY, CHECKS_MAX, CheckJob, CheckToken, Checked, FAILURES_MAX, Health, NotOwn};
pub use links::{DialFailure, Link, Mesh, Opened, TRIED_MAX, Traffic, Tried};
pub use mesh::{
    ACCEPTED_MAX, ACCEPTED_PER_PEER_MAX, LinkEnding, LinkOpened, LinkSettings, LinkSide, LinkToken,
    MeshCounts, MeshLinkStatus, REGISTER_EVERY,
};
pub use moment::Moment;
pub use netinfo::{InterfaceAddr, NetSources, Scope};
pub use proxy_protocol::{BadProxyHeader, ProxyHeader, proxy_header};
pub use reply::{ErrorReply, Status};
pub use revoked::{REVOKED_MAX, Revoked, RevokedKeys};
pub use routes::{
    ForwardRefusal, ForwardTo, KnownPeer, LookupError, PeerService, PeerServiceList, Reach, RemoteWork,
    Route, RouteLink, Source, Tables,
};
pub use services::{OwnService, OwnServices, ServicesError};
pub use session::servers::{DialServer, KnownServer};
pub use session::{FromServer, Heartbeat, Identity, MemberTable, SessionToken, ToServer};
pub use sniff::{BadHost, ClientHello, Host, PEER_ALPNS, SniffLimits, Sniffed, Unrecognised, sniff};
pub use socks::{SocksError, SocksMessage, SocksReply, socks_greeting, socks_method, socks_request};
pub use tables::{LinePrefix, PEER_PORT, PrintTables, ROWS_MAX, render};
