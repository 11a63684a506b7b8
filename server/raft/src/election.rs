//! Election time-outs from a seed, and elections on evidence instead of silence.
//!
//! The raft crate draws its time-outs from a random source of its own. They are replaced after every step by one
//! drawn here, so that the same inputs give the same outputs.
//!
//! Evidence: whoever sees that the leader's process is gone (its connection broke *and* a new one is refused)
//! need not wait for the time-out, which makes the gap between two leaders some 20 times shorter. The leader is then no
//! reason to refuse others a vote, and after a short delay, by rank so that not all ask at once, this node asks
//! for votes itself. Being wrong costs an election, never safety.

use p2p_common::member::RaftId;

use crate::membership::Membership;
use crate::output::Status;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and all that spreading time-outs needs.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The current election time-out and evidence against the leader.
#[derive(Debug)]
pub(crate) struct Election {
    random: SplitMix64,
    min_ticks: u64,
    timeout_ticks: u64,
    /// The leader and term known to be gone.
    gone: Option<(RaftId, u64)>,
}

impl Election {
    pub(crate) fn new(raft_id: RaftId, seed: u64, election_ticks: u64) -> Self {
        let random = SplitMix64(seed ^ raft_id.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let mut election = Election { random, min_ticks: election_ticks, timeout_ticks: 0, gone: None };
        election.draw();
        election
    }

    /// A number to tell this start from others.
    pub(crate) fn nonce(&mut self) -> u64 {
        self.random.next()
    }

    /// To be called when role or term changed.
    pub(crate) fn draw(&mut self) {
        self.timeout_ticks = self.min_ticks + self.random.next() % self.min_ticks;
    }

    pub(crate) fn timeout_ticks(&self) -> u64 {
        self.timeout_ticks
    }

    /// Notes that `status`'s leader is gone; returns this node's rank among the voters that remain.
    pub(crate) fn note_gone(&mut self, me: RaftId, status: &Status, membership: &Membership) -> Option<u32> {
        let leader = status.leader.filter(|leader| *leader != me)?;
        let mut remaining = membership.voters.iter().filter(|id| **id != leader);
        let rank = remaining.position(|id| *id == me)?;
        self.gone = Some((leader, status.term));
        Some(rank as u32)
    }

    /// Whether the evidence still concerns the leader of `status`; used up by asking.
    pub(crate) fn take_gone(&mut self, status: &Status) -> bool {
        self.gone.take().is_some_and(|gone| Some(gone) == status.leader.map(|leader| (leader, status.term)))
    }
}
