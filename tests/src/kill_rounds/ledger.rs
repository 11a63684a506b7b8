//! What became of each write, and whether the Servers still say the same of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long a written token is good for. Each is looked at twice within it, and those of this time together
/// stay below the 10,000 that a cluster holds.
pub(crate) const TTL: Duration = Duration::from_secs(90);
/// A Server counts from the request's arrival, by its own clock; this much before the end nothing is asked of it.
const TTL_MARGIN: Duration = Duration::from_secs(5);

/// What the writer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is there.
    Acknowledged,
    /// It is not there and never will be.
    Failed,
    /// Either, but not both.
    Unknown,
}

/// One write and what its writer was told.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    /// The token it creates.
    pub token_id: u64,
    /// When it was sent.
    pub began: Instant,
    /// When the answer came.
    pub ended: Instant,
    /// The answer.
    pub fate: Fate,
    /// Why it was not acknowledged.
    pub reason: String,
}

/// The tokens that one Server lists.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    /// The Server.
    pub server: String,
    /// The ids of all tokens of the role that is written.
    pub tokens: BTreeSet<u64>,
}

/// Every write so far.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Those whose token may still be listed, or must never be.
    watched: BTreeMap<u64, Watched>,
    /// Tokens that were there and have expired: their room may be taken back, or not yet.
    over: BTreeSet<u64>,
    counts: Counts,
}

#[derive(Debug)]
struct Watched {
    write: Write,
    /// What the first look found; it stays so.
    settled: Option<bool>,
}

/// How many writes there were.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub acknowledged: usize,
    pub failed: usize,
    pub unknown: usize,
    /// Unknown ones that turned out to be there.
    pub unknown_there: usize,
    /// Acknowledged ones that expired before anybody looked.
    pub unseen: usize,
    /// Looks at single tokens at single Servers.
    pub looks: usize,
    /// Why writes were not acknowledged, and how often.
    pub reasons: BTreeMap<String, usize>,
}

impl Ledger {
    pub(crate) fn add(&mut self, write: Write) {
        let count = match write.fate {
            Fate::Acknowledged => &mut self.counts.acknowledged,
            Fate::Failed => &mut self.counts.failed,
            Fate::Unknown => &mut self.counts.unknown,
        };
        *count += 1;
        if write.fate != Fate::Acknowledged {
            *self.counts.reasons.entry(write.reason.clone()).or_default() += 1;
        }
        self.watched.insert(write.token_id, Watched { write, settled: None });
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Compares what all Servers list, asked not after `asked`, with what the writers were told and with what
    /// was there before. Writers must be at rest.
    ///
    /// # Errors
    /// Every contradiction.
    pub(crate) fn check(&mut self, listings: &[Listing], asked: Instant) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        let counts = &mut self.counts;
        let over = &mut self.over;
        self.watched.retain(|id, watched| {
            let write = &watched.write;
            let expired = asked >= write.began + TTL - TTL_MARGIN;
            let holders = listings.iter().filter(|listing| listing.tokens.contains(id)).count();
            counts.looks += listings.len();
            let told = format!("{:?} ({})", write.fate, write.reason);
            if expired && watched.settled != Some(false) {
                let unseen = watched.settled.is_none() && write.fate == Fate::Acknowledged;
                counts.unseen += usize::from(unseen);
                over.insert(*id);
                return false;
            }
            if holders != 0 && holders != listings.len() {
                let with = listings.iter().filter(|listing| listing.tokens.contains(id));
                let with: Vec<_> = with.map(|listing| listing.server.as_str()).collect();
                wrong.push(format!("token {id:016x}, {told}: only at {}", with.join(", ")));
                return true;
            }
            let is_there = holders != 0;
            match (write.fate, is_there) {
                (Fate::Acknowledged, false) => wrong.push(format!("token {id:016x} is lost: {told}")),
                (Fate::Failed, true) => wrong.push(format!("token {id:016x} is there: {told}")),
                _ => {}
            }
            match watched.settled {
                Some(before) if before != is_there => {
                    let now = if is_there { "appeared" } else { "vanished" };
                    wrong.push(format!("token {id:016x}, {told}, {now} after it was settled"));
                }
                Some(_) => {}
                None => {
                    watched.settled = Some(is_there);
                    counts.unknown_there += usize::from(write.fate == Fate::Unknown && is_there);
                }
            }
            true
        });
        for listing in listings {
            let nobodys = |id: &&u64| !self.watched.contains_key(id) && !self.over.contains(id);
            for id in listing.tokens.iter().filter(nobodys) {
                wrong.push(format!("token {id:016x} at {} was never written", listing.server));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(fate: Fate) -> Ledger {
        let mut ledger = Ledger::default();
        let now = Instant::now();
        ledger.add(Write { token_id: 7, began: now, ended: now, fate, reason: "r".into() });
        ledger
    }

    fn listings(first: &[u64], second: &[u64]) -> [Listing; 2] {
        let listing = |server: &str, ids: &[u64]| Listing {
            server: server.into(),
            tokens: ids.iter().copied().collect(),
        };
        [listing("s1", first), listing("s2", second)]
    }

    fn complaint(ledger: &mut Ledger, first: &[u64], second: &[u64]) -> String {
        ledger.check(&listings(first, second), Instant::now()).unwrap_err().join("; ")
    }

    #[test]
    fn an_acknowledged_write_must_be_everywhere() {
        let mut ledger = ledger(Fate::Acknowledged);
        ledger.check(&listings(&[7], &[7]), Instant::now()).unwrap();
        assert!(complaint(&mut ledger, &[], &[]).contains("lost"));
        assert!(complaint(&mut ledger, &[7], &[]).contains("only at s1"));
        assert!(complaint(&mut ledger, &[7, 8], &[7]).contains("0000000000000008 at s1 was never written"));
    }

    #[test]
    fn a_failed_write_must_be_nowhere() {
        let mut ledger = ledger(Fate::Failed);
        ledger.check(&listings(&[], &[]), Instant::now()).unwrap();
        assert!(complaint(&mut ledger, &[7], &[7]).contains("is there: Failed (r)"));
    }

    #[test]
    fn an_unknown_write_stays_as_it_is() {
        for (first, then) in [(&[7][..], &[][..]), (&[], &[7])] {
            let mut ledger = ledger(Fate::Unknown);
            ledger.check(&listings(first, first), Instant::now()).unwrap();
            ledger.check(&listings(first, first), Instant::now()).unwrap();
            assert!(complaint(&mut ledger, then, then).contains("after it was settled"));
        }
    }

    #[test]
    fn an_expired_token_may_go() {
        let late = Instant::now() + TTL;
        for ids in [&[7][..], &[]] {
            let mut seen = ledger(Fate::Acknowledged);
            seen.check(&listings(&[7], &[7]), Instant::now()).unwrap();
            seen.check(&listings(ids, ids), late).unwrap();
            assert_eq!(seen.counts().unseen, 0);
        }
        let mut unseen = ledger(Fate::Acknowledged);
        unseen.check(&listings(&[], &[]), late).unwrap();
        assert_eq!(unseen.counts().unseen, 1);
    }
}
