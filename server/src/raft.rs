//! Raft in this process: the thread that drives it (`driver`), what it publishes ([`View`]), and the way in for
//! everyone else ([`Proposer`]).
//!
//! ```text
//! api ──propose, read──► Proposer ──► Mailbox ──► driver thread ──► Store (sled + fdatasync)
//! transport ──messages──────────────►                 │  └────────► Outbox (transport)
//!                                                     └──publishes─► View, Master
//! ```
//!
//! The thread alone owns the raft core, the store and the state machine; nobody waits for it while holding
//! anything, and it waits for nobody but the disk.

mod driver;
pub mod mailbox;
pub mod propose;
mod view;
pub mod wire;

pub use driver::{Driver, DriverEnd, DriverParams, Outbox, spawn_driver};
pub use mailbox::Mailbox;
pub use propose::{ProposeError, Proposer};
pub use view::View;
