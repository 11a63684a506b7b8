//! [`Slots`]: a bounded number of connections that have proved nothing yet, shared fairly among their sources.
//!
//! ```text
//! newcomer ─┬─ its source has its share ─► the source's own least deserving, if that had its time, makes room;
//!           │                              else a free slot is lent, up to half of all; else it is turned away
//!           ├─ a slot is free ───────────► takes it
//!           └─ all are taken ────────────► the least deserving of the source with most makes room: at once where
//!                                          that source is over its share, else when it has had its time
//! ```
//!
//! Least deserving is who never showed good credentials, then who is idle longest. Who showed them a moment ago
//! gives way to nobody. So a source harms itself first, and a crowd of honest sources, as after a restart, is
//! served one after the other instead of being thrown out for each other.
//!
//! It does not say what a connection may cost or take: time-outs are its owner's. Source: SPEC S1, I4.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Source;

/// Who showed good credentials within this time gives way to nobody.
pub const VOUCHED_FOR: Duration = Duration::from_secs(10);

/// How often it is looked whether a slot has got free.
const REST: Duration = Duration::from_millis(5);

/// How many, and how they are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotLimits {
    /// Slots in all.
    pub slots_max: usize,
    /// The share of one source.
    pub per_source: usize,
    /// Nobody makes room for others of his kind before being idle for so long: an honest one is done by then.
    pub spared: Duration,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowded {
    /// The source of the newcomer takes too many at a time.
    Source,
    /// All slots are taken; one can be made free then, if none gets free by itself.
    Until(Instant),
    /// All slots are taken by connections that have shown good credentials.
    Full,
}

/// The slots of a port. Cheap to copy.
#[derive(Debug, Clone)]
pub struct Slots {
    limits: SlotLimits,
    start: Instant,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    taken: usize,
    next: u64,
    sources: BTreeMap<Source, BTreeMap<u64, Arc<Occupant>>>,
    /// Sources over their share of which nobody has had his time before then: in a flood nobody needs to be looked
    /// for. Never too late, since everybody's time only moves on.
    spared: BTreeMap<Source, Instant>,
}

#[derive(Debug)]
struct Occupant {
    /// Milliseconds since the start of the slots.
    active_ms: AtomicU64,
    /// The same, one more; 0 is never.
    vouched_ms: AtomicU64,
    evicted: CancellationToken,
}

/// A slot, until dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    source: Source,
    number: u64,
    occupant: Arc<Occupant>,
}

/// The way to say that a connection has shown good credentials. Cheap to copy; does not hold the slot.
#[derive(Debug, Clone)]
pub struct Voucher {
    start: Instant,
    occupant: Arc<Occupant>,
}

/// Who makes room, and since when it is idle.
struct Least {
    source: Source,
    number: u64,
    has_vouched: bool,
    active: Instant,
}

impl Slots {
    /// All free.
    pub fn new(limits: SlotLimits) -> Self {
        Slots { limits, start: Instant::now(), table: Arc::default() }
    }

    /// A slot for a connection from `source`; mostly somebody else's, who hears it by [`Slot::evicted`].
    ///
    /// # Errors
    /// When nobody may be made to go.
    pub fn take(&self, source: Source, now: Instant) -> Result<Slot, Crowded> {
        let SlotLimits { slots_max, per_source, spared } = self.limits;
        let mut table = self.table();
        let held = table.sources.get(&source).map_or(0, BTreeMap::len);
        let mut evict = None;
        if held >= per_source {
            let least = match table.spared.get(&source) {
                Some(until) if now < *until => None,
                _ => self.least(&table, source, now),
            };
            let least = match least {
                Some(least) if now < least.active + spared => {
                    table.spared.insert(source, least.active + spared);
                    None
                }
                least => least,
            };
            let may_lend = table.taken < slots_max && held < (slots_max / 2).max(per_source);
            match least {
                Some(least) => evict = Some(least),
                None if may_lend => {}
                None => return Err(Crowded::Source),
            }
        } else if table.taken >= slots_max {
            evict = Some(self.room(&table, now)?);
        }
        if let Some(Least { source, number, .. }) = evict {
            table.remove(source, number).expect("found under this lock").evicted.cancel();
        }
        let number = table.next;
        table.next += 1;
        table.taken += 1;
        let occupant = Arc::new(Occupant {
            active_ms: AtomicU64::new(self.ms(now)),
            vouched_ms: AtomicU64::new(0),
            evicted: CancellationToken::new(),
        });
        table.sources.entry(source).or_default().insert(number, Arc::clone(&occupant));
        Ok(Slot { slots: self.clone(), source, number, occupant })
    }

    /// As [`Slots::take`], but waits, for [`SlotLimits::spared`] at most and mostly for less, when all slots are
    /// taken by young ones of many sources. Cancel safe.
    ///
    /// # Errors
    /// When its source takes too many, or nobody may be made to go.
    pub async fn wait(&self, source: Source) -> Result<Slot, Crowded> {
        loop {
            let now = Instant::now();
            match self.take(source, now) {
                Err(Crowded::Until(until)) => tokio::time::sleep_until(until.min(now + REST)).await,
                taken => return taken,
            }
        }
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.table().taken
    }

    /// Who makes room when all slots are taken.
    fn room(&self, table: &Table, now: Instant) -> Result<Least, Crowded> {
        let SlotLimits { per_source, spared, .. } = self.limits;
        let most = table.sources.iter().max_by_key(|(_, held)| held.len());
        if let Some((source, held)) = most
            && held.len() >= per_source
            && let Some(least) = self.least(table, *source, now)
        {
            return Ok(least);
        }
        let all = table.sources.keys().filter_map(|source| self.least(table, *source, now));
        let least = all.min_by_key(|least| (least.has_vouched, least.active)).ok_or(Crowded::Full)?;
        let until = least.active + spared;
        if until <= now { Ok(least) } else { Err(Crowded::Until(until)) }
    }

    /// The least deserving of one source.
    fn least(&self, table: &Table, source: Source, now: Instant) -> Option<Least> {
        let at = |ms: u64| self.start + Duration::from_millis(ms);
        let held = table.sources.get(&source)?.iter();
        let candidates = held.filter_map(|(number, occupant)| {
            let vouched = occupant.vouched_ms.load(Ordering::Relaxed).checked_sub(1).map(at);
            let active = at(occupant.active_ms.load(Ordering::Relaxed));
            let is_safe = vouched.is_some_and(|vouched| now < vouched + VOUCHED_FOR);
            (!is_safe).then_some(Least { source, number: *number, has_vouched: vouched.is_some(), active })
        });
        candidates.min_by_key(|least| (least.has_vouched, least.active, least.number))
    }

    fn ms(&self, now: Instant) -> u64 {
        ms_since(self.start, now)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change is whole before anything can fail.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn remove(&mut self, source: Source, number: u64) -> Option<Arc<Occupant>> {
        let held = self.sources.get_mut(&source)?;
        let occupant = held.remove(&number)?;
        self.taken -= 1;
        if held.is_empty() {
            self.sources.remove(&source);
            self.spared.remove(&source);
        }
        Some(occupant)
    }
}

impl Slot {
    /// Cancelled when the slot was given to somebody else: the connection must end.
    pub fn evicted(&self) -> &CancellationToken {
        &self.occupant.evicted
    }

    /// The connection is not idle.
    pub fn touch(&self, now: Instant) {
        self.occupant.active_ms.store(self.slots.ms(now), Ordering::Relaxed);
    }

    /// Whether the connection has ever shown good credentials.
    pub fn has_vouched(&self) -> bool {
        self.occupant.vouched_ms.load(Ordering::Relaxed) != 0
    }

    /// For whoever can tell good credentials.
    pub fn voucher(&self) -> Voucher {
        Voucher { start: self.slots.start, occupant: Arc::clone(&self.occupant) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.table().remove(self.source, self.number);
    }
}

impl Voucher {
    /// The connection has just shown good credentials.
    pub fn vouch(&self, now: Instant) {
        self.occupant.vouched_ms.store(ms_since(self.start, now) + 1, Ordering::Relaxed);
    }
}

fn ms_since(start: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    const SPARED: Duration = Duration::from_millis(500);

    fn slots(slots_max: usize, per_source: usize) -> (Slots, Instant) {
        let slots = Slots::new(SlotLimits { slots_max, per_source, spared: SPARED });
        let start = slots.start;
        (slots, start)
    }

    fn source(n: u32) -> Source {
        Source::from(IpAddr::V4(n.into()))
    }

    #[test]
    fn a_source_beyond_its_share_displaces_its_own_oldest() {
        let (slots, start) = slots(100, 2);
        let other = slots.take(source(9), start).unwrap();
        let first = slots.take(source(1), start).unwrap();
        let second = slots.take(source(1), start + Duration::from_millis(1)).unwrap();
        let later = start + SPARED;
        let third = slots.take(source(1), later).unwrap();
        assert!(
            first.evicted().is_cancelled()
                && !second.evicted().is_cancelled()
                && !third.evicted().is_cancelled()
                && !other.evicted().is_cancelled()
        );
        assert_eq!(slots.taken(), 3);
        drop(first);
        assert_eq!(slots.taken(), 3, "an evicted slot is somebody else's already");
        drop((second, third, other));
        assert_eq!(slots.taken(), 0);
        assert!(slots.table().sources.is_empty());
    }

    #[test]
    fn a_burst_of_one_source_borrows_up_to_half() {
        let (slots, start) = slots(10, 2);
        let held: Vec<_> = (0..5).map(|_| slots.take(source(1), start).unwrap()).collect();
        assert_eq!(slots.take(source(1), start).unwrap_err(), Crowded::Source);
        assert!(held.iter().all(|slot| !slot.evicted().is_cancelled()));
        // Others find room: free slots first, then what was borrowed, however young.
        let others: Vec<_> = (0..6).map(|n| slots.take(source(10 + n), start).unwrap()).collect();
        assert!(others.iter().all(|slot| !slot.evicted().is_cancelled()));
        assert_eq!(held.iter().filter(|slot| slot.evicted().is_cancelled()).count(), 1);
        assert_eq!(slots.taken(), 10);
    }

    #[test]
    fn a_crowd_of_many_sources_gets_its_time() {
        let (slots, start) = slots(4, 2);
        let held: Vec<_> = (0..4)
            .map(|n| slots.take(source(n), start + Duration::from_millis(u64::from(n))).unwrap())
            .collect();
        let now = start + Duration::from_millis(10);
        assert_eq!(slots.take(source(9), now).unwrap_err(), Crowded::Until(start + SPARED));
        let newcomer = slots.take(source(9), start + SPARED).unwrap();
        assert!(
            held[0].evicted().is_cancelled()
                && !held[1].evicted().is_cancelled()
                && !newcomer.evicted().is_cancelled()
        );
    }

    #[test]
    fn good_credentials_and_work_keep_a_place() {
        let (slots, start) = slots(3, 3);
        let at = |ms| start + Duration::from_millis(ms);
        let [vouched, busy, idle] = [1, 2, 3].map(|n| slots.take(source(n), start).unwrap());
        vouched.voucher().vouch(at(0));
        busy.touch(at(900));
        let first = slots.take(source(4), at(1_000)).unwrap();
        assert!(idle.evicted().is_cancelled(), "idle for longest");
        first.voucher().vouch(at(1_000));
        busy.voucher().vouch(at(1_000));
        assert_eq!(slots.take(source(5), at(9_000)).unwrap_err(), Crowded::Full);
        // What was good once goes after what never was.
        let stranger = slots.take(source(5), at(10_000)).unwrap();
        assert!(vouched.evicted().is_cancelled());
        let another = slots.take(source(6), at(20_000)).unwrap();
        assert!(
            stranger.evicted().is_cancelled()
                && !busy.evicted().is_cancelled()
                && !first.evicted().is_cancelled()
                && !another.evicted().is_cancelled()
        );
    }

    #[test]
    fn a_source_of_good_credentials_alone_is_turned_away_beyond_half() {
        let (slots, start) = slots(8, 2);
        let held: Vec<_> = (0..4).map(|_| slots.take(source(1), start).unwrap()).collect();
        held.iter().for_each(|slot| slot.voucher().vouch(start + SPARED));
        assert_eq!(slots.take(source(1), start + SPARED).unwrap_err(), Crowded::Source);
    }

    #[test]
    fn it_never_holds_more_than_its_slots() {
        let (slots, start) = slots(16, 4);
        let mut jitter = p2p_common::backoff::Jitter::new(7);
        let mut held: Vec<Slot> = Vec::new();
        for step in 0..20_000 {
            let now = start + Duration::from_millis(step);
            let random = jitter.next_u64();
            if random.is_multiple_of(4) && !held.is_empty() {
                held.swap_remove((random >> 8) as usize % held.len());
            } else if let Ok(slot) = slots.take(source((random >> 8) as u32 % 9), now) {
                held.push(slot);
            }
            held.retain(|slot| !slot.evicted().is_cancelled());
            let table = slots.table();
            assert!(table.taken <= 16 && table.taken == held.len());
            assert_eq!(table.taken, table.sources.values().map(BTreeMap::len).sum::<usize>());
            assert!(table.sources.values().all(|held| !held.is_empty() && held.len() <= 8));
            assert!(table.spared.keys().all(|source| table.sources.contains_key(source)));
        }
    }
}
