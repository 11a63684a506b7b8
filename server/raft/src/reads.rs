//! Linearizable reads by ReadIndex (dissertation 6.4, the safe form).
//!
//! Reads that arrive while a round is under way share the next one. raft drops a round silently when there is no
//! leader or the leader has committed nothing in its term, so an unanswered round is asked again, and a read
//! that stays unanswered fails.
//!
//! ```text
//! waiting -> asked (one round) -> confirmed at an index -> applied that far: ready
//!                 ^ again after a time-out or a new leader
//! ```

use std::collections::BTreeMap;

use p2p_common::member::RaftId;

/// Chosen by the owner to know a read again; unique among those under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadToken(pub u64);

/// Why a read failed. Nothing was read; another try is always safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// Too many reads are waiting.
    #[error("too many reads are waiting: try again later")]
    Busy,
    /// No leader confirmed it in time.
    #[error("no leader confirmed the read in time: is a quorum of servers reachable?")]
    TimedOut,
}

#[derive(Debug, Clone, Copy)]
struct Read {
    token: ReadToken,
    since_tick: u64,
}

#[derive(Debug)]
struct Round {
    context: Vec<u8>,
    reads: Vec<Read>,
    asked_tick: u64,
}

/// Reads by their state.
#[derive(Debug)]
pub(crate) struct Reads {
    me: RaftId,
    /// Sets rounds of this start apart from those of an earlier one, whose answers may still be on their way.
    nonce: u64,
    sequence: u64,
    max: usize,
    retry_ticks: u64,
    timeout_ticks: u64,
    waiting: Vec<Read>,
    round: Option<Round>,
    confirmed: BTreeMap<u64, Vec<ReadToken>>,
    confirmed_count: usize,
}

impl Reads {
    pub(crate) fn new(config: &crate::RaftConfig, nonce: u64) -> Self {
        Reads {
            me: config.raft_id,
            nonce,
            sequence: 0,
            max: config.reads_max,
            retry_ticks: config.read_retry_ticks,
            timeout_ticks: config.read_timeout_ticks,
            waiting: Vec::new(),
            round: None,
            confirmed: BTreeMap::new(),
            confirmed_count: 0,
        }
    }

    pub(crate) fn queue(&mut self, token: ReadToken, tick: u64) -> Result<(), ReadFailure> {
        let asked = self.round.as_ref().map_or(0, |round| round.reads.len());
        if self.waiting.len() + asked + self.confirmed_count >= self.max {
            return Err(ReadFailure::Busy);
        }
        self.waiting.push(Read { token, since_tick: tick });
        Ok(())
    }

    /// The context of a round to ask for now, if one is due.
    pub(crate) fn begin_round(&mut self, tick: u64) -> Option<Vec<u8>> {
        match &mut self.round {
            Some(round) if tick.saturating_sub(round.asked_tick) < self.retry_ticks => return None,
            // The later start is right for the earlier reads too.
            Some(round) => self.waiting.append(&mut round.reads),
            None => {}
        }
        self.round = None;
        if self.waiting.is_empty() {
            return None;
        }
        self.sequence += 1;
        // The leader ignores a context it knows already, whoever it is from: it must be unique in the cluster.
        let context = [self.me, self.nonce, self.sequence].map(u64::to_be_bytes).concat();
        let reads = std::mem::take(&mut self.waiting);
        self.round = Some(Round { context: context.clone(), reads, asked_tick: tick });
        Some(context)
    }

    /// A new leader knows nothing of the round: ask again.
    pub(crate) fn abandon_round(&mut self) {
        if let Some(round) = self.round.take() {
            self.waiting.extend(round.reads);
        }
    }

    pub(crate) fn confirm(&mut self, context: &[u8], index: u64) {
        if let Some(round) = self.round.take_if(|round| round.context == context) {
            self.confirmed_count += round.reads.len();
            self.confirmed.entry(index).or_default().extend(round.reads.iter().map(|read| read.token));
        }
    }

    /// Reads the state machine can answer now, with their index.
    pub(crate) fn release(&mut self, applied: u64) -> Vec<(ReadToken, u64)> {
        let mut ready = Vec::new();
        while let Some(first) = self.confirmed.first_entry().filter(|first| *first.key() <= applied) {
            let index = *first.key();
            ready.extend(first.remove().into_iter().map(|token| (token, index)));
        }
        self.confirmed_count -= ready.len();
        ready
    }

    /// Reads that waited too long for a round. A confirmed read only waits for applying, which goes on.
    pub(crate) fn expire(&mut self, tick: u64) -> Vec<ReadToken> {
        let old = |read: &Read| tick.saturating_sub(read.since_tick) >= self.timeout_ticks;
        let mut expired = Vec::new();
        for reads in [Some(&mut self.waiting), self.round.as_mut().map(|round| &mut round.reads)] {
            let Some(reads) = reads else { continue };
            expired.extend(reads.iter().filter(|read| old(read)).map(|read| read.token));
            reads.retain(|read| !old(read));
        }
        expired
    }
}
