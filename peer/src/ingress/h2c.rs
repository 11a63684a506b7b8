//! HTTP/2 clients without TLS: routed once, by the first `:authority`, then carried as they are (SPEC F6).
//!
//! ```text
//! preface, SETTINGS ─┬─ request follows ───────────────────────────────────────────► service
//!                    └─ silence: the client waits for ours ─► SETTINGS to it
//!                         ─► request and its acknowledgement ─► acknowledgement out ─► service
//! ```
//!
//! What the acknowledgement is about the service never sent, so it is taken out of the replayed bytes. A client
//! that sends more than a buffer holds before it acknowledges is refused; its window allows it no more than that
//! buffer, frame headers aside, and it begins to send only after our SETTINGS have left.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::wire::tunnel::ProxyId;
use p2p_peer_core::{
    ErrorReply, H2C_SETTINGS, H2cError, H2cErrorCode, H2cLimits, H2cOpening, H2cReply, H2cRequest, H2cStream,
    Status, h2c_goaway, h2c_opening,
};
use slog::debug;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::listener::Ingress;
use crate::forward::splice::CopyBuffer;
use crate::forward::{Protocol, RawCall, ending, new_proxy_id};

/// A client that sends its first request without waiting for SETTINGS does so right behind its own; after this
/// much silence it is taken for one that waits. Being wrong costs it a round trip, waiting longer costs those that
/// do wait.
const SETTINGS_AFTER: Duration = Duration::from_millis(5);
/// A connection without a request is closed after this time, as one of HTTP/1 is.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(75);

/// Serves one client; `first` holds the preface. Once `stop` is cancelled it ends if there was no request yet.
pub(super) async fn serve(
    mut client: TcpStream,
    mut first: CopyBuffer,
    remote: SocketAddr,
    ingress: &Arc<Ingress>,
    stop: &CancellationToken,
) {
    let mut has_settings = false;
    let opened = tokio::select! {
        biased;
        opened = opening(&mut client, &mut first, &mut has_settings) => opened,
        () = stop.cancelled() => Err(End::Idle),
    };
    let farewell = match opened {
        Ok(request) => match refusal(&mut client, first, &request, ingress).await {
            None => return,
            Some((status, proxy_id, why)) => {
                ingress.metrics.told(status);
                reply(status, proxy_id, &why, request.stream, has_settings)
            }
        },
        Err(End::Gone) => return,
        Err(End::Idle) => h2c_goaway(H2cErrorCode::NoError, "", has_settings),
        Err(End::Full) => {
            h2c_goaway(H2cErrorCode::Calm, "SETTINGS are not acknowledged in time", has_settings)
        }
        Err(End::Bad(error)) => {
            debug!(ingress.log, "http/2 connection refused"; "remote" => %remote, "error" => %error);
            match error {
                H2cError::Connection { code, why } => h2c_goaway(code, why, has_settings),
                H2cError::Request { stream, .. } => {
                    ingress.metrics.told(Status::BadRequest);
                    reply(Status::BadRequest, new_proxy_id(), &error.to_string(), stream, has_settings)
                }
            }
        }
    };
    if client.write_all(&farewell).await.is_ok() {
        ending::close_lingering(&mut client).await;
    }
}

/// Why there is no request.
enum End {
    /// The client left.
    Gone,
    /// It has none, or we stop.
    Idle,
    /// It sends much and acknowledges nothing.
    Full,
    Bad(H2cError),
}

/// Reads until the first request is there, and with it everything that must not be passed on.
async fn opening(
    client: &mut TcpStream,
    first: &mut CopyBuffer,
    has_settings: &mut bool,
) -> Result<H2cRequest, End> {
    let limits = H2cLimits::default();
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    loop {
        let opening = h2c_opening(first.unread(), &limits).map_err(End::Bad)?;
        match (opening.request, opening.ack) {
            (Some(request), None) if !*has_settings => return Ok(request),
            (Some(request), Some(at)) => {
                if *has_settings {
                    first.cut(at, H2cOpening::ACK_BYTES);
                }
                return Ok(request);
            }
            _ if first.is_full() => return Err(End::Full),
            _ => {}
        }
        let waits = opening.settings && !*has_settings;
        let until = if waits { deadline.min(Instant::now() + SETTINGS_AFTER) } else { deadline };
        match tokio::time::timeout_at(until, client.read(first.space())).await {
            Ok(Ok(0) | Err(_)) => return Err(End::Gone),
            Ok(Ok(count)) => first.fill(count),
            Err(_) if waits => {
                client.write_all(H2C_SETTINGS).await.map_err(|_| End::Gone)?;
                *has_settings = true;
            }
            Err(_) => return Err(End::Idle),
        }
    }
}

/// Carries the connection; if that cannot be, says with which status, under which name and why.
async fn refusal(
    client: &mut TcpStream,
    first: CopyBuffer,
    request: &H2cRequest,
    ingress: &Ingress,
) -> Option<(Status, ProxyId, String)> {
    let Some(service) = request.host.service() else {
        let why = "an IPv6 address names no service".to_owned();
        return Some((Status::NotFound, new_proxy_id(), why));
    };
    let call = RawCall { service, protocol: Protocol::H2c, first, greeting: &[] };
    let refused = ingress.forwarder.carry(client, call).await.err()?;
    Some((Status::of(refused.code()), refused.proxy_id, refused.to_string()))
}

fn reply(status: Status, proxy_id: ProxyId, why: &str, stream: H2cStream, has_settings: bool) -> Vec<u8> {
    let error = ErrorReply { status, proxy_id, why: &why, keep_alive: false, to_head: stream.is_head };
    H2cReply { error, stream, has_settings }.to_bytes()
}
