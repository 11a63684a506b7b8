//! Runs a command line to its end, or follows what it prints line by line.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use super::process::spawn_bound;

/// What a command that ended left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Output {
    /// What it printed, if it succeeded.
    pub fn success(self) -> anyhow::Result<String> {
        if !self.status.success() {
            bail!("`{}`: {}: {}", self.line, self.status, self.stderr.trim());
        }
        Ok(self.stdout)
    }

    /// What it printed as JSON, if it succeeded.
    pub fn json<T: DeserializeOwned>(self) -> anyhow::Result<T> {
        let line = self.line.clone();
        let text = self.success()?;
        serde_json::from_str(&text).with_context(|| format!("`{line}` printed {text:?}"))
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// When it cannot be started, or still runs after `within`; it is killed then.
pub fn run(mut command: Command, within: Duration) -> anyhow::Result<Output> {
    let line = line_of(&command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn_bound(command).with_context(|| format!("starting `{line}`"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait_or_kill(&mut child, within).with_context(|| format!("`{line}`"))?;
    let text = |reader: JoinHandle<String>| reader.join().expect("the reader does not panic");
    Ok(Output { line, status, stdout: text(stdout), stderr: text(stderr) })
}

/// A running command whose lines are read as they come, each with the moment it came.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    lines: Receiver<(Instant, String)>,
    line: String,
}

impl Watch {
    /// Starts `command`. Lines not fetched wait; beyond 1,024 of them the command itself waits.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let line = line_of(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = spawn_bound(command).with_context(|| format!("starting `{line}`"))?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), text)).is_err() {
                    return;
                }
            }
        });
        Ok(Watch { child, lines, line })
    }

    /// The next line as JSON and when it came.
    ///
    /// # Errors
    /// When none comes within `within`, or the command ended.
    pub fn next<T: DeserializeOwned>(&self, within: Duration) -> anyhow::Result<(Instant, T)> {
        let (at, text) = self.line(within)?;
        let value = serde_json::from_str(&text);
        Ok((at, value.with_context(|| format!("`{}` printed {text:?}", self.line))?))
    }

    /// The next line and when it came.
    ///
    /// # Errors
    /// As for [`Self::next`].
    pub fn line(&self, within: Duration) -> anyhow::Result<(Instant, String)> {
        match self.lines.recv_timeout(within) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("`{}` printed nothing for {within:?}", self.line),
            Err(RecvTimeoutError::Disconnected) => bail!("`{}` ended", self.line),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `within`; it is killed then.
    pub fn finish(mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        wait_or_kill(&mut self.child, within).with_context(|| format!("`{}`", self.line))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line_of(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let program = program.file_name().unwrap_or(command.get_program()).to_string_lossy();
    command.get_args().fold(program.into_owned(), |line, arg| format!("{line} {}", arg.to_string_lossy()))
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    let mut pipe = pipe.expect("both outputs are piped");
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A read error ends the output like its end does.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait_or_kill(child: &mut Child, within: Duration) -> anyhow::Result<ExitStatus> {
    let deadline = Instant::now() + within;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("still ran after {within:?}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn returns_what_the_command_printed() {
        let output = run(shell("echo '[1,2]'; echo no >&2"), Duration::from_secs(10)).unwrap();
        assert_eq!(output.stderr, "no\n");
        assert_eq!(output.json::<Vec<u8>>().unwrap(), [1, 2]);
        let failed = run(shell("echo no >&2; exit 2"), Duration::from_secs(10)).unwrap();
        assert!(failed.success().unwrap_err().to_string().ends_with("exit status: 2: no"));
    }

    #[test]
    fn kills_a_command_that_hangs() {
        let error = run(shell("exec sleep 60"), Duration::from_millis(50)).unwrap_err();
        assert!(format!("{error:#}").contains("still ran after 50ms"));
    }

    #[test]
    fn follows_lines() {
        let watch = Watch::start(shell("echo 1; echo 2; exec sleep 60")).unwrap();
        let first = watch.next::<u8>(Duration::from_secs(10)).unwrap();
        let second = watch.next::<u8>(Duration::from_secs(10)).unwrap();
        assert_eq!((first.1, second.1), (1, 2));
        assert!(watch.next::<u8>(Duration::from_millis(20)).is_err());
        let ended = Watch::start(shell("echo 1; exit 3")).unwrap();
        assert_eq!(ended.finish(Duration::from_secs(10)).unwrap().code(), Some(3));
    }
}
