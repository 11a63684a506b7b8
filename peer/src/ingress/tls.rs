//! TLS clients: passed through to the service their SNI names, never decrypted (SPEC F5).
//!
//! Whatever goes wrong, a TLS client can only be told by closing the connection.

use std::sync::Arc;

use p2p_common::service::ServiceName;
use slog::debug;
use tokio::net::TcpStream;

use super::listener::Ingress;
use crate::forward::ending;
use crate::forward::open::ACCEPT_TIMEOUT;
use crate::forward::splice::{CopyBuffer, Pipe, Plain, copy_both};

/// Serves one client; `first` holds its ClientHello.
pub(super) async fn serve(client: TcpStream, first: CopyBuffer, service: ServiceName, ingress: Arc<Ingress>) {
    let log = &ingress.log;
    let mut opened = match ingress.forwarder.open(&service).await {
        Ok(opened) => opened,
        Err((proxy_id, error)) => {
            debug!(log, "cannot open forward"; "proxy_id" => %proxy_id, "service" => %service, "error" => %error);
            return;
        }
    };
    let proxy_id = opened.forward.proxy_id();
    match tokio::time::timeout(ACCEPT_TIMEOUT, opened.upstream.accepted()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            debug!(log, "forward refused"; "proxy_id" => %proxy_id, "service" => %service, "error" => %error);
            ingress.forwarder.forwards.count_failed();
            return opened.upstream.retire().await;
        }
        Err(_) => {
            debug!(log, "forward not accepted in time"; "proxy_id" => %proxy_id, "service" => %service);
            return ingress.forwarder.forwards.count_failed();
        }
    }
    let mut client = Plain::new(client);
    let (mut there, mut back) = (Pipe::new(first), Pipe::new(ingress.buffers.get()));
    match copy_both((&mut client, &mut there), (&mut opened.upstream, &mut back)).await {
        Ok(()) => opened.upstream.retire().await,
        Err(error) => {
            debug!(log, "forward broke"; "proxy_id" => %proxy_id, "service" => %service, "error" => %error);
            ingress.forwarder.forwards.count_failed();
            opened.upstream.abort();
            ending::abort(client.get_ref());
        }
    }
}
