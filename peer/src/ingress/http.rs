//! HTTP/1 clients: each request goes to the service its Host names (SPEC F6).
//!
//! ```text
//! head ─► same service as before? ── yes ─► exchange on the open forward ─┬─ reuse  ─► next head
//!             └─ no: retire it, open another ─► exchange                  ├─ reopen ─► retire, next head
//!                                                                         ├─ raw    ─► copy both ways to the end
//!                                                                         └─ close
//! ```
//!
//! An [`Exchange`] moves both directions at once: the response may begin before the request is done (100,
//! errors), and back-pressure of one direction does not stop the other. Between two requests the forward stays
//! open, as a connection to the service would, until the service closes it.
//!
//! What a client sees when it fails is what F9 says as long as no byte of the final response was sent;
//! afterwards the connection is reset, so that a part is never taken for the whole. A service that closes a
//! kept-alive forward just as the next request arrives looks as it does without us: the connection closes, and
//! clients ask again.

mod exchange;

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use p2p_common::service::{ServiceName, ServiceState};
use p2p_common::wire::tunnel::ProxyId;
use p2p_peer_core::{After, ErrorReply, FramingError, FramingLimits, RequestHead, RequestHeads, Status};
use slog::debug;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use self::exchange::{Exchange, Failure, Outcome};
use super::listener::Ingress;
use crate::forward::splice::{Carrier, CopyBuffer, Plain, poll_read_into};
use crate::forward::{End, Opened, Protocol, RawCall, ending, new_proxy_id};

/// A head arrives within this time once it began: longer than a phone on a train needs, short enough that a
/// slow attacker pays with connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client without an open forward may stay silent this long between two requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Serves one client; `first` holds what was read of it.
/// Once `stop` is cancelled it ends between two requests.
pub(super) async fn serve(
    client: TcpStream,
    first: CopyBuffer,
    ingress: Arc<Ingress>,
    stop: &CancellationToken,
) {
    let limits = FramingLimits::default();
    let down = ingress.buffers.get();
    let mut connection = Connection {
        client: Plain::new(client),
        up: first,
        down,
        heads: RequestHeads::new(limits),
        limits,
        open: None,
        client_ended: false,
        ingress,
    };
    while let Next::Request = connection.step(stop).await {}
    if let Some(open) = connection.open.take() {
        open.opened.retire().await;
    }
}

/// A client's connection.
struct Connection {
    client: Plain<TcpStream>,
    /// From the client, not yet sent.
    up: CopyBuffer,
    /// From the service, not yet sent.
    down: CopyBuffer,
    heads: RequestHeads,
    limits: FramingLimits,
    open: Option<Open>,
    client_ended: bool,
    ingress: Arc<Ingress>,
}

/// The forward that is open.
struct Open {
    opened: Opened,
    /// Of the tables, when it was last seen that it may stay.
    revision: u64,
    /// A response came on it.
    used: bool,
}

/// What comes instead of a head.
enum NoHead {
    /// The client left, or stayed silent for too long.
    Gone,
    Bad(FramingError),
}

/// What becomes of the client's connection.
enum Next {
    Request,
    Close,
}

impl Connection {
    /// One request.
    async fn step(&mut self, stop: &CancellationToken) -> Next {
        let head = tokio::select! {
            biased;
            head = self.next_head() => head,
            () = stop.cancelled() => return Next::Close,
        };
        match head {
            Ok(mut head) => {
                let dropped = head.to_origin_form(self.up.unread_mut());
                self.up.consume(dropped);
                self.answer(&head).await
            }
            Err(NoHead::Gone) => Next::Close,
            Err(NoHead::Bad(error)) => {
                self.tell_and_close(None, new_proxy_id(), error.status(), &error).await;
                Next::Close
            }
        }
    }

    /// Waits for a head, and meanwhile for the service to close the open forward.
    async fn next_head(&mut self) -> Result<RequestHead, NoHead> {
        if self.up.is_empty() && self.open.is_some() {
            // As long as the service waits, so do we: it is its time-out that counts.
            poll_fn(|cx| self.poll_idle(cx)).await?;
        }
        match self.heads.next_head(self.up.unread()) {
            Ok(Some(head)) => return Ok(head),
            Ok(None) => {}
            Err(error) => return Err(NoHead::Bad(error)),
        }
        let limit = if self.up.is_empty() { IDLE_TIMEOUT } else { HEAD_TIMEOUT };
        let head = poll_fn(|cx| self.poll_head(cx));
        tokio::time::timeout(limit, head).await.unwrap_or(Err(NoHead::Gone))
    }

    /// Ready with the client's first bytes, or when no forward is open any more.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), NoHead>> {
        if let Some(open) = &mut self.open {
            match poll_read_into(cx, &mut open.opened, &mut self.down) {
                Poll::Pending => {}
                // The service ended it in order: the tunnel is as good as new.
                Poll::Ready(Ok(0)) => self.retire(),
                // It broke, or an answer to nothing came.
                Poll::Ready(Ok(_) | Err(_)) => {
                    self.down.clear();
                    if let Some(open) = self.open.take() {
                        open.opened.leave();
                    }
                }
            }
        }
        let client = self.poll_client(cx);
        if client.is_pending() && self.open.is_none() { Poll::Ready(Ok(())) } else { client }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<RequestHead, NoHead>> {
        loop {
            match self.poll_client(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
            match self.heads.next_head(self.up.unread()) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Err(error) => return Poll::Ready(Err(NoHead::Bad(error))),
                Ok(None) => {}
            }
        }
    }

    /// Reads some more of the client.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), NoHead>> {
        if self.client_ended {
            return Poll::Ready(Err(NoHead::Gone));
        }
        match ready!(poll_read_into(cx, &mut self.client, &mut self.up)) {
            Ok(0) | Err(_) => Poll::Ready(Err(NoHead::Gone)),
            Ok(_) => Poll::Ready(Ok(())),
        }
    }

    async fn answer(&mut self, head: &RequestHead) -> Next {
        let Some(service) = head.host.service() else {
            let why = "an IPv6 address names no service";
            let whole = head.is_bodiless().then_some(head.head_bytes);
            return self.refuse(head, whole, new_proxy_id(), Status::NotFound, &why).await;
        };
        if head.is_connect() {
            return self.connect(head, service).await;
        }
        self.ingress.forwarder.forwards.count_request(Protocol::Http);
        if self.open.as_ref().is_some_and(|open| open.opened.forward().service() != service) {
            self.retire();
        }
        let revision = self.leave_drained();
        let mut exchange = Exchange::new(head, &self.limits);
        if self.open.is_none() {
            let first = match exchange.first(self.up.unread()) {
                Ok(first) => first,
                Err(error) => {
                    self.tell_and_close(Some(head), new_proxy_id(), error.status(), &error).await;
                    return Next::Close;
                }
            };
            match Box::pin(self.ingress.forwarder.open(service, &mut self.up, first)).await {
                Ok(opened) => {
                    exchange.sent(opened.sent());
                    self.open = Some(Open { opened, revision, used: false });
                }
                Err(refused) => {
                    let status = Status::of(refused.code());
                    let whole = exchange.request_taken().then_some(first);
                    return self.refuse(head, whole, refused.proxy_id, status, &refused).await;
                }
            }
        }
        self.exchange(head, exchange).await
    }

    /// Between two requests: leaves a forward whose service drains, or is offered there no longer, if somebody
    /// else has it. Returns the revision of the tables.
    fn leave_drained(&mut self) -> u64 {
        let tables = self.ingress.forwarder.views.tables();
        let revision = tables.revision();
        let Some(open) = self.open.as_mut().filter(|open| open.revision != revision) else { return revision };
        open.revision = revision;
        let forward = open.opened.forward();
        let (service, source) = (forward.service().as_str(), forward.source());
        let stays = tables.route(service, source).is_some_and(|route| route.state != ServiceState::Draining);
        let leaves = !stays && tables.resolve(service, 0, &[]).is_ok();
        drop(tables);
        if leaves {
            self.retire();
        }
        revision
    }

    async fn exchange(&mut self, head: &RequestHead, mut exchange: Exchange) -> Next {
        let Some(open) = &mut self.open else { return Next::Close };
        let outcome = poll_fn(|cx| {
            exchange.poll(cx, &mut self.client, &mut open.opened, (&mut self.up, &mut self.down))
        })
        .await;
        self.client_ended |= exchange.client_ended();
        match outcome {
            Outcome::Done(After::Reuse) => {
                open.used = true;
                Next::Request
            }
            Outcome::Done(After::Reopen) => {
                self.retire();
                Next::Request
            }
            Outcome::Done(After::Close) => {
                self.close(exchange.request_done()).await;
                Next::Close
            }
            Outcome::Raw => {
                self.copy_raw().await;
                Next::Close
            }
            Outcome::Failed(failure) => self.failed(head, &exchange, failure).await,
        }
    }

    /// CONNECT: the client wants the service's bytes as they are.
    async fn connect(&mut self, head: &RequestHead, service: &ServiceName) -> Next {
        self.retire();
        self.up.consume(head.head_bytes);
        let first = self.ingress.buffers.swap(&mut self.up);
        let call = RawCall { service, protocol: Protocol::Connect, first, greeting: ESTABLISHED };
        let carried = Box::pin(self.ingress.forwarder.carry(self.client.get_mut(), call)).await;
        if let Err(refused) = carried {
            let status = Status::of(refused.code());
            self.tell_and_close(Some(head), refused.proxy_id, status, &refused).await;
        }
        Next::Close
    }

    /// Both sides left HTTP.
    async fn copy_raw(&mut self) {
        let Some(Open { opened, .. }) = self.open.take() else { return };
        let up = self.ingress.buffers.swap(&mut self.up);
        let down = self.ingress.buffers.swap(&mut self.down);
        self.ingress.forwarder.copy(self.client.get_mut(), opened, (up, down)).await;
    }

    /// The exchange was the last one: ends both connections in order.
    async fn close(&mut self, request_done: bool) {
        let open = self.open.take();
        if request_done {
            // A client that is gone needs no goodbye; the tunnel is kept all the same.
            let _ = poll_fn(|cx| self.client.poll_finish(cx)).await;
            if let Some(open) = open {
                open.opened.retire().await;
            }
        } else {
            // The service answered before it had the whole request, and has had enough.
            if let Some(open) = open {
                open.opened.abort(End::Done);
            }
            ending::close_lingering(self.client.get_mut()).await;
        }
    }

    /// Keeps the tunnel of the open forward for the next one, in the background.
    fn retire(&mut self) {
        self.down.clear();
        if let Some(open) = self.open.take() {
            tokio::spawn(open.opened.retire());
        }
    }

    async fn failed(&mut self, head: &RequestHead, exchange: &Exchange, failure: Failure) -> Next {
        let Some(open) = self.open.take() else { return Next::Close };
        let proxy_id = open.opened.forward().proxy_id();
        match &failure {
            Failure::Client(_) => self.reset(open, &failure),
            _ if exchange.response_begun() => self.reset(open, &failure),
            // See above: as it is without us.
            Failure::Upstream(_) | Failure::Response(FramingError::Truncated)
                if open.used && !exchange.response_seen() =>
            {
                self.abort(open, &failure);
            }
            _ => {
                self.abort(open, &failure);
                self.tell_and_close(Some(head), proxy_id, failure.status(), &failure).await;
            }
        }
        Next::Close
    }

    /// Breaks both connections.
    fn reset(&self, open: Open, why: &Failure) {
        self.abort(open, why);
        ending::abort(self.client.get_ref());
    }

    /// Breaks the connection to the service.
    fn abort(&self, open: Open, why: &Failure) {
        let forward = open.opened.forward();
        debug!(self.ingress.log, "forward broke"; "proxy_id" => %forward.proxy_id(),
            "service" => %forward.service(), "error" => %why);
        open.opened.abort(why.end());
    }

    /// Answers a request that is not forwarded; `whole` is its length if all of it lies in the buffer.
    async fn refuse(
        &mut self,
        head: &RequestHead,
        whole: Option<usize>,
        proxy_id: ProxyId,
        status: Status,
        why: &(dyn fmt::Display + Sync),
    ) -> Next {
        if let Some(whole) = whole
            && head.persistent
            && !head.is_connect()
        {
            self.up.consume(whole);
            return self.tell(head, proxy_id, status, why).await;
        }
        self.tell_and_close(Some(head), proxy_id, status, why).await;
        Next::Close
    }

    async fn tell(
        &mut self,
        head: &RequestHead,
        proxy_id: ProxyId,
        status: Status,
        why: &(dyn fmt::Display + Sync),
    ) -> Next {
        self.down.clear();
        self.ingress.metrics.told(status);
        let reply =
            ErrorReply { status, proxy_id, why, keep_alive: true, to_head: head.is_head() }.to_bytes();
        match self.client.get_mut().write_all(&reply).await {
            Ok(()) => Next::Request,
            Err(_) => Next::Close,
        }
    }

    async fn tell_and_close(
        &mut self,
        head: Option<&RequestHead>,
        proxy_id: ProxyId,
        status: Status,
        why: &(dyn fmt::Display + Sync),
    ) {
        self.ingress.metrics.told(status);
        let to_head = head.is_some_and(RequestHead::is_head);
        let reply = ErrorReply { status, proxy_id, why, keep_alive: false, to_head }.to_bytes();
        if self.client.get_mut().write_all(&reply).await.is_ok() {
            ending::close_lingering(self.client.get_mut()).await;
        }
    }
}
