//! The raft driver as inputs and outputs: log, membership, reads, snapshots and the replicated state
//! machine; no IO, no clock, no random source.
//!
//! # The driving contract
//!
//! [`RaftCore`] is driven by one owner (a thread, a task, a simulator):
//!
//! 1. feed inputs: `handle_tick` every [`TICK_MS`], `handle_message`, `handle_propose`, … ; many inputs may be
//!    fed before the next step, and proposals that arrive together travel together;
//! 2. call [`RaftCore::poll_output`] until it returns `None`, and finish each [`Output`] before polling the next
//!    one: the order of outputs is what makes raft safe;
//! 3. after the write named by [`Output::Persist`] is on stable storage, call [`RaftCore::handle_persisted`] and
//!    poll again. Inputs may be fed and outputs polled while writes are under way. Writes, [`Output::Compact`]
//!    among them, reach stable storage in the order of their outputs; several may share one sync, after which
//!    the last number suffices.
//!
//! A write that fails, and every panic in this crate, ends the process: both mean that what this node would say
//! next could be a lie. A restart from stable storage is always safe.
//!
//! # What it is not
//!
//! It does not store, send, wait or encode commands: entries and snapshots are opaque bytes here. [`Fsm`]
//! applies the decoded commands; the shell holds both and converts between them.
//!
//! Source: SPEC C1-C9 and the raft dissertation; the consensus algorithm is the `raft` crate's.

mod bootstrap;
mod config;
mod core;
mod election;
mod fsm;
mod log;
mod membership;
mod message;
mod output;
mod proposals;
mod reads;
mod snapshot;

pub use crate::bootstrap::founding_write;
pub use crate::config::{COMMAND_BYTES_MAX, RaftConfig, TICK_MS};
pub use crate::core::{MemberProgress, MessageRefused, RaftCore, StartRefused, TransferRefused};
pub use crate::fsm::Fsm;
pub use crate::log::{Applied, EntryKind, HardState, Loaded, LogEntry};
pub use crate::membership::{ChangeRefused, Membership, MembershipChange};
pub use crate::message::{BadMessage, Message, MessageKind};
pub use crate::output::{Committed, CommittedKind, Output, Persist, Role, Status};
pub use crate::proposals::{ProposalFailure, ProposalToken};
pub use crate::reads::{ReadFailure, ReadToken};
pub use crate::snapshot::{Compaction, Snapshot};
