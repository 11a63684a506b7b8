//! TLS clients: passed through to the service their SNI names, never decrypted (SPEC F5).
//!
//! Whatever goes wrong, a TLS client can only be told by closing the connection.

use std::sync::Arc;

use p2p_common::service::ServiceName;
use tokio::net::TcpStream;

use super::listener::Ingress;
use crate::forward::splice::CopyBuffer;
use crate::forward::{Protocol, RawCall, ending};

/// Serves one client; `first` holds its ClientHello.
pub(super) async fn serve(
    mut client: TcpStream,
    first: CopyBuffer,
    service: ServiceName,
    ingress: Arc<Ingress>,
) {
    let call = RawCall { service: &service, protocol: Protocol::Tls, first, greeting: &[] };
    if ingress.forwarder.carry(&mut client, call).await.is_err() {
        ending::close_lingering(&mut client).await;
    }
}
