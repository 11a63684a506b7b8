//! The root logger: slog to stderr, text or JSON, written by a thread of its own.
//!
//! A logging task never waits for stderr: records go through a bounded channel, and when that is full they are
//! dropped; their number is reported ahead of the next record that fits. A record is one write. Libraries that
//! speak `log` or `tracing` come in by the same door; the talkative ones from `warn` up.

mod whole;

use std::io;
use std::str::FromStr;

use slog::{Drain, Level, LevelFilter, Logger, Never, o};
use slog_async::{Async, AsyncGuard, OverflowStrategy};
use slog_term::{Decorator, FullFormat};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use self::whole::{Whole, WholeText, stderr_has_colours};

/// Records on their way to stderr; some MiB at most.
const CHANNEL_RECORDS: usize = 8192;

/// Libraries whose news below `warn` is about their own insides, one record per frame.
const TALKATIVE: &[&str] = &[
    "h2",
    "hyper",
    "hyper_util",
    "mio",
    "quinn",
    "rustls",
    "sled",
    "tokio_util",
    "tonic",
    "tower",
    "tracing",
];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, with `ts`, `level`, `msg` and the record's keys.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("'{text}' is not a log format: expected text or json")),
        }
    }
}

/// Reads a level as it is typed: `error`, `warn`, `info`, `debug` or `trace`.
///
/// # Errors
/// When it is none of them.
pub fn parse_level(text: &str) -> Result<Level, String> {
    match text {
        "error" => Ok(Level::Error),
        "warn" => Ok(Level::Warning),
        "info" => Ok(Level::Info),
        "debug" => Ok(Level::Debug),
        "trace" => Ok(Level::Trace),
        _ => Err(format!("'{text}' is not a log level: expected error, warn, info, debug or trace")),
    }
}

/// Why there is no logger.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A process has one.
    #[error("the logger of this process was started already")]
    Started(#[from] log::SetLoggerError),
}

/// Keeps the writing thread; drop it last: it writes what is still on its way.
#[must_use = "dropping it stops the log"]
pub struct LogGuard {
    _writer: AsyncGuard,
}

impl std::fmt::Debug for LogGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogGuard")
    }
}

/// Starts the logger of the process and takes in what libraries log.
///
/// # Errors
/// When it was started already.
pub fn start(level: Level, format: LogFormat) -> Result<(Logger, LogGuard), LogError> {
    let (writer, guard) = match format {
        LogFormat::Text => in_background(text(WholeText::new(io::stderr(), stderr_has_colours()))),
        LogFormat::Json => in_background(json(io::stderr())),
    };
    let logger = Logger::root(LevelFilter::new(writer, level).ignore_res(), o!());
    log::set_boxed_logger(Box::new(Bridge { logger: logger.clone() }))?;
    log::set_max_level(match level {
        Level::Critical | Level::Error => log::LevelFilter::Error,
        Level::Warning => log::LevelFilter::Warn,
        Level::Info => log::LevelFilter::Info,
        Level::Debug => log::LevelFilter::Debug,
        Level::Trace => log::LevelFilter::Trace,
    });
    Ok((logger, LogGuard { _writer: guard }))
}

fn in_background<D>(drain: D) -> (Async, AsyncGuard)
where
    D: Drain<Err = Never, Ok = ()> + Send + 'static,
{
    Async::new(drain)
        .chan_size(CHANNEL_RECORDS)
        .overflow_strategy(OverflowStrategy::DropAndReport)
        .thread_name("log".to_owned())
        .build_with_guard()
}

/// A log that cannot be written (a closed stderr) is no reason to stop a service.
fn text<D: Decorator>(decorator: D) -> impl Drain<Ok = (), Err = Never> {
    FullFormat::new(decorator).use_custom_timestamp(timestamp).use_original_order().build().ignore_res()
}

fn json<W: io::Write>(writer: W) -> impl Drain<Ok = (), Err = Never> {
    slog_json::Json::new(Whole::new(writer)).set_flush(true).add_default_keys().build().ignore_res()
}

fn timestamp(writer: &mut dyn io::Write) -> io::Result<()> {
    const RFC3339_MS: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let now = OffsetDateTime::now_utc().format(RFC3339_MS).map_err(io::Error::other)?;
    writer.write_all(now.as_bytes())
}

/// Brings the records of `log`, and of `tracing` through it, into slog.
struct Bridge {
    logger: Logger,
}

impl log::Log for Bridge {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        wanted(metadata.target(), metadata.level())
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (logger, text, target) = (&self.logger, record.args(), record.target());
        match record.level() {
            log::Level::Error => slog::error!(logger, "{}", text; "target" => target),
            log::Level::Warn => slog::warn!(logger, "{}", text; "target" => target),
            log::Level::Info => slog::info!(logger, "{}", text; "target" => target),
            log::Level::Debug => slog::debug!(logger, "{}", text; "target" => target),
            log::Level::Trace => slog::trace!(logger, "{}", text; "target" => target),
        }
    }

    fn flush(&self) {}
}

fn wanted(target: &str, level: log::Level) -> bool {
    let library = target.split("::").next().unwrap_or(target);
    level <= log::Level::Warn || !TALKATIVE.contains(&library)
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Log;
    use slog::{debug, info};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_lines_have_time_level_message_and_keys_in_order() {
        let lines = Lines::default();
        let (drain, guard) = in_background(text(WholeText::new(lines.clone(), false)));
        let log = Logger::root(LevelFilter::new(drain, Level::Info).ignore_res(), o!("node" => "s1"));
        info!(log, "joined"; "term" => 3, "index" => 9);
        debug!(log, "not shown");
        drop(guard);
        let shown = lines.text();
        assert_eq!(shown.lines().count(), 1, "{shown}");
        let (time, rest) = shown.split_at("2026-11-20T10:20:38.000Z".len());
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{shown}");
        assert_eq!(rest.trim_end(), " INFO joined, node: s1, term: 3, index: 9");
    }

    #[test]
    fn json_lines_are_objects() {
        let lines = Lines::default();
        let (drain, guard) = in_background(json(lines.clone()));
        let log = Logger::root(drain.ignore_res(), o!("node" => "s1"));
        info!(log, "line\nbreak"; "term" => 3);
        drop(guard);
        let shown = lines.text();
        assert_eq!(shown.lines().count(), 1, "{shown}");
        let object: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(object["msg"], "line\nbreak");
        assert_eq!((&object["node"], &object["term"]), (&"s1".into(), &3.into()));
        assert!(object["ts"].is_string() && object["level"].is_string());
    }

    #[test]
    fn a_writer_that_is_gone_stops_nothing() {
        struct Gone;
        impl io::Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        for (drain, guard) in [in_background(json(Gone)), in_background(text(WholeText::new(Gone, false)))] {
            let log = Logger::root(drain.ignore_res(), o!());
            info!(log, "still here");
            drop(guard);
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_reported() {
        /// Takes one line, then waits until it may go on.
        struct Stuck(Lines, std::sync::mpsc::Receiver<()>);
        impl io::Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.1.recv();
                self.0.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (go_on, wait) = std::sync::mpsc::sync_channel(0);
        let lines = Lines::default();
        let (drain, guard) = in_background(json(Stuck(lines.clone(), wait)));
        let log = Logger::root(drain.ignore_res(), o!());
        for _ in 0..CHANNEL_RECORDS + 100 {
            info!(log, "flood");
        }
        drop(go_on);
        // The report goes ahead of the first record that fits again.
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !lines.text().contains("dropped") {
            assert!(std::time::Instant::now() < patience, "no report");
            info!(log, "later");
            std::thread::yield_now();
        }
        drop((log, guard));
        assert!(lines.text().matches("flood").count() < CHANNEL_RECORDS + 100);
    }

    #[test]
    fn libraries_come_in_and_the_talkative_are_capped() {
        let lines = Lines::default();
        let (drain, guard) = in_background(text(WholeText::new(lines.clone(), false)));
        let bridge = Bridge { logger: Logger::root(drain.ignore_res(), o!()) };
        let say = |target: &str, level, text: &str| {
            bridge.log(
                &log::Record::builder().target(target).level(level).args(format_args!("{text}")).build(),
            );
        };
        say("rustls::conn", log::Level::Debug, "a frame");
        say("h2", log::Level::Info, "another frame");
        say("rustls::conn", log::Level::Warn, "a warning");
        say("rustlsish", log::Level::Debug, "somebody else");
        drop((bridge, guard));
        let shown = lines.text();
        assert!(!shown.contains("frame"), "{shown}");
        assert!(shown.contains("WARN a warning, target: rustls::conn"), "{shown}");
        assert!(shown.contains("DEBG somebody else"), "{shown}");
    }

    #[test]
    fn levels_and_formats_are_named() {
        assert_eq!(parse_level("warn"), Ok(Level::Warning));
        assert!(parse_level("loud").unwrap_err().contains("expected error, warn"));
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
