//! The algebra by properties: whatever happens between a log and a view, they end up equal.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

type TestLog = Log<u8, u32>;
type TestView = View<u8, u32>;

/// Large entries, so that a few fill a piece.
const ENTRY_BYTES: usize = PIECE_BYTES.div_ceil(3);

fn run(n: u128) -> Incarnation {
    Incarnation::new(Uuid::from_u128(n))
}

/// Every fifth key is hidden from the receiver, and the last digit of every value.
fn visible(key: &u8, value: &u32) -> Option<u32> {
    (!key.is_multiple_of(5)).then_some(value / 10)
}

fn shown(log: &TestLog) -> BTreeMap<u8, u32> {
    log.iter().filter_map(|(key, value)| Some((*key, visible(key, value)?))).collect()
}

fn next(log: &TestLog, cursor: &mut Cursor<u8>) -> Option<Push<u8, u32>> {
    log.next_push(cursor, visible, |_| ENTRY_BYTES)
}

fn drain(log: &TestLog, cursor: &mut Cursor<u8>, view: &mut TestView, of: Incarnation) {
    while log.has_more(cursor) {
        if let Some(push) = next(log, cursor) {
            view.apply(of, push).unwrap();
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Change an entry; values grow, so that an older one is told by being smaller.
    Set(u8),
    Remove(u8),
    /// The sender puts up to this many pushes on the wire.
    Send(usize),
    /// Up to this many of them arrive.
    Deliver(usize),
    /// What is on the wire is lost; the receiver comes back where it stands.
    Reconnect,
    /// So does a receiver that forgot everything.
    Forget,
    /// The sender starts anew with some of its entries.
    Restart(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0u8..24).prop_map(Step::Set),
        4 => (0u8..24).prop_map(Step::Remove),
        4 => (0usize..4).prop_map(Step::Send),
        4 => (0usize..4).prop_map(Step::Deliver),
        2 => Just(Step::Reconnect),
        1 => Just(Step::Forget),
        1 => any::<u8>().prop_map(Step::Restart),
    ];
    prop::collection::vec(step, 0..160)
}

struct World {
    runs: u128,
    tombstones_max: usize,
    log: TestLog,
    cursor: Cursor<u8>,
    wire: VecDeque<Push<u8, u32>>,
    view: TestView,
    value: u32,
}

impl World {
    fn new(tombstones_max: usize) -> World {
        let log = TestLog::new(run(0), tombstones_max);
        let cursor = log.cursor(None);
        let (wire, view) = (VecDeque::new(), TestView::new(64));
        World { runs: 0, tombstones_max, log, cursor, wire, view, value: 0 }
    }

    fn reconnect(&mut self) {
        self.wire.clear();
        self.cursor = self.log.cursor(self.view.begin_session());
    }

    fn send(&mut self) {
        let Some(push) = next(&self.log, &mut self.cursor) else { return };
        if let Push::Delta(delta) = &push {
            let keys: BTreeSet<u8> = delta.changed.iter().map(|(key, _)| *key).collect();
            let removed: BTreeSet<u8> = delta.removed.iter().copied().collect();
            assert_eq!(keys.len() + removed.len(), delta.changed.len() + delta.removed.len());
            assert!(keys.is_disjoint(&removed), "each key at most once: {delta:?}");
            assert!(delta.revision > delta.previous && delta.revision <= self.log.revision());
        }
        self.wire.push_back(push);
    }

    fn deliver(&mut self) {
        let Some(push) = self.wire.pop_front() else { return };
        let before = (self.view.position(), self.view.entries().clone());
        let touched = match self.view.apply(run(self.runs), push).unwrap() {
            Applied::Pending => Some(Vec::new()),
            Applied::Replaced => None,
            Applied::Changed(keys) => Some(keys),
        };
        let (Some(was), Some(is)) = (before.0, self.view.position()) else { return };
        if was.incarnation == is.incarnation {
            assert!(is.revision >= was.revision, "never back");
            for (key, value) in self.view.entries() {
                assert!(before.1.get(key).is_none_or(|old| old <= value), "key {key} went back");
            }
        }
        if let Some(touched) = touched {
            let differs = |key: &u8| before.1.get(key) != self.view.entries().get(key);
            let keys = before.1.keys().chain(self.view.entries().keys());
            assert!(keys.filter(|key| differs(key)).all(|key| touched.contains(key)));
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Set(key) => {
                self.value += 10;
                assert!(self.log.set(*key, self.value));
                assert!(!self.log.set(*key, self.value), "an equal value is no change");
            }
            Step::Remove(key) => {
                let was = self.log.get(key).is_some();
                assert_eq!(self.log.remove(key), was);
            }
            Step::Send(n) => (0..*n).for_each(|_| self.send()),
            Step::Deliver(n) => (0..*n).for_each(|_| self.deliver()),
            Step::Reconnect => self.reconnect(),
            Step::Forget => {
                self.view = TestView::new(64);
                self.reconnect();
            }
            Step::Restart(kept) => {
                self.runs += 1;
                let mut log = TestLog::new(run(self.runs), self.tombstones_max);
                for (key, value) in self.log.iter().filter(|(key, _)| *key < kept) {
                    log.set(*key, *value);
                }
                self.log = log;
                self.reconnect();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_changes_and_losses_end_in_the_senders_table(
        steps in steps(),
        tombstones_max in 0usize..6,
    ) {
        let mut world = World::new(tombstones_max);
        for step in &steps {
            world.step(step);
        }
        while !world.wire.is_empty() {
            world.deliver();
        }
        drain(&world.log, &mut world.cursor, &mut world.view, run(world.runs));
        prop_assert_eq!(world.view.entries(), &shown(&world.log));
        prop_assert_eq!(world.view.position().map(|at| at.revision), world.cursor.sent());
        prop_assert!(world.log.tombstones_len() <= tombstones_max);
        // The same by a snapshot alone.
        let mut fresh = TestView::new(64);
        let mut cursor = world.log.cursor(fresh.begin_session());
        drain(&world.log, &mut cursor, &mut fresh, run(world.runs));
        prop_assert_eq!(fresh.entries(), world.view.entries());
    }

    #[test]
    fn any_pushes_in_any_order_give_a_view_or_an_error(
        pushes in prop::collection::vec((0u128..2, any_push()), 0..40),
    ) {
        let mut view = TestView::new(8);
        for (of, push) in pushes {
            let before = view.entries().clone();
            match view.apply(run(of), push) {
                Ok(_) => prop_assert!(view.entries().len() <= 8),
                Err(_) => {
                    prop_assert_eq!(view.position(), None);
                    prop_assert_eq!(view.entries(), &before, "an error changes no entry");
                }
            }
        }
    }
}

fn any_push() -> impl Strategy<Value = Push<u8, u32>> {
    let entries = || prop::collection::vec((0u8..12, any::<u32>()), 0..5);
    prop_oneof![
        (0u64..3, any::<bool>(), any::<bool>(), entries()).prop_map(|(revision, first, done, entries)| {
            Push::Snapshot(Piece { revision, first, done, entries })
        }),
        (0u64..4, 0u64..5, entries(), prop::collection::vec(0u8..12, 0..5)).prop_map(
            |(previous, revision, changed, removed)| {
                Push::Delta(Delta { previous, revision, changed, removed })
            }
        ),
    ]
}

fn at(revision: u64) -> Option<Position> {
    Some(Position { incarnation: run(0), revision })
}

fn filled(keys: std::ops::Range<u8>) -> TestLog {
    let mut log = TestLog::new(run(0), 2);
    keys.for_each(|key| assert!(log.set(key, 10)));
    log
}

#[test]
fn a_receiver_resumes_behind_the_floor_only() {
    let mut log = filled(1..5);
    (1..5).for_each(|key| assert!(log.remove(&key)));
    assert_eq!(log.revision(), 8);
    // Removals 5 and 6 are forgotten.
    for revision in 6..=8 {
        assert_eq!(log.cursor(at(revision)).sent(), Some(revision));
    }
    for resume in [None, at(0), at(5), at(9), Some(Position { incarnation: run(1), revision: 8 })] {
        let mut cursor = log.cursor(resume);
        let whole = Piece { revision: 8, first: true, done: true, entries: Vec::new() };
        assert_eq!(next(&log, &mut cursor), Some(Push::Snapshot(whole)), "{resume:?}");
        assert_eq!(next(&log, &mut cursor), None);
    }
}

#[test]
fn a_slow_reader_gets_a_snapshot_once_its_removals_are_forgotten() {
    let mut log = filled(1..5);
    let mut cursor = log.cursor(at(4));
    (1..4).for_each(|key| assert!(log.remove(&key)));
    let whole = Piece { revision: 7, first: true, done: true, entries: vec![(4, 1)] };
    assert_eq!(next(&log, &mut cursor), Some(Push::Snapshot(whole)));
}

#[test]
fn changes_are_coalesced_and_leave_in_the_order_of_revisions() {
    let mut log = filled(1..3);
    let mut cursor = log.cursor(at(2));
    for value in 2..9 {
        log.set(1, value * 10);
    }
    log.set(3, 10);
    log.remove(&3);
    log.set(4, 10);
    let delta = Delta { previous: 2, revision: 12, changed: vec![(1, 8), (4, 1)], removed: vec![3] };
    assert_eq!(next(&log, &mut cursor), Some(Push::Delta(delta)));
    assert_eq!(next(&log, &mut cursor), None);
}

#[test]
fn hidden_changes_are_passed_over_and_the_next_delta_still_follows() {
    let mut log = filled(1..2);
    let mut cursor = log.cursor(at(1));
    log.set(5, 10);
    assert!(log.has_more(&cursor));
    assert_eq!(next(&log, &mut cursor), None);
    assert!(!log.has_more(&cursor), "it is not looked at again");
    assert_eq!(cursor.sent(), Some(1));
    log.set(2, 10);
    let delta = Delta { previous: 1, revision: 3, changed: vec![(2, 1)], removed: Vec::new() };
    assert_eq!(next(&log, &mut cursor), Some(Push::Delta(delta)));
}

#[test]
fn pieces_are_bounded_and_entries_never_cut() {
    let log = filled(0..200);
    for resume in [None, at(1)] {
        let mut cursor = log.cursor(resume);
        let mut pushes = 0;
        while let Some(push) = next(&log, &mut cursor) {
            pushes += 1;
            let entries = match push {
                Push::Snapshot(piece) => piece.entries.len(),
                Push::Delta(delta) => delta.changed.len(),
            };
            assert!(entries <= 3, "{entries} entries in one push");
        }
        // 160 of 200 are visible, three to a piece.
        assert_eq!(pushes, 54);
    }
    let mut cursor = log.cursor(None);
    let push = log.next_push(&mut cursor, visible, |_| 100 * PIECE_BYTES);
    assert!(matches!(push, Some(Push::Snapshot(piece)) if piece.entries.len() == 1 && !piece.done));
}

#[test]
fn a_gap_asks_for_a_snapshot_and_nothing_else_will_do() {
    let mut view = TestView::new(2);
    let delta =
        |previous, revision| Push::Delta(Delta { previous, revision, changed: vec![], removed: vec![] });
    let piece = |first, done, entries| Push::Snapshot(Piece { revision: 3, first, done, entries });
    assert_eq!(view.apply(run(0), piece(true, true, vec![(1, 1)])), Ok(Applied::Replaced));
    assert_eq!(view.apply(run(0), delta(3, 4)), Ok(Applied::Changed(vec![])));
    let gap = Resync::Gap { at: Some(4), previous: 5, revision: 6 };
    assert_eq!(view.apply(run(0), delta(5, 6)), Err(gap.clone()));
    assert_eq!(gap.to_string(), "a delta from revision 5 to 6 does not follow the view at revision 4");
    assert_eq!(view.begin_session(), None);
    assert_eq!(view.entries().len(), 1, "what was known stays readable");
    assert_eq!(view.apply(run(0), delta(4, 5)), Err(Resync::Gap { at: None, previous: 4, revision: 5 }));
    assert_eq!(view.apply(run(0), piece(false, true, vec![])), Err(Resync::LoosePiece { revision: 3 }));
    assert_eq!(view.apply(run(0), piece(true, false, vec![(1, 1)])), Ok(Applied::Pending));
    assert_eq!(view.apply(run(1), piece(false, true, vec![])), Err(Resync::LoosePiece { revision: 3 }));
    assert_eq!(view.apply(run(0), piece(true, false, vec![(1, 1), (2, 2)])), Ok(Applied::Pending));
    assert_eq!(view.apply(run(0), piece(false, true, vec![(3, 3)])), Err(Resync::Full { entries_max: 2 }));
    assert_eq!(view.apply(run(0), piece(true, true, vec![(1, 1), (2, 2)])), Ok(Applied::Replaced));
    let both = Delta { previous: 3, revision: 4, changed: vec![(3, 3)], removed: vec![1, 1] };
    assert_eq!(view.apply(run(0), Push::Delta(both)), Ok(Applied::Changed(vec![3, 1, 1])));
    let more = Delta { previous: 4, revision: 5, changed: vec![(4, 4)], removed: vec![9] };
    assert_eq!(view.apply(run(0), Push::Delta(more)), Err(Resync::Full { entries_max: 2 }));
}
