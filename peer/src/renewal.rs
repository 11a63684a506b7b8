//! The renewal of this Peer's certificate (SPEC I5).
//!
//! ```text
//! half-life, told that it is over, told that another CA signs ─► due ─► any Server ─► stored, shown from the next
//!                                                                 ▲        │ none    handshake on
//!                                                                 └────────┘ back-off
//! over for too long ─► enrolled again, if there is a token
//! ```
//!
//! It opens a connection of its own: a Peer whose certificate is over gets no session before it has another. Connections
//! that are open go on. A Peer of a mesh key has a certificate without an end and needs none of this. Owner of the stored
//! identity while the Peer runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::backoff::{Backoff, Jitter};
use p2p_common::{Epoch, ErrorCode, NodeKind};
use p2p_proto::v1::enroll_client::EnrollClient;
use p2p_proto::{convert, status, v1};
use p2p_runtime::exit::chain;
use p2p_runtime::grpc::{ChannelParams, connect};
use p2p_runtime::identity::{DataDir, Enrolment, NodeIdentity, Token, TrustBundle, TrustPosition};
use p2p_runtime::tls::{Connector, Credentials, Expect};
use rand::seq::SliceRandom;
use slog::{Logger, error, info, warn};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Request;

use crate::agent_task::Input;
use crate::enrol::{self, Applicant};
use crate::published::Myself;
use crate::servers::Servers;

/// A due date is looked at again after so long: the cluster clock may be another by then.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Between two tries.
const WAITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// After a refusal for good, which an operator may lift.
const REST_AFTER_REFUSAL: Duration = Duration::from_secs(60);
const NEW_TOKEN: &str =
    "start this peer with another --token: `p2p-server token create --role peer` on any server prints one";
/// For the answer of a Server: it asks nobody.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why one Server did not renew it.
enum Refused {
    /// Another one may.
    ForNow(String),
    /// None will: it has been over for too long, or is of a CA that is no more.
    TooOld(String),
    /// None will.
    ForGood(String),
}

/// Keeps this Peer's certificate good.
pub(crate) struct RenewalTask {
    pub(crate) data: Arc<DataDir>,
    pub(crate) identity: Arc<Mutex<NodeIdentity>>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) myself: Arc<Myself>,
    pub(crate) servers: Arc<Servers>,
    /// As configured: asked besides those that are known.
    pub(crate) configured: Vec<HostPort>,
    /// The join token of this start: good for a certificate that nobody renews any more.
    pub(crate) token: Option<Token>,
    /// The agent, which dials at once with a new certificate.
    pub(crate) agent: mpsc::Sender<Input>,
    pub(crate) stop: CancellationToken,
    pub(crate) log: Logger,
}

impl RenewalTask {
    /// Runs until the Peer stops.
    pub(crate) async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.renew_when_due() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn renew_when_due(self) {
        let spread = rand::random();
        let (mut backoff, mut jitter) = (Backoff::new(WAITS.0, WAITS.1), Jitter::new(rand::random()));
        let mut said = String::new();
        loop {
            self.due(spread).await;
            let rest = match self.renew().await {
                Ok(()) => {
                    said.clear();
                    backoff.reset();
                    // However often a Server asks for it.
                    WAITS.0
                }
                Err(Refused::ForNow(why)) => {
                    if why != said {
                        warn!(self.log, "certificate not renewed yet"; "reason" => &why);
                        said = why;
                    }
                    backoff.fail(&mut jitter)
                }
                Err(Refused::TooOld(why) | Refused::ForGood(why)) => {
                    if why != said {
                        error!(self.log, "certificate not renewed"; "reason" => &why);
                        said = why;
                    }
                    REST_AFTER_REFUSAL
                }
            };
            tokio::time::sleep(rest).await;
        }
    }

    /// Waits until it is due by the cluster clock, or asked for.
    async fn due(&self, spread: f64) {
        let mut clock = self.credentials.clock().watch();
        loop {
            clock.mark_unchanged();
            let (now, due) = (self.credentials.clock().now(), self.credentials.dates().renewal_due(spread));
            if due <= now {
                return;
            }
            let again = Instant::now() + Duration::from_millis(due.0 - now.0).min(LOOK_AGAIN);
            tokio::select! {
                () = tokio::time::sleep_until(again) => {}
                Ok(()) = clock.changed() => {}
                () = self.servers.renewal_asked() => return,
            }
        }
    }

    async fn renew(&self) -> Result<(), Refused> {
        let mut asked: Vec<(Expect, HostPort)> = Vec::new();
        for server in self.servers.known().iter() {
            let expect = Expect::Node { id: server.id, key_hash: Some(server.key_hash) };
            asked.extend(server.addresses.iter().map(|address| (expect, address.clone())));
        }
        asked.shuffle(&mut rand::rng());
        let configured = self.configured.iter().cloned();
        asked.extend(configured.map(|address| (Expect::Kind(NodeKind::Server), address)));
        let mut last = Refused::ForNow("no server is known".to_owned());
        for (expect, address) in &asked {
            match self.ask(*expect, address).await {
                Ok(enrolment) => return self.take(enrolment).await.map_err(Refused::ForNow),
                // What one refuses for good counts when no other one does better.
                Err(Refused::ForNow(why)) if matches!(last, Refused::ForNow(_)) => {
                    last = Refused::ForNow(format!("{address}: {why}"));
                }
                Err(Refused::ForNow(_)) => {}
                Err(Refused::TooOld(why)) => last = Refused::TooOld(format!("{address}: {why}")),
                Err(Refused::ForGood(why)) => last = Refused::ForGood(format!("{address}: {why}")),
            }
        }
        match (last, &self.token) {
            (Refused::TooOld(why), Some(token)) => {
                info!(self.log, "enrolling again"; "reason" => why);
                self.enrol(token, asked.into_iter().map(|(_, address)| address)).await
            }
            (Refused::TooOld(why), None) => Err(Refused::TooOld(format!("{why}; {NEW_TOKEN}"))),
            (last, _) => Err(last),
        }
    }

    /// The same Id and key, by a join token.
    async fn enrol(&self, token: &Token, servers: impl Iterator<Item = HostPort>) -> Result<(), Refused> {
        let applicant = {
            let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
            Applicant::of(&identity).map_err(|e| Refused::ForNow(chain(&e)))?
        };
        let mut last = String::new();
        for server in servers {
            match enrol::enrol(&applicant, token, &server).await {
                Ok((enrolment, epoch, _)) => {
                    // Which version the bundle has is not told here: one that was followed before stays.
                    let as_of = TrustPosition { epoch, version: 0 };
                    return self.take((enrolment, as_of)).await.map_err(Refused::ForNow);
                }
                Err(refused) => last = format!("{server}: {}", refused.into_reason()),
            }
        }
        Err(Refused::TooOld(format!("{last}; {NEW_TOKEN}")))
    }

    async fn ask(&self, expect: Expect, address: &HostPort) -> Result<(Enrolment, TrustPosition), Refused> {
        let for_now = |e: &(dyn std::error::Error + 'static)| Refused::ForNow(chain(e));
        let csr = {
            let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
            identity.key().certificate_request(identity.id()).map_err(|e| for_now(&e))?
        };
        let connector = Connector::node(Arc::clone(&self.credentials), expect);
        let connection =
            connect(&connector, address, &ChannelParams::default()).await.map_err(|e| for_now(&e))?;
        let hello = self.myself.hello(Some(connection.identity.node_id));
        let mut request = Request::new(v1::RenewRequest {
            hello: Some(convert::hello_to(&hello)),
            csr: csr.into(),
            addresses: Vec::new(),
        });
        request.set_timeout(CALL_TIMEOUT);
        let reply = EnrollClient::new(connection.channel).renew(request).await.map_err(|refused| {
            let why = refused.message().to_owned();
            match status::code_of(&refused) {
                Some(ErrorCode::CertificateExpired) => Refused::TooOld(why),
                Some(ErrorCode::Revoked | ErrorCode::IdTaken) => Refused::ForGood(why),
                _ => Refused::ForNow(why),
            }
        })?;
        let reply = reply.into_inner();
        let trust = TrustBundle::from_der(reply.trust_bundle.iter().map(|der| der.to_vec()));
        let as_of = TrustPosition { epoch: Epoch(reply.epoch), version: reply.trust_version };
        let enrolment = Enrolment {
            cluster_id: self.credentials.cluster_id(),
            certificate: reply.certificate.to_vec().into(),
            trust: trust.map_err(|e| for_now(&e))?,
        };
        Ok((enrolment, as_of))
    }

    /// Stores it, then shows it.
    async fn take(&self, (enrolment, as_of): (Enrolment, TrustPosition)) -> Result<(), String> {
        let (data, identity) = (Arc::clone(&self.data), Arc::clone(&self.identity));
        let credentials = Arc::clone(&self.credentials);
        let stored = tokio::task::spawn_blocking(move || {
            let mut identity = identity.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = identity.renew(&data, enrolment, as_of).map_err(|e| chain(&e))?;
            credentials.replace(&kept.certificate, &kept.trust).map_err(|e| e.to_string())
        });
        stored.await.map_err(|_| "the disk is not written any more".to_owned())??;
        info!(self.log, "certificate renewed"; "expires_unix_ms" => self.credentials.dates().not_after.0);
        // The agent may have ended.
        let _ = self.agent.send(Input::Renewed).await;
        Ok(())
    }
}
