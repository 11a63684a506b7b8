//! Clients whose bytes are carried as they are: TLS passed through, CONNECT, SOCKS, bound ports, h2c, and HTTP
//! connections that were upgraded.
//!
//! ```text
//! carry ─► open ─► refused? ── yes ─► NotOpened: the face says so in its own language, or just closes
//!                     └─ no ─► greeting to the client ─► copy both ways ─┬─ both ended: the tunnel is kept
//!                                                                       └─ one broke: both are reset
//! ```

use p2p_common::service::ServiceName;
use slog::debug;
use tokio::net::TcpStream;

use super::open::NotOpened;
use super::splice::{Broken, CopyBuffer, Pipe, Plain, copy_both};
use super::{End, Forwarder, Opened, Protocol, ending};

/// What a client wants that speaks to the service directly.
#[derive(Debug)]
pub(crate) struct RawCall<'a> {
    /// Which service.
    pub(crate) service: &'a ServiceName,
    /// How the client asked.
    pub(crate) protocol: Protocol,
    /// What was read of the client and is for the service; may be empty.
    pub(crate) first: CopyBuffer,
    /// What the client is told before the first bytes of the service, once that is open.
    pub(crate) greeting: &'a [u8],
}

impl Forwarder {
    /// Carries a client's connection to a service until it ended, in order or not: a connection that broke is
    /// reset, so that a part is never taken for the whole. The client is then of no use but to be dropped.
    ///
    /// # Errors
    /// When the service cannot be opened: the client was told nothing yet.
    pub(crate) async fn carry(&self, client: &mut TcpStream, call: RawCall<'_>) -> Result<(), NotOpened> {
        let RawCall { service, protocol, mut first, greeting } = call;
        self.forwards.count_request(protocol);
        let count = first.unread().len();
        let opened = self.open(service, &mut first, count).await?;
        let mut down = self.buffers.get();
        down.space()[..greeting.len()].copy_from_slice(greeting);
        down.fill(greeting.len());
        self.copy(client, opened, (first, down)).await;
        Ok(())
    }

    /// Copies both ways until both directions ended, sending first what lies in `up` for the service and in
    /// `down` for the client.
    pub(crate) async fn copy(
        &self,
        client: &mut TcpStream,
        mut opened: Opened,
        (up, down): (CopyBuffer, CopyBuffer),
    ) {
        let mut near = Plain::new(&mut *client);
        let (mut there, mut back) = (Pipe::new(up), Pipe::new(down));
        match copy_both((&mut near, &mut there), (&mut opened, &mut back)).await {
            Ok(()) => opened.retire().await,
            Err(error) => {
                let forward = opened.forward();
                debug!(self.log, "forward broke"; "proxy_id" => %forward.proxy_id(),
                    "service" => %forward.service(), "error" => %error);
                opened.abort(match error {
                    Broken::From(_) => End::Client,
                    Broken::To(_) => End::Service,
                });
                ending::abort(client);
            }
        }
    }
}
