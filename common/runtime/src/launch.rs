//! The frame around a binary's `run`: logger, tokio, signals; then the node; then an end in bounded time.

use std::time::Duration;

use slog::{Level, Logger, warn};

use crate::config::IgnoredVariable;
use crate::exit::{Exit, chain};
use crate::logger::{self, LogFormat};
use crate::shutdown::Shutdown;

/// Whatever still runs when the node has ended had its time to stop.
const REST_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs `node` until it ends, with everything around it that a process needs. `ignored` are variables to warn of.
///
/// # Errors
/// When the process cannot be set up, or the node fails.
pub fn launch<F>(log: (Level, LogFormat), ignored: Vec<IgnoredVariable>, node: F) -> Result<(), Exit>
where
    F: AsyncFnOnce(Logger, Shutdown) -> Result<(), Exit>,
{
    // The guard goes last: it writes what is still on its way.
    let (log, _guard) = logger::start(log.0, log.1).map_err(|e| Exit::failed(chain(&e)))?;
    for variable in ignored {
        warn!(log, "environment variable names no setting"; "variable" => variable.name,
            "nearest" => variable.nearest.unwrap_or_default());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Exit::failed(format!("cannot start: {e}")))?;
    let done = runtime.block_on(async {
        let shutdown = Shutdown::install(log.clone()).map_err(Exit::failed)?;
        node(log, shutdown).await
    });
    runtime.shutdown_timeout(REST_TIMEOUT);
    done
}
