//! Wall clocks that are wrong, and that jump while a process runs: a few lines of C before the C library's, which move what
//! the process reads by what a file says. Monotonic clocks go on as they are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};

use super::{PATIENCE, run};

const SOURCE: &str = include_str!("clock.c");

/// A wall clock for processes of a test. What is set is seen by those that run.
#[derive(Debug)]
pub struct TestClock {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl TestClock {
    /// A clock named `name` that is right, with its files in `dir`. Needs a C compiler, as the build does.
    ///
    /// # Errors
    /// When a file cannot be written, or the compiler fails.
    pub fn new(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
        if !library.exists() {
            std::fs::write(&source, SOURCE)?;
            let mut compiler = Command::new("cc");
            compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
            run(compiler, PATIENCE)?.success()?;
        }
        let path = dir.join(format!("{name}.clock"));
        let file = File::options().create(true).truncate(true).write(true).open(&path);
        let clock = TestClock { library, file: file.context("making a clock")?, path };
        clock.move_by(0)?;
        Ok(clock)
    }

    /// The variables of a process that is to read this clock.
    pub fn variables(&self) -> [(String, String); 2] {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        [("LD_PRELOAD".into(), text(&self.library)), ("P2P_TEST_CLOCK".into(), text(&self.path))]
    }

    /// From now on it is so many ms ahead of the real one.
    pub fn move_by(&self, ms: i64) -> anyhow::Result<()> {
        Ok(self.file.write_all_at(&ms.to_ne_bytes(), 0)?)
    }

    /// From now on it shows what a clock does that was never set. Returns by how many ms it is ahead.
    pub fn move_to_1970(&self) -> anyhow::Result<i64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let ms = 60_000 - i64::try_from(now.as_millis())?;
        ensure!(ms < 0, "the real clock is wrong");
        self.move_by(ms)?;
        Ok(ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_the_wall_clock_of_a_process() {
        let dir = tempfile::tempdir().unwrap();
        let clock = TestClock::new(dir.path(), "c").unwrap();
        let shown = || {
            let mut date = Command::new("date");
            date.arg("+%s").envs(clock.variables());
            run(date, PATIENCE).unwrap().success().unwrap().trim().parse::<i64>().unwrap()
        };
        let real = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!(shown().abs_diff(real()) < 30);
        for ms in [3_600_000, -3_600_001, 365 * 86_400_000] {
            clock.move_by(ms).unwrap();
            assert!(shown().abs_diff(real() + ms / 1_000) < 30, "{ms}");
        }
        clock.move_to_1970().unwrap();
        assert!((60..90).contains(&shown()));
    }
}
