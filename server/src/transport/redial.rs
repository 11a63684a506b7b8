//! When a connection that is wanted and not there is dialled again: soon, then ever more seldom (SPEC T5).

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Between two dials: at most 20 a second, at least one.
const REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A connection that lived this long was a good one; what breaks earlier counts as a dial that failed.
const GOOD_AFTER: Duration = Duration::from_secs(1);
/// Right after a good connection broke, these many dials follow each other at once: whether its process is gone shows
/// only when its port refuses, which may take a moment.
const HURRIED: u32 = 3;
const HURRY: Duration = Duration::from_millis(5);

/// The rhythm of one connection.
#[derive(Debug)]
pub(super) struct Redial {
    rest: Duration,
    hurried: u32,
    last: Option<Instant>,
    /// Whoever is to be dialled at once, though not more often than 20 times a second.
    wake: watch::Receiver<()>,
}

impl Redial {
    pub fn new(wake: watch::Receiver<()>) -> Self {
        Redial { rest: REST.0, hurried: 0, last: None, wake }
    }

    /// Waits until the next dial is due; it counts as begun then.
    pub async fn due(&mut self) {
        if let Some(last) = self.last {
            if self.hurried > 0 {
                self.hurried -= 1;
                tokio::time::sleep_until(last + HURRY).await;
            } else {
                let rest = self.rest.mul_f64(rand::random_range(0.5..1.5));
                self.rest = (self.rest * 2).min(REST.1);
                tokio::time::sleep_until(last + REST.0.min(rest)).await;
                tokio::select! {
                    () = tokio::time::sleep_until(last + rest) => {}
                    Ok(()) = self.wake.changed() => {}
                }
            }
        }
        self.wake.mark_unchanged();
        self.last = Some(Instant::now());
    }

    /// The connection dialled last was there and has broken.
    pub fn broke(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() >= GOOD_AFTER) {
            (self.rest, self.hurried) = (REST.0, HURRIED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dials in `window` when nothing ever answers, and after each dial `then`.
    async fn dials(redial: &mut Redial, window: Duration, mut then: impl FnMut(&mut Redial)) -> u32 {
        let end = Instant::now() + window;
        let mut count = 0;
        while tokio::time::timeout_at(end, redial.due()).await.is_ok() {
            count += 1;
            then(redial);
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn dials_become_seldom_and_a_wake_does_not_make_them_a_flood() {
        let (wake, woken) = watch::channel(());
        let mut redial = Redial::new(woken);
        let first = dials(&mut redial, Duration::from_secs(2), |_| {}).await;
        assert!((3..=12).contains(&first), "{first}");
        let later = dials(&mut redial, Duration::from_secs(20), |_| {}).await;
        assert!((13..=40).contains(&later), "{later}");
        // Woken at once each time.
        wake.send(()).unwrap();
        let woken = dials(&mut redial, Duration::from_secs(2), |_| wake.send(()).unwrap()).await;
        assert!((20..=41).contains(&woken), "{woken}");
        // Each connection breaks as soon as it is there.
        let broken = dials(&mut redial, Duration::from_secs(20), Redial::broke).await;
        assert!((13..=40).contains(&broken), "{broken}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_connection_that_broke_is_dialled_again_at_once() {
        let (_wake, woken) = watch::channel(());
        let mut redial = Redial::new(woken);
        redial.due().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        redial.broke();
        let start = Instant::now();
        for _ in 0..HURRIED {
            redial.due().await;
        }
        assert!(start.elapsed() < Duration::from_millis(20), "{:?}", start.elapsed());
        redial.due().await;
        assert!(start.elapsed() >= Duration::from_millis(25), "{:?}", start.elapsed());
    }
}
