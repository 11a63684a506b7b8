//! Against `std`'s map, and what copies share.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// The addresses of all values: a node that was copied has others.
fn nodes(map: &SharedMap<u32, [u32; 8]>) -> BTreeSet<usize> {
    map.values().map(|value| std::ptr::from_ref(value) as usize).collect()
}

fn filled(count: u32) -> SharedMap<u32, [u32; 8]> {
    // In an order that goes everywhere: 7 and the count have no common divisor.
    (0..count).map(|n| (n.wrapping_mul(7) % count, [n; 8])).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u16, u16),
    Remove(u16),
    Change(u16, u16),
    Copy,
    PopFirst,
    Keep(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..300_u16;
    let step = prop_oneof![
        5 => (key.clone(), any::<u16>()).prop_map(|(key, value)| Step::Insert(key, value)),
        4 => key.clone().prop_map(Step::Remove),
        1 => (key, any::<u16>()).prop_map(|(key, value)| Step::Change(key, value)),
        1 => Just(Step::Copy),
        1 => Just(Step::PopFirst),
        1 => (7..30_u16).prop_map(Step::Keep),
    ];
    proptest::collection::vec(step, 0..400)
}

proptest! {
    #[test]
    fn it_is_the_ordered_map_and_copies_stay_as_they_were(steps in steps()) {
        let (mut map, mut model) = (SharedMap::new(), BTreeMap::new());
        let mut copies = Vec::new();
        for step in steps {
            match step {
                Step::Insert(key, value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                Step::Remove(key) => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                Step::Change(key, value) => {
                    prop_assert_eq!(map.get_mut(&key).map(|v| *v = value), model.get_mut(&key).map(|v| *v = value));
                }
                Step::Copy => copies.push((map.clone(), model.clone())),
                Step::Keep(of) => {
                    map.retain(|key, _| key % of != 0);
                    model.retain(|key, _| key % of != 0);
                }
                Step::PopFirst => prop_assert_eq!(map.pop_first(), model.pop_first()),
            }
        }
        copies.push((map, model));
        for (map, model) in copies {
            prop_assert_eq!(map.len(), model.len());
            prop_assert_eq!(map.iter().count(), model.len());
            prop_assert!(map.iter().eq(model.iter()));
            prop_assert!((0..300).all(|key| map.get(&key) == model.get(&key)));
            let again: SharedMap<_, _> = model.into_iter().rev().collect();
            prop_assert_eq!(again, map);
        }
    }
}

#[test]
fn a_change_copies_no_other_row_however_many_there_are() {
    for count in [10, 1_000, 100_000] {
        let map = filled(count);
        let before = nodes(&map);
        for change in [
            |map: &mut SharedMap<u32, [u32; 8]>| assert!(map.insert(u32::MAX, [1; 8]).is_none()),
            |map: &mut SharedMap<u32, [u32; 8]>| assert!(map.insert(5, [1; 8]).is_some()),
            |map: &mut SharedMap<u32, [u32; 8]>| assert!(map.remove(&5).is_some()),
            |map: &mut SharedMap<u32, [u32; 8]>| *map.get_mut(&5).unwrap() = [1; 8],
        ] {
            let mut copy = map.clone();
            assert!(copy.ptr_eq(&map));
            change(&mut copy);
            assert!(!copy.ptr_eq(&map) && copy != map);
            let own = nodes(&copy).difference(&before).count();
            assert!(own <= 1, "{own} rows copied of {count}");
            assert_eq!(nodes(&map), before);
        }
        let mut copy = map.clone();
        assert_eq!((copy.remove(&u32::MAX), copy.get_mut(&u32::MAX)), (None, None));
        assert!(copy.ptr_eq(&map), "what is not there changes nothing");
    }
}

#[test]
fn a_queue_gives_numbers_and_forgets_from_the_front() {
    let mut queue = SharedQueue::new();
    let numbers: Vec<_> = ["a", "b", "c"].map(|item| queue.push_back(item)).into();
    assert_eq!(queue.pop_front(), Some("a"));
    assert_eq!((queue.get(numbers[0]), queue.get(numbers[1])), (None, Some(&"b")));
    let mut other = SharedQueue::new();
    for item in ["b", "c"] {
        other.push_back(item);
    }
    assert_eq!(queue, other);
    assert_eq!(queue.numbered().map(|(_, item)| *item).collect::<Vec<_>>(), ["b", "c"]);
    while queue.pop_front().is_some() {}
    assert!(queue.is_empty() && queue != other);
    assert!(queue.push_back("d") > numbers[2], "a number never comes back");
}

#[test]
fn a_set_knows_what_it_has() {
    let mut set: SharedSet<_> = [3, 1].into_iter().collect();
    assert!(set.insert(2) && !set.insert(2));
    assert!(set.contains(&1) && !set.contains(&4));
    assert_eq!((set.len(), set.iter().copied().collect::<Vec<_>>()), (3, vec![1, 2, 3]));
}
