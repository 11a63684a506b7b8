//! Proposals of this node: gathered into one batch, then matched with the entries they became.
//!
//! A leader appends at an index of its term once, so (term, index) names an entry for ever, and nothing has to
//! be put into the entry to know one's own again. When leadership is lost the waiters learn at once that the
//! outcome is unknown: the entry may still be committed by another leader. A repeat under the same request id is
//! safe, because applying removes duplicates.

use std::collections::VecDeque;

use bytes::Bytes;
use p2p_common::member::RaftId;

use crate::membership::ChangeRefused;

/// Chosen by the owner to know a proposal again; unique among those under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProposalToken(pub u64);

/// Why a proposal failed, and what is known of its effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposalFailure {
    /// Nothing was proposed: another node leads, or none.
    #[error("this server does not lead: ask the leader")]
    NotLeader {
        /// Who does, if known.
        hint: Option<RaftId>,
    },
    /// Nothing was proposed: leadership is being handed over.
    #[error("leadership is being handed over: try again")]
    HandingOver,
    /// Nothing was proposed: too much is waiting.
    #[error("too many proposals are waiting: try again later")]
    Busy,
    /// Nothing was proposed: see [`COMMAND_BYTES_MAX`](crate::COMMAND_BYTES_MAX).
    #[error("the command has {bytes} bytes, more than allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Nothing was proposed.
    #[error(transparent)]
    Refused(#[from] ChangeRefused),
    /// Leadership was lost while it waited: it may or may not take effect. Repeat it under the same request id.
    #[error("leadership was lost: the outcome is unknown, repeat the request under the same id")]
    OutcomeUnknown,
}

/// Queued and appended proposals.
#[derive(Debug)]
pub(crate) struct Proposals {
    max: usize,
    queued: Vec<(ProposalToken, Bytes)>,
    /// Ascending by index; all of `term`.
    appended: VecDeque<(u64, ProposalToken)>,
    term: u64,
}

impl Proposals {
    pub(crate) fn new(max: usize) -> Self {
        Proposals { max, queued: Vec::new(), appended: VecDeque::new(), term: 0 }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.queued.len() + self.appended.len() >= self.max
    }

    pub(crate) fn queue(&mut self, token: ProposalToken, data: Bytes) {
        self.queued.push((token, data));
    }

    pub(crate) fn take_queued(&mut self) -> Vec<(ProposalToken, Bytes)> {
        std::mem::take(&mut self.queued)
    }

    /// `token` became the entry (`term`, `index`).
    pub(crate) fn appended(&mut self, term: u64, index: u64, token: ProposalToken) {
        debug_assert!(self.appended.is_empty() || self.term == term, "a term's waiters go with it");
        self.term = term;
        self.appended.push_back((index, token));
    }

    /// Whose entry (`term`, `index`) is, now that it is committed.
    pub(crate) fn committed(&mut self, term: u64, index: u64) -> Option<ProposalToken> {
        if self.term != term {
            return None;
        }
        self.appended.front().filter(|(waiting, _)| *waiting == index)?;
        self.appended.pop_front().map(|(_, token)| token)
    }

    /// All that wait for entries of a term other than `leading`.
    pub(crate) fn take_orphans(&mut self, leading: Option<u64>) -> Vec<ProposalToken> {
        if leading == Some(self.term) {
            return Vec::new();
        }
        self.appended.drain(..).map(|(_, token)| token).collect()
    }
}
