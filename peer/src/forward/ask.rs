//! Asking one owner for one forward, over one tunnel, and over a second when nothing is heard (SPEC F7).
//!
//! ```text
//! FORWARD + first bytes ─► RECEIVED? ── in time ─► ACCEPT or REFUSE, in time
//!                             └─ no, or the tunnel broke ─► the same on a freshly dialled tunnel, under the
//!                                same proxy_id; from here on both are listened to, the first ACCEPT wins
//! ```
//!
//! The first bytes stay in their buffer until the verdict, and nothing more is read of the client before. The owner
//! takes a forward up once per run ([`super::recent`]), so what either tunnel brings is the word on it; of the two
//! FORWARDs one is answered with ALREADY_RUNS. An owner that has started anew does not know what the one before took
//! up: once bytes have left it is not asked again.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use p2p_common::service::ServiceName;
use p2p_common::wire::tunnel::ProxyId;
use p2p_common::{ErrorCode, Incarnation, NodeId};
use slog::debug;
use tokio::time::Instant;

use super::Forwarder;
use super::metrics::Answer;
use super::open::OpenError;
use super::splice::{Carrier, CopyBuffer};
use crate::tunnel::{Lease, PoolError, TunnelError};

/// For a tunnel to the owner, once it is needed: the client waits.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(5);
/// For the owner's verdict: its backend has 5 s.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(8);
/// RECEIVED comes at once; three round trips let TCP repair one loss, and below this a busy process is meant.
const RECEIVED_TIMEOUT_MIN: Duration = Duration::from_millis(250);
const RECEIVED_TIMEOUT_RTTS: u32 = 3;

/// A forward that is asked for.
pub(super) struct Request<'a> {
    pub(super) proxy_id: ProxyId,
    pub(super) service: &'a ServiceName,
    /// Kept until the verdict.
    pub(super) first: &'a mut CopyBuffer,
    /// So many of them leave with FORWARD.
    pub(super) count: usize,
    /// Until when there must be a verdict, whoever is asked.
    pub(super) deadline: Instant,
}

/// An owner that accepted.
pub(super) struct Accepted {
    pub(super) lease: Lease,
    /// So many of the first bytes were sent.
    pub(super) sent: usize,
}

/// An owner that did not.
pub(super) struct NotAccepted {
    pub(super) error: OpenError,
    /// Another owner may be asked: this one will not run the forward, and another might.
    pub(super) elsewhere: bool,
}

/// One tunnel on which the owner was asked.
struct Ask {
    lease: Lease,
    sent: usize,
    flushed: bool,
}

/// The second tunnel.
enum Second<'a> {
    NotNeeded,
    Opening(Pin<Box<dyn Future<Output = Result<Lease, PoolError>> + Send + 'a>>),
    Asked(Ask),
    Over,
}

enum Event {
    Verdict(Nth, Result<(), TunnelError>),
    Opened(Result<Lease, PoolError>),
    Due,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nth {
    First,
    Second,
}

impl Forwarder {
    /// Asks `owner` and waits for its verdict.
    ///
    /// # Errors
    /// When it does not accept; the first bytes are then all there again.
    pub(super) async fn ask(
        &self,
        owner: NodeId,
        request: &mut Request<'_>,
    ) -> Result<Accepted, NotAccepted> {
        let deadline = request.deadline.min(Instant::now() + TUNNEL_TIMEOUT);
        let lease = self.pool.take(owner, deadline).await;
        // Nothing has left: whoever else has the service may be asked.
        let lease = lease.map_err(|error| NotAccepted { error: error.into(), elsewhere: true })?;
        // The seed's form, for people who know it.
        debug!(self.log, "forward";
            "command" => format_args!("FORWARD:{}:{}:80", request.proxy_id, request.service),
            "peer_id" => owner);
        request.first.keep();
        let verdict = self.verdict(owner, lease, request).await;
        request.first.seek(verdict.as_ref().map_or(0, |accepted| accepted.sent));
        request.first.release();
        verdict
    }

    async fn verdict(
        &self,
        owner: NodeId,
        lease: Lease,
        request: &mut Request<'_>,
    ) -> Result<Accepted, NotAccepted> {
        let asked_at = Instant::now();
        let verdict_by = request.deadline.min(asked_at + VERDICT_TIMEOUT);
        let received_within = (lease.rtt() * RECEIVED_TIMEOUT_RTTS).max(RECEIVED_TIMEOUT_MIN);
        let mut first = Some(Ask::begin(lease, request));
        let mut second = Second::NotNeeded;
        let incarnation = first.as_mut().map(Ask::incarnation);
        // Any client byte has left towards the owner.
        let mut left = false;
        let due = tokio::time::sleep_until(verdict_by.min(asked_at + received_within));
        tokio::pin!(due);
        loop {
            let event = poll_fn(|cx| {
                if let Some(ask) = &mut first
                    && let Poll::Ready(verdict) = ask.poll(cx, request)
                {
                    return Poll::Ready(Event::Verdict(Nth::First, verdict));
                }
                match &mut second {
                    Second::Opening(opening) => {
                        if let Poll::Ready(opened) = opening.as_mut().poll(cx) {
                            return Poll::Ready(Event::Opened(opened));
                        }
                    }
                    Second::Asked(ask) => {
                        if let Poll::Ready(verdict) = ask.poll(cx, request) {
                            return Poll::Ready(Event::Verdict(Nth::Second, verdict));
                        }
                    }
                    Second::NotNeeded | Second::Over => {}
                }
                due.as_mut().poll(cx).map(|()| Event::Due)
            })
            .await;
            let lost = match event {
                Event::Verdict(nth, verdict) => {
                    let (ask, other) = match nth {
                        Nth::First => (first.take(), second.take_asked()),
                        Nth::Second => (second.take_asked(), first.take()),
                    };
                    let ask = ask.expect("it has just answered");
                    left |= ask.sent > 0;
                    match verdict {
                        Ok(()) => {
                            self.forwards.count_answer(Answer::Accepted);
                            if let Some(other) = other {
                                other.lease.abort();
                            }
                            return Ok(Accepted { lease: ask.lease, sent: ask.sent });
                        }
                        Err(TunnelError::Refused { code, text }) => {
                            self.forwards.count_answer(match code {
                                ErrorCode::AlreadyRuns => Answer::Unexpected,
                                _ => Answer::Refused,
                            });
                            tokio::spawn(ask.lease.retire());
                            let refused = TunnelError::Refused { code, text };
                            match other {
                                // The word on the forward comes on the other tunnel.
                                Some(other) if code == ErrorCode::AlreadyRuns => {
                                    debug!(self.log, "forward came twice"; "proxy_id" => %request.proxy_id,
                                        "peer_id" => owner);
                                    match nth {
                                        Nth::First => second = Second::Asked(other),
                                        Nth::Second => (first, second) = (Some(other), Second::Over),
                                    }
                                    continue;
                                }
                                other => {
                                    // An owner that cannot remember may take the other FORWARD up later.
                                    let certain = other.is_none() || code != ErrorCode::Exhausted;
                                    if let Some(other) = other {
                                        other.lease.abort();
                                    }
                                    let elsewhere = certain && another_may_do_better(code);
                                    return Err(NotAccepted { error: refused.into(), elsewhere });
                                }
                            }
                        }
                        Err(error) => {
                            self.forwards.count_answer(match error {
                                TunnelError::OtherForward { .. } => Answer::Unexpected,
                                _ => Answer::Lost,
                            });
                            debug!(self.log, "tunnel lost before the verdict";
                                "proxy_id" => %request.proxy_id, "peer_id" => owner, "error" => %error);
                            match (nth, other) {
                                (Nth::First, Some(other)) => second = Second::Asked(other),
                                (Nth::Second, other) => (first, second) = (other, Second::Over),
                                (Nth::First, None) => {}
                            }
                            OpenError::Tunnel(error)
                        }
                    }
                }
                Event::Opened(Ok(mut lease)) => {
                    if left_behind(&first, left) && incarnation != Some(lease.tunnel().incarnation()) {
                        lease.give_back();
                        second = Second::Over;
                        OpenError::Restarted(owner)
                    } else {
                        second = Second::Asked(Ask::begin(lease, request));
                        continue;
                    }
                }
                Event::Opened(Err(error)) => {
                    second = Second::Over;
                    OpenError::Owner(error)
                }
                Event::Due => {
                    let silent = first.as_mut().is_some_and(|ask| !ask.lease.tunnel().is_received());
                    if Instant::now() >= verdict_by {
                        self.forwards.count_answer(Answer::TimedOut);
                        for ask in first.into_iter().chain(second.take_asked()) {
                            left |= ask.sent > 0;
                            ask.lease.abort();
                        }
                        return Err(NotAccepted { error: OpenError::TimedOut, elsewhere: !left });
                    }
                    due.as_mut().reset(verdict_by);
                    if silent && matches!(second, Second::NotNeeded) {
                        self.forwards.count_answer(Answer::TimedOut);
                        debug!(self.log, "forward not heard of"; "proxy_id" => %request.proxy_id,
                            "peer_id" => owner);
                        second = self.open_second(owner, verdict_by);
                    }
                    continue;
                }
            };
            // One way less. Is there another?
            match &second {
                Second::NotNeeded => {
                    due.as_mut().reset(verdict_by);
                    second = self.open_second(owner, verdict_by);
                }
                Second::Over if first.is_none() => {
                    return Err(NotAccepted { error: lost, elsewhere: !left });
                }
                Second::Opening(_) | Second::Asked(_) | Second::Over => {}
            }
        }
    }

    fn open_second(&self, owner: NodeId, deadline: Instant) -> Second<'_> {
        Second::Opening(Box::pin(self.pool.take_fresh(owner, deadline)))
    }
}

impl Ask {
    fn begin(mut lease: Lease, request: &Request<'_>) -> Self {
        lease.tunnel().begin(request.proxy_id, request.service);
        Ask { lease, sent: 0, flushed: false }
    }

    fn incarnation(&mut self) -> Incarnation {
        self.lease.tunnel().incarnation()
    }

    /// Gets FORWARD and the first bytes on their way; ready with the verdict.
    fn poll(&mut self, cx: &mut Context<'_>, request: &mut Request<'_>) -> Poll<Result<(), TunnelError>> {
        let sent = self.poll_send(cx, request);
        match self.lease.tunnel().poll_verdict(cx) {
            // An owner may answer without reading on; that it does not read matters when there is no answer.
            Poll::Pending => match sent {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
            verdict => verdict,
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        request: &mut Request<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        let tunnel = self.lease.tunnel();
        while self.sent < request.count {
            request.first.seek(self.sent);
            match tunnel.poll_send(cx, request.first, request.count - self.sent, false) {
                Poll::Ready(Ok(sent)) => self.sent += sent,
                other => return other.map_ok(|_| ()),
            }
        }
        if !self.flushed {
            match tunnel.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.flushed = true,
                other => return other,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Second<'_> {
    fn take_asked(&mut self) -> Option<Ask> {
        match std::mem::replace(self, Second::Over) {
            Second::Asked(ask) => Some(ask),
            other => {
                *self = other;
                None
            }
        }
    }
}

fn left_behind(first: &Option<Ask>, left: bool) -> bool {
    left || first.as_ref().is_some_and(|ask| ask.sent > 0)
}

/// Whether a refusal is about this owner rather than about the caller or the request.
fn another_may_do_better(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::BackendRefused
            | ErrorCode::BackendTimeout
            | ErrorCode::Exhausted
            | ErrorCode::Draining
            | ErrorCode::Unavailable
            | ErrorCode::OwnerOffline
            | ErrorCode::ServiceDown
            | ErrorCode::ServiceUnknown
    )
}
