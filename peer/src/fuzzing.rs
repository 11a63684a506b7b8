//! What the fuzz targets reach of this crate's insides. In no other build, but for the unit tests', so that it
//! keeps compiling.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use p2p_common::wire::tunnel::{Hop, ProxyId};
use p2p_common::{ClusterId, Epoch, ErrorCode, Incarnation, NodeId, NodeKind};
use p2p_peer_core::FromServer;
use p2p_proto::convert::ConvertError;
use p2p_proto::v1;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

use crate::forward::splice::Carrier;
use crate::published::Myself;
use crate::tunnel::{Tunnel, TunnelError};

/// More than this a forward that is over may not send.
const DISCARD_MAX_BYTES: usize = 4_096;
/// Forwards of one tunnel.
const FORWARDS_MAX: u32 = 64;

/// A received message of a session; `None` for kinds this version does not know.
///
/// # Errors
/// When a field is malformed or beyond its bound.
pub fn from_server(message: v1::SessionDown) -> Result<Option<FromServer>, ConvertError> {
    crate::session_task::down_from(message)
}

/// What came of a tunnel: its forwards, the bytes of each, and how it ended.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Told {
    /// Service and client bytes of each forward, or what the owner said.
    pub forwards: Vec<(String, Vec<u8>)>,
    /// Why it ended; empty when in order.
    pub end: String,
}

fn node(n: u128) -> Myself {
    let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(n));
    Myself::new(id, ClusterId::new(Uuid::from_u128(1)), Incarnation::new(Uuid::from_u128(n)), Epoch(1))
}

/// Serves a tunnel on which `wire` comes, in pieces of `step` bytes: takes every second forward and refuses the others.
pub fn owner_of(wire: &[u8], step: usize) -> Told {
    block_on(async |told| {
        let (mut tunnel, hello) = Tunnel::hear(Wire { rest: wire, step }, Arc::default()).await?;
        hello.check(&node(3).expected(hello.from))?;
        tunnel.welcome(&node(3).hello(Some(hello.from))).await?;
        if tunnel.is_offered().await? {
            return Ok(());
        }
        while let Some((proxy_id, service, hop)) = tunnel.next_forward().await? {
            told.forwards.push((format!("{proxy_id} {service} {hop:?}"), Vec::new()));
            tunnel.received(proxy_id);
            if told.forwards.len() % 2 == 0 {
                let code = ErrorCode::ServiceUnknown;
                tunnel.refuse(proxy_id, code, "no".to_owned(), DISCARD_MAX_BYTES).await?;
                continue;
            }
            tunnel.accept(proxy_id);
            receive(&mut tunnel, told).await?;
            poll_fn(|cx| tunnel.poll_finish(cx)).await?;
            tunnel.reset();
        }
        Ok(())
    })
}

/// Asks for forwards, one after the other, of an owner that says `wire`, in pieces of `step` bytes.
pub fn ingress_of(wire: &[u8], step: usize) -> Told {
    block_on(async |told| {
        let (us, owner) = (node(2), node(3));
        let (ours, expected) = (us.hello(Some(owner.id)), us.expected(owner.id));
        let stream = Wire { rest: wire, step };
        let mut tunnel = Tunnel::greet(stream, Arc::default(), &ours, &expected).await?;
        for number in 1..FORWARDS_MAX {
            told.forwards.push((String::new(), Vec::new()));
            tunnel.begin(ProxyId(number), &"web.example".parse().expect("a name"), Hop::First);
            match receive(&mut tunnel, told).await {
                Err(TunnelError::Refused { code, text }) => {
                    if let Some((what, _)) = told.forwards.last_mut() {
                        *what = format!("{code} {text}");
                    }
                }
                received => received?,
            }
            tunnel.settle(DISCARD_MAX_BYTES).await?;
        }
        Ok(())
    })
}

async fn receive(tunnel: &mut Tunnel<Wire<'_>>, told: &mut Told) -> Result<(), TunnelError> {
    let mut piece = [0; 1024];
    loop {
        let count = poll_fn(|cx| tunnel.poll_recv(cx, &mut piece)).await?;
        if count == 0 {
            return Ok(());
        }
        if let Some((_, bytes)) = told.forwards.last_mut() {
            bytes.extend_from_slice(&piece[..count]);
        }
    }
}

fn block_on(run: impl AsyncFnOnce(&mut Told) -> Result<(), TunnelError>) -> Told {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut told = Told::default();
    if let Err(error) = runtime.block_on(run(&mut told)) {
        told.end = error.to_string();
    }
    told
}

/// A connection that gives at most `step` bytes at a time, and takes everything.
struct Wire<'a> {
    rest: &'a [u8],
    step: usize,
}

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, rest) = self.rest.split_at(self.step.min(self.rest.len()).min(buf.remaining()));
        buf.put_slice(now);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
