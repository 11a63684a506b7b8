//! A start that must be refused: with the right exit code, and with words that help.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::run;

/// The command line or the configuration is wrong.
pub const USAGE: i32 = 2;
/// It was tried and failed.
pub const FAILED: i32 = 1;
/// Only an operator can go on.
pub const NEEDS_OPERATOR: i32 = 3;
/// Nobody answers now.
pub const UNAVAILABLE: i32 = 4;

/// A refusal comes at once; this much is for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `command`, which must end with `code` and say all of `words` on standard error, whatever their case, after
/// the program's name. Returns what it said.
///
/// # Errors
/// When it runs on, ends otherwise, or lacks a word.
pub fn expect_refusal(command: Command, code: i32, words: &[&str]) -> anyhow::Result<String> {
    let output = run(command, PATIENCE)?;
    let program = output.line.split(' ').next().unwrap_or_default();
    ensure!(output.status.code() == Some(code), "`{}`: {}: {}", output.line, output.status, output.stderr);
    // What comes before is its log.
    let said = match output.stderr.find(&format!("{program}: ")) {
        Some(start) => &output.stderr[start..],
        // The parser of the command line says `error:`.
        None => output.stderr.as_str(),
    };
    let lower = said.to_lowercase();
    for word in words {
        let found = lower.contains(&word.to_lowercase());
        ensure!(found, "`{}` does not say '{word}': {said}", output.line);
    }
    ensure!(!lower.contains("panicked"), "`{}` panicked: {said}", output.line);
    said.lines().next().context("it said nothing")?;
    Ok(said.trim().to_string())
}
