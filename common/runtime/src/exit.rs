//! How a command ends: a number for programs and a sentence for people.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed: the message says what happened |
//! | 2 | the command line or the configuration is wrong; nothing was done |
//! | 3 | an operator must act: the message says which command to type |
//! | 4 | not available now (no answer, no quorum): trying again may help |

use std::fmt;
use std::process::ExitCode;

/// Why a command did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    /// It was tried and failed.
    pub fn failed(message: impl fmt::Display) -> Self {
        Exit { code: 1, message: message.to_string() }
    }

    /// The command line or the configuration is wrong.
    pub fn usage(message: impl fmt::Display) -> Self {
        Exit { code: 2, message: message.to_string() }
    }

    /// Only an operator can go on.
    pub fn needs_operator(message: impl fmt::Display) -> Self {
        Exit { code: 3, message: message.to_string() }
    }

    /// Nobody answers, or there is no quorum.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Exit { code: 4, message: message.to_string() }
    }

    /// Whether trying again may help.
    pub fn is_unavailable(&self) -> bool {
        self.code == 4
    }

    /// The number.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Prints the sentence to standard error, as `program: sentence`, and gives the number.
    pub fn report(&self, program: &str) -> ExitCode {
        eprintln!("{program}: {}", self.message);
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The message of an error and of everything behind it, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their source in their own message.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
