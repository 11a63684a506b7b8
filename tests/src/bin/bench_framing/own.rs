//! The hop with our framing: what the HTTP ingress of a Peer does, over any two streams.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyhow::{bail, ensure};
use p2p_peer_core::{
    After, FramingLimits, RequestFramer, RequestHead, RequestHeads, ResponseFramer, Step, Then, after,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::script::{End, SERVICE};

/// As large as a Peer's.
const BUFFER_BYTES: usize = 64 * 1024;

/// Carries all requests of one client connection over one backend connection.
pub async fn carry(client: End, backend: End) -> anyhow::Result<()> {
    let limits = FramingLimits::default();
    let mut hop = Hop { client, backend, up: Buffer::new(), down: Buffer::new() };
    let mut heads = RequestHeads::new(limits);
    while let Some(head) = poll_fn(|cx| hop.poll_head(cx, &mut heads)).await? {
        ensure!(head.host.service().is_some_and(|name| name.as_str() == SERVICE), "another service");
        let mut request = RequestFramer::new(&head, &limits);
        let mut response = ResponseFramer::new(&head, &limits);
        let mut up = Progress { shown: false, step: Step { take: 0, then: Then::Read } };
        let mut down = Progress { shown: true, ..up };
        poll_fn(|cx| {
            if let Poll::Ready(failed) = hop.poll_request(cx, &mut request, &mut up) {
                return Poll::Ready(failed);
            }
            hop.poll_response(cx, &mut response, &mut down)
        })
        .await?;
        ensure!(after(&request, &response) == After::Reuse, "the connections do not last");
    }
    Ok(())
}

struct Hop {
    client: End,
    backend: End,
    up: Buffer,
    down: Buffer,
}

/// How far one direction got with what lies in its buffer.
#[derive(Clone, Copy)]
struct Progress {
    shown: bool,
    step: Step,
}

impl Hop {
    /// The next head, or none when the client closes. Meanwhile the backend must stay silent.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        heads: &mut RequestHeads,
    ) -> Poll<anyhow::Result<Option<RequestHead>>> {
        if self.down.poll_fill(cx, &mut self.backend)?.is_ready() {
            return Poll::Ready(Err(anyhow::anyhow!("the backend spoke first or closed")));
        }
        loop {
            if let Some(head) = heads.next_head(self.up.unread())? {
                return Poll::Ready(Ok(Some(head)));
            }
            if ready!(self.up.poll_fill(cx, &mut self.client))? == 0 {
                ensure_ready(self.up.unread().is_empty())?;
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Never ready but with a failure.
    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        framer: &mut RequestFramer,
        progress: &mut Progress,
    ) -> Poll<anyhow::Result<()>> {
        loop {
            ready!(self.up.poll_drain(cx, &mut self.backend, &mut progress.step.take))?;
            if !framer.is_done() && !progress.shown {
                progress.step = framer.advance(self.up.unread())?;
                progress.shown = true;
            } else if self.up.is_full() {
                return Poll::Pending;
            } else {
                // Behind a whole request lies the next one.
                ensure_ready(ready!(self.up.poll_fill(cx, &mut self.client))? > 0)?;
                progress.shown = false;
            }
        }
    }

    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        framer: &mut ResponseFramer,
        progress: &mut Progress,
    ) -> Poll<anyhow::Result<()>> {
        loop {
            ready!(self.down.poll_drain(cx, &mut self.client, &mut progress.step.take))?;
            match progress.step.then {
                Then::Done => return Poll::Ready(Ok(())),
                Then::Raw => return Poll::Ready(Err(anyhow::anyhow!("nobody asked to leave HTTP"))),
                Then::Read if progress.shown => {
                    ensure_ready(ready!(self.down.poll_fill(cx, &mut self.backend))? > 0)?;
                    progress.shown = false;
                }
                Then::Read => {
                    progress.step = framer.advance(self.down.unread())?;
                    progress.shown = true;
                }
            }
        }
    }
}

fn ensure_ready(whole: bool) -> anyhow::Result<()> {
    if whole { Ok(()) } else { bail!("an end closed within a message") }
}

/// Bytes read and not yet sent.
struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    fn new() -> Self {
        Buffer { bytes: vec![0; BUFFER_BYTES].into(), start: 0, end: 0 }
    }

    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn is_full(&self) -> bool {
        self.end - self.start == self.bytes.len()
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &mut End) -> Poll<anyhow::Result<usize>> {
        if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut space = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(from).poll_read(cx, &mut space))?;
        let count = space.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// Sends the first `left` bytes.
    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut End,
        left: &mut usize,
    ) -> Poll<anyhow::Result<()>> {
        while *left > 0 {
            let sent = ready!(Pin::new(&mut *to).poll_write(cx, &self.unread()[..*left]))?;
            *left -= sent;
            self.start += sent;
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            }
        }
        Poll::Ready(Ok(()))
    }
}
