//! What this Peer knows of its Servers beside the sessions: table C for the next start, their keys, and their clocks.
//!
//! ```text
//! enrolment, table C ─► known ─► servers.json          at the next start they are dialled, too
//!                         └────► pins of handshakes    they are believed by their keys, whatever dates say
//! WELCOME, heartbeats ─► clocks ─► median ─► cluster clock
//! ```
//!
//! A Peer whose clock is wrong, whose certificate is over, or that was told one address of a Server which is no more,
//! comes back by this. The sessions themselves are the agent's. Source: SPEC I5, P1.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use p2p_common::addr::HostPort;
use p2p_common::member::{MEMBERS_MAX, Member};
use p2p_common::{ClusterId, KeyHash, NodeId, UnixMs};
use p2p_peer_core::KnownServer;
use p2p_runtime::clock::{ClockBase, ClusterClock, median};
use p2p_runtime::identity::{DataDir, DataDirError, DataDirView, FileMode};
use p2p_runtime::tls::Credentials;
use serde::{Deserialize, Serialize};
use slog::{Logger, info, warn};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::trust::TrustNews;

const FILE: &str = "servers.json";

/// What is known. Shared by the tasks of a Peer; whoever learns something says it here.
#[derive(Debug)]
pub(crate) struct Servers {
    known: watch::Sender<Arc<Vec<KnownServer>>>,
    /// What each Server with a session said the cluster clock shows.
    told: Mutex<BTreeMap<NodeId, ClockBase>>,
    clock: ClusterClock,
    /// A Server has said that our certificate is over, or ought to be another.
    renewal: Notify,
    trust: TrustNews,
    log: Logger,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    cluster_id: String,
    servers: Vec<Row>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    id: String,
    key: String,
    addresses: Vec<String>,
}

/// The servers of a data directory that are of this cluster. A file that cannot be read costs nothing but what is in it:
/// the configured addresses lead to it again.
pub(crate) fn load(data: &DataDirView, cluster_id: ClusterId) -> Vec<KnownServer> {
    let Ok(Some(bytes)) = data.read(FILE) else { return Vec::new() };
    let Ok(file) = serde_json::from_slice::<File>(&bytes) else { return Vec::new() };
    if file.cluster_id != cluster_id.to_string() {
        return Vec::new();
    }
    file.servers.iter().filter_map(Row::read).take(MEMBERS_MAX).collect()
}

/// Keeps them for the next start.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn store(
    data: &DataDir,
    cluster_id: ClusterId,
    servers: &[KnownServer],
) -> Result<(), DataDirError> {
    let rows = servers.iter().map(|server| Row {
        id: server.id.to_string(),
        key: server.key_hash.to_string(),
        addresses: server.addresses.iter().map(ToString::to_string).collect(),
    });
    let file = File { cluster_id: cluster_id.to_string(), servers: rows.collect() };
    let mut json = serde_json::to_vec_pretty(&file).expect("strings are always JSON");
    json.push(b'\n');
    data.write(FILE, &json, FileMode::Private)
}

impl Row {
    fn read(&self) -> Option<KnownServer> {
        let addresses: Option<Vec<HostPort>> = self.addresses.iter().map(|text| text.parse().ok()).collect();
        let mut key = [0; 32];
        if self.key.len() != 2 * key.len() || !self.key.is_ascii() {
            return None;
        }
        for (nth, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&self.key[2 * nth..2 * nth + 2], 16).ok()?;
        }
        let addresses = addresses?.into_iter().take(Member::ADDRESSES_MAX).collect();
        Some(KnownServer { id: self.id.parse().ok()?, key_hash: KeyHash(key), addresses })
    }
}

impl Servers {
    /// Begins with `known`, and has handshakes believe their keys.
    pub(crate) fn new(known: Vec<KnownServer>, credentials: &Credentials, log: Logger) -> Arc<Self> {
        let servers = Arc::new(Servers {
            known: watch::Sender::new(Arc::new(known)),
            told: Mutex::default(),
            clock: credentials.clock().clone(),
            renewal: Notify::new(),
            trust: TrustNews::new(),
            log,
        });
        let pinning = servers.known.subscribe();
        credentials.set_pins(move |id, key_hash| {
            pinning.borrow().iter().any(|server| (server.id, server.key_hash) == (id, key_hash))
        });
        servers
    }

    /// The newest that is known.
    pub(crate) fn known(&self) -> Arc<Vec<KnownServer>> {
        Arc::clone(&self.known.borrow())
    }

    /// Table C is this now.
    pub(crate) fn learn(&self, servers: Vec<KnownServer>) {
        self.known.send_if_modified(|known| {
            let is_new = **known != servers;
            *known = Arc::new(servers);
            is_new
        });
    }

    /// A Server said what the cluster clock shows.
    pub(crate) fn hear_clock(&self, server: NodeId, unix: UnixMs) {
        let complained = self.clock.complaint().is_some();
        {
            let mut told = self.told();
            told.insert(server, ClockBase::told(unix));
            self.clock.set(median(told.values().copied().collect()));
        }
        match self.clock.complaint() {
            Some(complaint) if !complained => {
                warn!(self.log, "this host's clock is wrong"; "ahead_ms" => -self.clock.ahead_ms(),
                    "reason" => complaint);
            }
            None if complained => info!(self.log, "this host's clock is right again"),
            _ => {}
        }
    }

    /// The session with a Server is over. What the last one said goes on counting.
    pub(crate) fn forget_clock(&self, server: NodeId) {
        let mut told = self.told();
        if told.len() > 1 {
            told.remove(&server);
            self.clock.set(median(told.values().copied().collect()));
        }
    }

    /// Which CAs the Servers say are trusted.
    pub(crate) fn trust(&self) -> &TrustNews {
        &self.trust
    }

    /// The certificate is to be renewed now.
    pub(crate) fn ask_renewal(&self) {
        self.renewal.notify_one();
    }

    /// Waits until [`Servers::ask_renewal`] was called. Cancel safe.
    pub(crate) async fn renewal_asked(&self) {
        self.renewal.notified().await;
    }

    /// Writes each change to the data directory until stopped.
    pub(crate) async fn keep(
        self: Arc<Self>,
        data: Arc<DataDir>,
        cluster_id: ClusterId,
        stop: CancellationToken,
    ) {
        let mut known = self.known.subscribe();
        loop {
            tokio::select! {
                changed = known.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            let (data, servers) = (Arc::clone(&data), Arc::clone(&known.borrow_and_update()));
            let written = tokio::task::spawn_blocking(move || store(&data, cluster_id, &servers)).await;
            if let Ok(Err(error)) = written {
                warn!(self.log, "cannot keep the servers for the next start"; "error" => %error);
            }
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, ClockBase>> {
        // What was said cannot be left half changed.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::NodeKind;
    use uuid::Uuid;

    const CLUSTER: ClusterId = ClusterId::new(Uuid::from_u128(1));

    fn server(n: u8) -> KnownServer {
        KnownServer {
            id: NodeId::new(NodeKind::Server, Uuid::from_u128(n.into())),
            key_hash: KeyHash([n; 32]),
            addresses: vec!["s.example.com:7400".parse().unwrap(), "[::1]:7400".parse().unwrap()],
        }
    }

    #[test]
    fn are_there_again_after_a_restart_unless_they_are_of_another_cluster() {
        let tmp = tempfile::tempdir().unwrap();
        let data = DataDir::open(tmp.path()).unwrap();
        assert_eq!(load(data.view(), CLUSTER), []);
        let servers = [server(1), server(0xff)];
        store(&data, CLUSTER, &servers).unwrap();
        assert_eq!(load(data.view(), CLUSTER), servers);
        assert_eq!(load(data.view(), ClusterId::new(Uuid::from_u128(2))), []);
    }

    #[test]
    fn a_damaged_file_is_no_obstacle() {
        let tmp = tempfile::tempdir().unwrap();
        let data = DataDir::open(tmp.path()).unwrap();
        store(&data, CLUSTER, &[server(1)]).unwrap();
        let whole = std::fs::read(tmp.path().join(FILE)).unwrap();
        for end in 0..whole.len() - 2 {
            std::fs::write(tmp.path().join(FILE), &whole[..end]).unwrap();
            assert_eq!(load(data.view(), CLUSTER), []);
        }
        let text = String::from_utf8(whole).unwrap();
        for (good, bad) in [("0101", "01x1"), ("0101", "01"), ("0101", "ü1"), (":7400", ""), ("\"S", "\"")] {
            std::fs::write(tmp.path().join(FILE), text.replacen(good, bad, 1)).unwrap();
            assert_eq!(load(data.view(), CLUSTER), [], "{bad}");
        }
    }
}
