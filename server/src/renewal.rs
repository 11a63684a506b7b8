//! What certificates say that this Server signs, and the renewal of its own (SPEC I5).
//!
//! ```text
//! half-life, another lifetime set, another place ─► due ─► CA key here ──► signed here ──► stored, shown from the
//!                                                             └─ not here ─► another Server ─► next handshake on
//! ```
//!
//! Nothing here asks raft: a cluster that was off for longer than every lifetime renews before it elects, or after.
//! Connections that are open go on. Owner of the stored identity while the Server runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::backoff::{Backoff, Jitter};
use p2p_common::cluster_state::ClusterState;
use p2p_common::{Epoch, NodeId, NodeKind, UnixMs};
use p2p_proto::{convert, v1};
use p2p_runtime::ca::{CaKeys, CertificateGrant, ClusterCa};
use p2p_runtime::clock::{Clock, ClusterClock};
use p2p_runtime::exit::chain;
use p2p_runtime::identity::{CertificateDates, DataDir, Enrolment, NodeIdentity, TrustBundle, TrustPosition};
use p2p_runtime::tls::Credentials;
use slog::{Logger, info, warn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ca::position;
use crate::raft::Proposer;
use crate::transport::Remotes;

/// How long after its start a Server waits for the clock of another before it signs: others are dialled and probed within
/// a second when they are there.
const CLOCK_PATIENCE: Duration = Duration::from_secs(5);
/// A due date is looked at again after so long: the cluster clock may be another by then.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Between two tries.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// For the answer of another Server.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for what is signed now. A Server that has other members to go by, has just started and has not heard a clock
/// of theirs waits a moment for one: its own may be anything. Then it goes by its own, since renewal must work without
/// the others.
pub(crate) async fn signing_time(clock: &ClusterClock, process: &Clock, proposer: &Proposer) -> UnixMs {
    let left = CLOCK_PATIENCE.saturating_sub(process.uptime());
    if !clock.is_set() && proposer.view().state.members.len() > 1 {
        let _ = tokio::time::timeout(left, clock.heard()).await;
    }
    clock.now()
}

/// What a certificate for `id` says, signed `now`; names are the caller's.
pub(crate) fn grant(state: &ClusterState, id: NodeId, now: UnixMs) -> CertificateGrant {
    let lifetime = match id.kind() {
        NodeKind::Server => state.server_certificate_lifetime(),
        NodeKind::Peer => state.peer_certificate_lifetime(),
    };
    let grants = state.identities.get(&id).map(|identity| identity.grants.clone()).unwrap_or_default();
    CertificateGrant { lifetime, grants, ..CertificateGrant::new(id, now) }
}

/// Keeps this Server's own certificate good.
pub(crate) struct RenewalTask {
    pub dir: Arc<DataDir>,
    pub identity: Arc<Mutex<NodeIdentity>>,
    pub credentials: Arc<Credentials>,
    /// Where others reach this Server: the names in its certificate.
    pub addresses: Vec<HostPort>,
    pub ca: watch::Receiver<CaKeys>,
    pub proposer: Proposer,
    pub remotes: Remotes,
    /// The process's.
    pub clock: Clock,
    pub stop: CancellationToken,
    pub log: Logger,
}

impl RenewalTask {
    /// Runs until the Server stops.
    pub async fn run(mut self) {
        let spread = rand::random();
        // It came back at another place: whoever verifies it by name shall be able to.
        let mut moved = !self.addresses.iter().all(|address| self.credentials.is_named(address.host()));
        let (mut backoff, mut jitter) = (Backoff::new(WAITS.0, WAITS.1), Jitter::new(rand::random()));
        let (mut view, mut clock) = (self.proposer.watch_view(), self.credentials.clock().watch());
        loop {
            clock.mark_unchanged();
            let state = Arc::clone(&view.borrow_and_update().state);
            let wait = match self.due_in(&state, spread).filter(|_| !moved) {
                Some(left) => left.min(LOOK_AGAIN),
                None => {
                    let renewed = tokio::select! {
                        renewed = self.renew() => renewed,
                        () = self.stop.cancelled() => return,
                    };
                    match renewed {
                        // One that lags behind may have signed with the CA before.
                        Ok(()) if self.due_in(&state, spread).is_none() => backoff.fail(&mut jitter),
                        Ok(()) => {
                            moved = false;
                            backoff.reset();
                            continue;
                        }
                        Err(reason) => {
                            warn!(self.log, "own certificate not renewed"; "reason" => reason);
                            backoff.fail(&mut jitter)
                        }
                    }
                }
            };
            let settings = state.settings_revision;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // After a failure, too: what has changed may help.
                Ok(_) = view.wait_for(|view| view.state.settings_revision != settings) => {}
                Ok(()) = clock.changed() => {}
                Ok(()) = self.ca.changed() => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// How long there is until the renewal; none when it is due.
    fn due_in(&self, state: &ClusterState, spread: f64) -> Option<Duration> {
        let now = self.credentials.clock().now();
        let dates = self.credentials.dates();
        let lifetime = grant(state, self.credentials.node_id(), now).lifetime;
        let signs = self.ca.borrow().signs();
        if signs.is_some() && signs != self.credentials.issuer() {
            return None;
        }
        due_in(dates, lifetime, spread, now)
    }

    async fn renew(&self) -> Result<(), String> {
        let request = {
            let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
            identity.key().certificate_request(identity.id()).map_err(|e| chain(&e))?
        };
        let ca = self.ca.borrow().signer().cloned();
        let (enrolment, as_of) = match ca {
            Some(ca) => self.sign(&ca, &request).await?,
            None => self.ask(&request).await?,
        };
        let (dir, identity) = (Arc::clone(&self.dir), Arc::clone(&self.identity));
        let credentials = Arc::clone(&self.credentials);
        let stored = tokio::task::spawn_blocking(move || {
            let mut identity = identity.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = identity.renew(&dir, enrolment, as_of).map_err(|e| chain(&e))?;
            credentials.replace(&kept.certificate, &kept.trust).map_err(|e| e.to_string())
        });
        stored.await.map_err(|_| "the disk is not written any more".to_owned())??;
        info!(self.log, "own certificate renewed"; "expires_unix_ms" => self.credentials.dates().not_after.0);
        Ok(())
    }

    async fn sign(&self, ca: &ClusterCa, request: &[u8]) -> Result<(Enrolment, TrustPosition), String> {
        let now = signing_time(self.credentials.clock(), &self.clock, &self.proposer).await;
        let state = &self.proposer.view().state;
        let names = self.addresses.iter().map(|address| address.host().to_owned()).collect();
        let grant = CertificateGrant { names, ..grant(state, self.credentials.node_id(), now) };
        let signed = ca.sign(request, &grant).map_err(|e| chain(&e))?;
        let trust = TrustBundle::from_der(state.trust_bundle.iter().cloned()).map_err(|e| chain(&e))?;
        let cluster_id = self.credentials.cluster_id();
        Ok((Enrolment { cluster_id, certificate: signed.certificate, trust }, position(state)))
    }

    /// Asks every Server that is connected.
    async fn ask(&self, csr: &[u8]) -> Result<(Enrolment, TrustPosition), String> {
        let mut last = "the CA key is not here, and no other server is connected".to_owned();
        for raft_id in self.proposer.view().others().into_keys() {
            let Some((id, channel)) = self.remotes.channel(raft_id) else { continue };
            let mut request = tonic::Request::new(v1::RenewRequest {
                hello: Some(convert::hello_to(&self.remotes.myself().hello(Some(id)))),
                csr: csr.to_vec().into(),
                addresses: self.addresses.iter().map(ToString::to_string).collect(),
            });
            request.set_timeout(CALL_TIMEOUT);
            let reply = match v1::enroll_client::EnrollClient::new(channel).renew(request).await {
                Ok(reply) => reply.into_inner(),
                Err(status) => {
                    last = format!("{id}: {}", status.message());
                    continue;
                }
            };
            let trust = TrustBundle::from_der(reply.trust_bundle.iter().map(|der| der.to_vec()));
            let as_of = TrustPosition { epoch: Epoch(reply.epoch), version: reply.trust_version };
            let enrolment = Enrolment {
                cluster_id: self.credentials.cluster_id(),
                certificate: reply.certificate.to_vec().into(),
                trust: trust.map_err(|e| chain(&e))?,
            };
            return Ok((enrolment, as_of));
        }
        Err(last)
    }
}

/// How long there is until a certificate with these dates is renewed; none when it is due. It is, too, when the lifetime
/// was shortened, and when it was signed by a clock that was ahead.
fn due_in(dates: CertificateDates, lifetime: Duration, spread: f64, now: UnixMs) -> Option<Duration> {
    let longest = now.plus(lifetime + lifetime / 10);
    let due = dates.renewal_due(spread);
    if due <= now || dates.not_after > longest || dates.is_not_yet_valid(now) {
        return None;
    }
    Some(Duration::from_millis(due.0 - now.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_when_it_is_half_over_or_too_good() {
        const LIFETIME: Duration = Duration::from_secs(1_000);
        let signed = UnixMs(10_000_000_000);
        let not_before = UnixMs(signed.0 - 3_600_000);
        let dates = CertificateDates { not_before, not_after: signed.plus(LIFETIME) };
        let due = |lifetime, now| due_in(dates, lifetime, 0.5, now);
        assert_eq!(due(LIFETIME, signed), Some(Duration::from_secs(500)));
        assert_eq!(due(LIFETIME, signed.plus(Duration::from_secs(499))), Some(Duration::from_secs(1)));
        assert_eq!(due(LIFETIME, signed.plus(Duration::from_secs(500))), None);
        assert_eq!(due(LIFETIME, signed.plus(Duration::from_secs(9_999))), None, "it is over");
        assert_eq!(due(LIFETIME / 2, signed), None, "the lifetime was shortened");
        assert_eq!(due(LIFETIME, UnixMs(0)), None, "its clock was ahead");
    }
}
