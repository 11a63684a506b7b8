//! The operations port: `/healthz`, `/readyz` and `/metrics` over plain HTTP/1, meant for loopback or a
//! trusted network.
//!
//! [`router`] has the three pages, a binary may add its own; [`serve`] bounds connections in number, in the
//! time to send a request, and in life, so that nobody can hold the port by being slow.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use slog::{Logger, debug, warn};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where Prometheus looks unless it is told otherwise.
pub const METRICS_PATH: &str = "/metrics";

/// Connections at a time: scrapers, probes and some people. A further one takes the place of the oldest, so that
/// silent clients keep nobody from asking.
const CONNECTIONS_MAX: usize = 64;
/// The time for a request's head, and for the next request on an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The life of a connection, after which it ends with its request: a reader that takes nothing holds it no longer.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// What a request gets to finish at the end of its connection's life, or when the process stops.
const GRACE: Duration = Duration::from_secs(2);
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

/// Serves `router` until `stop`; requests under way get two seconds to finish.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken, log: Logger) {
    let (connections, mut open) = (TaskTracker::new(), VecDeque::<AbortHandle>::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                warn!(log, "cannot accept connections"; "error" => %e);
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS_MAX
            && let Some(oldest) = open.pop_front()
        {
            debug!(log, "oldest connection closed for a new one"; "open" => CONNECTIONS_MAX);
            oldest.abort();
        }
        let (router, stop, log) = (router.clone(), stop.clone(), log.clone());
        let connection = connections.spawn(async move {
            if let Err(e) = serve_connection(stream, router, stop).await {
                debug!(log, "connection failed"; "error" => %e);
            }
        });
        open.push_back(connection.abort_handle());
    }
    drop(listener);
    connections.close();
    // Each connection ends by itself within the grace; this waits for them.
    let _ = tokio::time::timeout(GRACE * 2, connections.wait()).await;
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => {}
        () = tokio::time::sleep(CONNECTION_LIFE) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
}
