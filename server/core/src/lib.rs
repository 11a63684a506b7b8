//! What a Server decides: tables of peers and links, pushes, identities, authorisation; no IO, no clock.
//!
//! One room per question, each with its own contract in its module doc:
//!
//! | room | decides |
//! |---|---|
//! | `authorise` | who may call which method; what a bearer token opens |
//! | `identities` | whether a node is who its certificate says |
//! | `master` | who is Master, as this Server may say it |
//! | `autopilot` | which change of the raft group is due |
//!
//! It does not replicate (`p2p-server-raft`), encode (`p2p-proto`), send or wait (`p2p-server`).

mod authorise;
mod autopilot;
mod identities;
mod master;

pub use authorise::{CallRefused, CallerKind, METHODS, TokenRefused, check_call, check_token};
pub use autopilot::{GroupChange, MemberHealth, next_change, target_voters};
pub use identities::{IdentityRefused, check_identity};
pub use master::{MasterTracker, RaftSight};
