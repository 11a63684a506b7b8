//! [`Recents`]: which forwards an owner has taken up lately, so that each runs once (SPEC F7).
//!
//! An ingress that does not hear of its FORWARD asks again on another way, under the same proxy_id; the first of
//! the two that arrives is taken up, the other is refused. What is taken up is remembered whether it came to run or
//! not: after a refusal the ingress may go to another owner, and the forward must not begin here behind its back.
//!
//! Names are remembered per run of the ingress, since each run names its forwards without regard to the one
//! before. They lie in two generations, of which the older is dropped each [`GENERATION`]: a name is known for
//! one to two of them. A full generation takes no more: the owner refuses, rather than run something twice.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use p2p_common::wire::tunnel::ProxyId;
use p2p_common::{Incarnation, NodeId};
use tokio::time::Instant;

/// Longer than the 8 s in which an ingress asks again, and the time its bytes may need afterwards.
const GENERATION: Duration = Duration::from_secs(60);
/// Names in a generation: 70,000 forwards a second of one ingress, in 42 MB.
const GENERATION_MAX: usize = 1 << 22;

/// What all callers asked for lately. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recents {
    callers: Arc<Mutex<BTreeMap<(NodeId, Incarnation), Recent>>>,
}

/// What one run of one caller asked for lately. Cheap to copy.
#[derive(Debug, Clone)]
pub(crate) struct Recent(Arc<Mutex<Generations>>);

#[derive(Debug)]
struct Generations {
    max: usize,
    since: Instant,
    now: HashSet<u32>,
    before: HashSet<u32>,
}

/// Whether a forward is taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakeUp {
    /// It is, and is remembered.
    New,
    /// It was taken up already.
    Again,
    /// It cannot be remembered.
    Full,
}

impl Recents {
    /// Those of a caller; callers of whom nothing is remembered are forgotten.
    pub(crate) fn of(&self, caller: NodeId, incarnation: Incarnation, now: Instant) -> Recent {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.retain(|_, recent| Arc::strong_count(&recent.0) > 1 || !recent.is_over(now));
        let recent = callers.entry((caller, incarnation));
        recent.or_insert_with(|| Recent::new(GENERATION_MAX, now)).clone()
    }
}

impl Recent {
    fn new(max: usize, now: Instant) -> Self {
        Recent(Arc::new(Mutex::new(Generations {
            max,
            since: now,
            now: HashSet::new(),
            before: HashSet::new(),
        })))
    }

    /// Takes a forward up, once.
    pub(crate) fn take_up(&self, proxy_id: ProxyId, now: Instant) -> TakeUp {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(names.since) >= GENERATION {
            // As many will come as came: no growing on the way.
            let next = HashSet::with_capacity(names.now.len());
            names.before = std::mem::replace(&mut names.now, next);
            if now.duration_since(names.since) >= GENERATION * 2 {
                names.before = HashSet::new();
            }
            names.since = now;
        }
        if names.before.contains(&proxy_id.0) || names.now.contains(&proxy_id.0) {
            return TakeUp::Again;
        }
        if names.now.len() >= names.max {
            return TakeUp::Full;
        }
        names.now.insert(proxy_id.0);
        TakeUp::New
    }

    fn is_over(&self, now: Instant) -> bool {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now.duration_since(names.since) >= GENERATION * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::NodeKind;
    use uuid::Uuid;

    #[tokio::test]
    async fn a_name_is_taken_up_once_in_a_minute_at_least() {
        let start = Instant::now();
        let recent = Recent::new(3, start);
        let at = |secs| start + Duration::from_secs(secs);
        assert_eq!(recent.take_up(ProxyId(1), at(0)), TakeUp::New);
        assert_eq!(recent.take_up(ProxyId(2), at(59)), TakeUp::New);
        assert_eq!(recent.take_up(ProxyId(1), at(59)), TakeUp::Again);
        assert_eq!(recent.take_up(ProxyId(2), at(119)), TakeUp::Again);
        assert_eq!(recent.take_up(ProxyId(2), at(178)), TakeUp::Again);
        assert_eq!(recent.take_up(ProxyId(2), at(180)), TakeUp::New);
        // After a long silence nothing is left.
        assert_eq!(recent.take_up(ProxyId(2), at(1_000)), TakeUp::New);
        assert_eq!(recent.take_up(ProxyId(3), at(1_000)), TakeUp::New);
        assert_eq!(recent.take_up(ProxyId(4), at(1_000)), TakeUp::New);
        assert_eq!(recent.take_up(ProxyId(5), at(1_000)), TakeUp::Full);
        assert_eq!(recent.take_up(ProxyId(4), at(1_000)), TakeUp::Again);
        assert_eq!(recent.take_up(ProxyId(5), at(1_060)), TakeUp::New);
    }

    #[tokio::test]
    async fn callers_and_their_runs_do_not_know_each_other() {
        let now = Instant::now();
        let recents = Recents::default();
        let peer = |n| NodeId::new(NodeKind::Peer, Uuid::from_u128(n));
        let run = |n| Incarnation::new(Uuid::from_u128(n));
        assert_eq!(recents.of(peer(1), run(1), now).take_up(ProxyId(1), now), TakeUp::New);
        assert_eq!(recents.of(peer(1), run(1), now).take_up(ProxyId(1), now), TakeUp::Again);
        assert_eq!(recents.of(peer(1), run(2), now).take_up(ProxyId(1), now), TakeUp::New);
        assert_eq!(recents.of(peer(2), run(1), now).take_up(ProxyId(1), now), TakeUp::New);
        // They are forgotten when they have been silent for long and have no tunnel.
        let later = now + GENERATION * 2;
        let _kept = recents.of(peer(2), run(1), now);
        let _ = recents.of(peer(3), run(1), later);
        assert_eq!(recents.callers.lock().unwrap().len(), 2);
    }
}
