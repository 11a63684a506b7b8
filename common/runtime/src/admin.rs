//! The operations port: `/healthz`, `/readyz` and `/metrics` over plain HTTP/1, meant for loopback or a
//! trusted network.
//!
//! [`router`] has the three pages, a binary may add its own; [`serve`] bounds connections in number, with a share for
//! each source, and requests in size and time, so that nobody can hold the port by being slow.

mod connection;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use prometheus_client::registry::Registry;
use slog::{Logger, debug, warn};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use connection::{
    BODY_BYTES_MAX, BODY_TIMEOUT, HEAD_BYTES_MAX, HEAD_TIMEOUT, IDLE_TIMEOUT, READER_TIMEOUT,
};

use crate::tcp::{SlotLimits, Slots};

/// Where Prometheus looks unless it is told otherwise.
pub const METRICS_PATH: &str = "/metrics";

/// Connections at a time: scrapers, probes, some people, clients of the registry. A further one takes the place of the
/// one that is idle longest of the source that has most, so that silent clients keep nobody from asking.
pub const CONNECTIONS_MAX: usize = 512;
/// The share of one source of them.
pub const CONNECTIONS_PER_SOURCE: usize = 128;
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Whether the node does its work; published by its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// It does not, and why: each reason a line for people.
    NotReady(Vec<String>),
}

#[derive(Clone)]
struct Pages {
    registry: Arc<Registry>,
    ready: watch::Receiver<Readiness>,
}

/// The three pages. `/healthz` says that the process answers, `/readyz` what `ready` says (503 with the
/// reasons), `metrics_path` (mostly [`METRICS_PATH`]) the registry in the OpenMetrics text form.
pub fn router(metrics_path: &str, registry: Arc<Registry>, ready: watch::Receiver<Readiness>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route(metrics_path, get(metrics))
        .with_state(Pages { registry, ready })
}

async fn readyz(State(pages): State<Pages>) -> Response {
    match &*pages.ready.borrow() {
        Readiness::Ready => "ready\n".into_response(),
        Readiness::NotReady(reasons) => {
            let reasons: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{reasons}")).into_response()
        }
    }
}

async fn metrics(State(pages): State<Pages>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &pages.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded\n").into_response(),
    }
}

/// How many connections a port has where `files` may be open: at most [`CONNECTIONS_MAX`].
pub fn connections_within(files: u64) -> usize {
    usize::try_from(files / 32).unwrap_or(usize::MAX).clamp(1, CONNECTIONS_MAX)
}

/// Serves `router` until `stop`, at most `connections_max` clients at a time; requests under way get two seconds to
/// finish.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    stop: CancellationToken,
    log: Logger,
) {
    let connections = TaskTracker::new();
    let slots = Slots::new(SlotLimits {
        slots_max: connections_max,
        per_source: CONNECTIONS_PER_SOURCE.min(connections_max),
        // A request takes milliseconds, and who has just asked is idle for less time than who has not.
        spared: Duration::ZERO,
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                warn!(log, "cannot accept connections"; "error" => %e);
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let Ok(slot) = slots.take(remote.ip().into(), Instant::now()) else { continue };
        let (router, stop, log) = (router.clone(), stop.clone(), log.clone());
        connections.spawn(async move {
            if let Err(e) = connection::serve(stream, router, slot, stop).await {
                debug!(log, "connection failed"; "remote" => %remote, "error" => %e);
            }
        });
    }
    drop(listener);
    connections.close();
    // Each connection ends by itself within the grace; this waits for them.
    let _ = tokio::time::timeout(connection::GRACE * 2, connections.wait()).await;
}
