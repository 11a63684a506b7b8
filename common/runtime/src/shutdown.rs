//! Orderly stop: the first SIGTERM or SIGINT asks, the second ends the process at once.
//!
//! ```text
//! running ──SIGTERM, SIGINT or request()──► stopping ──second signal──► exit 128 + signal
//!                                              └── main returns ──► exit 0
//! ```
//!
//! Handlers are installed, so that it works as PID 1 as well, where the kernel ignores signals nobody handles.
//! How long stopping may take is the binary's decision.

use std::io;

use slog::{Logger, info, warn};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The request to stop, shared by all tasks.
#[derive(Debug, Clone)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// Starts to listen for signals. Call it first thing in the tokio runtime: a signal before it ends the
    /// process.
    ///
    /// # Errors
    /// When the system gives no handlers.
    pub fn install(log: Logger) -> io::Result<Self> {
        let token = CancellationToken::new();
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(watch_signals(token.clone(), terminate, interrupt, log));
        Ok(Shutdown { token })
    }

    /// A token that is cancelled when the process shall stop.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Waits until the process shall stop. Cancel safe.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Asks the process to stop, like a first signal does.
    pub fn request(&self) {
        self.token.cancel();
    }
}

async fn watch_signals(token: CancellationToken, mut terminate: Signal, mut interrupt: Signal, log: Logger) {
    loop {
        let kind = tokio::select! {
            Some(()) = terminate.recv() => SignalKind::terminate(),
            Some(()) = interrupt.recv() => SignalKind::interrupt(),
            else => return,
        };
        let number = kind.as_raw_value();
        if token.is_cancelled() {
            warn!(log, "second signal, exiting at once"; "signal" => number);
            std::process::exit(128 + number);
        }
        info!(log, "stopping; a second signal exits at once"; "signal" => number);
        token.cancel();
    }
}
