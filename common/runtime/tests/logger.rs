//! The logger of a process, on a process of its own: what slog, `log` and `tracing` say arrives on stderr.

use std::process::{Command, Stdio};

use p2p_runtime::logger::{LogError, LogFormat, start};
use slog::{Level, debug, info};

const CHILD: &str = "P2P_TEST_LOGGER_CHILD";

/// Not a test: what the child runs.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let (log, guard) = start(Level::Debug, LogFormat::Json).unwrap();
    assert!(matches!(start(Level::Debug, LogFormat::Json), Err(LogError::Started(_))));
    info!(log, "joined"; "term" => 3);
    debug!(log, "decided");
    log::info!(target: "somebody", "through log");
    tracing::warn!(target: "h2::proto", stream = 5, "through tracing");
    tracing::debug!(target: "h2::proto", "a frame");
    drop((log, guard));
}

#[test]
fn everything_arrives_on_stderr_but_the_talk_of_libraries() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<serde_json::Value> =
        stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let said: Vec<_> = lines.iter().map(|line| line["msg"].as_str().unwrap()).collect();
    assert_eq!(said, ["joined", "decided", "through log", "through tracing stream=5"]);
    assert_eq!(lines[0]["term"], 3);
    assert_eq!(lines[3]["target"], "h2::proto");
}
