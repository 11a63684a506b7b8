//! The revoked keys this Peer has heard of, kept for the next start: nobody who was thrown out comes in while the Servers
//! are not reached yet (SPEC I7).
//!
//! A file that cannot be read costs nothing but time: Servers tell everything again, before anything else.

use std::sync::Arc;

use p2p_common::{ClusterId, Epoch, KeyHash, NodeId};
use p2p_peer_core::Revoked;
use p2p_runtime::identity::{DataDir, DataDirError, DataDirView, FileMode};
use serde::{Deserialize, Serialize};
use slog::{Logger, warn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const FILE: &str = "revoked.json";

#[derive(Debug, Serialize, Deserialize)]
struct File {
    cluster_id: String,
    epoch: u64,
    /// Every revocation of the epoch up to this number is here.
    known: u64,
    revoked: Vec<Row>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    key: String,
    id: String,
}

/// What a data directory holds of this cluster.
pub(crate) fn load(data: &DataDirView, cluster_id: ClusterId) -> Revoked {
    let read = || {
        let file: File = serde_json::from_slice(&data.read(FILE).ok()??).ok()?;
        let row = |row: &Row| Some((row.key.parse::<KeyHash>().ok()?, row.id.parse::<NodeId>().ok()?));
        let rows: Vec<_> = file.revoked.iter().map(row).collect::<Option<_>>()?;
        let ours = file.cluster_id == cluster_id.to_string();
        ours.then(|| Revoked::restore(Epoch(file.epoch), file.known, rows))
    };
    read().unwrap_or_default()
}

fn store(data: &DataDir, cluster_id: ClusterId, revoked: &Revoked) -> Result<(), DataDirError> {
    let rows = revoked.in_order().map(|(key, id)| Row { key: key.to_string(), id: id.to_string() });
    let file = File {
        cluster_id: cluster_id.to_string(),
        epoch: revoked.epoch().0,
        known: revoked.known_in(revoked.epoch()),
        revoked: rows.collect(),
    };
    let json = serde_json::to_vec(&file).expect("strings and numbers are always JSON");
    data.write(FILE, &json, FileMode::Private)
}

/// Writes each change to the data directory until stopped.
pub(crate) async fn keep(
    data: Arc<DataDir>,
    cluster_id: ClusterId,
    mut revoked: watch::Receiver<Arc<Revoked>>,
    stop: CancellationToken,
    log: Logger,
) {
    loop {
        tokio::select! {
            changed = revoked.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        let (data, now) = (Arc::clone(&data), Arc::clone(&revoked.borrow_and_update()));
        let written = tokio::task::spawn_blocking(move || store(&data, cluster_id, &now)).await;
        if let Ok(Err(error)) = written {
            warn!(log, "cannot keep the revoked keys for the next start"; "error" => %error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::NodeKind;
    use uuid::Uuid;

    const CLUSTER: ClusterId = ClusterId::new(Uuid::from_u128(1));

    #[test]
    fn are_there_again_after_a_restart_unless_they_are_of_another_cluster() {
        let tmp = tempfile::tempdir().unwrap();
        let data = DataDir::open(tmp.path()).unwrap();
        assert_eq!(load(data.view(), CLUSTER), Revoked::default());
        let key = |n: u8| (KeyHash([n; 32]), NodeId::new(NodeKind::Peer, Uuid::from_u128(n.into())));
        let revoked = Revoked::restore(Epoch(3), 8, [key(9), key(2)]);
        store(&data, CLUSTER, &revoked).unwrap();
        assert_eq!(load(data.view(), CLUSTER), revoked);
        assert_eq!(load(data.view(), ClusterId::new(Uuid::from_u128(2))), Revoked::default());
        let whole = std::fs::read(tmp.path().join(FILE)).unwrap();
        for end in 0..whole.len() {
            std::fs::write(tmp.path().join(FILE), &whole[..end]).unwrap();
            assert_eq!(load(data.view(), CLUSTER), Revoked::default());
        }
    }
}
