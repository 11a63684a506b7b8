//! One child process: started with its output in a file, signalled by pid, never left behind.
//!
//! A process that is bound to us dies with us, whatever ends us: Linux kills it when the thread that started
//! it ends, which is why one thread that never ends starts all of them.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::wait_for;

/// How many of its last lines a failure shows.
const SHOWN_LINES: usize = 60;

/// What happens to a process when the one that started it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Killed with its starter.
    Bound,
    /// Lives on in a session of its own, if [`Process::leave`] is called; else dropped like any other.
    Detachable,
}

/// The signals that tests send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: stop in order.
    Terminate,
    /// SIGKILL: die at once.
    Kill,
    /// SIGSTOP: freeze.
    Stop,
    /// SIGCONT: go on.
    Continue,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Signal::Terminate => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
            Signal::Stop => libc::SIGSTOP,
            Signal::Continue => libc::SIGCONT,
        }
    }
}

/// A running (or ended) child. Dropping it kills it; when the dropping thread panics, its last lines are shown.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts `command` without input, its output appended to `log`. `name` is for messages.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path, lifetime: Lifetime) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = match lifetime {
            Lifetime::Bound => spawn_bound(command),
            Lifetime::Detachable => command.process_group(0).spawn(),
        };
        let child = child.with_context(|| format!("starting {program}"))?;
        Ok(Process { name: name.into(), child: Some(child), log: log.into() })
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("only `leave` takes the child, and it consumes us").id()
    }

    /// The exit status, if it has ended.
    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child_mut().try_wait()?)
    }

    /// Sends a signal. To a process that has ended this does nothing: its pid may be another's by now.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if self.exited()?.is_some() {
            return Ok(());
        }
        let pid = libc::pid_t::try_from(self.pid()).expect("Linux pids fit");
        // SAFETY: kill has no memory preconditions; the child is not reaped yet, so the pid is ours.
        if unsafe { libc::kill(pid, signal.number()) } != 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("{signal:?} to {}", self.name));
        }
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::Kill)?;
        self.child_mut().wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it has not ended after `within`; it runs on then.
    pub fn terminate(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::Terminate)?;
        self.wait(within)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it has not ended after `within`.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} (pid {}) still runs after {within:?}", self.name, self.pid());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until `look` succeeds while the process runs.
    ///
    /// # Errors
    /// When it ends meanwhile, or after `within`; both with the last lines of its log.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut look: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let what = format!("{} {what}", self.name);
        let found = wait_for(&what, within, || match self.exited()? {
            // Looking on would not bring it back.
            Some(_) => Ok(None),
            None => look().map(Some),
        });
        match found {
            Ok(Some(found)) => Ok(found),
            Ok(None) => bail!("waited for {what}, but it ended\n{}", self.log_tail()),
            Err(error) => bail!("{error:#}\n{}", self.log_tail()),
        }
    }

    /// The memory it occupies, in MiB.
    pub fn memory_mib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib =
            line.and_then(|line| line.trim().strip_suffix(" kB")).context("it has no memory any more")?;
        Ok(kib.trim().parse::<u64>()? / 1024)
    }

    /// How many files and sockets it has open.
    pub fn open_files(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// All it printed so far; lossy where that is not UTF-8.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its last lines with a heading, for a message about a failure.
    pub fn log_tail(&mut self) -> String {
        let state = match self.exited() {
            Ok(Some(status)) => match status.signal() {
                Some(signal) => format!("ended by signal {signal}"),
                None => format!("ended, {status}"),
            },
            Ok(None) => "runs".into(),
            Err(error) => format!("{error:#}"),
        };
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        format!("--- {} (pid {}, {state}), last lines of its log:\n{tail}\n", self.name, self.pid())
    }

    /// Lets a [`Lifetime::Detachable`] process live on; returns its pid.
    pub fn leave(mut self) -> u32 {
        let pid = self.pid();
        self.child = None;
        pid
    }

    fn child_mut(&mut self) -> &mut Child {
        self.child.as_mut().expect("only `leave` takes the child, and it consumes us")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        if std::thread::panicking() {
            eprint!("{}", self.log_tail());
        }
        // Nothing is left to do about a child that cannot be killed.
        let _ = self.kill();
    }
}

/// Starts a child that Linux kills when this process ends.
pub(super) fn spawn_bound(mut command: Command) -> io::Result<Child> {
    let starter = std::process::id();
    let prepare = move || {
        // SAFETY: both calls are async-signal-safe and take no pointers.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The starter may have died before the call above.
            if u32::try_from(libc::getppid()) != Ok(starter) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        Ok(())
    };
    // SAFETY: `prepare` allocates nothing and makes async-signal-safe calls only.
    unsafe { command.pre_exec(prepare) };
    spawn_elsewhere(command)
}

/// A command to start, and where the child goes.
type Order = (Command, SyncSender<io::Result<Child>>);

/// Starts `command` from a thread that lives as long as this process.
fn spawn_elsewhere(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = sync_channel::<Order>(1);
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                // Whoever ordered it waits for the answer.
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, child) = sync_channel(1);
    spawner.send((command, reply)).expect("the spawner's loop ends with the process");
    child.recv().expect("the spawner answers each order")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn("shell", command, &dir.join("log"), Lifetime::Bound).unwrap()
    }

    #[test]
    fn captures_output_and_status() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell(dir.path(), "echo out; echo err >&2; exit 3");
        assert_eq!(process.wait(Duration::from_secs(10)).unwrap().code(), Some(3));
        assert_eq!(process.log(), "out\nerr\n");
        assert!(process.log_tail().contains("exit status: 3"));
        process.signal(Signal::Kill).unwrap();
    }

    #[test]
    fn waiting_for_one_that_ended_shows_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell(dir.path(), "echo last words; exit 3");
        let found: anyhow::Result<()> =
            process.wait_for("ready", Duration::from_secs(60), || bail!("not yet"));
        let error = found.unwrap_err().to_string();
        assert!(error.contains("waited for shell ready") && error.contains("last words"), "{error}");
    }

    #[test]
    fn outlives_the_thread_that_asked_for_it_and_ends_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        let asked = std::thread::spawn(move || shell(&path, "exec sleep 60"));
        let mut process = asked.join().unwrap();
        assert!(process.wait(Duration::from_millis(50)).unwrap_err().to_string().contains("still runs"));
        assert_eq!(process.terminate(Duration::from_secs(10)).unwrap().signal(), Some(libc::SIGTERM));
    }
}
