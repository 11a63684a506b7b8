//! When to dial which Peer so that a wanted link has a tunnel at hand.
//!
//! ```text
//!            wanted                take_due              on_opened
//! (nothing) ───────► waiting(until) ───────► dialling(until) ───────► open ──┐
//!                        ▲  ▲   on_failed, or silence    │                   │ on_closed, the last one
//!                        │  └────────────────────────────┘                   │
//!                        └───────────────────────────────────────────────────┘
//! ```
//!
//! Only dialled tunnels count: a tunnel carries forwards from the side that dialled it. Failures back off per
//! remote, and for ever; a tunnel that lasted, or a change of where the Peer can be reached, starts anew. This
//! paces what is dialled ahead of need only: a forward that finds no tunnel dials at once, and what comes of it
//! is reported here, too.

use std::collections::BTreeMap;
use std::time::Duration;

use p2p_common::backoff::{Backoff, Jitter};
use p2p_common::{NodeId, Now};

/// The wait after the first failure.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait: a Peer that comes back is linked again within it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A tunnel that was open this long was no failure.
const LASTED: Duration = Duration::from_secs(10);
/// A dial that nobody reported on by then is taken for failed.
const DIAL_MAX: Duration = Duration::from_secs(30);
/// So many dials run at once; the others wait for one to end.
const DIALS_MAX: usize = 32;

/// The dialling state of every known Peer.
#[derive(Debug)]
pub(crate) struct Remotes {
    rows: BTreeMap<NodeId, Remote>,
    jitter: Jitter,
}

#[derive(Debug)]
struct Remote {
    wanted: bool,
    state: State,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Now },
    Dialling { until: Now },
    Open { tunnels: u32, since: Now },
}

impl Remotes {
    pub(crate) fn new(seed: u64) -> Self {
        Remotes { rows: BTreeMap::new(), jitter: Jitter::new(seed) }
    }

    /// Says whether `peer` should have a tunnel ahead of need.
    pub(crate) fn set_wanted(&mut self, peer: NodeId, wanted: bool, now: Now) {
        self.row(peer, now).wanted = wanted;
    }

    /// What is known of `peer`'s addresses has changed: former failures say nothing any more.
    pub(crate) fn on_addresses(&mut self, peer: NodeId, now: Now) {
        let row = self.row(peer, now);
        row.backoff.reset();
        if let State::Waiting { until } = &mut row.state {
            *until = now;
        }
    }

    pub(crate) fn on_opened(&mut self, peer: NodeId, now: Now) {
        let Some(row) = self.rows.get_mut(&peer) else { return };
        row.state = match row.state {
            State::Open { tunnels, since } => State::Open { tunnels: tunnels.saturating_add(1), since },
            State::Waiting { .. } | State::Dialling { .. } => State::Open { tunnels: 1, since: now },
        };
    }

    pub(crate) fn on_closed(&mut self, peer: NodeId, now: Now) {
        let Some(row) = self.rows.get_mut(&peer) else { return };
        match row.state {
            State::Open { tunnels: ..=1, since } => {
                if now.since(since) >= LASTED {
                    row.backoff.reset();
                }
                row.state = State::Waiting { until: now + row.backoff.fail(&mut self.jitter) };
            }
            State::Open { tunnels, since } => row.state = State::Open { tunnels: tunnels - 1, since },
            State::Waiting { .. } | State::Dialling { .. } => {}
        }
    }

    pub(crate) fn on_failed(&mut self, peer: NodeId, now: Now) {
        let Some(row) = self.rows.get_mut(&peer) else { return };
        if !matches!(row.state, State::Open { .. }) {
            row.state = State::Waiting { until: now + row.backoff.fail(&mut self.jitter) };
        }
    }

    /// Forgets `peer`.
    pub(crate) fn remove(&mut self, peer: NodeId) {
        self.rows.remove(&peer);
    }

    /// The next Peer to dial now; it counts as being dialled until its result is reported.
    pub(crate) fn take_due(&mut self, now: Now) -> Option<NodeId> {
        for row in self.rows.values_mut() {
            if matches!(row.state, State::Dialling { until } if until <= now) {
                row.state = State::Waiting { until: now + row.backoff.fail(&mut self.jitter) };
            }
        }
        if self.is_full() {
            return None;
        }
        let due = |row: &Remote| row.wanted && matches!(row.state, State::Waiting { until } if until <= now);
        let (peer, row) = self.rows.iter_mut().find(|(_, row)| due(row))?;
        row.state = State::Dialling { until: now + DIAL_MAX };
        Some(*peer)
    }

    /// When [`Remotes::take_due`] may have something next.
    pub(crate) fn next_due(&self) -> Option<Now> {
        let full = self.is_full();
        let due = |row: &Remote| match row.state {
            State::Waiting { until } if row.wanted && !full => Some(until),
            State::Dialling { until } => Some(until),
            State::Waiting { .. } | State::Open { .. } => None,
        };
        self.rows.values().filter_map(due).min()
    }

    fn is_full(&self) -> bool {
        self.rows.values().filter(|row| matches!(row.state, State::Dialling { .. })).count() >= DIALS_MAX
    }

    fn row(&mut self, peer: NodeId, now: Now) -> &mut Remote {
        self.rows.entry(peer).or_insert_with(|| Remote {
            wanted: false,
            state: State::Waiting { until: now },
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> NodeId {
        format!("C00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
    }

    fn at(ms: u64) -> Now {
        Now::from_ms(ms)
    }

    #[test]
    fn a_wanted_peer_is_dialled_once_and_again_after_failures_with_growing_waits() {
        let mut remotes = Remotes::new(1);
        remotes.set_wanted(peer(1), true, at(0));
        assert_eq!(remotes.take_due(at(0)), Some(peer(1)));
        assert_eq!(remotes.take_due(at(0)), None);
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..12 {
            remotes.on_failed(peer(1), now);
            let due = remotes.next_due().unwrap();
            waits.push(due.since(now));
            assert_eq!(remotes.take_due(due - Duration::from_millis(1)), None);
            assert_eq!(remotes.take_due(due), Some(peer(1)));
            now = due;
        }
        assert!(waits[0] <= FIRST_WAIT && waits[4] > FIRST_WAIT, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT), "{waits:?}");
        remotes.on_addresses(peer(1), now);
        remotes.on_failed(peer(1), now);
        assert!(remotes.next_due().unwrap().since(now) <= FIRST_WAIT);
    }

    #[test]
    fn an_open_tunnel_is_enough_and_the_last_one_closing_dials_again() {
        let mut remotes = Remotes::new(1);
        remotes.set_wanted(peer(1), true, at(0));
        remotes.on_opened(peer(1), at(0));
        remotes.on_opened(peer(1), at(0));
        remotes.on_closed(peer(1), at(5));
        assert_eq!((remotes.next_due(), remotes.take_due(at(60_000))), (None, None));
        remotes.on_closed(peer(1), at(60_000));
        assert!(remotes.next_due().unwrap() > at(60_000));
        assert_eq!(remotes.take_due(at(61_000)), Some(peer(1)));
    }

    #[test]
    fn tunnels_that_close_at_once_back_off_too() {
        let mut remotes = Remotes::new(1);
        remotes.set_wanted(peer(1), true, at(0));
        let mut now = at(0);
        for _ in 0..8 {
            remotes.on_opened(peer(1), now);
            remotes.on_closed(peer(1), now);
            now = remotes.next_due().unwrap();
        }
        assert!(now > at(30_000), "{now:?}");
        remotes.on_opened(peer(1), now);
        remotes.on_closed(peer(1), now + LASTED);
        assert!(remotes.next_due().unwrap() <= now + LASTED + FIRST_WAIT);
    }

    #[test]
    fn who_is_not_wanted_is_not_dialled() {
        let mut remotes = Remotes::new(1);
        remotes.set_wanted(peer(1), false, at(0));
        assert_eq!((remotes.next_due(), remotes.take_due(at(1))), (None, None));
        remotes.set_wanted(peer(1), true, at(1));
        remotes.remove(peer(1));
        assert_eq!((remotes.next_due(), remotes.take_due(at(1))), (None, None));
    }

    #[test]
    fn a_dial_without_a_result_fails_in_the_end() {
        let mut remotes = Remotes::new(1);
        remotes.set_wanted(peer(1), true, at(0));
        assert_eq!(remotes.take_due(at(0)), Some(peer(1)));
        let due = remotes.next_due().unwrap();
        assert_eq!(due, at(0) + DIAL_MAX);
        assert_eq!(remotes.take_due(due), None);
        assert_eq!(remotes.take_due(due + LONGEST_WAIT), Some(peer(1)));
    }

    #[test]
    fn only_so_many_dials_run_at_once() {
        let mut remotes = Remotes::new(1);
        for n in 0..40 {
            remotes.set_wanted(peer(n), true, at(0));
        }
        let dialled: Vec<NodeId> = std::iter::from_fn(|| remotes.take_due(at(0))).collect();
        assert_eq!(dialled.len(), DIALS_MAX);
        assert!(remotes.next_due().unwrap() > at(0), "no spinning while full");
        remotes.on_opened(dialled[0], at(1));
        assert!(remotes.take_due(at(1)).is_some());
    }
}
