//! What a Server decides: tables of peers and links, pushes, identities, authorisation; no IO, no clock.
//!
//! One room per question, each with its own contract in its module doc:
//!
//! | room | decides |
//! |---|---|
//! | `hub` | nothing: it joins the rooms of sessions behind one owner |
//! | `peers` | who is online here (table A), and what is passed on of it |
//! | `links` | what is kept of the links Peers report (table B) |
//! | `push` | what each session is sent of table E |
//! | `members` | which version of table C each session is sent |
//! | `trust_news` | which version of the trusted CAs each session is sent |
//! | `revocations` | which revoked keys each session is still to be sent; which Server can be spared |
//! | `visibility` | which services somebody may see |
//! | `heartbeat` | when a sign of life is due, and who is offline |
//! | `authorise` | who may call which method; what a bearer token opens |
//! | `ca_rotation` | which step of a change of the CA is next |
//! | `ephemeral` | which ephemeral identities are told to be there, and which are forgotten |
//! | `identities` | whether a node is who its certificate says, and gets another certificate |
//! | `master` | who is Master, as this Server may say it |
//! | `autopilot` | which change of the raft group is due |
//!
//! It does not replicate (`p2p-server-raft`), encode (`p2p-proto`), send or wait (`p2p-server`).

mod authorise;
mod autopilot;
mod ca_rotation;
mod ephemeral;
mod heartbeat;
mod hub;
mod identities;
mod links;
mod master;
mod members;
mod peers;
mod push;
mod revocations;
mod session;
mod trust_news;
mod visibility;

pub use authorise::{CallRefused, CallerKind, METHODS, TokenRefused, check_call, check_token};
pub use autopilot::{
    Autopilot, GroupChange, MemberHealth, RemovalRefused, before_stop, check_removal, target_voters,
};
pub use ca_rotation::{
    CaPhase, SWITCH_AFTER, SwitchCare, abort as abort_ca, begin as begin_ca, finish as finish_ca,
};
pub use ephemeral::{EPHEMERAL_LOOK, EphemeralCare, EphemeralCommand};
pub use heartbeat::{HEARTBEAT, Heartbeats, SILENCE};
pub use hub::{
    Down, Hub, HubConfig, NewlyWithheld, Opened, Output, OwnGrants, PeerListing, Resume, SessionRefused, TICK,
};
pub use identities::{IdentityRefused, Renewal, RenewalRefused, check_identity, check_renewal};
pub use links::{LINKS_MAX, LinkReports, LinksRefused};
pub use master::{MasterSight, MasterTracker, RaftSight};
pub use members::MemberNews;
pub use peers::{
    Arrival, ArrivalRefused, PeerRow, PeerTable, REPORT_BYTES_MAX, ReportRefused, SESSIONS_MAX, Withheld,
};
pub use push::{PeerPushes, TOMBSTONES_MAX};
pub use revocations::{EMERGENCIES_MAX, NotRevocable, RevocationNews, check_revocable};
pub use session::SessionId;
pub use trust_news::TrustNews;
pub use visibility::{Viewer, visible_entry};
