//! Many worlds, one per seed, spread over the cores of this machine.
//!
//! `SIM_SEED=n` runs only that one, `SIM_SEEDS=n` so many (from `SIM_SEED` on, or from 0). What a world does
//! depends on its seed alone, never on the thread it runs on.

// Settings and real time are for the people who wait; the core and its worlds have none.
#![allow(clippy::disallowed_methods)]

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the progress of a long run is told.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Runs `world` for the seeds asked for, `default_count` of them when none were, and adds up its figures.
///
/// # Panics
/// When a world does; its seed is printed.
pub fn run_seeds<const N: usize>(
    name: &str,
    figure_names: [&str; N],
    default_count: u64,
    world: impl Fn(u64) -> [u64; N] + Sync,
) -> [u64; N] {
    let (first, count) = (setting("SIM_SEED"), setting("SIM_SEEDS"));
    let count = count.unwrap_or(if first.is_some() { 1 } else { default_count });
    let first = first.unwrap_or(0);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new([0; N]);
    let begun = Instant::now();
    let told = Mutex::new(begun);
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| world(first + number))) {
                Ok(figures) => {
                    let mut total = total.lock().unwrap();
                    total.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure);
                }
                Err(_) => {
                    failed.store(true, Ordering::Relaxed);
                    eprintln!("{name}: failing seed: run with SIM_SEED={}", first + number);
                }
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            let mut told = told.lock().unwrap();
            let silence = told.elapsed();
            if silence >= PROGRESS_EVERY {
                *told += silence;
                println!("{name}: {done} of {count} worlds, {}/s", per_second(done, begun));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    assert!(!failed.into_inner(), "a world broke a promise");
    let total = total.into_inner().unwrap();
    let figures: Vec<_> = figure_names.iter().zip(total).map(|(name, sum)| format!("{sum} {name}")).collect();
    println!(
        "{name}: {count} worlds from seed {first} on, 0 violations, {}/s on {threads} threads: {}",
        per_second(count, begun),
        figures.join(", ")
    );
    total
}

/// Tries worlds with a planted mistake until it shows as one of `symptoms`.
///
/// # Panics
/// When it does not, or as something else.
pub fn assert_caught(symptoms: &[&str], world: impl Fn(u64)) {
    for seed in 0..400 {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| world(seed))) else { continue };
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).expect("panics have a text");
        assert!(symptoms.iter().any(|symptom| text.contains(symptom)), "caught by something else: {text}");
        println!("caught in world {seed}");
        return;
    }
    panic!("not caught within 400 worlds");
}

fn per_second(worlds: u64, begun: Instant) -> u64 {
    (worlds as f64 / begun.elapsed().as_secs_f64()) as u64
}
