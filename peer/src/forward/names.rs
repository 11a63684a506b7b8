//! [`Names`]: the proxy_ids of an ingress.

use std::sync::atomic::{AtomicU32, Ordering};

use p2p_common::wire::tunnel::ProxyId;

/// Names for forwards: each 32-bit number once, in an order that differs from run to run. Drawn at random they
/// would repeat sooner: of two million, which an owner may remember of two minutes, one in two thousand.
#[derive(Debug)]
pub(super) struct Names {
    key: u32,
    drawn: AtomicU32,
}

impl Names {
    /// In the order of `key`.
    pub(super) fn new(key: u32) -> Self {
        Names { key, drawn: AtomicU32::new(0) }
    }

    /// The next.
    pub(super) fn next(&self) -> ProxyId {
        loop {
            // The finaliser of MurmurHash3, by Austin Appleby: one to one, and no two neighbours look alike.
            let mut name = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_add(self.key);
            name = (name ^ name >> 16).wrapping_mul(0x85eb_ca6b);
            name = (name ^ name >> 13).wrapping_mul(0xc2b2_ae35);
            name ^= name >> 16;
            if name != NO_FORWARD {
                return ProxyId(name);
            }
        }
    }
}

/// A REFUSE of a hello carries it.
const NO_FORWARD: u32 = 0;

/// A random name for what never becomes a forward.
pub(crate) fn new_proxy_id() -> ProxyId {
    ProxyId(rand::random_range(NO_FORWARD + 1..=u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_do_not_repeat() {
        for key in [0, 1, u32::MAX] {
            let names = Names::new(key);
            let drawn: HashSet<u32> = (0..200_000).map(|_| names.next().0).collect();
            assert_eq!(drawn.len(), 200_000);
            assert!(!drawn.contains(&NO_FORWARD));
        }
        assert_ne!(Names::new(1).next(), Names::new(2).next());
    }
}
