//! [`AuditLog`]: who asked this Server to change or read what only operators may, from where, and what became of it.
//!
//! ```text
//! gate ── record ──► queue (1,024) ──► writer ──► audit.log (0600) ──16 MiB──► audit.log.1 ... audit.log.4
//! ```
//!
//! Every call of the service `Operator` that is answered by this Server gets one line of JSON ([`AuditRecord`]), refused
//! ones too. Whoever showed good credentials is answered when the line is in the file (not synced: a power loss may
//! take the last seconds); a client that goes away before its answer is recorded as that. Strangers must neither
//! wait nor wash the log out: they get [`STRANGERS_BURST`] lines at once and one each [`STRANGER_EVERY`] after
//! that, the others are counted in the next line (`left_out`). A log that cannot be written stops nothing: it is
//! reported once, and again when it works. A disk that hangs delays an operator's answer by [`WRITTEN_WITHIN`]; its line
//! is still written when the disk is back, as far as the queue holds.
//!
//! Each Server keeps the log of what was asked of itself; what the cluster decided is replicated elsewhere. No line
//! holds a secret: tokens are named by their public half, and targets are what the calls name, never bodies.
//! Owner: the writer's task. Source: SPEC I9, S1.

mod file;
mod record;

use std::fmt::Display;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use p2p_common::Now;
use slog::{Logger, error, info};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use file::AUDIT_FILE;
pub(crate) use file::read_all;
pub(crate) use record::AuditRecord;

use file::RotatingFile;

/// Records on their way to the file. When it is full, operators wait and strangers are left out.
const QUEUE: usize = 1_024;
/// How long an answer waits for its line: a disk that takes longer is no reason to leave an operator in the dark.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);
/// Written at one go.
const BATCH: usize = 64;
/// Lines that strangers get at once ...
const STRANGERS_BURST: u32 = 64;
/// ... and one more each time this has passed: two months fill one file.
const STRANGER_EVERY: Duration = Duration::from_secs(10);

/// The way to the log. Cheap to copy.
#[derive(Debug, Clone)]
pub struct AuditLog {
    queue: mpsc::Sender<Order>,
    strangers: Arc<Mutex<Allowance>>,
}

/// A record, and who waits until it is written.
#[derive(Debug)]
struct Order {
    record: AuditRecord,
    written: Option<oneshot::Sender<()>>,
}

/// Writes what comes; runs until it is told to stop.
#[derive(Debug)]
pub struct AuditWriter {
    file: RotatingFile,
    orders: mpsc::Receiver<Order>,
    log: Logger,
}

/// What a call is about, as its handler says; in the extensions of every request that is recorded.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuditTarget(Arc<OnceLock<String>>);

impl AuditTarget {
    /// Of a request. One that is not recorded has one that nobody reads.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<AuditTarget>().cloned().unwrap_or_default()
    }

    /// Says what the call is about; the first one counts. Never a secret.
    pub(crate) fn set(&self, target: impl Display) {
        let _ = self.0.set(target.to_string());
    }

    /// What was said.
    pub(crate) fn text(&self) -> &str {
        self.0.get().map_or("", String::as_str)
    }
}

/// Lines for strangers: a token bucket.
#[derive(Debug)]
struct Allowance {
    lines: u32,
    /// Since when the next line is being earned.
    since: Now,
    left_out: u64,
}

impl Allowance {
    /// How many were left out before this one, if it may be written.
    fn take(&mut self, now: Now) -> Option<u64> {
        let earned = now.since(self.since).as_secs() / STRANGER_EVERY.as_secs();
        if earned > 0 {
            let earned_lines = u32::try_from(earned).unwrap_or(u32::MAX);
            self.lines = self.lines.saturating_add(earned_lines).min(STRANGERS_BURST);
            self.since = now;
        }
        match self.lines.checked_sub(1) {
            Some(left) => {
                self.lines = left;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out += 1;
                None
            }
        }
    }
}

impl AuditLog {
    /// Opens the log of a data directory.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(dir: &Path, now: Now, log: Logger) -> std::io::Result<(Self, AuditWriter)> {
        let (queue, orders) = mpsc::channel(QUEUE);
        let strangers = Allowance { lines: STRANGERS_BURST, since: now, left_out: 0 };
        let writer = AuditWriter { file: RotatingFile::open(dir)?, orders, log };
        Ok((AuditLog { queue, strangers: Arc::new(Mutex::new(strangers)) }, writer))
    }

    /// Records a call of somebody with good credentials; done when it is written, or cannot be in time.
    pub(crate) async fn record(&self, record: AuditRecord) {
        let (written, done) = oneshot::channel();
        let writing = async {
            if self.queue.send(Order { record, written: Some(written) }).await.is_ok() {
                let _ = done.await;
            }
        };
        let _ = tokio::time::timeout(WRITTEN_WITHIN, writing).await;
    }

    /// As [`Self::record`], for whoever cannot wait any more.
    pub(crate) fn record_later(&self, record: AuditRecord) {
        // Full: the disk is that slow, and has said so.
        let _ = self.queue.try_send(Order { record, written: None });
    }

    /// Records a call of somebody without good credentials, as far as there is room.
    pub(crate) fn record_stranger(&self, mut record: AuditRecord, now: Now) {
        // A count cannot be left half changed.
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left_out) = strangers.take(now) else { return };
        record.left_out = left_out;
        if self.queue.try_send(Order { record, written: None }).is_err() {
            strangers.left_out += left_out + 1;
        }
    }
}

impl AuditWriter {
    /// Writes until `stop`, and then what is still waiting.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut works = true;
        loop {
            tokio::select! {
                biased;
                count = self.orders.recv_many(&mut batch, BATCH) => if count == 0 { return },
                () = stop.cancelled(), if !self.orders.is_closed() => {
                    self.orders.close();
                    continue;
                }
            }
            let orders = std::mem::take(&mut batch);
            let mut file = self.file;
            let written = tokio::task::spawn_blocking(move || {
                let result = orders.iter().try_for_each(|order| file.append(&order.record.to_line()));
                (file, orders, result)
            });
            let Ok((file, orders, result)) = written.await else { return };
            self.file = file;
            match result {
                Ok(()) if !works => info!(self.log, "audit log is written again"),
                Err(failed) if works => {
                    error!(self.log, "audit log not written"; "error" => %failed,
                        "path" => %self.file.path().display());
                    works = false;
                    answer(orders);
                    continue;
                }
                Err(_) => {
                    answer(orders);
                    continue;
                }
                Ok(()) => {}
            }
            works = true;
            answer(orders);
        }
    }
}

fn answer(orders: Vec<Order>) {
    for written in orders.into_iter().filter_map(|order| order.written) {
        let _ = written.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_get_so_many_lines_and_the_rest_is_counted() {
        let mut strangers = Allowance { lines: STRANGERS_BURST, since: Now::ZERO, left_out: 0 };
        let at = |s| Now(Duration::from_secs(s));
        for _ in 0..STRANGERS_BURST {
            assert_eq!(strangers.take(at(1)), Some(0));
        }
        for _ in 0..1_000 {
            assert_eq!(strangers.take(at(9)), None);
        }
        assert_eq!(strangers.take(at(10)), Some(1_000));
        assert_eq!(strangers.take(at(19)), None);
        let later = (0..200).filter(|_| strangers.take(at(1_000_000)).is_some()).count();
        assert_eq!(later, STRANGERS_BURST as usize);
    }

    #[tokio::test]
    async fn what_waits_when_it_stops_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let log = Logger::root(slog::Discard, slog::o!());
        let (audit, writer) = AuditLog::open(dir.path(), Now::ZERO, log).unwrap();
        for n in 0..300 {
            audit.record_later(AuditRecord { target: n.to_string(), ..AuditRecord::default() });
        }
        let stop = CancellationToken::new();
        stop.cancel();
        writer.run(stop).await;
        let (records, unreadable) = read_all(dir.path()).unwrap();
        assert_eq!((records.len(), unreadable), (300, 0));
        // Nobody waits for a writer that is gone.
        audit.record(AuditRecord::default()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_disk_that_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let log = Logger::root(slog::Discard, slog::o!());
        let (audit, writer) = AuditLog::open(dir.path(), Now::ZERO, log).unwrap();
        let began = tokio::time::Instant::now();
        audit.record(AuditRecord::default()).await;
        assert!(began.elapsed() >= WRITTEN_WITHIN);
        // What was asked meanwhile is written when it is back.
        let stop = CancellationToken::new();
        stop.cancel();
        writer.run(stop).await;
        assert_eq!(read_all(dir.path()).unwrap().0.len(), 1);
    }
}
