//! Election time-outs by rank and from a seed, and elections on evidence instead of silence.
//!
//! The raft crate draws its time-outs from a random source of its own. They are replaced after every step by one
//! chosen here, so that the same inputs give the same outputs.
//!
//! Silence: whoever follows a leader waits the least time-out and then longer by its rank among the other voters.
//! So one of them asks first, soon after the silence is long enough to count, and the next one only when the
//! first did not succeed. Without a leader to count from, and after an election that failed, time-outs are random
//! as in the dissertation: ranks known differently on different nodes cannot make them collide for ever.
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

/// Ticks the first rank waits longer than the leader is protected from its voters, so that all of them are ready
/// to vote when it asks, at whatever moment their ticks fall.
const FIRST_RANK_TICKS: u64 = 1;
/// More for each voter of a lower rank. Two ticks are between one and three tick lengths, since ticks of
/// two nodes fall at different moments: enough for an election in between.
const RANK_TICKS: u64 = 2;

/// After an election on evidence that nobody won, since two stood at the same moment: ticks before this node stands
/// again, and as many more at random.
const AGAIN_TICKS: u64 = 2;
/// So often; then the time-outs count again, as without evidence.
const AGAIN_MAX: u32 = 5;

/// The current election time-out and evidence against the leader.
#[derive(Debug)]
pub(crate) struct Election {
    random: SplitMix64,
    min_ticks: u64,
    /// For whoever follows nobody.
    random_ticks: u64,
    /// The leader and term known to be gone.
    gone: Option<(RaftId, u64)>,
    /// When to stand again after an election on evidence, and how often that may still be.
    again: Option<(u64, u32)>,
}

impl Election {
    pub(crate) fn new(raft_id: RaftId, seed: u64, election_ticks: u64) -> Self {
        let random = SplitMix64(seed ^ raft_id.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let mut election =
            Election { random, min_ticks: election_ticks, random_ticks: 0, gone: None, again: None };
        election.draw();
        election
    }

    /// A number to tell this start from others.
    pub(crate) fn nonce(&mut self) -> u64 {
        self.random.next()
    }

    /// To be called when role or term changed.
    pub(crate) fn draw(&mut self) {
        self.random_ticks = self.min_ticks + self.random.next() % self.min_ticks;
    }

    /// Ticks of silence before `me` asks for votes; `following` is the leader it follows, if any.
    pub(crate) fn timeout_ticks(
        &self,
        me: RaftId,
        following: Option<RaftId>,
        membership: &Membership,
    ) -> u64 {
        let rank = following.and_then(|leader| rank(me, leader, membership));
        rank.map_or(self.random_ticks, |rank| {
            // Raft takes none of twice the least.
            (self.min_ticks + FIRST_RANK_TICKS + RANK_TICKS * rank).min(2 * self.min_ticks - 1)
        })
    }

    /// Notes that `status`'s leader is gone; returns this node's rank among the voters that remain.
    pub(crate) fn note_gone(&mut self, me: RaftId, status: &Status, membership: &Membership) -> Option<u32> {
        let leader = status.leader.filter(|leader| *leader != me)?;
        let rank = rank(me, leader, membership)?;
        self.gone = Some((leader, status.term));
        u32::try_from(rank).ok()
    }

    /// Whether the evidence still concerns the leader of `status`; used up by asking.
    pub(crate) fn take_gone(&mut self, status: &Status) -> bool {
        self.gone.take().is_some_and(|gone| Some(gone) == status.leader.map(|leader| (leader, status.term)))
    }

    /// This node stands for election on evidence, at `tick`.
    pub(crate) fn note_standing(&mut self, tick: u64) {
        let left = self.again.map_or(AGAIN_MAX, |(_, left)| left);
        let at = tick + AGAIN_TICKS + self.random.next() % (AGAIN_TICKS + 1);
        self.again = left.checked_sub(1).map(|left| (at, left));
    }

    /// Whether, at `tick`, the election that was begun on evidence should be tried again: there is still no leader.
    pub(crate) fn is_again_due(&mut self, status: &Status, tick: u64) -> bool {
        if status.leader.is_some() {
            self.again = None;
        }
        self.again.is_some_and(|(at, _)| tick >= at)
    }
}

/// The place of `me`, from 0, among the voters that remain without `leader`. Those on their way out come last.
fn rank(me: RaftId, leader: RaftId, membership: &Membership) -> Option<u64> {
    let outgoing = membership.outgoing.difference(&membership.voters);
    let mut remaining = membership.voters.iter().chain(outgoing).filter(|id| **id != leader);
    remaining.position(|id| *id == me).map(|rank| rank as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_wait_by_rank_and_others_at_random() {
        let election = Election::new(3, 1, 10);
        let members = Membership { voters: [1, 2, 3, 4].into(), ..Membership::default() };
        let wait = |me, leader| election.timeout_ticks(me, leader, &members);
        assert_eq!([1, 3, 4].map(|me| wait(me, Some(2))), [11, 13, 15]);
        assert_eq!([2, 3].map(|me| wait(me, Some(1))), [11, 13]);
        assert!((10..20).contains(&wait(3, None)));
        assert_eq!(wait(9, Some(1)), wait(3, None), "who has no vote has no rank");
        let joint = Membership { outgoing: [1, 5].into(), ..members };
        assert_eq!(election.timeout_ticks(5, Some(2), &joint), 17, "after those who stay");
        let many = Membership { voters: (1..=30).collect(), ..Membership::default() };
        assert_eq!(election.timeout_ticks(30, Some(1), &many), 19);
    }

    #[test]
    fn random_time_outs_follow_the_seed() {
        let draw = |seed| {
            let mut election = Election::new(1, seed, 10);
            let nobody = Membership::default();
            let mut drawn = || {
                election.draw();
                election.timeout_ticks(1, None, &nobody)
            };
            [(); 20].map(|()| drawn())
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).iter().all(|ticks| (10..20).contains(ticks)));
    }
}
