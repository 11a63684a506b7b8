//! The CAs this Peer trusts, as the Servers tell them (SPEC I6).
//!
//! ```text
//! sessions ─ the newest that was told ─► stored ─► handshakes ─► another CA signs than ours? ─► renewal, at a moment
//!                                                                                               of this Peer's own
//! ```
//!
//! Each Server tells it behind its welcome and at each change, so nothing is missed for longer than a session is. Of two
//! tellings the newer one counts, in the cluster's order, whichever came last; one is never followed back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use p2p_common::Epoch;
use p2p_proto::convert::ConvertError;
use p2p_proto::v1;
use p2p_runtime::exit::chain;
use p2p_runtime::identity::{CaFingerprint, DataDir, NodeIdentity, TrustBundle, TrustPosition};
use p2p_runtime::tls::Credentials;
use slog::{Logger, info, warn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::servers::Servers;

/// All Peers of a cluster hear of another CA at once; they renew within a part of what their certificates have left, and
/// within this at most.
const SPREAD_MAX: Duration = Duration::from_secs(600);
const SPREAD_PART: u32 = 10;
/// A renewal that has not come about is asked for again after this long.
const AGAIN: Duration = Duration::from_secs(30);

/// What a Server said of the trusted CAs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToldTrust {
    as_of: TrustPosition,
    bundle: TrustBundle,
    /// The CA that signs.
    signer: CaFingerprint,
}

impl ToldTrust {
    /// Reads what was told.
    ///
    /// # Errors
    /// When it is no bundle, or nobody in it signs.
    pub(crate) fn read(told: &v1::Trust) -> Result<Self, ConvertError> {
        let bad = |reason: String| ConvertError::new("trust", reason);
        let bundle = TrustBundle::from_der(told.bundle.iter().map(|der| der.to_vec()));
        let bundle = bundle.map_err(|e| bad(chain(&e)))?;
        let signer = bundle.certificates().get(told.signer as usize);
        let signer = CaFingerprint::of(signer.ok_or_else(|| bad("its signer is not in it".to_owned()))?);
        let as_of = TrustPosition { epoch: Epoch(told.epoch), version: told.version };
        Ok(ToldTrust { as_of, bundle, signer })
    }
}

/// Where sessions say what they are told: the newest of all.
#[derive(Debug, Clone)]
pub(crate) struct TrustNews(watch::Sender<Option<Arc<ToldTrust>>>);

impl TrustNews {
    /// Nothing was told yet.
    pub(crate) fn new() -> Self {
        TrustNews(watch::Sender::new(None))
    }

    /// A Server tells it.
    pub(crate) fn hear(&self, told: ToldTrust) {
        self.0.send_if_modified(|newest| {
            let is_newer = newest.as_ref().is_none_or(|newest| newest.as_of < told.as_of);
            if is_newer {
                *newest = Some(Arc::new(told));
            }
            is_newer
        });
    }
}

/// Follows the news.
pub(crate) struct TrustTask {
    pub(crate) data: Arc<DataDir>,
    /// The renewal's, too: whoever holds it replaces what handshakes show meanwhile.
    pub(crate) identity: Arc<Mutex<NodeIdentity>>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) servers: Arc<Servers>,
    pub(crate) stop: CancellationToken,
    pub(crate) log: Logger,
}

impl TrustTask {
    /// Runs until the Peer stops.
    pub(crate) async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.follow() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn follow(self) {
        let mut news = self.servers.trust().0.subscribe();
        loop {
            let newest = news.borrow_and_update().clone();
            if let Some(told) = &newest {
                match self.take(told).await {
                    Ok(true) => info!(self.log, "trusted CAs changed"; "version" => told.as_of.version,
                        "cas" => told.bundle.certificates().len()),
                    Ok(false) => {}
                    Err(reason) => warn!(self.log, "cannot follow the trusted CAs"; "reason" => reason),
                }
            }
            let spread = self.renewal_within(newest.as_deref());
            let ask = async {
                match spread {
                    Some(within) => {
                        tokio::time::sleep(within.mul_f64(rand::random())).await;
                        self.servers.ask_renewal();
                        tokio::time::sleep(AGAIN).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = ask => {}
            }
        }
    }

    /// Stores and shows it, unless something newer was. Says whether it is new.
    async fn take(&self, told: &Arc<ToldTrust>) -> Result<bool, String> {
        let (data, identity, told) = (Arc::clone(&self.data), Arc::clone(&self.identity), Arc::clone(told));
        let credentials = Arc::clone(&self.credentials);
        let taken = tokio::task::spawn_blocking(move || {
            let mut identity = identity.lock().unwrap_or_else(PoisonError::into_inner);
            let is_new = identity.follow_trust(&data, told.bundle.clone(), told.as_of);
            if is_new.map_err(|e| chain(&e))?
                && let Some(enrolment) = identity.enrolment()
            {
                let replaced = credentials.replace(&enrolment.certificate, &enrolment.trust);
                return replaced.map(|()| true).map_err(|e| e.to_string());
            }
            Ok(false)
        });
        taken.await.map_err(|_| "the disk is not written any more".to_owned())?
    }

    /// Within which time to ask for a certificate of the CA that signs; none when this Peer has one.
    fn renewal_within(&self, told: Option<&ToldTrust>) -> Option<Duration> {
        if self.credentials.issuer() == Some(told?.signer) {
            return None;
        }
        let left = self.credentials.dates().not_after.0.saturating_sub(self.credentials.clock().now().0);
        Some((Duration::from_millis(left) / SPREAD_PART).min(SPREAD_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::ClusterId;
    use p2p_runtime::ca::ClusterCa;
    use p2p_runtime::clock::unix_now;
    use uuid::Uuid;

    #[test]
    fn the_newest_counts_and_nonsense_does_not() {
        let ca = ClusterCa::create(ClusterId::new(Uuid::from_u128(1)), unix_now()).unwrap();
        let der = ca.certificate().to_vec();
        let told = |epoch, version, bundle: Vec<Vec<u8>>, signer| {
            let bundle = bundle.into_iter().map(Into::into).collect();
            ToldTrust::read(&v1::Trust { epoch, version, bundle, signer })
        };
        assert!(told(1, 1, vec![], 0).is_err());
        assert!(told(1, 1, vec![vec![1, 2, 3]], 0).is_err());
        assert!(told(1, 1, vec![der.clone()], 1).is_err());
        assert!(told(1, 1, vec![der.clone(), der.clone(), der.clone()], 0).is_err());
        let news = TrustNews::new();
        let newest = news.0.subscribe();
        for (epoch, version, now) in [(1, 2, 2), (1, 1, 2), (1, 3, 3), (2, 0, 0), (1, 9, 0)] {
            news.hear(told(epoch, version, vec![der.clone()], 0).unwrap());
            assert_eq!(newest.borrow().as_ref().unwrap().as_of.version, now);
        }
    }
}
