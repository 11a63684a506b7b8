//! SOCKS5 clients: a registered service by its name, then its bytes as they are (SPEC F5).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::service::ServiceName;
use p2p_peer_core::{SocksError, SocksMessage, SocksReply, socks_greeting, socks_method, socks_request};
use slog::debug;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::listener::Ingress;
use crate::forward::splice::CopyBuffer;
use crate::forward::{Protocol, RawCall, ending};

/// Two short messages take no longer, on whatever network.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one client; `first` holds what was read of it.
pub(super) async fn serve(
    mut client: TcpStream,
    mut first: CopyBuffer,
    remote: SocketAddr,
    ingress: &Arc<Ingress>,
) {
    let last_word: Vec<u8> = match negotiate(&mut client, &mut first).await {
        Ok(service) => {
            let greeting = &SocksReply::Succeeded.to_bytes();
            let call = RawCall { service: &service, protocol: Protocol::Socks, first, greeting };
            match ingress.forwarder.carry(&mut client, call).await {
                Ok(()) => return,
                Err(refused) => SocksReply::of(refused.code()).to_bytes().into(),
            }
        }
        Err(End::Gone) => return,
        Err(End::NoMethod) => {
            debug!(ingress.log, "socks client refused"; "remote" => %remote, "error" => "it insists on authentication");
            socks_method(false).into()
        }
        Err(End::Bad(error)) => {
            debug!(ingress.log, "socks client refused"; "remote" => %remote, "error" => %error);
            match error {
                SocksError::Refused { reply, .. } => reply.to_bytes().into(),
                SocksError::Malformed(_) => return,
            }
        }
    };
    if client.write_all(&last_word).await.is_ok() {
        ending::close_lingering(&mut client).await;
    }
}

/// Why no service is asked for.
enum End {
    /// The client left, or fell silent.
    Gone,
    /// It does not go on without authentication.
    NoMethod,
    Bad(SocksError),
}

/// Both messages of the client, the first one answered; what it sent behind them stays in `first`.
async fn negotiate(client: &mut TcpStream, first: &mut CopyBuffer) -> Result<ServiceName, End> {
    let deadline = Instant::now() + NEGOTIATION_TIMEOUT;
    if !message(client, first, deadline, socks_greeting).await? {
        return Err(End::NoMethod);
    }
    client.write_all(&socks_method(true)).await.map_err(|_| End::Gone)?;
    message(client, first, deadline, socks_request).await
}

/// Reads a message and takes it out of `first`; they are much shorter than a buffer.
async fn message<T>(
    client: &mut TcpStream,
    first: &mut CopyBuffer,
    deadline: Instant,
    read: impl Fn(&[u8]) -> Result<Option<SocksMessage<T>>, SocksError>,
) -> Result<T, End> {
    loop {
        if let Some(message) = read(first.unread()).map_err(End::Bad)? {
            first.consume(message.bytes);
            return Ok(message.says);
        }
        match tokio::time::timeout_at(deadline, client.read(first.space())).await {
            Ok(Ok(count)) if count > 0 => first.fill(count),
            _ => return Err(End::Gone),
        }
    }
}
