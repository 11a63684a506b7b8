//! [`CaTask`]: follows the replicated bundle, gets keys that are not here, and takes the step that is the leader's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use p2p_common::RequestId;
use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{Command, CommandBody, Outcome};
use p2p_common::member::RaftId;
use p2p_proto::{convert, v1};
use p2p_runtime::ca::{CaKeys, ClusterCa};
use p2p_runtime::clock::Clock;
use p2p_runtime::exit::chain;
use p2p_runtime::identity::{CaFingerprint, NodeIdentity, TrustBundle, TrustPosition};
use p2p_server_core::{CaPhase, SwitchCare};
use slog::{Logger, debug, info, warn};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{CaStore, position, signer};
use crate::raft::{Proposer, View};
use crate::transport::{Reach, Remotes};

/// Between two looks at what is missing.
const EVERY: Duration = Duration::from_millis(500);
/// For one answer about a CA key.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// See the room.
pub(crate) struct CaTask {
    pub store: CaStore,
    pub follower: Follower,
    pub proposer: Proposer,
    pub reach: watch::Receiver<Arc<Reach>>,
    pub remotes: Remotes,
    /// The process's.
    pub clock: Clock,
    pub stop: CancellationToken,
    pub log: Logger,
}

impl CaTask {
    /// Runs until the Server stops.
    pub async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.work() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn work(self) {
        let mut view = self.proposer.watch_view();
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut followed, mut care) = (None, SwitchCare::default());
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = view.changed() => if changed.is_err() { return },
            }
            let now = Arc::clone(&view.borrow_and_update());
            // Before that the state is not the cluster's but what this Server began with.
            if now.applied == 0 {
                continue;
            }
            let wanted = (position(&now.state), signer(&now.state));
            if followed != Some(wanted) {
                match self.follower.follow(&self.store, &now.state).await {
                    Ok(is_new) => {
                        followed = Some(wanted);
                        if is_new {
                            info!(self.log, "trusted CAs changed"; "version" => now.state.trust_version,
                                "phase" => CaPhase::of(&now.state).as_str());
                        }
                    }
                    Err(reason) => {
                        warn!(self.log, "cannot follow the trusted CAs"; "reason" => reason);
                        tokio::time::sleep(EVERY).await;
                        continue;
                    }
                }
            }
            if let Err(reason) = self.fetch_missing(&now).await {
                debug!(self.log, "CA key not received yet"; "reason" => reason);
            }
            let all_hold = self.all_hold(&now);
            if let Some(step) = care.handle(now.leads(), &now.state, all_hold, self.clock.now()) {
                self.take(step).await;
            }
        }
    }

    /// Whether each row of table C is a Server that says it holds the key of each CA.
    fn all_hold(&self, view: &View) -> bool {
        let reach = Arc::clone(&self.reach.borrow());
        let here = self.store.here(&view.state);
        let trusted: Vec<_> = here.iter().map(|ca| ca.fingerprint).collect();
        here.iter().all(|ca| ca.has_key)
            && view.others().into_keys().all(|raft_id| {
                let there = reach.of.get(&raft_id).map(|reached| reached.cas.as_ref()).unwrap_or_default();
                trusted.iter().all(|ca| there.iter().any(|said| said.fingerprint == *ca && said.has_key))
            })
    }

    async fn take(&self, step: CommandBody) {
        let command = Command { request_id: RequestId::new(uuid::Uuid::new_v4()), body: step };
        match self.proposer.propose(command).await {
            Ok((_, Outcome::Refused { message, .. })) => {
                debug!(self.log, "the next CA does not sign yet"; "reason" => message);
            }
            Ok(_) => info!(self.log, "the next CA signs from now on"),
            Err(error) => debug!(self.log, "the next CA does not sign yet"; "reason" => %error),
        }
    }

    /// Asks for each key that is not here, the leader first.
    async fn fetch_missing(&self, view: &View) -> Result<(), String> {
        for ca in self.store.here(&view.state).into_iter().filter(|ca| !ca.has_key) {
            let mut others: Vec<RaftId> = view.others().into_keys().collect();
            others.sort_by_key(|raft_id| view.status.leader != Some(*raft_id));
            let mut last = Err("no other server is connected".to_owned());
            for raft_id in others {
                match self.ask(raft_id, ca.fingerprint, view).await {
                    Ok(fetched) => {
                        self.follower.keep(&self.store, &view.state, fetched).await?;
                        info!(self.log, "CA key received"; "ca" => %ca.fingerprint);
                        last = Ok(());
                        break;
                    }
                    Err(reason) => last = Err(reason),
                }
            }
            last?;
        }
        Ok(())
    }

    async fn ask(
        &self,
        raft_id: RaftId,
        fingerprint: CaFingerprint,
        view: &View,
    ) -> Result<ClusterCa, String> {
        let (id, channel) = self.remotes.channel(raft_id).ok_or("not connected")?;
        let hello = convert::hello_to(&self.remotes.myself().hello(Some(id)));
        let mut request = tonic::Request::new(v1::FetchCaKeyRequest {
            hello: Some(hello),
            ca_fingerprint: fingerprint.0.to_vec().into(),
        });
        request.set_timeout(CALL_TIMEOUT);
        let reply = v1::peering_client::PeeringClient::new(channel).fetch_ca_key(request).await;
        let reply = reply.map_err(|status| status.message().to_owned())?.into_inner();
        let key = Zeroizing::new(reply.ca_key_pem.to_vec());
        let key = std::str::from_utf8(&key).map_err(|_| "the key is not text")?;
        let ca = ClusterCa::from_parts(view.state.cluster_id, key, &trust(&view.state)?);
        let ca = ca.map_err(|e| chain(&e))?;
        if ca.fingerprint() != fingerprint {
            return Err(format!("{id} gave the key of another CA"));
        }
        Ok(ca)
    }
}

fn trust(state: &ClusterState) -> Result<TrustBundle, String> {
    TrustBundle::from_der(state.trust_bundle.iter().cloned()).map_err(|e| chain(&e))
}

/// Brings files and handshakes to what the state says.
#[derive(Debug, Clone)]
pub(crate) struct Follower {
    /// The stored identity, also the renewal's: whoever changes it holds it, and replaces what handshakes show meanwhile.
    pub identity: Arc<Mutex<NodeIdentity>>,
}

impl Follower {
    /// Trusts what `state` says from now on, unless something newer was followed. Says whether it is new.
    async fn follow(&self, store: &CaStore, state: &Arc<ClusterState>) -> Result<bool, String> {
        let (this, store, state) = (self.clone(), store.clone(), Arc::clone(state));
        let followed = tokio::task::spawn_blocking(move || this.follow_now(&store, &state)).await;
        followed.map_err(|_| "the disk is not written any more".to_owned())?
    }

    /// Keeps another key.
    async fn keep(
        &self,
        store: &CaStore,
        state: &Arc<ClusterState>,
        fetched: ClusterCa,
    ) -> Result<(), String> {
        let (store, state) = (store.clone(), Arc::clone(state));
        let kept = tokio::task::spawn_blocking(move || {
            let mut held = store.keys().held().to_vec();
            held.push(Arc::new(fetched));
            store.shared.files.keep(&store.shared.dir, &held).map_err(|e| chain(&e))?;
            use_keys(&store, held, &state)
        });
        kept.await.map_err(|_| "the disk is not written any more".to_owned())?
    }

    fn follow_now(&self, store: &CaStore, state: &ClusterState) -> Result<bool, String> {
        let super::Shared { dir, files, credentials, .. } = &*store.shared;
        let (trust, as_of): (_, TrustPosition) = (trust(state)?, position(state));
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if as_of < identity.trusted_as_of() {
            return Ok(false);
        }
        let is_new = as_of > identity.trusted_as_of();
        let held = files.load_of(dir.view(), state.cluster_id, &trust).map_err(|e| chain(&e))?;
        if is_new {
            // The keys first: whatever a crash leaves, a key fits a certificate.
            files.keep(dir, &held).map_err(|e| chain(&e))?;
            identity.follow_trust(dir, trust, as_of).map_err(|e| chain(&e))?;
        }
        let enrolment = identity.enrolment().ok_or("this server is not enrolled")?;
        credentials.replace(&enrolment.certificate, &enrolment.trust).map_err(|e| e.to_string())?;
        drop(identity);
        use_keys(store, held, state)?;
        Ok(is_new)
    }
}

/// Signs with what is held from now on; while there are two CAs each vouches for the other.
fn use_keys(store: &CaStore, held: Vec<Arc<ClusterCa>>, state: &ClusterState) -> Result<(), String> {
    let credentials = &store.shared.credentials;
    let now = credentials.clock().now();
    let mut vouching = Vec::new();
    for ca in &held {
        for other in held.iter().filter(|other| other.fingerprint() != ca.fingerprint()) {
            vouching.extend(ca.vouch_for(other, now).map_err(|e| chain(&e))?);
        }
    }
    credentials.show_vouching(vouching).map_err(|e| e.to_string())?;
    store.publish(CaKeys::new(held, signer(state)));
    Ok(())
}
