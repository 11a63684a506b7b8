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
use p2p_common::wire::tunnel::{Hop, ProxyId};
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
    /// How far it has come.
    pub(super) hop: Hop,
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

/// One owner, while its verdict is waited for.
struct Asking<'a> {
    forwarder: &'a Forwarder,
    owner: NodeId,
    /// The run that was asked first.
    incarnation: Incarnation,
    first: Option<Ask>,
    second: Second<'a>,
    /// A client byte has left on a tunnel that is gone.
    left: bool,
    verdict_by: Instant,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nth {
    First,
    Second,
}

enum Event {
    Verdict(Nth, Result<(), TunnelError>),
    Opened(Result<Lease, PoolError>),
    Due,
}

/// What follows from an event.
enum Step {
    Wait,
    Decided(Result<Accepted, NotAccepted>),
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
        let lease = match self.pool.take(owner, deadline).await {
            Ok(lease) => lease,
            // Nothing has left: whoever else has the service may be asked.
            Err(error) => {
                if matches!(error, PoolError::TimedOut(_)) {
                    self.silent.note(owner, Instant::now());
                }
                return Err(NotAccepted { error: error.into(), elsewhere: true });
            }
        };
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
        mut lease: Lease,
        request: &mut Request<'_>,
    ) -> Result<Accepted, NotAccepted> {
        let now = Instant::now();
        let received_within = (lease.rtt() * RECEIVED_TIMEOUT_RTTS).max(RECEIVED_TIMEOUT_MIN);
        let verdict_by = request.deadline.min(now + VERDICT_TIMEOUT);
        let mut asking = Asking {
            forwarder: self,
            owner,
            incarnation: lease.tunnel().incarnation(),
            first: Some(Ask::begin(lease, request)),
            second: Second::NotNeeded,
            left: false,
            verdict_by,
        };
        // Not on the timer's books unless it is waited for.
        let due = tokio::time::sleep_until(verdict_by.min(now + received_within));
        tokio::pin!(due);
        loop {
            let event = poll_fn(|cx| match asking.poll(cx, request) {
                Poll::Pending => due.as_mut().poll(cx).map(|()| Event::Due),
                event => event,
            });
            let step = match event.await {
                Event::Verdict(nth, verdict) => asking.on_verdict(nth, verdict, request),
                Event::Opened(opened) => asking.on_opened(opened, request),
                Event::Due => asking.on_due(request),
            };
            match step {
                Step::Decided(verdict) => return verdict,
                Step::Wait => due.as_mut().reset(verdict_by),
            }
        }
    }
}

impl<'a> Asking<'a> {
    /// Ready with what a tunnel brings.
    fn poll(&mut self, cx: &mut Context<'_>, request: &mut Request<'_>) -> Poll<Event> {
        if let Some(ask) = &mut self.first
            && let Poll::Ready(verdict) = ask.poll(cx, request)
        {
            return Poll::Ready(Event::Verdict(Nth::First, verdict));
        }
        match &mut self.second {
            Second::Opening(opening) => opening.as_mut().poll(cx).map(Event::Opened),
            Second::Asked(ask) => ask.poll(cx, request).map(|verdict| Event::Verdict(Nth::Second, verdict)),
            Second::NotNeeded | Second::Over => Poll::Pending,
        }
    }

    fn on_verdict(&mut self, nth: Nth, verdict: Result<(), TunnelError>, request: &Request<'_>) -> Step {
        let ask = self.take(nth).expect("it has just answered");
        self.left |= ask.sent > 0;
        let forwards = &self.forwarder.forwards;
        if matches!(verdict, Ok(()) | Err(TunnelError::Refused { .. })) {
            self.forwarder.silent.answered(self.owner);
        }
        match verdict {
            Ok(()) => {
                forwards.count_answer(Answer::Accepted);
                if let Some(other) = self.take(nth.other()) {
                    other.lease.abort();
                }
                Step::Decided(Ok(Accepted { lease: ask.lease, sent: ask.sent }))
            }
            Err(TunnelError::Refused { code, text }) => {
                // The tunnel is sound; only this forward is not.
                tokio::spawn(ask.lease.retire());
                self.on_refused(nth, code, text, request)
            }
            Err(error) => {
                forwards.count_answer(match error {
                    TunnelError::OtherForward { .. } => Answer::Unexpected,
                    _ => Answer::Lost,
                });
                debug!(self.forwarder.log, "tunnel lost before the verdict"; "proxy_id" => %request.proxy_id,
                    "peer_id" => self.owner, "error" => %error);
                self.on_lost(error.into())
            }
        }
    }

    fn on_refused(&mut self, nth: Nth, code: ErrorCode, text: String, request: &Request<'_>) -> Step {
        let again = code == ErrorCode::AlreadyRuns;
        let answer = if again { Answer::Unexpected } else { Answer::Refused };
        self.forwarder.forwards.count_answer(answer);
        let other = self.take(nth.other());
        let was_asked_twice = other.is_some();
        match other {
            // The word on the forward comes on the other tunnel.
            Some(other) if again => {
                debug!(self.forwarder.log, "forward came twice"; "proxy_id" => %request.proxy_id,
                    "peer_id" => self.owner);
                self.put(nth.other(), other);
                return Step::Wait;
            }
            Some(other) => other.lease.abort(),
            None => {}
        }
        // An owner that cannot remember may take the other FORWARD up later.
        let certain = !was_asked_twice || code != ErrorCode::Exhausted;
        let elsewhere = certain && another_may_do_better(code);
        Step::Decided(Err(NotAccepted { error: TunnelError::Refused { code, text }.into(), elsewhere }))
    }

    fn on_opened(&mut self, opened: Result<Lease, PoolError>, request: &Request<'_>) -> Step {
        self.second = Second::Over;
        let mut lease = match opened {
            Ok(lease) => lease,
            Err(error) => return self.on_lost(error.into()),
        };
        let left = self.left || self.first.as_ref().is_some_and(|ask| ask.sent > 0);
        if left && lease.tunnel().incarnation() != self.incarnation {
            lease.give_back();
            return self.on_lost(OpenError::Restarted(self.owner));
        }
        self.second = Second::Asked(Ask::begin(lease, request));
        Step::Wait
    }

    fn on_due(&mut self, request: &Request<'_>) -> Step {
        let forwards = &self.forwarder.forwards;
        if Instant::now() >= self.verdict_by {
            forwards.count_answer(Answer::TimedOut);
            for ask in [self.take(Nth::First), self.take(Nth::Second)].into_iter().flatten() {
                self.left |= ask.sent > 0;
                ask.lease.abort();
            }
            return Step::Decided(Err(NotAccepted { error: OpenError::TimedOut, elsewhere: !self.left }));
        }
        let silent = self.first.as_mut().is_some_and(|ask| !ask.lease.tunnel().is_received());
        if silent && matches!(self.second, Second::NotNeeded) {
            forwards.count_answer(Answer::TimedOut);
            debug!(self.forwarder.log, "forward not heard of"; "proxy_id" => %request.proxy_id,
                "peer_id" => self.owner);
            self.forwarder.silent.note(self.owner, Instant::now());
            self.open_second();
        }
        Step::Wait
    }

    /// One way less. Is there another?
    fn on_lost(&mut self, error: OpenError) -> Step {
        match &self.second {
            Second::NotNeeded => self.open_second(),
            Second::Over if self.first.is_none() => {
                return Step::Decided(Err(NotAccepted { error, elsewhere: !self.left }));
            }
            Second::Opening(_) | Second::Asked(_) | Second::Over => {}
        }
        Step::Wait
    }

    fn open_second(&mut self) {
        let fresh = self.forwarder.pool.take_fresh(self.owner, self.verdict_by);
        self.second = Second::Opening(Box::pin(fresh));
    }

    fn take(&mut self, nth: Nth) -> Option<Ask> {
        match nth {
            Nth::First => self.first.take(),
            Nth::Second => self.second.take_asked(),
        }
    }

    fn put(&mut self, nth: Nth, ask: Ask) {
        match nth {
            Nth::First => self.first = Some(ask),
            Nth::Second => self.second = Second::Asked(ask),
        }
    }
}

impl Nth {
    fn other(self) -> Self {
        match self {
            Nth::First => Nth::Second,
            Nth::Second => Nth::First,
        }
    }
}

impl Ask {
    fn begin(mut lease: Lease, request: &Request<'_>) -> Self {
        lease.tunnel().begin(request.proxy_id, request.service, request.hop);
        Ask { lease, sent: 0, flushed: false }
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
