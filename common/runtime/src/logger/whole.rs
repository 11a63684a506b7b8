//! Records that reach the log whole: each is put together in memory and goes out in one write.
//!
//! stderr is not ours alone: a panic message, a library in C or another process of the same unit may write to
//! it at any time, and would land in the middle of a record that is written piece by piece. The formatters of
//! slog write piece by piece.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};

use slog::{Level, OwnedKVList, Record};
use slog_term::{Decorator, RecordDecorator, TermDecorator};

/// What is kept of the memory that a long record took.
const KEPT_BYTES: usize = 16 * 1024;

/// A writer that holds all back until it is flushed, then hands it on in one write.
pub(super) struct Whole<W> {
    writer: W,
    record: Vec<u8>,
}

impl<W> Whole<W> {
    pub(super) fn new(writer: W) -> Self {
        Whole { writer, record: Vec::new() }
    }
}

impl<W: Write> Write for Whole<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.record.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// A record that cannot be written is lost; it does not wait to go out ahead of the next.
    fn flush(&mut self) -> io::Result<()> {
        let written = self.writer.write_all(&self.record);
        self.record.clear();
        self.record.shrink_to(KEPT_BYTES);
        written?;
        self.writer.flush()
    }
}

/// Text records, whole.
pub(super) struct WholeText<W> {
    writer: RefCell<Whole<W>>,
    coloured: bool,
}

impl<W> WholeText<W> {
    pub(super) fn new(writer: W, coloured: bool) -> Self {
        WholeText { writer: RefCell::new(Whole::new(writer)), coloured }
    }
}

impl<W: Write> Decorator for WholeText<W> {
    fn with_record<F>(&self, record: &Record<'_>, _: &OwnedKVList, format: F) -> io::Result<()>
    where
        F: FnOnce(&mut dyn RecordDecorator) -> io::Result<()>,
    {
        let mut writer = self.writer.borrow_mut();
        let colour = self.coloured.then(|| record.level());
        // What a value that cannot be formatted leaves behind is shown, on a line of its own.
        let formatted = format(&mut Painted { writer: &mut *writer, level: colour });
        if formatted.is_err() {
            writer.write_all(b"\n")?;
        }
        writer.flush()?;
        formatted
    }
}

/// Sets the parts of a record apart with ECMA-48 sequences, unless `level` is none.
struct Painted<'a, W> {
    writer: &'a mut Whole<W>,
    level: Option<Level>,
}

impl<W: Write> Painted<'_, W> {
    fn bold(&mut self) -> io::Result<()> {
        if self.level.is_some() { self.write_all(b"\x1b[1m") } else { Ok(()) }
    }
}

impl<W: Write> Write for Painted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    /// Not before the record is whole.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> RecordDecorator for Painted<'_, W> {
    fn reset(&mut self) -> io::Result<()> {
        if self.level.is_some() { self.write_all(b"\x1b[0m") } else { Ok(()) }
    }

    fn start_level(&mut self) -> io::Result<()> {
        match self.level {
            Some(level) => write!(self, "\x1b[3{}m", TermDecorator::level_to_color(level)),
            None => Ok(()),
        }
    }

    fn start_msg(&mut self) -> io::Result<()> {
        self.bold()
    }

    fn start_key(&mut self) -> io::Result<()> {
        self.bold()
    }
}

/// Whether somebody reads stderr on a terminal and wants colours (<https://no-color.org>).
pub(super) fn stderr_has_colours() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let terminal = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    terminal && !is_set("NO_COLOR") && io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use slog::{Drain, Logger, Never, info, o};

    use super::super::{json, text};
    use super::*;

    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<String>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Writes {
        fn of<D>(build: impl FnOnce(Writes) -> D) -> Vec<String>
        where
            D: Drain<Ok = (), Err = Never> + Send + 'static,
        {
            let writes = Writes::default();
            let log = Logger::root(Mutex::new(build(writes.clone())).ignore_res(), o!("node" => "s1"));
            info!(log, "a table\n  of two rows"; "term" => 3);
            // Longer than any buffer a writer brings along.
            info!(log, "a long one"; "text" => "x".repeat(100_000));
            drop(log);
            Arc::into_inner(writes.0).unwrap().into_inner().unwrap()
        }
    }

    #[test]
    fn a_record_is_one_write() {
        let plain = Writes::of(|writes| text(WholeText::new(writes, false)));
        let painted = Writes::of(|writes| text(WholeText::new(writes, true)));
        let objects = Writes::of(json);
        for writes in [&plain, &painted, &objects] {
            assert_eq!(writes.len(), 2, "{:.200?}", writes[0]);
            assert!(writes.iter().all(|write| write.ends_with('\n')), "{:.200?}", writes[0]);
            assert!(writes[1].len() > 100_000);
        }
        assert!(plain[0].ends_with(" INFO a table\n  of two rows, node: s1, term: 3\n"), "{:?}", plain[0]);
        assert!(painted[0].contains("\x1b[32mINFO\x1b[0m \x1b[1ma table"), "{:?}", painted[0]);
    }

    #[test]
    fn a_value_that_cannot_be_shown_spoils_no_other_line() {
        struct Broken;
        impl slog::Value for Broken {
            fn serialize(&self, _: &Record<'_>, _: slog::Key, _: &mut dyn slog::Serializer) -> slog::Result {
                Err(slog::Error::Other)
            }
        }
        let writes = Writes::default();
        let drain = Mutex::new(text(WholeText::new(writes.clone(), false))).ignore_res();
        let log = Logger::root(drain, o!());
        info!(log, "half"; "term" => 3, "broken" => Broken);
        info!(log, "next");
        let writes = writes.0.lock().unwrap();
        assert_eq!(writes.len(), 2, "{writes:?}");
        assert!(writes[0].contains("half") && writes[0].ends_with('\n'), "{writes:?}");
        assert!(writes[1].ends_with("next\n"), "{writes:?}");
    }

    #[test]
    fn a_record_that_cannot_be_written_is_forgotten() {
        struct Once(bool, Writes);
        impl Write for Once {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    self.1.write(bytes)
                } else {
                    Err(io::ErrorKind::StorageFull.into())
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let writes = Writes::default();
        let mut whole = Whole::new(Once(false, writes.clone()));
        whole.write_all(b"lost\n").unwrap();
        whole.flush().unwrap_err();
        whole.write_all(b"next\n").unwrap();
        whole.flush().unwrap();
        assert_eq!(*writes.0.lock().unwrap(), ["next\n"]);
    }
}
