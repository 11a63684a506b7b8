//! Waiting for a condition of real processes, bounded, and stopped by Ctrl-C where the program asks for that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait of this process fail from now on, so that it cleans up and ends.
fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on Ctrl-C and SIGTERM make every wait of this process fail, so that it cleans up and ends.
///
/// # Errors
/// When the thread that waits for them cannot be set up.
pub fn interrupt_on_signal() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut int), Ok(mut term)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
            interrupt();
        });
    });
    Ok(())
}

/// Looks again and again until `look` succeeds; what it last complained of is the error after `within`.
///
/// # Errors
/// When the time is over, or after a signal that [`interrupt_on_signal`] heard.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if INTERRUPTED.load(Ordering::Relaxed) {
            bail!("interrupted while waiting for {what}");
        }
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if start.elapsed() >= within => {
                return Err(anyhow!("{what}: not so after {within:?}: {error:#}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_first_success() {
        let mut looks = 0;
        let found = wait_for("third look", Duration::from_secs(10), || {
            looks += 1;
            if looks < 3 { bail!("only {looks}") } else { Ok(looks) }
        });
        assert_eq!(found.unwrap(), 3);
    }

    #[test]
    fn reports_the_last_complaint() {
        let found: anyhow::Result<()> = wait_for("a pig that flies", Duration::ZERO, || bail!("it walks"));
        assert_eq!(found.unwrap_err().to_string(), "a pig that flies: not so after 0ns: it walks");
    }
}
