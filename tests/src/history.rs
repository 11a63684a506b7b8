//! Histories of a replicated register, and whether a single copy of it could have given the same answers.
//!
//! The register is a cluster setting: it is written, written if it still has a given revision, and read. A
//! [`Recorder`] notes of each operation when it was invoked, when its answer came and what it said; of an
//! operation without an answer it stays unknown whether it took effect, or will. [`check`] finds an order of all
//! that happened which contradicts no answer and no clock (Herlihy and Wing: linearizability), or says which
//! answer no order explains.
//!
//! It says nothing about how long anything took, and nothing about other settings.

mod check;
mod clients;
#[cfg(test)]
mod testing;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use check::{Violation, check};
pub use clients::{Clients, Load, Reads};

/// What a register holds: a value that was written once in the whole history, and how many changes there were
/// when it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Versioned {
    /// None before the first write.
    pub value: Option<u64>,
    /// 0 before the first write.
    pub revision: u64,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// What is there?
    Read,
    /// Set it.
    Write {
        /// Never written by another operation.
        value: u64,
    },
    /// Set it if nobody did since.
    WriteIf {
        /// Never written by another operation.
        value: u64,
        /// The revision that the writer saw.
        expected: u64,
    },
}

impl Call {
    /// What it writes, if it does.
    pub fn value(self) -> Option<u64> {
        match self {
            Call::Read => None,
            Call::Write { value } | Call::WriteIf { value, .. } => Some(value),
        }
    }
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// To a read.
    Read(Versioned),
    /// To a write: done, and this is the revision of it.
    Written {
        /// Of the register since then.
        revision: u64,
    },
    /// To a conditional write: not done, because the revision was another.
    Conflict,
    /// It had no effect and never will.
    Failed,
    /// It had an effect, or will have one at any time, or never.
    Unknown,
}

/// One operation of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Who asked; each waits for the answer before it asks again.
    pub client: usize,
    /// Which Server was asked last.
    pub server: usize,
    /// What for.
    pub call: Call,
    /// What it said.
    pub outcome: Outcome,
    /// When it was asked, since the history began.
    pub invoked: Duration,
    /// When the answer came.
    pub returned: Duration,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.invoked.as_secs_f64(), self.returned.as_secs_f64());
        write!(f, "{from:.6} s to {to:.6} s, client {} at server {}: ", self.client, self.server + 1)?;
        match self.call {
            Call::Read => f.write_str("read")?,
            Call::Write { value } => write!(f, "write {value:x}")?,
            Call::WriteIf { value, expected } => write!(f, "write {value:x} if at revision {expected}")?,
        }
        match self.outcome {
            Outcome::Read(Versioned { value: Some(value), revision }) => {
                write!(f, ": {value:x} at revision {revision}")
            }
            Outcome::Read(Versioned { value: None, revision }) => write!(f, ": unset at revision {revision}"),
            Outcome::Written { revision } => write!(f, ": done, revision {revision}"),
            Outcome::Conflict => f.write_str(": conflict"),
            Outcome::Failed => f.write_str(": failed"),
            Outcome::Unknown => f.write_str(": unknown"),
        }
    }
}

/// Where the operations of many clients come together. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    began: Instant,
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder { began: Instant::now(), operations: Arc::default() }
    }
}

impl Recorder {
    /// Notes that `client` asks `server` now.
    pub fn invoke(&self, client: usize, server: usize, call: Call) -> Invoked<'_> {
        let invoked = self.began.elapsed();
        let operation =
            Operation { client, server, call, outcome: Outcome::Unknown, invoked, returned: invoked };
        Invoked { recorder: self, operation }
    }

    /// The operations that have ended, in the order in which they did, without the first `known` of them.
    pub fn operations(&self, known: usize) -> Vec<Operation> {
        let operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        operations.get(known..).unwrap_or_default().to_vec()
    }

    /// When the history began: what the times of its operations count from.
    pub fn began(&self) -> Instant {
        self.began
    }
}

/// An operation under way. Dropped without an answer it ends as unknown.
#[derive(Debug)]
pub struct Invoked<'a> {
    recorder: &'a Recorder,
    operation: Operation,
}

impl Invoked<'_> {
    /// Notes that the same request goes to another Server, for want of an answer.
    pub fn ask_again_at(&mut self, server: usize) {
        self.operation.server = server;
    }

    /// Notes the answer that came just now.
    pub fn answered(mut self, outcome: Outcome) {
        self.operation.outcome = outcome;
    }
}

impl Drop for Invoked<'_> {
    fn drop(&mut self) {
        self.operation.returned = self.recorder.began.elapsed();
        self.recorder.operations.lock().unwrap_or_else(PoisonError::into_inner).push(self.operation);
    }
}
