//! Linearizable reads by ReadIndex (dissertation 6.4, the safe form).
//!
//! Reads that arrive together share a round. A few rounds may be under way at once, so that a read need not wait
//! for the end of a round that began before it; more of them would only take from the rounds the reads they
//! share. What confirms a round confirms all earlier ones: its index was taken after theirs were asked for.
//!
//! raft drops a round silently when there is no leader or the leader has committed nothing in its term, so
//! unanswered rounds are asked again, as one, and a read that stays unanswered fails.
//!
//! ```text
//! waiting -> asked (a round) -> confirmed at an index -> applied that far: ready
//!                 ^ again after a time-out or a new leader
//! ```

use std::collections::{BTreeMap, VecDeque};

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
    rounds_max: usize,
    /// Under way, the oldest first.
    rounds: VecDeque<Round>,
    asked_count: usize,
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
            rounds_max: config.read_rounds_max,
            rounds: VecDeque::new(),
            asked_count: 0,
            confirmed: BTreeMap::new(),
            confirmed_count: 0,
        }
    }

    pub(crate) fn queue(&mut self, token: ReadToken, tick: u64) -> Result<(), ReadFailure> {
        if self.waiting.len() + self.asked_count + self.confirmed_count >= self.max {
            return Err(ReadFailure::Busy);
        }
        self.waiting.push(Read { token, since_tick: tick });
        Ok(())
    }

    /// The context of a round to ask for now, if one is due.
    pub(crate) fn begin_round(&mut self, tick: u64) -> Option<Vec<u8>> {
        let oldest = self.rounds.front();
        if oldest.is_some_and(|round| tick.saturating_sub(round.asked_tick) >= self.retry_ticks) {
            self.abandon_rounds();
        }
        if self.waiting.is_empty() || self.rounds.len() >= self.rounds_max {
            return None;
        }
        self.sequence += 1;
        // The leader ignores a context it knows already, whoever it is from: it must be unique in the cluster.
        let context = [self.me, self.nonce, self.sequence].map(u64::to_be_bytes).concat();
        let reads = std::mem::take(&mut self.waiting);
        self.asked_count += reads.len();
        self.rounds.push_back(Round { context: context.clone(), reads, asked_tick: tick });
        Some(context)
    }

    /// Nobody will answer the rounds under way: ask again. The later start is right for the earlier reads too.
    pub(crate) fn abandon_rounds(&mut self) {
        self.waiting.extend(self.rounds.drain(..).flat_map(|round| round.reads));
        self.asked_count = 0;
    }

    pub(crate) fn confirm(&mut self, context: &[u8], index: u64) {
        let Some(place) = self.rounds.iter().position(|round| round.context == context) else { return };
        for round in self.rounds.drain(..=place) {
            self.asked_count -= round.reads.len();
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
        let mut expired = Vec::new();
        let asked = self.rounds.iter_mut().map(|round| &mut round.reads);
        for reads in asked.chain([&mut self.waiting]) {
            reads.retain(|read| {
                let old = tick.saturating_sub(read.since_tick) >= self.timeout_ticks;
                expired.extend(old.then_some(read.token));
                !old
            });
        }
        self.asked_count = self.rounds.iter().map(|round| round.reads.len()).sum();
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RaftConfig;

    fn reads(rounds_max: usize) -> Reads {
        let mut config = RaftConfig::new(1, 1);
        config.read_rounds_max = rounds_max;
        config.reads_max = 5;
        Reads::new(&config, 7)
    }

    fn ready(reads: &mut Reads, applied: u64) -> Vec<(u64, u64)> {
        reads.release(applied).into_iter().map(|(token, index)| (token.0, index)).collect()
    }

    #[test]
    fn a_read_begins_a_round_at_once_while_there_is_room() {
        let mut reads = reads(2);
        assert_eq!(reads.begin_round(0), None);
        reads.queue(ReadToken(1), 0).unwrap();
        let first = reads.begin_round(0).unwrap();
        reads.queue(ReadToken(2), 0).unwrap();
        reads.queue(ReadToken(3), 0).unwrap();
        let second = reads.begin_round(0).unwrap();
        reads.queue(ReadToken(4), 0).unwrap();
        assert_eq!(reads.begin_round(0), None, "it shares the next one");
        reads.confirm(&first, 5);
        assert!(reads.begin_round(0).is_some());
        assert_eq!(ready(&mut reads, 4), []);
        assert_eq!(ready(&mut reads, 5), [(1, 5)]);
        reads.confirm(&second, 6);
        assert_eq!(ready(&mut reads, 9), [(2, 6), (3, 6)]);
    }

    #[test]
    fn a_later_round_confirms_the_earlier_and_an_old_answer_nothing() {
        let mut reads = reads(2);
        reads.queue(ReadToken(1), 0).unwrap();
        let first = reads.begin_round(0).unwrap();
        reads.queue(ReadToken(2), 0).unwrap();
        let second = reads.begin_round(0).unwrap();
        reads.confirm(&second, 5);
        reads.confirm(&first, 4);
        assert_eq!(ready(&mut reads, 9), [(1, 5), (2, 5)]);
        reads.queue(ReadToken(3), 0).unwrap();
        let lost = reads.begin_round(0).unwrap();
        reads.abandon_rounds();
        reads.confirm(&lost, 9);
        assert_eq!(ready(&mut reads, 9), []);
        assert_ne!(reads.begin_round(0), Some(lost));
    }

    #[test]
    fn all_that_wait_count_and_expire() {
        let mut reads = reads(1);
        for token in 0..3 {
            reads.queue(ReadToken(token), 0).unwrap();
        }
        reads.begin_round(0).unwrap();
        reads.queue(ReadToken(3), 50).unwrap();
        reads.queue(ReadToken(4), 50).unwrap();
        assert_eq!(reads.queue(ReadToken(5), 50), Err(ReadFailure::Busy));
        assert_eq!(reads.expire(60), [0, 1, 2].map(ReadToken));
        reads.queue(ReadToken(6), 60).unwrap();
        let round = reads.begin_round(60).expect("the unanswered one is given up");
        reads.confirm(&round, 1);
        assert_eq!(ready(&mut reads, 1).len(), 3);
        assert_eq!((reads.asked_count, reads.confirmed_count), (0, 0));
    }
}
