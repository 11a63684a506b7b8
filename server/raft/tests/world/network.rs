//! A network that loses, delays, reorders, repeats and partitions.

use std::collections::{BTreeMap, BTreeSet};

use p2p_common::member::RaftId;
use p2p_server_raft::Message;
use rand::Rng;
use rand::rngs::SmallRng;

/// How bad it is.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub loss: f64,
    pub repeat: f64,
    pub delay_max_ms: u64,
    /// How often a message is twenty times as late.
    pub late: f64,
}

impl Weather {
    pub const CALM: Weather = Weather { loss: 0.0, repeat: 0.0, delay_max_ms: 2, late: 0.0 };
}

/// Messages on their way, and pairs that cannot talk.
#[derive(Debug)]
pub struct Network {
    pub weather: Weather,
    in_transit: BTreeMap<(u64, u64), Message>,
    sequence: u64,
    blocked: BTreeSet<(RaftId, RaftId)>,
}

impl Network {
    pub fn new(weather: Weather) -> Self {
        Network { weather, in_transit: BTreeMap::new(), sequence: 0, blocked: BTreeSet::new() }
    }

    /// False: the message was lost.
    pub fn send(&mut self, rng: &mut SmallRng, now_ms: u64, message: Message) -> bool {
        if self.blocked.contains(&(message.from, message.to)) || rng.random_bool(self.weather.loss) {
            return false;
        }
        let copies = if rng.random_bool(self.weather.repeat) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if rng.random_bool(self.weather.late) { 20 } else { 1 };
            let delay = rng.random_range(0..=self.weather.delay_max_ms) * late;
            self.sequence += 1;
            self.in_transit.insert((now_ms + delay, self.sequence), message.clone());
        }
        true
    }

    pub fn due(&mut self, now_ms: u64) -> Option<Message> {
        let first = self.in_transit.first_entry().filter(|first| first.key().0 <= now_ms)?;
        Some(first.remove())
    }

    /// Splits `ids` in two groups that cannot talk; one way only, if `one_way`.
    pub fn partition(&mut self, rng: &mut SmallRng, ids: &[RaftId], one_way: bool) {
        self.blocked.clear();
        let (left, right): (Vec<RaftId>, Vec<RaftId>) = ids.iter().partition(|_| rng.random_bool(0.5));
        self.block(&left, &right);
        if !one_way {
            self.block(&right, &left);
        }
    }

    /// These two groups cannot talk.
    pub fn partition_between(&mut self, left: &[RaftId], right: &[RaftId]) {
        self.block(left, right);
        self.block(right, left);
    }

    fn block(&mut self, from: &[RaftId], to: &[RaftId]) {
        self.blocked.extend(from.iter().flat_map(|a| to.iter().map(|b| (*a, *b))));
    }

    /// Whether a connection between these two would hold.
    pub fn connects(&self, a: RaftId, b: RaftId) -> bool {
        !self.blocked.contains(&(a, b)) && !self.blocked.contains(&(b, a))
    }

    pub fn heal(&mut self) {
        self.blocked.clear();
    }
}
