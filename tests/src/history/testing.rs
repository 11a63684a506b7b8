//! Histories of a register that works, and of ones that do not, for the tests of the checker.

use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Call, Operation, Outcome, Recorder, Versioned, check};

/// One operation that took effect at `point`, if it did, and how the answer fared.
struct Planned {
    operation: Operation,
    point: Duration,
    lost: bool,
    takes_effect: bool,
}

/// A history of `count` operations of `clients` clients on a register that works. Answers get lost in one of
/// `lost_one_in` operations.
fn lived(seed: u64, count: usize, clients: usize, lost_one_in: u32) -> Vec<Operation> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut free = vec![0u64; clients];
    let mut planned: Vec<_> = (0..count)
        .map(|number| {
            let client = rng.random_range(0..clients);
            let invoked = free[client] + rng.random_range(0..50);
            let point = invoked + rng.random_range(0..50);
            let returned = point + rng.random_range(0..50);
            // Whoever got no answer goes on, and what it asked for may come true after that.
            free[client] = returned + 1;
            let lost = rng.random_ratio(1, lost_one_in);
            let late = if lost { rng.random_range(0..500) } else { 0 };
            let value = number as u64 + 100;
            let call = match rng.random_range(0..4) {
                0 => Call::Write { value },
                1 => Call::WriteIf { value, expected: 0 },
                _ => Call::Read,
            };
            let operation = Operation {
                client,
                server: 0,
                call,
                outcome: Outcome::Unknown,
                invoked: Duration::from_nanos(invoked),
                returned: Duration::from_nanos(returned),
            };
            let point = Duration::from_nanos(point + late);
            Planned { operation, point, lost, takes_effect: !lost || rng.random() }
        })
        .collect();
    planned.sort_by_key(|planned| planned.point);
    let mut held = Versioned::default();
    for Planned { operation, lost, takes_effect, .. } in &mut planned {
        if let Call::WriteIf { expected, .. } = &mut operation.call {
            *expected = held.revision.saturating_sub(u64::from(rng.random_ratio(1, 3)));
        }
        if *takes_effect {
            operation.outcome = apply(operation.call, &mut held);
        }
        if *lost {
            operation.outcome = Outcome::Unknown;
        }
    }
    planned.into_iter().map(|planned| planned.operation).collect()
}

fn apply(call: Call, held: &mut Versioned) -> Outcome {
    match call {
        Call::Read => return Outcome::Read(*held),
        Call::WriteIf { expected, .. } if expected != held.revision => return Outcome::Conflict,
        Call::Write { value } | Call::WriteIf { value, .. } => {
            *held = Versioned { value: Some(value), revision: held.revision + 1 };
        }
    }
    Outcome::Written { revision: held.revision }
}

/// Tries every order.
fn some_order_explains(operations: &[Operation], held: Versioned) -> bool {
    let left: Vec<_> =
        operations.iter().copied().filter(|operation| operation.outcome != Outcome::Failed).collect();
    explained(&left, held)
}

fn explained(left: &[Operation], held: Versioned) -> bool {
    if left.iter().all(|operation| operation.outcome == Outcome::Unknown) {
        return true;
    }
    let answered = left.iter().filter(|operation| operation.outcome != Outcome::Unknown);
    let earliest = answered.map(|operation| operation.returned).min().expect("one is answered");
    (0..left.len()).filter(|next| left[*next].invoked <= earliest).any(|next| {
        let mut then = held;
        let outcome = apply(left[next].call, &mut then);
        let fits = left[next].outcome == Outcome::Unknown || left[next].outcome == outcome;
        let mut rest = left.to_vec();
        rest.remove(next);
        fits && explained(&rest, then)
    })
}

/// Changes one answer or one moment, so that the history may have become impossible.
fn bent(mut operations: Vec<Operation>, rng: &mut StdRng) -> Vec<Operation> {
    let (one, other) = (rng.random_range(0..operations.len()), rng.random_range(0..operations.len()));
    let other_outcome = operations[other].outcome;
    let operation = &mut operations[one];
    match rng.random_range(0..6) {
        0 => match (&mut operation.outcome, other_outcome) {
            (Outcome::Read(found), Outcome::Read(other)) => *found = other,
            (Outcome::Written { revision }, Outcome::Written { revision: other }) => *revision = other,
            (outcome, _) if operation.call != Call::Read => *outcome = Outcome::Failed,
            _ => {}
        },
        1 => match &mut operation.outcome {
            Outcome::Read(found) => found.revision = found.revision.saturating_sub(1),
            Outcome::Written { revision } => *revision += 1,
            outcome => *outcome = Outcome::Unknown,
        },
        2 => operation.returned = operation.invoked,
        3 => operation.invoked = operation.returned,
        4 if matches!(operation.call, Call::WriteIf { .. }) => operation.outcome = Outcome::Conflict,
        4 => {}
        _ => {
            operation.invoked += Duration::from_nanos(60);
            operation.returned += Duration::from_nanos(60);
        }
    }
    operations
}

fn told(operations: &[Operation]) -> String {
    operations.iter().map(|operation| format!("{operation}\n")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn agrees_with_trying_every_order(seed: u64, count in 1..8usize, clients in 1..5usize, bends in 0..3usize) {
        let mut history = lived(seed, count, clients, 4);
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..bends {
            history = bent(history, &mut rng);
        }
        let (found, truth) = (check(&history, Versioned::default()), some_order_explains(&history, Versioned::default()));
        prop_assert_eq!(found.is_ok(), truth, "{:?}\n{}", found, told(&history));
        prop_assert!(bends > 0 || truth);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn explains_what_a_register_lived_through(seed: u64, clients in 1..40usize) {
        let history = lived(seed, 2_000, clients, 10);
        prop_assert_eq!(check(&history, Versioned::default()), Ok(()));
    }

    #[test]
    fn refuses_an_old_read_anywhere(seed: u64, clients in 1..40usize) {
        let mut history = lived(seed, 2_000, clients, 10);
        // Any read at a time after somebody had been told of a later revision.
        let told = history.iter().filter_map(|operation| match operation.outcome {
            Outcome::Written { revision } => Some((operation.returned, revision)),
            _ => None,
        });
        let told: Vec<_> = told.collect();
        let mut rng = StdRng::seed_from_u64(seed);
        let (returned, revision) = told[rng.random_range(0..told.len())];
        let old = history.iter().find_map(|operation| match operation.outcome {
            Outcome::Read(found) if found.revision < revision => Some(found),
            _ => None,
        });
        let invoked = returned + Duration::from_nanos(1);
        history.push(Operation {
            client: clients,
            server: 0,
            call: Call::Read,
            outcome: Outcome::Read(old.unwrap_or_default()),
            invoked,
            returned: invoked + Duration::from_nanos(1),
        });
        prop_assert!(check(&history, Versioned::default()).is_err());
    }
}

#[test]
fn is_fast_with_many_operations_and_many_unknown_ones() {
    let history = lived(1, 100_000, 32, 30);
    let began = std::time::Instant::now();
    check(&history, Versioned::default()).unwrap();
    // It takes a fraction of a second; a search that branches would never end.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    println!("100,000 operations in {:?}", began.elapsed());
}

/// `(client, call, outcome, invoked, returned)`, in ns.
fn by_hand(operations: &[(usize, Call, Outcome, u64, u64)]) -> Result<(), String> {
    let operations: Vec<_> = operations
        .iter()
        .map(|(client, call, outcome, invoked, returned)| Operation {
            client: *client,
            server: 0,
            call: *call,
            outcome: *outcome,
            invoked: Duration::from_nanos(*invoked),
            returned: Duration::from_nanos(*returned),
        })
        .collect();
    assert_eq!(
        check(&operations, Versioned::default()).is_ok(),
        some_order_explains(&operations, Versioned::default())
    );
    check(&operations, Versioned::default()).map_err(|violation| violation.reason)
}

fn write(value: u64) -> Call {
    Call::Write { value }
}

fn write_if(value: u64, expected: u64) -> Call {
    Call::WriteIf { value, expected }
}

fn done(revision: u64) -> Outcome {
    Outcome::Written { revision }
}

fn found(value: u64, revision: u64) -> Outcome {
    Outcome::Read(Versioned { value: Some(value), revision })
}

const UNSET: Outcome = Outcome::Read(Versioned { value: None, revision: 0 });

#[test]
fn overlapping_operations_come_in_any_order() {
    by_hand(&[
        (1, write(7), done(2), 0, 10),
        (2, write(8), done(1), 0, 10),
        (3, Call::Read, UNSET, 0, 10),
        (4, Call::Read, found(8, 1), 1, 9),
        (5, Call::Read, found(7, 2), 2, 8),
    ])
    .unwrap();
}

#[test]
fn an_answer_is_never_followed_by_the_past() {
    let stale = by_hand(&[(1, write(7), done(1), 0, 1), (2, Call::Read, UNSET, 2, 3)]);
    assert!(stale.unwrap_err().contains("tells of the past"));
    // Two readers, one after the other, while the write is under way.
    let back =
        [(1, write(7), done(1), 0, 9), (2, Call::Read, found(7, 1), 1, 2), (3, Call::Read, UNSET, 3, 4)];
    assert!(by_hand(&back).is_err());
    let at_once =
        [(1, write(7), done(1), 0, 9), (2, Call::Read, found(7, 1), 1, 3), (3, Call::Read, UNSET, 2, 4)];
    by_hand(&at_once).unwrap();
}

#[test]
fn an_acknowledged_write_is_not_lost() {
    // Revision 1 was acknowledged, and another one made it as well.
    let lost = [(1, write(7), done(1), 0, 1), (2, write(8), done(1), 2, 3)];
    assert!(by_hand(&lost).unwrap_err().contains("two writes made revision 1"));
    let lost = [
        (1, write(7), done(1), 0, 1),
        (2, write(8), Outcome::Unknown, 2, 3),
        (3, Call::Read, found(8, 1), 4, 5),
    ];
    assert!(by_hand(&lost).is_err());
}

#[test]
fn an_unknown_write_may_come_true_at_any_later_time_but_once() {
    let unknown = (1, write(7), Outcome::Unknown, 0, 1);
    by_hand(&[unknown, (2, Call::Read, UNSET, 2, 3), (2, Call::Read, found(7, 1), 4, 5)]).unwrap();
    by_hand(&[unknown, (2, Call::Read, UNSET, 2, 3), (2, write(8), done(1), 4, 5)]).unwrap();
    // Unseen, but counted.
    by_hand(&[unknown, (2, write(8), done(2), 4, 5)]).unwrap();
    let twice = [
        unknown,
        (2, Call::Read, found(7, 1), 2, 3),
        (2, write(8), done(2), 4, 5),
        (2, Call::Read, found(7, 3), 6, 7),
    ];
    assert!(by_hand(&twice).is_err());
    let unseen_twice = [unknown, (2, write(8), done(3), 4, 5)];
    assert!(by_hand(&unseen_twice).unwrap_err().contains("nothing that was under way"));
    let too_early = [(2, Call::Read, found(7, 1), 0, 1), (1, write(7), Outcome::Unknown, 2, 3)];
    assert!(by_hand(&too_early).unwrap_err().contains("seen before it began"));
}

#[test]
fn a_failed_write_has_no_effect() {
    let failed = (1, write(7), Outcome::Failed, 0, 1);
    by_hand(&[failed, (2, Call::Read, UNSET, 2, 3)]).unwrap();
    let seen = by_hand(&[failed, (2, Call::Read, found(7, 1), 2, 3)]);
    assert!(seen.unwrap_err().contains("failed write"));
    // Unseen, but counted.
    assert!(by_hand(&[failed, (2, write(8), done(2), 2, 3)]).is_err());
}

#[test]
fn a_conditional_write_is_done_only_at_its_revision() {
    let first = (1, write(7), done(1), 0, 1);
    by_hand(&[first, (2, write_if(8, 1), done(2), 2, 3)]).unwrap();
    by_hand(&[first, (2, write_if(8, 0), Outcome::Conflict, 2, 3)]).unwrap();
    assert!(by_hand(&[first, (2, write_if(8, 0), done(2), 2, 3)]).is_err());
    assert!(by_hand(&[first, (2, write_if(8, 1), Outcome::Conflict, 2, 3)]).is_err());
    // Of unknown outcome it fills the one gap that it fits.
    let unknown = (2, write_if(8, 1), Outcome::Unknown, 2, 3);
    by_hand(&[first, unknown, (3, write(9), done(3), 4, 5)]).unwrap();
    by_hand(&[first, unknown, (3, write(9), done(2), 4, 5)]).unwrap();
    let other = (2, write_if(8, 5), Outcome::Unknown, 2, 3);
    assert!(by_hand(&[first, other, (3, write(9), done(3), 4, 5)]).is_err());
}

#[test]
fn a_dropped_operation_is_of_unknown_outcome() {
    let recorder = Recorder::default();
    recorder.invoke(1, 0, write(7)).answered(done(1));
    let mut dropped = recorder.invoke(2, 0, write(8));
    dropped.ask_again_at(2);
    drop(dropped);
    let operations = recorder.operations(0);
    assert_eq!(
        operations.iter().map(|operation| operation.outcome).collect::<Vec<_>>(),
        [done(1), Outcome::Unknown]
    );
    assert_eq!(operations[1].server, 2);
    assert!(
        operations[0].returned >= operations[0].invoked && operations[1].invoked >= operations[0].returned
    );
    check(&operations, Versioned::default()).unwrap();
}
