//! The change of the cluster's CA, without a stop (SPEC I6): which step is next, and when it may be taken.
//!
//! ```text
//! Settled ──begin──► Handing ──every member holds both keys, 10 s──► Switched ──finish──► Settled
//!  [old]              [old, new], old signs                           [old, new], new signs     [new]
//!     ▲                   │ abort                                         │ abort: the other way round
//!     └───────────────────┘                                               └──► [new, old], old signs
//! ```
//!
//! The bundle says all: of two CAs the first is to go and the second to stay, and the step between is taken when the
//! second signs. So every step is one replicated command, safe to repeat, and whoever leads goes on from there; nothing
//! is kept elsewhere. From the switch on every node renews its certificate by itself.
//!
//! Not here: keys, and certificates as such. Owner of the state: raft.

use std::time::Duration;

use p2p_common::Now;
use p2p_common::cluster_state::ClusterState;
use p2p_common::command::CommandBody;

/// Once every member holds the new key it is used after so long: by then every connected node was told to trust it.
pub const SWITCH_AFTER: Duration = Duration::from_secs(10);

/// How far a change of the CA is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaPhase {
    /// There is one CA.
    Settled,
    /// The next one is trusted, and its key handed to every Server.
    Handing,
    /// The next one signs; nodes renew their certificates.
    Switched,
}

impl CaPhase {
    /// The phase a state is in.
    pub fn of(state: &ClusterState) -> Self {
        match (state.trust_bundle.len(), state.signer) {
            (0 | 1, _) => CaPhase::Settled,
            (_, 0) => CaPhase::Handing,
            _ => CaPhase::Switched,
        }
    }

    /// For people and programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            CaPhase::Settled => "settled",
            CaPhase::Handing => "handing",
            CaPhase::Switched => "switched",
        }
    }
}

fn change(state: &ClusterState, bundle: Vec<Vec<u8>>, signer: usize) -> CommandBody {
    CommandBody::ChangeTrust { bundle, signer, expected: state.trust_version }
}

/// The step that has `next` (a CA certificate, DER) trusted; none while a change is under way.
pub fn begin(state: &ClusterState, next: Vec<u8>) -> Option<CommandBody> {
    let [now] = state.trust_bundle.as_slice() else { return None };
    Some(change(state, vec![now.clone(), next], 0))
}

/// The step that has the next CA sign.
fn switch(state: &ClusterState) -> Option<CommandBody> {
    (CaPhase::of(state) == CaPhase::Handing).then(|| change(state, state.trust_bundle.clone(), 1))
}

/// The step after which the CA that went is trusted no more; none before the switch.
pub fn finish(state: &ClusterState) -> Option<CommandBody> {
    let [_, stays] = state.trust_bundle.as_slice() else { return None };
    (CaPhase::of(state) == CaPhase::Switched).then(|| change(state, vec![stays.clone()], 0))
}

/// The step back: before the switch all is as it was; after it the change begins in the other direction, since nodes have
/// certificates of the CA that shall go. None when nothing is under way.
pub fn abort(state: &ClusterState) -> Option<CommandBody> {
    let [first, second] = state.trust_bundle.as_slice() else { return None };
    Some(match CaPhase::of(state) {
        CaPhase::Switched => change(state, vec![second.clone(), first.clone()], 1),
        _ => change(state, vec![first.clone()], 0),
    })
}

/// Has the next CA sign, at the Server that leads. Decides about one moment after the other; another leader begins anew.
#[derive(Debug, Default)]
pub struct SwitchCare {
    /// Since when every member holds the key, at which version of the bundle.
    held: Option<(u64, Now)>,
}

impl SwitchCare {
    /// What to propose now. `all_hold`: every row of table C is a Server that is connected and has said that it holds the
    /// keys of both CAs.
    pub fn handle(
        &mut self,
        leads: bool,
        state: &ClusterState,
        all_hold: bool,
        now: Now,
    ) -> Option<CommandBody> {
        if !leads || !all_hold || CaPhase::of(state) != CaPhase::Handing {
            self.held = None;
            return None;
        }
        let version = state.trust_version;
        let since = match self.held {
            Some((held, since)) if held == version => since,
            _ => now,
        };
        self.held = Some((version, since));
        if now.since(since) < SWITCH_AFTER {
            return None;
        }
        switch(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::{ClusterId, Epoch};
    use uuid::Uuid;

    fn settled() -> ClusterState {
        ClusterState::new(ClusterId::new(Uuid::nil()), Epoch(1), vec![vec![1]])
    }

    fn apply(state: &mut ClusterState, step: Option<CommandBody>) -> (Vec<Vec<u8>>, usize) {
        match step {
            Some(CommandBody::ChangeTrust { bundle, signer, expected }) => {
                assert_eq!(expected, state.trust_version);
                (state.trust_bundle, state.signer) = (bundle, signer);
                state.trust_version += 1;
                (state.trust_bundle.clone(), state.signer)
            }
            other => panic!("{other:?}"),
        }
    }

    fn at(ms: u64) -> Now {
        Now::from_ms(ms)
    }

    #[test]
    fn forwards_and_back_step_by_step() {
        let mut state = settled();
        assert_eq!((finish(&state), abort(&state)), (None, None));
        let step = begin(&state, vec![2]);
        assert_eq!(apply(&mut state, step), (vec![vec![1], vec![2]], 0));
        assert_eq!(CaPhase::of(&state), CaPhase::Handing);
        assert_eq!((begin(&state, vec![3]), finish(&state)), (None, None));
        let mut aborted = state.clone();
        let step = abort(&aborted);
        assert_eq!(apply(&mut aborted, step), (vec![vec![1]], 0));

        let step = SwitchCare { held: Some((1, at(0))) }.handle(true, &state, true, at(10_000));
        assert_eq!(apply(&mut state, step), (vec![vec![1], vec![2]], 1));
        assert_eq!(CaPhase::of(&state), CaPhase::Switched);
        let mut back = state.clone();
        let step = abort(&back);
        assert_eq!(apply(&mut back, step), (vec![vec![2], vec![1]], 1));
        let step = finish(&back);
        assert_eq!(apply(&mut back, step), (vec![vec![1]], 0));
        let step = finish(&state);
        assert_eq!(apply(&mut state, step), (vec![vec![2]], 0));
        assert_eq!(CaPhase::of(&state), CaPhase::Settled);
    }

    #[test]
    fn the_switch_waits_for_every_member() {
        let mut state = settled();
        let mut care = SwitchCare::default();
        assert_eq!(care.handle(true, &state, true, at(0)), None, "nothing to do");
        let step = begin(&state, vec![2]);
        apply(&mut state, step);
        assert_eq!(care.handle(true, &state, false, at(0)), None);
        assert_eq!(care.handle(true, &state, true, at(1_000)), None);
        assert_eq!(care.handle(true, &state, true, at(10_999)), None);
        assert_eq!(care.handle(true, &state, false, at(10_999)), None, "one has gone");
        assert_eq!(care.handle(true, &state, true, at(11_000)), None);
        assert_eq!(care.handle(false, &state, true, at(21_000)), None, "another one leads");
        assert_eq!(care.handle(true, &state, true, at(30_000)), None);
        assert!(care.handle(true, &state, true, at(40_000)).is_some());
        assert!(care.handle(true, &state, true, at(40_001)).is_some(), "until it is applied");
    }
}
