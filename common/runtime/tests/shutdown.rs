//! Signals, on a process of its own: this test binary started again as its own child.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use p2p_runtime::shutdown::Shutdown;
use rustix::process::{Pid, Signal, kill_process};
use slog::{Discard, Logger, o};

const CHILD: &str = "P2P_TEST_SHUTDOWN_CHILD";

/// Not a test: what the child runs. It reports each state and never ends by itself once asked to stop.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let shutdown = Shutdown::install(Logger::root(Discard, o!())).unwrap();
        eprintln!("ready");
        shutdown.requested().await;
        eprintln!("stopping");
        std::future::pending::<()>().await;
    });
}

struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Running {
    fn start() -> Running {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut running = Running { child, lines };
        running.until("ready");
        running
    }

    fn until(&mut self, state: &str) {
        let found = self.lines.by_ref().map_while(Result::ok).any(|line| line == state);
        assert!(found, "the child ended before '{state}'");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

#[test]
fn the_first_signal_asks_and_the_second_exits() {
    for (first, second, code) in [(Signal::TERM, Signal::INT, 130), (Signal::INT, Signal::TERM, 143)] {
        let mut running = Running::start();
        running.signal(first);
        running.until("stopping");
        running.signal(second);
        let status = running.end();
        assert_eq!((status.code(), status.signal()), (Some(code), None));
    }
}

#[tokio::test]
async fn a_task_may_ask_as_well() {
    let shutdown = Shutdown::install(Logger::root(Discard, o!())).unwrap();
    let token = shutdown.token();
    shutdown.request();
    shutdown.requested().await;
    assert!(token.is_cancelled());
}
