//! How often one address may be dialled for nothing (SPEC P2).
//!
//! What Peers say of their addresses is partly their own word, and many of them together could name one victim: each
//! alone is dialled within its back-off, all together without bound. So every host that candidates lead to has a
//! budget: [`BURST`] dials at once, then one each [`REFILL`], whichever Peers named it and whatever the port. A dial
//! that finds the Peer it is meant for costs nothing, so that a crowd behind one NAT, or on one machine, is reached
//! as fast as ever.
//!
//! Loopback has none: whoever is configured to dial it means this host. Neither have addresses that an operator gave.
//! Bound: [`TARGETS_MAX`] hosts; while all of them are short of their full budget no further one is dialled.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use p2p_common::Now;

use crate::netinfo::Scope;

/// Dials at once: of 16 Peers behind one NAT, each with a few addresses there.
pub const BURST: u32 = 64;
/// After that, one each.
pub const REFILL: Duration = Duration::from_secs(2);
/// Hosts remembered.
pub const TARGETS_MAX: usize = 4_096;

/// No dial is left for a host now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{target} was dialled too often without finding whom it was to lead to; again in {} s", .again.as_secs() + 1)]
pub struct BudgetSpent {
    /// The host.
    pub target: IpAddr,
    /// When one is left again.
    pub again: Duration,
}

/// The budgets of all hosts that are short of a full one.
#[derive(Debug, Default)]
pub struct DialBudget {
    /// When the budget is full again.
    targets: BTreeMap<IpAddr, Now>,
}

impl DialBudget {
    /// Takes a dial to `ip`.
    ///
    /// # Errors
    /// When none is left.
    pub fn take(&mut self, ip: IpAddr, now: Now) -> Result<(), BudgetSpent> {
        let Some(target) = target(ip) else { return Ok(()) };
        if !self.targets.contains_key(&target) && self.targets.len() >= TARGETS_MAX {
            self.targets.retain(|_, full_at| *full_at > now);
            if self.targets.len() >= TARGETS_MAX {
                return Err(BudgetSpent { target, again: REFILL });
            }
        }
        let full_at = self.targets.get(&target).map_or(now, |full_at| (*full_at).max(now)) + REFILL;
        let short = full_at.since(now);
        let most = REFILL * BURST;
        if short > most {
            return Err(BudgetSpent { target, again: short.saturating_sub(most) });
        }
        self.targets.insert(target, full_at);
        Ok(())
    }

    /// The dial to `ip` led where it was meant to: it costs nothing.
    pub fn give_back(&mut self, ip: IpAddr) {
        if let Some(full_at) = target(ip).and_then(|target| self.targets.get_mut(&target)) {
            *full_at = *full_at - REFILL;
        }
    }
}

/// What counts as one host: an IPv4 address, or the /64 that one line has of IPv6.
fn target(ip: IpAddr) -> Option<IpAddr> {
    let ip = ip.to_canonical();
    match ip {
        _ if Scope::of(ip) == Scope::Loopback => None,
        IpAddr::V4(_) => Some(ip),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Some(IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::{DialRule, Remotes};
    use crate::fixture::peer;
    use p2p_common::addr::{Candidate, CandidateKind, NetInfo};
    use p2p_common::backoff::Jitter;

    const VICTIM: &str = "198.51.100.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_has_its_budget_and_gets_it_back() {
        let (mut budget, at) = (DialBudget::default(), Now::from_ms(5_000));
        for _ in 0..BURST {
            assert_eq!(budget.take(ip(VICTIM), at), Ok(()));
        }
        let spent = budget.take(ip("::ffff:198.51.100.1"), at).unwrap_err();
        assert_eq!((spent.target, spent.again), (ip(VICTIM), REFILL));
        assert_eq!(budget.take(ip("198.51.100.2"), at), Ok(()), "others have their own");
        assert_eq!(budget.take(ip(VICTIM), at + REFILL), Ok(()));
        assert!(budget.take(ip(VICTIM), at + REFILL).is_err());
        budget.give_back(ip(VICTIM));
        assert_eq!(budget.take(ip(VICTIM), at + REFILL), Ok(()));
        assert!((0..10_000).all(|_| budget.take(ip("127.0.0.1"), at).is_ok()));
        let line = |n: u32| ip(&format!("2001:db8::{n:x}"));
        assert_eq!((0..1_000).filter(|n| budget.take(line(*n), at).is_ok()).count(), BURST as usize);
    }

    #[test]
    fn hosts_are_bounded() {
        let (mut budget, at) = (DialBudget::default(), Now::from_ms(5_000));
        let many = |n: usize| ip(&format!("10.{}.{}.1", n / 256, n % 256));
        for n in 0..TARGETS_MAX {
            budget.take(many(n), at).unwrap();
        }
        assert!(budget.take(many(TARGETS_MAX), at).is_err());
        assert!(budget.take(many(0), at).is_ok(), "who is known goes on");
        assert_eq!(budget.take(many(TARGETS_MAX), at + REFILL), Ok(()));
    }

    /// A view full of Peers that all name one victim, each under several ports, dialled as the agent would have it.
    #[test]
    fn a_view_full_of_entries_that_name_one_host_costs_it_its_budget() {
        let own = NetInfo { listen: Some("0.0.0.0:6443".parse().unwrap()), candidates: vec![] };
        let rule = DialRule::new(&own);
        let candidates = |n: u8| -> Vec<Candidate> {
            let named = (0..16).map(|port| format!("{VICTIM}:{}", 1 + u16::from(n) * 16 + port));
            named
                .map(|addr| Candidate { kind: CandidateKind::Advertised, addr: addr.parse().unwrap() })
                .collect()
        };
        let mut remotes = Remotes::new(Jitter::new(7).next_u64());
        let mut budget = DialBudget::default();
        for n in 0..250 {
            remotes.set_wanted(peer(n), true, Now::ZERO);
        }
        let (mut dialled, mut tried, minutes) = (0, 0, 30);
        for second in 0..minutes * 60 {
            let now = Now::from_ms(second * 1_000);
            while let Some(peer_id) = remotes.take_due(now) {
                let n = (0..250).find(|n| peer(*n) == peer_id).unwrap();
                for address in rule.plan(&candidates(n)).addresses {
                    tried += 1;
                    dialled += u32::from(budget.take(address.socket_addr().unwrap().ip(), now).is_ok());
                }
                remotes.on_failed(peer_id, now);
            }
        }
        let most = BURST + u32::try_from(minutes * 60 / REFILL.as_secs()).unwrap();
        assert!(tried > 10 * most && dialled <= most, "{dialled} of {tried}, at most {most}");
    }
}
