//! The store on real files: opened again after every step, torn, damaged.

use std::collections::BTreeSet;
use std::fs;

use bytes::Bytes;
use p2p_common::member::Member;
use p2p_common::{Epoch, KeyHash, NodeId, NodeKind, RecoveryId};
use p2p_server_raft::{COMMAND_BYTES_MAX, EntryKind, LogEntry, Membership, founding_write};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn entry(index: u64, term: u64, data: impl Into<Bytes>) -> LogEntry {
    LogEntry { index, term, kind: EntryKind::Normal, data: data.into(), context: Bytes::new() }
}

fn persist(entries: Vec<LogEntry>, term: u64, commit: u64) -> Persist {
    Persist { number: 1, snapshot: None, entries, hard_state: HardState { term, vote: 1, commit } }
}

fn origin() -> Origin {
    let member = Member {
        id: NodeId::new(NodeKind::Server, Uuid::from_u128(1)),
        name: "s1".into(),
        addresses: vec!["127.0.0.1:7401".parse().unwrap()],
        zone: String::new(),
        raft_id: 1,
        key_hash: KeyHash([1; 32]),
    };
    Origin {
        raft_id: 2,
        epoch: Epoch(3),
        recovery_id: Some(RecoveryId::new(Uuid::from_u128(4))),
        members: vec![member.clone()],
        former: vec![member],
    }
}

fn founded(path: &Path) -> Store {
    let mut store = Store::open(path).unwrap();
    let founding = founding_write(1, Bytes::from_static(b"state"));
    store.begin(&Origin::new(1, Epoch(1), None), Some(&founding)).unwrap();
    store
}

fn load(path: &Path) -> Stored {
    Store::open(path).unwrap().load().unwrap().expect("it was begun")
}

fn compact(store: &mut Store, compaction: Compaction) {
    store.begin_compacting(compaction);
    while store.go_on_compacting().unwrap() {}
}

/// The numbers of the snapshots some data of which is stored.
fn snapshots_with_data(store: &Store) -> BTreeSet<u64> {
    let keys = store.tree.scan_prefix([SNAPSHOT_DATA]).keys();
    keys.map(|key| u64::from_be_bytes(key.unwrap()[1..9].try_into().unwrap())).collect()
}

/// Copies a store as a crash at this moment would leave it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let to = to.join(item.file_name());
        if item.path().is_dir() {
            copy(&item.path(), &to);
        } else {
            fs::copy(item.path(), to).unwrap();
        }
    }
}

#[test]
fn a_new_store_is_empty_and_keeps_where_it_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut store = Store::open(&path).unwrap();
    assert!(store.load().unwrap().is_none());
    store.begin(&origin(), None).unwrap();
    drop(store);
    let stored = load(&path);
    assert_eq!(stored.origin, origin());
    assert_eq!(stored.loaded, Loaded::default());
}

#[test]
fn every_step_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = founded(&path);
    drop(store);
    let mut expected = load(&path).loaded;
    assert_eq!(expected.snapshot.as_ref().map(|s| (s.index, s.term)), Some((1, 1)));

    let steps = [
        persist(vec![entry(2, 1, ""), entry(3, 1, "a")], 1, 1),
        // A conflicting suffix is cut off.
        persist(vec![entry(3, 2, "b")], 2, 2),
        persist(vec![], 3, 3),
        // Longer than a part, shorter than a part again at the same index.
        persist(vec![entry(4, 3, vec![7; COMMAND_BYTES_MAX]), entry(5, 3, "c")], 3, 3),
        persist(vec![entry(4, 4, "d")], 4, 3),
    ];
    for step in steps {
        let mut store = Store::open(&path).unwrap();
        store.persist(std::slice::from_ref(&step)).unwrap();
        drop(store);
        if let Some(first) = step.entries.first() {
            expected.entries.retain(|entry| entry.index < first.index);
        }
        expected.entries.extend(step.entries);
        expected.hard_state = step.hard_state;
        assert_eq!(load(&path).loaded, expected);
    }

    let mut store = Store::open(&path).unwrap();
    let snapshot = Snapshot {
        index: 3,
        term: 2,
        membership: Membership::sole_voter(1),
        data: vec![9; 3 * parts::PART_BYTES + 5].into(),
    };
    compact(&mut store, Compaction { snapshot: snapshot.clone(), first_kept: 3 });
    store.raise_commit(4).unwrap();
    store.raise_commit(2).unwrap();
    drop(store);
    let loaded = load(&path).loaded;
    assert_eq!(loaded.snapshot, Some(snapshot));
    assert_eq!(loaded.entries.iter().map(|e| e.index).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(loaded.hard_state.commit, 4);

    // A snapshot from the leader replaces everything; a shorter one leaves no part of the longer.
    let mut store = Store::open(&path).unwrap();
    let received =
        Snapshot { index: 9, term: 5, membership: Membership::sole_voter(1), data: Bytes::from_static(b"s") };
    let step = Persist { snapshot: Some(received.clone()), ..persist(vec![], 5, 9) };
    store.persist(std::slice::from_ref(&step)).unwrap();
    drop(store);
    let loaded = load(&path).loaded;
    assert_eq!(loaded.snapshot, Some(received));
    assert_eq!(loaded.entries, []);
}

#[test]
fn a_torn_write_leaves_the_step_before_or_the_step_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut store = founded(&path);
    store.persist(&[persist(vec![entry(2, 1, ""), entry(3, 1, "acknowledged")], 1, 1)]).unwrap();
    let before_dir = dir.path().join("before");
    copy(&path, &before_dir);
    let before = load(&before_dir).loaded;

    let many = (4..12).map(|index| entry(index, 2, vec![index as u8; 3_000])).collect();
    let step = persist(many, 2, 3);
    store.persist(std::slice::from_ref(&step)).unwrap();
    let after_dir = dir.path().join("after");
    copy(&path, &after_dir);
    let new = fs::read(after_dir.join("db")).unwrap();
    let after = load(&after_dir).loaded;
    let old = fs::read(before_dir.join("db")).unwrap();
    // What the second write changed, cut at many places: the rest is as it was before, or zeros beyond its end.
    let first = new.iter().zip(old.iter().chain(std::iter::repeat(&0))).position(|(n, o)| n != o).unwrap();
    let last = new.iter().rposition(|byte| *byte != 0).unwrap();
    for cut in (first..last).step_by(((last - first) / 24).max(1)) {
        let torn = dir.path().join(format!("torn-{cut}"));
        copy(&before_dir, &torn);
        let mut bytes = new[..cut].to_vec();
        bytes.extend(old.get(cut..).unwrap_or_default());
        bytes.resize(new.len(), 0);
        fs::write(torn.join("db"), bytes).unwrap();
        let loaded = load(&torn).loaded;
        assert!(loaded == before || loaded == after, "a mix after a cut at {cut}: {loaded:?}");
    }
}

#[test]
fn writes_that_share_a_sync_leave_what_they_would_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let received = Snapshot {
        index: 20,
        term: 3,
        membership: Membership::sole_voter(1),
        data: Bytes::from_static(b"s"),
    };
    let steps = [
        persist(vec![entry(2, 1, "a"), entry(3, 1, "a"), entry(4, 1, vec![1; 9_000])], 1, 1),
        persist(vec![], 2, 1),
        persist(vec![entry(4, 2, "b")], 2, 1),
        persist(vec![entry(5, 2, "b"), entry(6, 2, "b")], 2, 4),
        persist(vec![entry(3, 3, "c")], 3, 2),
        Persist { snapshot: Some(received), ..persist(vec![], 3, 20) },
        persist(vec![entry(21, 3, "d")], 3, 20),
    ];
    for count in 1..=steps.len() {
        let [together, apart] = ["together", "apart"].map(|name| dir.path().join(format!("{name}-{count}")));
        founded(&together).persist(&steps[..count]).unwrap();
        let mut store = founded(&apart);
        for step in &steps[..count] {
            store.persist(std::slice::from_ref(step)).unwrap();
        }
        drop(store);
        assert_eq!(load(&together).loaded, load(&apart).loaded, "{count} writes");
    }
}

/// As a kill between two steps would, and then writes of raft's between them.
#[test]
fn every_step_of_a_compaction_leaves_a_whole_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut store = founded(&path);
    let count = 2 * STEP_KEYS as u64;
    store.persist(&[persist((2..count).map(|index| entry(index, 1, "a")).collect(), 1, 1)]).unwrap();
    let data = |fill: u8| Bytes::from(vec![fill; 3 * STEP_PARTS * parts::PART_BYTES]);
    let snapshot =
        |index, fill| Snapshot { index, term: 1, membership: Membership::sole_voter(1), data: data(fill) };
    compact(&mut store, Compaction { snapshot: snapshot(5, 1), first_kept: 3 });
    assert_eq!(snapshots_with_data(&store), [5].into());

    let next = snapshot(count - 1, 2);
    store.begin_compacting(Compaction { snapshot: next.clone(), first_kept: count - 2 });
    let mut steps = 0;
    loop {
        let more = store.go_on_compacting().unwrap();
        steps += 1;
        store.db.flush().unwrap();
        let copied = dir.path().join(format!("step-{steps}"));
        copy(&path, &copied);
        let mut again = Store::open(&copied).unwrap();
        let loaded = again.load().unwrap().unwrap().loaded;
        let stored = loaded.snapshot.unwrap();
        assert!(stored == next || stored.index == 5);
        let indices: Vec<_> = loaded.entries.iter().map(|entry| entry.index).collect();
        assert!(indices.windows(2).all(|pair| pair[1] == pair[0] + 1));
        assert!(indices[0] <= stored.index + 1 && indices.last() == Some(&(count + steps - 2)));
        while again.go_on_compacting().unwrap() {}
        assert_eq!(snapshots_with_data(&again), [stored.index].into(), "after step {steps}");
        if !more {
            break;
        }
        store.persist(&[persist(vec![entry(count + steps - 1, 1, "b")], 1, 1)]).unwrap();
    }
    assert!(steps > 5, "{steps}");
    assert_eq!(snapshots_with_data(&store), [count - 1].into());
    // One from the leader ends what was begun.
    store.begin_compacting(Compaction { snapshot: snapshot(count, 3), first_kept: count });
    assert!(store.go_on_compacting().unwrap());
    let received = snapshot(9 * count, 4);
    store.persist(&[Persist { snapshot: Some(received.clone()), ..persist(vec![], 2, 9 * count) }]).unwrap();
    assert!(!store.go_on_compacting().unwrap());
    store.begin_compacting(Compaction { snapshot: snapshot(count, 3), first_kept: count });
    assert!(!store.go_on_compacting().unwrap(), "an older one is not begun");
    assert_eq!(snapshots_with_data(&store), [9 * count].into());
    drop(store);
    assert_eq!(load(&path).loaded.snapshot, Some(received));
}

#[test]
fn nothing_goes_into_files_that_are_never_synced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut store = founded(&path);
    for index in 2..80 {
        let command = vec![index as u8; COMMAND_BYTES_MAX];
        store.persist(&[persist(vec![entry(index, 1, command)], 1, index - 1)]).unwrap();
    }
    let snapshot =
        Snapshot { index: 70, term: 1, membership: Membership::sole_voter(1), data: vec![3; 2 << 20].into() };
    compact(&mut store, Compaction { snapshot, first_kept: 60 });
    drop(store);
    assert_eq!(load(&path).loaded.entries.len(), 20);
    let blobs = fs::read_dir(path.join("blobs")).map(|items| items.count()).unwrap_or_default();
    assert_eq!(blobs, 0);
}

#[test]
fn a_damaged_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    drop(founded(&path));
    fs::write(path.join("conf"), b"not a configuration").unwrap();
    let before = fs::read(path.join("db")).unwrap();
    let refused = Store::open(&path).unwrap_err().to_string();
    assert!(refused.contains("does not open"), "{refused}");
    assert_eq!(fs::read(path.join("db")).unwrap(), before);
}

#[test]
fn what_a_damaged_file_has_lost_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut store = founded(&path);
    for index in 2..40 {
        store.persist(&[persist(vec![entry(index, 1, vec![index as u8; 4_000])], 1, index - 1)]).unwrap();
    }
    // As a kill leaves it: an end in order writes a map that sled checks its log against.
    let killed = dir.path().join("killed");
    copy(&path, &killed);
    drop(store);
    let before = load(&path).loaded;
    let bytes = fs::read(killed.join("db")).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let flipped = (0..written).step_by(written / 40).map(|at| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x55;
        (format!("flipped-{at}"), bytes)
    });
    let cut = (0..written).step_by(written / 40).map(|at| {
        let mut bytes = bytes.clone();
        bytes[at..].fill(0);
        (format!("cut-{at}"), bytes)
    });
    let mut refused = 0;
    for (name, bytes) in flipped.chain(cut) {
        let damaged = dir.path().join(&name);
        copy(&killed, &damaged);
        fs::write(damaged.join("db"), bytes).unwrap();
        // Twice: what sled clears at the first look must not look well at the second.
        for _ in 0..2 {
            match Store::open(&damaged).and_then(|store| store.load()) {
                Ok(Some(stored)) => assert_eq!(stored.loaded, before, "{name}"),
                Ok(None) => panic!("a store that was used looks new: {name}"),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 40, "only {refused} of 160 were refused");
}

#[test]
fn a_lost_part_of_the_snapshot_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = founded(&path);
    store.tree.remove(parts::long_key(SNAPSHOT_DATA, 1, 0)).unwrap();
    assert!(matches!(store.load(), Err(StoreError::Damaged { .. })));
    store.tree.remove(ORIGIN).unwrap();
    assert!(matches!(store.load(), Err(StoreError::Damaged { .. })));
}

/// What raft does to its log, and what happens to the store meanwhile.
#[derive(Debug, Clone)]
enum Step {
    /// So many entries of so many bytes follow the last ones, after so many were taken back.
    Append {
        back: usize,
        count: usize,
        bytes: usize,
    },
    /// Term and vote alone.
    Ballot,
    /// One from the leader, so much further on.
    Snapshot(u64),
    /// The writes gathered so far share a sync.
    Sync,
    /// One of our own, so many entries before the last one.
    Compact(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let sizes = prop_oneof![5 => 0..400usize, 1 => 4_000..COMMAND_BYTES_MAX];
    let append = |back| {
        (back, 1..9usize, sizes.clone()).prop_map(|(back, count, bytes)| Step::Append { back, count, bytes })
    };
    prop_oneof![
        6 => append(0..1usize),
        2 => append(1..12usize),
        1 => Just(Step::Ballot),
        1 => (1..9u64).prop_map(Step::Snapshot),
        4 => Just(Step::Sync),
        1 => (0..9u64).prop_map(Step::Compact),
        2 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_store_holds_what_a_list_would(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let mut store = founded(&path);
        let mut snapshot = store.load().unwrap().unwrap().loaded.snapshot.unwrap();
        let (mut entries, mut gathered) = (Vec::<LogEntry>::new(), Vec::<Persist>::new());
        let mut hard_state = store.hard_state;
        let mut first_kept = 0;
        for step in steps.into_iter().chain([Step::Reopen]) {
            let term = hard_state.term + 1;
            let last = entries.last().map_or(snapshot.index, |entry| entry.index).max(snapshot.index);
            match step {
                Step::Append { back, count, bytes } => {
                    hard_state.term = term;
                    let first = (last + 1).saturating_sub(back as u64).max(snapshot.index + 1);
                    let new: Vec<_> =
                        (first..).take(count).map(|index| entry(index, term, vec![index as u8; bytes])).collect();
                    entries.retain(|entry| entry.index < first);
                    entries.extend(new.clone());
                    gathered.push(Persist { number: 1, snapshot: None, entries: new, hard_state });
                }
                Step::Ballot => {
                    hard_state.term = term;
                    gathered.push(Persist { number: 1, snapshot: None, entries: Vec::new(), hard_state });
                }
                Step::Snapshot(further) => {
                    hard_state = HardState { term, commit: last + further, ..hard_state };
                    let data = Bytes::from(vec![further as u8; 5_000]);
                    snapshot = Snapshot { index: last + further, term, data, ..snapshot };
                    entries.clear();
                    let snapshot = Some(snapshot.clone());
                    gathered.push(Persist { number: 1, snapshot, entries: Vec::new(), hard_state });
                }
                Step::Sync => store.persist(&std::mem::take(&mut gathered)).unwrap(),
                Step::Compact(before) => {
                    store.persist(&std::mem::take(&mut gathered)).unwrap();
                    let index = last.saturating_sub(before);
                    if index > snapshot.index {
                        snapshot = Snapshot { index, term, ..snapshot };
                        first_kept = index;
                        compact(&mut store, Compaction { snapshot: snapshot.clone(), first_kept });
                    }
                }
                Step::Reopen => {
                    store.persist(&std::mem::take(&mut gathered)).unwrap();
                    drop(store);
                    store = Store::open(&path).unwrap();
                    let loaded = store.load().unwrap().unwrap().loaded;
                    prop_assert_eq!(loaded.hard_state, hard_state);
                    prop_assert_eq!(loaded.snapshot.as_ref(), Some(&snapshot));
                    // Entries before the first to be kept may be there, as far as they were written with it.
                    let kept = |entry: &&LogEntry| entry.index >= first_kept;
                    let found: Vec<_> = loaded.entries.iter().filter(kept).collect();
                    let expected: Vec<_> = entries.iter().filter(kept).collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}
