//! gRPC health (grpc.health.v1): the whole Server is SERVING while it knows a Master, so that load balancers send
//! clients where their writes can go. Look-ups that need no Master answer in either state.

use p2p_common::member::MasterTitle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::health_reporter;

/// Health as a whole: the service without a name, by the protocol's rule.
const WHOLE: &str = "";

/// Starts to follow the Master and gives the service; it is NOT_SERVING from `stop` on.
pub(super) fn spawn(
    mut master: watch::Receiver<Option<MasterTitle>>,
    stop: CancellationToken,
) -> HealthServer<impl Health> {
    let (reporter, service) = health_reporter();
    tokio::spawn(async move {
        loop {
            let known = master.borrow_and_update().as_ref().is_some_and(|master| !master.provisional);
            let status = if known { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status(WHOLE, status).await;
            tokio::select! {
                changed = master.changed() => if changed.is_err() { break },
                () = stop.cancelled() => break,
            }
        }
        reporter.set_service_status(WHOLE, ServingStatus::NotServing).await;
    });
    service
}
