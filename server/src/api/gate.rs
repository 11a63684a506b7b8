//! The gate of the API port: who calls, whether it may, and how often it may try.
//!
//! ```text
//! node face ──certificate──► Id and key against the replicated state ──► peer, server
//! public face ──bearer token──► operator, reader        ──none──► anonymous
//! then the role matrix; whatever it does not name is closed
//! and to a Peer whose certificate is over everything but its renewal
//! ```
//!
//! On the node face the certificate counts and a token is not looked at. On the public face calls without
//! credentials, or with wrong ones, are counted per source; others are not, nor enrolments that succeed: their token is
//! in the message. Every answer is counted in the metrics, and calls of operators are recorded ([`crate::audit`]).
//!
//! Not here: TLS (`p2p_runtime::tls`), the matrix and the rules of tokens (`p2p_server_core`). Source: SPEC I4, I6,
//! I7, I9.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use p2p_common::{ErrorCode, NodeKind};
use p2p_proto::status::{code_of, refuse, refuse_credentials};
use p2p_runtime::clock::{Clock, ClusterClock};
use p2p_runtime::grpc::CallerInfo;
use p2p_runtime::identity::{PeerIdentity, Token};
use p2p_runtime::tls::{Face, ShownCertificate};
use p2p_server_core::{CallerKind, IdentityRefused, check_call, check_token};
use slog::{Logger, debug};
use tonic::body::Body;
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;

use super::ApiContext;
use super::body::paced;
use super::lasting::{Over, lasting};
use super::rate_limit::RateLimit;
use super::recording::Recording;
use crate::audit::AuditLog;
use crate::metrics::Metrics;
use crate::raft::Proposer;
use crate::standing::Standing;

/// How long a node that this Server has not heard of is waited for: it may have enrolled elsewhere this moment, and
/// would otherwise only come back after its back-off. And how long this Server may take to learn what the cluster
/// knows.
const REPLICATION_PATIENCE: Duration = Duration::from_secs(1);

/// Whether the token of a stream is still good is looked at that often, if nothing changes ...
const TOKEN_LOOK: Duration = Duration::from_millis(750);
/// ... and not more often than that, whatever changes.
const TOKEN_REST: Duration = Duration::from_millis(250);

/// Proves its caller by its message.
const ENROLMENT: &str = "/p2p.v1.Enroll/Enroll";

/// All that a Peer may ask for when its certificate is over.
const RENEWAL: &str = "/p2p.v1.Enroll/Renew";

/// Who makes a call; in the extensions of every request that passed the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    /// What it has proved to be.
    pub kind: CallerKind,
    /// The node, on the node face.
    pub node: Option<PeerIdentity>,
    /// What it showed, on the node face.
    pub certificate: Option<ShownCertificate>,
    /// Where it comes from.
    pub remote: SocketAddr,
}

impl Caller {
    /// Who makes this call.
    ///
    /// # Errors
    /// When the request did not pass the gate, which is a mistake of ours.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
        let caller = request.extensions().get::<Caller>().copied();
        caller.ok_or_else(|| refuse(ErrorCode::Internal, "the caller of this request is not known"))
    }

    /// The node that makes this call.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn node(&self) -> Result<PeerIdentity, Status> {
        self.node.ok_or_else(|| {
            refuse_credentials(ErrorCode::Unauthenticated, "this call needs the certificate of a node")
        })
    }
}

/// Decides about calls. See the module.
#[derive(Debug)]
struct Gate {
    proposer: Proposer,
    standing: Standing,
    local_operator: [u8; 32],
    limit: Mutex<RateLimit>,
    clock: Clock,
    /// By which tokens and certificates end.
    cluster_clock: ClusterClock,
    metrics: Metrics,
    audit: AuditLog,
    log: Logger,
}

impl Gate {
    fn new(context: &ApiContext) -> Self {
        Gate {
            proposer: context.proposer.clone(),
            standing: context.revoker.standing.clone(),
            local_operator: context.local_operator,
            limit: Mutex::new(RateLimit::new(context.clock.now())),
            clock: context.clock,
            cluster_clock: context.cluster_clock().clone(),
            metrics: context.metrics.clone(),
            audit: context.audit.clone(),
            log: context.log.clone(),
        }
    }

    /// Who calls `method`, if it may. `bearer` is the `authorization` header.
    ///
    /// # Errors
    /// UNAUTHENTICATED without credentials that are needed or with bad ones, PERMISSION_DENIED when the caller may
    /// not, RESOURCE_EXHAUSTED when its source tries too often, UNAVAILABLE when this Server is too far behind to know.
    async fn admit(
        &self,
        method: &str,
        info: &CallerInfo,
        bearer: Option<&HeaderValue>,
    ) -> Result<Caller, Status> {
        let (kind, node) = match info.face {
            Face::Node(identity) => (self.node(identity).await?, Some(identity)),
            Face::Public => match bearer {
                None => (CallerKind::Anonymous, None),
                Some(bearer) => {
                    let kind = self.public(bearer, info.remote.ip()).await?;
                    info.vouch();
                    (kind, None)
                }
            },
            Face::Tunnel(_) | Face::Link(_) => {
                return Err(refuse(ErrorCode::Forbidden, "Peers' tunnels and links carry no calls"));
            }
        };
        if kind == CallerKind::Anonymous {
            self.count(info.remote.ip())?;
        }
        check_call(kind, method).map_err(|refused| refuse(refused.code(), refused.to_string()))?;
        let certificate = info.certificate;
        if kind == CallerKind::Peer && method != RENEWAL {
            let node = node.map(|node| node.node_id.to_string()).unwrap_or_default();
            self.check_certificate(&node, certificate)?;
        }
        Ok(Caller { kind, node, certificate, remote: info.remote })
    }

    /// A Peer whose certificate is over renews it before anything else; one whose dates lie ahead has been given them by
    /// another clock, which is no fault of its. Servers are known by their keys alone, or none would come back (SPEC I5).
    fn check_certificate(&self, node: &str, shown: Option<ShownCertificate>) -> Result<(), Status> {
        let fault = match shown {
            Some(ShownCertificate { chained: false, .. }) => {
                "is of a CA this cluster does not have".to_owned()
            }
            Some(ShownCertificate { dates, .. }) => match dates.expired_for(self.cluster_clock.now()) {
                Some(over) => format!("expired {} s ago", over.as_secs()),
                None => return Ok(()),
            },
            None => "is not known".to_owned(),
        };
        let message = format!("the certificate of {node} {fault}: all it is good for is its renewal");
        Err(refuse_credentials(ErrorCode::CertificateExpired, message))
    }

    async fn node(&self, identity: PeerIdentity) -> Result<CallerKind, Status> {
        let kind = match identity.kind() {
            NodeKind::Server => CallerKind::Server,
            NodeKind::Peer => CallerKind::Peer,
        };
        let mut views = self.proposer.watch_view();
        // A Server that has just joined knows the others from its introducer, before their identities arrive.
        let known = views.wait_for(|view| {
            view.has_member(identity.node_id, identity.key_hash)
                || view.state.identities.contains_key(&identity.node_id)
        });
        let _ = tokio::time::timeout(REPLICATION_PATIENCE, known).await;
        if self.standing.is_bound(identity.node_id, identity.key_hash) {
            return Ok(kind);
        }
        let revoked = |refused: &IdentityRefused| refused.code() == ErrorCode::Revoked;
        // What is revoked stays so: no need to hear more, and perhaps no quorum to hear it from.
        if self.standing.check(identity.node_id, identity.key_hash).err().as_ref().is_none_or(|e| !revoked(e))
        {
            self.catch_up().await?;
        }
        self.standing
            .check(identity.node_id, identity.key_hash)
            .map_err(|refused| refuse_credentials(refused.code(), refused.to_string()))?;
        Ok(kind)
    }

    async fn public(&self, bearer: &HeaderValue, source: IpAddr) -> Result<CallerKind, Status> {
        let refused = match self.bearer(bearer) {
            Ok(kind) => return Ok(kind),
            Err(refused) => refused,
        };
        self.count(source)?;
        if code_of(&refused) != Some(ErrorCode::TokenUnknown) {
            return Err(refused);
        }
        self.catch_up().await?;
        let kind = self.bearer(bearer)?;
        self.limit().give_back(source);
        Ok(kind)
    }

    /// Before somebody is told that nobody knows him: what this Server knows becomes what the cluster knows. Just
    /// started, or cut off from the others, it may not have heard of him.
    async fn catch_up(&self) -> Result<(), Status> {
        match tokio::time::timeout(REPLICATION_PATIENCE, self.proposer.read_barrier()).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(refuse(
                ErrorCode::Unavailable,
                "this server is not up to date and cannot tell who you are: ask another one, or here in a moment",
            )),
        }
    }

    fn bearer(&self, header: &HeaderValue) -> Result<CallerKind, Status> {
        let token = token_of(header)?;
        if token.matches(&self.local_operator) {
            return Ok(CallerKind::Operator);
        }
        let view = self.proposer.view();
        if token.cluster_id() != view.state.cluster_id {
            let (theirs, ours) = (token.cluster_id(), view.state.cluster_id);
            let message = format!("the token is of cluster {theirs}, this server is in {ours}");
            return Err(refuse_credentials(ErrorCode::WrongCluster, message));
        }
        check_token(&view.state, token.id(), &token.secret_hash(), self.cluster_clock.now())
            .map_err(|refused| refuse_credentials(refused.code(), refused.to_string()))
    }

    /// Resolves when the token that let `caller` through is not good any more; none for whoever came without one, and
    /// for the one that is good for this run.
    fn over(self: &Arc<Self>, caller: &Caller, bearer: Option<&HeaderValue>) -> Option<Over> {
        let by_token = matches!(caller.kind, CallerKind::Reader | CallerKind::Operator);
        let token = token_of(bearer.filter(|_| by_token)?).ok()?;
        if token.matches(&self.local_operator) {
            return None;
        }
        let (gate, id, secret_hash) = (Arc::clone(self), token.id(), token.secret_hash());
        Some(Box::pin(async move {
            let mut views = gate.proposer.watch_view();
            loop {
                // Not with every entry of a busy cluster: a change is seen after the one rest, time passes by the other.
                tokio::time::sleep(TOKEN_REST).await;
                let _ = tokio::time::timeout(TOKEN_LOOK, views.changed()).await;
                let state = Arc::clone(&views.borrow_and_update().state);
                if let Err(refused) = check_token(&state, id, &secret_hash, gate.cluster_clock.now()) {
                    return refuse_credentials(refused.code(), refused.to_string());
                }
            }
        }))
    }

    fn limit(&self) -> MutexGuard<'_, RateLimit> {
        // A bucket cannot be left half changed.
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call without good credentials.
    fn count(&self, source: IpAddr) -> Result<(), Status> {
        let now = self.clock.now();
        if self.limit().take(source, now) {
            return Ok(());
        }
        self.metrics.limited();
        let message = format!("too many calls without valid credentials from {source}: wait a moment");
        Err(refuse(ErrorCode::Exhausted, message))
    }
}

/// The token in an `authorization` header.
///
/// # Errors
/// When it holds none.
pub(crate) fn token_of(header: &HeaderValue) -> Result<Token, Status> {
    let bad = |text: &str| refuse_credentials(ErrorCode::Unauthenticated, text);
    let text = header.to_str().map_err(|_| bad("the authorization header is not text"))?;
    let token = match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return Err(bad("the authorization header must be: Bearer TOKEN")),
    };
    token.parse().map_err(|e| bad(&format!("{e}")))
}

/// Puts the gate before every service.
#[derive(Debug, Clone)]
pub struct GateLayer {
    gate: Arc<Gate>,
}

impl GateLayer {
    /// With the gate of a Server.
    pub(super) fn new(context: &ApiContext) -> Self {
        GateLayer { gate: Arc::new(Gate::new(context)) }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: Arc::clone(&self.gate) }
    }
}

/// Services behind the gate.
#[derive(Debug, Clone)]
pub struct Gated<S> {
    inner: S,
    gate: Arc<Gate>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        // The one that was ready serves this call.
        let other = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, other);
        let gate = Arc::clone(&self.gate);
        let info = request.extensions().get::<CallerInfo>().cloned();
        let bearer = request.headers_mut().remove(AUTHORIZATION);
        let method = request.uri().path().to_owned();
        Box::pin(async move {
            let mut recording =
                Recording::begin(&gate.audit, &method, info.as_ref(), bearer.as_ref(), &gate.local_operator);
            let admitted = match &info {
                Some(info) => gate.admit(&method, info, bearer.as_ref()).await,
                None => Err(refuse(ErrorCode::Internal, "the connection of this request is not known")),
            };
            let response = match &admitted {
                Ok(caller) => {
                    request.extensions_mut().insert(*caller);
                    if let Some(recording) = &mut recording {
                        request.extensions_mut().insert(recording.admitted());
                    }
                    let response = inner.call(request.map(|body| paced(&method, body))).await?;
                    match gate.over(caller, bearer.as_ref()) {
                        Some(over) => response.map(|body| lasting(body, over)),
                        None => response,
                    }
                }
                Err(refused) => {
                    debug!(gate.log, "call refused"; "method" => &method, "code" => ?refused.code(),
                        "remote" => info.as_ref().map(|info| info.remote.to_string()), "reason" => refused.message());
                    refused.clone().into_http()
                }
            };
            // An answer without a status in its head has one behind its body; it began well.
            let code = response.headers().get(Status::GRPC_STATUS).map(HeaderValue::as_bytes);
            let code = code.map_or(Code::Ok, Code::from_bytes);
            gate.metrics.called(&method, code);
            match (recording, &admitted) {
                (None, _) => {}
                (Some(recording), Err(refused)) if refused.code() != Code::PermissionDenied => {
                    recording.refused(refused, gate.clock.now());
                }
                (Some(recording), _) => recording.answered(response.headers(), code).await,
            }
            if let Ok(Caller { kind: CallerKind::Anonymous, remote, .. }) = admitted
                && method == ENROLMENT
                && code == Code::Ok
            {
                info.iter().for_each(CallerInfo::vouch);
                gate.limit().give_back(remote.ip());
            }
            Ok(response)
        })
    }
}
