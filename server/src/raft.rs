//! Raft in this process: the thread that drives it (`driver`), what it publishes ([`View`]), and the way in for
//! everyone else ([`Proposer`]).
//!
//! ```text
//! api ──propose, read──► Proposer ──► Mailbox ──► driver thread ──► storage thread ──► Store (sled + fdatasync)
//! transport ──messages──────────────►    ▲            │  └────────► Outbox (transport)
//!                                        └─persisted──┼─────────────────┘
//!                                                     └──publishes─► View
//! ```
//!
//! The thread alone owns the raft core and the state machine, the storage thread the store; nobody waits for them
//! while holding anything, and only the storage thread waits for the disk.

mod driver;
pub mod mailbox;
pub mod propose;
mod storage;
mod view;
pub mod wire;

pub use driver::{Driver, DriverEnd, DriverParams, Outbox, spawn_driver};
pub use mailbox::Mailbox;
pub use propose::{ProposeError, Proposer};
pub use storage::Disk;
pub use view::View;
