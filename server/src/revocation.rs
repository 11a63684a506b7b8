//! Revocations at work on this Server: connections of revoked nodes are closed, and emergencies are kept, told and
//! replicated (SPEC I7).
//!
//! ```text
//! committed ─┬─► hub: sessions end, their Peers hear why ─► pushed to all others
//!            └─► Enforcer: every connection of the key is closed; Servers are dialled no more (transport)
//! emergency ──► kept in a file ─► the same, at once ─► told to every Server that is reached or comes to be
//!                    └── proposed until it is committed, then forgotten
//! ```
//!
//! An emergency needs no quorum: the operator of a Server vouches for it, as do Servers that pass it on. Once it is
//! replicated it is a revocation like others. Owner of: the emergencies and their file.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use p2p_common::command::{Command, CommandBody, Outcome, Revocation};
use p2p_common::member::RaftId;
use p2p_common::{KeyHash, NodeKind, RequestId, UnixMs};
use p2p_proto::{convert, v1};
use p2p_runtime::exit::chain;
use p2p_runtime::grpc::NodeConnections;
use p2p_runtime::identity::{DataDir, FileMode};
use p2p_server_core::EMERGENCIES_MAX;
use serde::{Deserialize, Serialize};
use slog::{Logger, debug, error, info, warn};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::raft::Proposer;
use crate::standing::{Emergencies, Emergency, Standing};
use crate::transport::{Alarms, Remotes};

/// The emergencies of this Server.
const FILE: &str = "emergency-revocations.json";
/// A Peer whose session ends hears why, if it reads, before its connection is cut.
const LAST_WORD: Duration = Duration::from_millis(100);
/// Between two proposals of what could not be replicated.
const PROPOSE_REST: Duration = Duration::from_millis(500);
/// Between two attempts to tell a Server.
const TELL_REST: Duration = Duration::from_millis(500);
/// For its answer.
const TELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why an emergency is not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// No room.
    #[error("{EMERGENCIES_MAX} emergency revocations wait for a quorum already: bring one back first")]
    Full,
    /// It would be forgotten by a restart.
    #[error("it cannot be kept: {0}")]
    NotKept(String),
}

#[derive(Serialize, Deserialize)]
struct Kept {
    revocations: Vec<KeptRevocation>,
}

#[derive(Serialize, Deserialize)]
struct KeptRevocation {
    request_id: String,
    id: String,
    name: String,
    key_hash: String,
    reason: String,
    revoked_at_unix_ms: u64,
}

/// The emergencies of this Server. Cheap to copy.
#[derive(Debug, Clone)]
pub struct EmergencyStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: Arc<DataDir>,
    /// Held while the file and what is published change together.
    writing: Mutex<()>,
    published: watch::Sender<Arc<Emergencies>>,
}

impl EmergencyStore {
    /// Reads the file of an earlier run.
    ///
    /// # Errors
    /// When it cannot be read: going on without would let in whom an operator has thrown out.
    pub fn load(dir: Arc<DataDir>) -> Result<Self, String> {
        let emergencies = match dir.view().read(FILE).map_err(|e| chain(&e))? {
            None => Emergencies::new(),
            Some(bytes) => decode(&bytes)
                .map_err(|e| format!("{} makes no sense: {e}", dir.view().join(FILE).display()))?,
        };
        let published = watch::Sender::new(Arc::new(emergencies));
        Ok(EmergencyStore { shared: Arc::new(Shared { dir, writing: Mutex::new(()), published }) })
    }

    /// What is there now, the newest only.
    pub fn watch(&self) -> watch::Receiver<Arc<Emergencies>> {
        self.shared.published.subscribe()
    }

    /// Keeps some and has them act. Writes to the disk: not for a task that others wait for.
    ///
    /// # Errors
    /// When there is no room, or the disk refuses; nothing has changed then.
    pub fn add(&self, new: impl IntoIterator<Item = Emergency>) -> Result<(), NotTaken> {
        self.change(|emergencies| {
            for emergency in new {
                emergencies.entry(emergency.revocation.key_hash).or_insert(emergency);
            }
        })
    }

    /// Forgets what is replicated by now.
    ///
    /// # Errors
    /// When the disk refuses.
    fn forget(&self, keys: &[KeyHash]) -> Result<(), NotTaken> {
        self.change(|emergencies| emergencies.retain(|key, _| !keys.contains(key)))
    }

    fn change(&self, change: impl FnOnce(&mut Emergencies)) -> Result<(), NotTaken> {
        let _writing = self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Arc::clone(&self.shared.published.borrow());
        let mut next = Emergencies::clone(&now);
        change(&mut next);
        if next == *now {
            return Ok(());
        }
        if next.len() > EMERGENCIES_MAX {
            return Err(NotTaken::Full);
        }
        let kept = if next.is_empty() {
            self.shared.dir.remove(FILE)
        } else {
            self.shared.dir.write(FILE, &encode(&next), FileMode::Private)
        };
        kept.map_err(|e| NotTaken::NotKept(chain(&e)))?;
        self.shared.published.send_replace(Arc::new(next));
        Ok(())
    }
}

fn encode(emergencies: &Emergencies) -> Vec<u8> {
    let kept = emergencies.values().map(|Emergency { request_id, revocation }| KeptRevocation {
        request_id: request_id.to_string(),
        id: revocation.id.to_string(),
        name: revocation.name.clone(),
        key_hash: revocation.key_hash.to_string(),
        reason: revocation.reason.clone(),
        revoked_at_unix_ms: revocation.revoked_at.0,
    });
    serde_json::to_vec_pretty(&Kept { revocations: kept.collect() }).expect("texts and numbers are JSON")
}

fn decode(bytes: &[u8]) -> Result<Emergencies, String> {
    let kept: Kept = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let taken = kept.revocations.into_iter().map(|kept| {
        let key_hash: KeyHash = kept.key_hash.parse().map_err(|e| format!("key_hash: {e}"))?;
        let revocation = Revocation {
            number: 0,
            id: kept.id.parse().map_err(|e| format!("id: {e}"))?,
            key_hash,
            name: kept.name,
            reason: kept.reason,
            revoked_at: UnixMs(kept.revoked_at_unix_ms),
        };
        let request_id: RequestId = kept.request_id.parse().map_err(|e| format!("request_id: {e}"))?;
        Ok((key_hash, Emergency { request_id, revocation }))
    });
    taken.collect()
}

/// What revoking needs beside raft. Cheap to copy.
#[derive(Debug, Clone)]
pub struct Revoker {
    /// Who is welcome.
    pub standing: Standing,
    /// The emergencies.
    pub store: EmergencyStore,
    /// The other Servers.
    pub remotes: Remotes,
}

impl Revoker {
    /// Revokes a key here and at every Server that is reached; how many others have kept it. Raft follows.
    ///
    /// # Errors
    /// When this Server cannot keep it.
    pub async fn revoke_now(&self, emergency: Emergency) -> Result<u32, NotTaken> {
        let told = Emergencies::from([(emergency.revocation.key_hash, emergency.clone())]);
        self.keep(vec![emergency]).await?;
        Ok(tell_now(&self.remotes, &told).await)
    }

    /// Keeps what was revoked elsewhere.
    ///
    /// # Errors
    /// When this Server cannot keep it.
    pub async fn keep(&self, emergencies: Vec<Emergency>) -> Result<(), NotTaken> {
        let view = self.standing.watch_view();
        let store = self.store.clone();
        // What is replicated here by now needs no second care.
        let state = Arc::clone(&view.borrow().state);
        let new = emergencies.into_iter().filter(move |new| !state.is_revoked(&new.revocation.key_hash));
        let kept = tokio::task::spawn_blocking(move || store.add(new)).await;
        kept.unwrap_or_else(|_| Err(NotTaken::NotKept("this server is stopping".to_owned())))
    }
}

/// Closes the connections of revoked nodes, whoever opened them, as long as this Server runs.
pub struct Enforcer {
    /// Who is welcome.
    pub standing: Standing,
    /// The connections others have opened.
    pub nodes: NodeConnections,
    /// The own key.
    pub own_key: KeyHash,
    /// Stops this Server when its own key is revoked.
    pub alarms: Alarms,
    /// Ends it.
    pub stop: CancellationToken,
    /// Where to report.
    pub log: Logger,
}

impl Enforcer {
    /// Runs until the Server stops.
    pub async fn run(self) {
        let (mut view, mut emergencies) = (self.standing.watch_view(), self.standing.watch_emergencies());
        // A view is published with every applied entry; few of them revoke a key.
        let mut enforced = None;
        loop {
            let version = view.borrow_and_update().state.revocations_version;
            let now = (version, Arc::clone(&emergencies.borrow_and_update()));
            if enforced.as_ref() != Some(&now) {
                enforced = Some(now);
                self.enforce().await;
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = emergencies.changed() => if changed.is_err() { return },
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn enforce(&self) {
        let is_revoked = |key_hash: &KeyHash| self.standing.is_revoked(key_hash);
        // Nobody says goodbye to a Server: its streams are raft's.
        let servers =
            self.nodes.close_where(|node| node.kind() == NodeKind::Server && is_revoked(&node.key_hash));
        tokio::time::sleep(LAST_WORD).await;
        if is_revoked(&self.own_key) {
            self.alarms.revoked();
        }
        let closed = servers + self.nodes.close_where(|node| is_revoked(&node.key_hash));
        if closed > 0 {
            info!(self.log, "connections of revoked nodes closed"; "connections" => closed);
        }
    }
}

/// Tells the emergencies of this Server to the others, and has them replicated.
pub struct EmergencyTask {
    /// The emergencies.
    pub store: EmergencyStore,
    /// The way to raft.
    pub proposer: Proposer,
    /// The way to the others.
    pub remotes: Remotes,
    /// Ends it.
    pub stop: CancellationToken,
    /// Where to report.
    pub log: Logger,
}

impl EmergencyTask {
    /// Runs until the Server stops.
    pub async fn run(self) {
        let replicate = async {
            let mut emergencies = self.store.watch();
            loop {
                let now = Arc::clone(&emergencies.borrow_and_update());
                if now.is_empty() {
                    if emergencies.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                self.replicate(&now).await;
                tokio::time::sleep(PROPOSE_REST).await;
            }
        };
        tokio::select! {
            () = replicate => {}
            () = self.tell() => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn replicate(&self, emergencies: &Emergencies) {
        for Emergency { request_id, revocation } in emergencies.values() {
            let Revocation { id, key_hash, reason, revoked_at, .. } = revocation.clone();
            if !self.proposer.view().state.is_revoked(&key_hash) {
                let body = CommandBody::Revoke { id, key_hash: Some(key_hash), reason, now: revoked_at };
                match self.proposer.propose(Command { request_id: *request_id, body }).await {
                    Ok((_, Outcome::Refused { code, message })) => {
                        error!(self.log, "emergency revocation refused by the cluster"; "id" => id,
                            "code" => code.as_str(), "reason" => message);
                    }
                    Ok(_) => info!(self.log, "emergency revocation replicated"; "id" => id),
                    Err(why) => debug!(self.log, "emergency revocation not replicated yet"; "id" => id,
                        "reason" => %why),
                }
            }
            if self.proposer.view().state.is_revoked(&key_hash) {
                let store = self.store.clone();
                let forgotten = tokio::task::spawn_blocking(move || store.forget(&[key_hash])).await;
                if let Ok(Err(error)) = forgotten {
                    warn!(self.log, "emergency revocation not forgotten"; "id" => id, "error" => %error);
                }
            }
        }
    }

    /// Brings every Server that is connected what it has not heard from here.
    async fn tell(&self) {
        let (mut emergencies, mut connected) = (self.store.watch(), self.remotes.connected());
        let mut told: BTreeMap<RaftId, Arc<Emergencies>> = BTreeMap::new();
        loop {
            let now = Arc::clone(&emergencies.borrow_and_update());
            let there = Arc::clone(&connected.borrow_and_update());
            // Who was away may come back without its disk.
            told.retain(|raft_id, _| there.contains(raft_id));
            let mut failed = false;
            if !now.is_empty() {
                for raft_id in there.iter() {
                    if told.get(raft_id).is_some_and(|before| now.keys().all(|key| before.contains_key(key)))
                    {
                        continue;
                    }
                    match tell_one(&self.remotes, *raft_id, &now).await {
                        Ok(()) => drop(told.insert(*raft_id, Arc::clone(&now))),
                        Err(why) => {
                            failed = true;
                            debug!(self.log, "emergency revocation not told yet"; "raft_id" => raft_id, "reason" => why);
                        }
                    }
                }
            }
            tokio::select! {
                changed = emergencies.changed() => if changed.is_err() { return },
                changed = connected.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(TELL_REST), if failed => {}
            }
        }
    }
}

/// Tells one Server; it has kept them when this returns.
async fn tell_one(remotes: &Remotes, raft_id: RaftId, emergencies: &Emergencies) -> Result<(), String> {
    let (id, channel) = remotes.channel(raft_id).ok_or("not connected")?;
    let revocation = |Emergency { request_id, revocation }: &Emergency| v1::EmergencyRevocation {
        request_id: request_id.to_string(),
        id: revocation.id.to_string(),
        name: revocation.name.clone(),
        key_hash: revocation.key_hash.0.to_vec().into(),
        reason: revocation.reason.clone(),
        revoked_at_unix_ms: revocation.revoked_at.0,
    };
    let mut request = tonic::Request::new(v1::EmergencyRequest {
        hello: Some(convert::hello_to(&remotes.myself().hello(Some(id)))),
        revocations: emergencies.values().map(revocation).collect(),
    });
    request.set_timeout(TELL_TIMEOUT);
    let told = v1::peering_client::PeeringClient::new(channel).emergency(request).await;
    told.map(|_| ()).map_err(|status| status.message().to_owned())
}

/// Tells all Servers that are connected now, at once; how many have kept it.
async fn tell_now(remotes: &Remotes, emergencies: &Emergencies) -> u32 {
    let connected = Arc::clone(&remotes.connected().borrow());
    let until = Instant::now() + TELL_TIMEOUT;
    let telling = connected.iter().map(|raft_id| {
        let telling = tokio::time::timeout_at(until, tell_one(remotes, *raft_id, emergencies));
        async move { matches!(telling.await, Ok(Ok(()))) }
    });
    let told = futures_util::future::join_all(telling).await;
    u32::try_from(told.into_iter().filter(|told| *told).count()).unwrap_or(u32::MAX)
}

/// The emergencies another Server tells.
///
/// # Errors
/// When they make no sense, or are too many.
pub(crate) fn emergencies_from(
    told: Vec<v1::EmergencyRevocation>,
) -> Result<Vec<Emergency>, convert::ConvertError> {
    if told.len() > EMERGENCIES_MAX {
        return Err(convert::ConvertError::new("revocations", format!("more than {EMERGENCIES_MAX}")));
    }
    let taken = told.into_iter().map(|told| {
        Ok(Emergency {
            request_id: convert::request_id(&told.request_id)?,
            revocation: Revocation {
                number: 0,
                id: convert::parse(&told.id, "id")?,
                key_hash: convert::key_hash(&told.key_hash)?,
                name: convert::name(&told.name, "name")?,
                reason: convert::reason(&told.reason)?,
                revoked_at: UnixMs(told.revoked_at_unix_ms),
            },
        })
    });
    taken.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::NodeId;
    use uuid::Uuid;

    fn emergency(n: u8) -> Emergency {
        Emergency {
            request_id: RequestId::new(Uuid::from_u128(n.into())),
            revocation: Revocation {
                number: 0,
                id: NodeId::new(NodeKind::Peer, Uuid::from_u128(n.into())),
                key_hash: KeyHash([n; 32]),
                name: format!("p{n}"),
                reason: "stolen, \"as they say\"".to_owned(),
                revoked_at: UnixMs(7),
            },
        }
    }

    #[test]
    fn emergencies_outlive_the_process_until_they_are_replicated() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Arc::new(DataDir::open(tmp.path()).unwrap());
        let store = EmergencyStore::load(Arc::clone(&dir)).unwrap();
        store.add([emergency(1), emergency(2)]).unwrap();
        store.add([emergency(2)]).unwrap();
        let again = EmergencyStore::load(Arc::clone(&dir)).unwrap();
        assert_eq!(*again.watch().borrow(), *store.watch().borrow());
        assert_eq!(again.watch().borrow()[&KeyHash([2; 32])], emergency(2));
        store.forget(&[KeyHash([1; 32]), KeyHash([2; 32])]).unwrap();
        assert!(!tmp.path().join(FILE).exists());
    }

    #[test]
    fn too_many_are_refused_as_a_whole() {
        let tmp = tempfile::tempdir().unwrap();
        let store = EmergencyStore::load(Arc::new(DataDir::open(tmp.path()).unwrap())).unwrap();
        let many = (0..=EMERGENCIES_MAX).map(|n| {
            let mut emergency = emergency(1);
            emergency.revocation.key_hash.0[..8].copy_from_slice(&(n as u64).to_be_bytes());
            emergency
        });
        assert!(matches!(store.add(many), Err(NotTaken::Full)));
        assert!(store.watch().borrow().is_empty());
    }

    #[test]
    fn a_damaged_file_is_said_and_not_passed_over() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Arc::new(DataDir::open(tmp.path()).unwrap());
        std::fs::write(tmp.path().join(FILE), b"{\"revocations\": [{}]}").unwrap();
        assert!(EmergencyStore::load(dir).unwrap_err().contains(FILE));
    }
}
