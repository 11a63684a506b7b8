//! The offline commands on directories of Servers that were founded here. What needs others is tried with real
//! processes.

use std::fs;
use std::path::PathBuf;

use p2p_common::addr::HostPort;
use p2p_common::command::{Command, CommandBody, TokenId};
use p2p_common::member::Member;
use p2p_common::setting::SettingName;
use p2p_common::{ClusterId, Epoch, Incarnation, KeyHash, NodeId, NodeKind, RequestId, UnixMs};
use p2p_runtime::identity::NodeIdentity;
use p2p_server_raft::{HardState, LogEntry, Persist};
use slog::Logger;
use tempfile::TempDir;
use uuid::Uuid;

use super::backup::{Backup, Provenance};
use super::*;
use crate::admission::{Admitted, Applicant, Joining, admit};
use crate::config::RawConfig;

/// A Server's data directory inside a temporary one.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Home(tempfile::tempdir().unwrap())
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    async fn start(&self, bootstrap: bool) -> Result<Admitted, Exit> {
        let raw = RawConfig { data: Some(self.data()), bootstrap: Some(bootstrap), ..RawConfig::default() };
        let (config, dir) = (raw.validate().unwrap(), DataDir::open(self.data()).unwrap());
        let incarnation = Incarnation::new(Uuid::from_u128(1));
        let addresses = ["s1.example:7400".parse().unwrap()];
        let log = Logger::root(slog::Discard, slog::o!());
        admit(Applicant { dir: &dir, config: &config, addresses: &addresses, incarnation, log: &log }).await
    }

    async fn founded() -> Self {
        let home = Home::new();
        assert!(home.start(true).await.unwrap().is_new);
        home
    }

    /// A founder whose log, in two entries that nobody confirmed, has a setting and a second member.
    async fn with_another() -> Self {
        let home = Home::founded().await;
        let (mut store, stored) = read_store(&home.data().join(STORE)).unwrap();
        let mut state = state_after(&stored.unwrap().loaded).unwrap().unwrap();
        let other = other();
        state.identities.insert(other.id, {
            let (name, key_hash) = (other.name.clone(), other.key_hash);
            p2p_common::command::IdentityRecord::new(other.id, name, key_hash, UnixMs(1))
        });
        let snapshot = p2p_server_raft::founding_write(1, convert::encode_state(&state).into());
        let origin = crate::store::Origin::new(1, Epoch(1), None);
        store.begin(&origin, Some(&snapshot)).unwrap();
        let bodies = [
            CommandBody::ChangeSetting {
                name: SettingName::Description,
                value: Some("ours".into()),
                expected: None,
            },
            CommandBody::UpsertMember {
                id: other.id,
                name: other.name,
                addresses: other.addresses,
                zone: other.zone,
                key_hash: other.key_hash,
                new_log: true,
            },
        ];
        let entries = (2..).zip(bodies).map(|(index, body)| {
            let command = Command { request_id: RequestId::new(Uuid::from_u128(index.into())), body };
            let data = convert::encode_command(&command).into();
            LogEntry { index, term: 5, kind: EntryKind::Normal, data, context: bytes::Bytes::new() }
        });
        let hard_state = HardState { term: 5, vote: 1, commit: 2 };
        let entries = entries.collect();
        store.persist(&[Persist { number: 1, snapshot: None, entries, hard_state }]).unwrap();
        home
    }

    fn state(&self) -> ClusterState {
        let (_store, stored) = read_store(&self.data().join(STORE)).unwrap();
        state_after(&stored.unwrap().loaded).unwrap().unwrap()
    }

    fn id(&self) -> NodeId {
        let view = DataDirView::open(self.data()).unwrap();
        NodeIdentity::load(&view).unwrap().unwrap().id()
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.data()).unwrap().map(|item| item.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn other() -> Member {
    Member {
        id: NodeId::new(NodeKind::Server, Uuid::from_u128(2)),
        name: "s2".into(),
        addresses: vec!["s2.example:7400".parse().unwrap()],
        zone: String::new(),
        raft_id: 2,
        key_hash: KeyHash([2; 32]),
    }
}

fn hosts(texts: &[&str]) -> Vec<HostPort> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn who_knows_nobody_else_gives_up_nothing() {
    let home = Home::founded().await;
    let before = home.files();
    let refused = discard_state(&home.data(), &[]).unwrap_err();
    assert_eq!(refused.code(), 2);
    assert!(refused.to_string().contains("Nothing was changed"), "{refused}");
    assert_eq!(home.files(), before);
    assert!(!home.start(false).await.unwrap().is_new);
    // Never been anybody.
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(discard_state(empty.path(), &hosts(&["h:1"])).unwrap_err().code(), 2);
    assert_eq!(discard_state(&empty.path().join("no"), &[]).unwrap_err().code(), 1);
}

#[tokio::test]
async fn a_store_is_moved_aside_and_its_members_are_remembered() {
    let home = Home::with_another().await;
    let discarded = discard_state(&home.data(), &hosts(&["new.example:1"])).unwrap();
    assert_eq!(discarded.introducers, hosts(&["new.example:1", "s2.example:7400"]));
    let moved = discarded.store.unwrap();
    assert!(moved.starts_with("store.discarded-2"), "{moved}");
    let files = home.files();
    assert!(files.contains(&moved) && files.contains(&"join.json".to_owned()), "{files:?}");
    for kept in ["ca-key.pem", "ca.pem", "cert.pem", "key.pem", "node.json"] {
        assert!(files.contains(&kept.to_owned()), "{kept}");
    }
    assert!(!files.contains(&STORE.to_owned()) && !files.contains(&RAFT_ID_FILE.to_owned()));
    // What was moved is whole.
    assert!(read_store(&home.data().join(&moved)).unwrap().1.is_some());
    // Again, with nothing left: whom to ask is still known.
    let again = discard_state(&home.data(), &[]).unwrap();
    assert_eq!((again.store, again.introducers), (None, discarded.introducers));
    assert!(home.data().join(&moved).exists());
}

#[tokio::test]
async fn a_lost_and_a_damaged_store_need_to_be_told_whom_to_join() {
    for damaged in [false, true] {
        let home = Home::with_another().await;
        let store = home.data().join(STORE);
        fs::remove_dir_all(&store).unwrap();
        if damaged {
            fs::write(&store, "not even a directory").unwrap();
        }
        let refused = home.start(false).await.unwrap_err();
        assert_eq!(refused.code(), 3);
        let command = format!("p2p-server rejoin --discard-state --data {}", home.data().display());
        assert!(refused.to_string().contains(&command), "{refused}");
        let refused = discard_state(&home.data(), &[]).unwrap_err();
        assert!(refused.to_string().contains("--join HOST:PORT"), "{refused}");
        let discarded = discard_state(&home.data(), &hosts(&["s2.example:7400"])).unwrap();
        assert_eq!(discarded.store.is_some(), damaged);
    }
}

#[tokio::test]
async fn an_interrupted_rejoin_starts_nothing_and_goes_on() {
    let whole = Home::with_another().await;
    for step in 0..4 {
        let home = Home::new();
        copy(&whole.data(), &home.data());
        let dir = DataDir::open(home.data()).unwrap();
        let discarding = Some("store.discarded-then".to_owned());
        let introducers = hosts(&["s2.example:7400"]);
        let joining = Joining { introducers, discarding, ..Joining::new().unwrap() };
        joining.store(&dir).unwrap();
        if step > 0 {
            dir.remove(RAFT_ID_FILE).unwrap();
        }
        if step > 1 {
            fs::rename(home.data().join(STORE), home.data().join("store.discarded-then")).unwrap();
        }
        drop(dir);
        if step < 3 {
            let refused = home.start(true).await.unwrap_err();
            assert_eq!(refused.code(), 3, "step {step}");
            assert!(refused.to_string().contains("rejoin --discard-state"), "{refused}");
            let refused = force_new_cluster(&home.data(), true).unwrap_err();
            assert_eq!(refused.code(), 2);
        }
        let discarded = discard_state(&home.data(), &[]).unwrap();
        assert_eq!(discarded.store.as_deref(), Some("store.discarded-then"), "step {step}");
        assert_eq!(discarded.introducers, hosts(&["s2.example:7400"]));
        assert!(!home.data().join(STORE).exists());
    }
}

#[tokio::test]
async fn nothing_is_done_while_somebody_runs_there() {
    let home = Home::with_another().await;
    let held = DataDir::open(home.data()).unwrap();
    let refused = [
        discard_state(&home.data(), &[]).unwrap_err(),
        force_new_cluster(&home.data(), true).unwrap_err(),
        restore(&home.data(), &backup_file(&home), None).unwrap_err(),
    ];
    for refused in refused {
        assert!(refused.to_string().contains("in use by process"), "{refused}");
    }
    drop(held);
    assert_eq!(home.state().epoch, Epoch(1));
}

#[tokio::test]
async fn a_forced_cluster_has_all_entries_and_one_member() {
    let home = Home::with_another().await;
    let told = force_new_cluster(&home.data(), false).unwrap();
    assert_eq!((told.epoch, told.last_index, told.committed), (Epoch(2), 3, 2));
    assert_eq!(told.left_behind.len(), 1);
    assert_eq!(home.state().epoch, Epoch(1), "only told");

    let done = force_new_cluster(&home.data(), true).unwrap();
    assert_eq!(done.left_behind, told.left_behind);
    let state = home.state();
    assert_eq!(state.epoch, Epoch(2));
    assert_eq!(state.setting(SettingName::Description), "ours");
    assert_eq!(state.members.keys().copied().collect::<Vec<_>>(), [home.id()]);
    assert!(state.identities.contains_key(&other().id), "it may come back");
    assert_eq!((state.members_version, state.next_raft_id), (3, 3));

    let admitted = home.start(false).await.unwrap();
    assert_eq!(admitted.stored.origin.former, [other()]);
    assert_eq!(admitted.identity.epoch(), Epoch(2));
    assert_eq!((admitted.state.epoch, admitted.state.recovery_id), (Epoch(2), state.recovery_id));
    let loaded = admitted.stored.loaded;
    assert!(loaded.entries.is_empty());
    assert_eq!(loaded.hard_state, HardState { term: 6, vote: 0, commit: 4 });
    assert_eq!(loaded.snapshot.unwrap().index, 4);
    drop(admitted.store);

    let again = force_new_cluster(&home.data(), true).unwrap();
    assert!(again.was_alone);
    assert_eq!((again.epoch, home.state()), (Epoch(2), state));
}

#[tokio::test]
async fn two_recoveries_of_one_epoch_have_two_ids() {
    let (one, two) = (Home::with_another().await, Home::new());
    copy(&one.data(), &two.data());
    for home in [&one, &two] {
        force_new_cluster(&home.data(), true).unwrap();
    }
    assert_eq!(one.state().epoch, two.state().epoch);
    assert_ne!(one.state().recovery_id, two.state().recovery_id);
}

/// A backup of what a Server's store holds.
fn backup_file(home: &Home) -> PathBuf {
    let path = home.0.path().join("cluster.backup");
    let provenance =
        Provenance { made_by: home.id(), made_at: UnixMs(1), version: "0.1.0".into(), index: 3, term: 5 };
    let pieces = Backup { provenance, state: home.state() }.into_pieces();
    fs::write(&path, pieces.flatten().collect::<Vec<u8>>()).unwrap();
    path
}

fn cluster_of(admitted: &Admitted) -> (ClusterId, Epoch) {
    (admitted.state.cluster_id, admitted.state.epoch)
}

#[tokio::test]
async fn a_restored_cluster_is_a_new_one_with_the_old_contents() {
    let old = Home::with_another().await;
    let (before, file) = (old.state(), backup_file(&old));
    let new = Home::new();
    // Twice: a restore that was not run yet may be repeated.
    restore(&new.data(), &file, None).unwrap();
    let restored = restore(&new.data(), &file, None).unwrap();
    assert_eq!(restored.members_before, 2);
    let admitted = new.start(false).await.unwrap();
    assert_eq!(cluster_of(&admitted), (restored.state.cluster_id, Epoch(2)));
    assert_ne!(admitted.state.cluster_id, before.cluster_id);
    assert!(!admitted.cas.is_empty());
    drop(admitted);
    let state = new.state();
    assert_eq!(state.members.keys().copied().collect::<Vec<_>>(), [new.id()]);
    assert_eq!((state.members[&new.id()].raft_id, state.next_raft_id), (3, 4));
    assert_eq!(state.settings, before.settings);
    assert_eq!(state.tokens, before.tokens);
    assert!(before.identities.iter().all(|(id, record)| state.identities.get(id) == Some(record)));
    assert_ne!(state.trust_bundle, before.trust_bundle);
    assert!(!new.files().contains(&"restored.backup".to_owned()));
    assert!(!new.start(false).await.unwrap().is_new);
    assert_eq!(restore(&new.data(), &file, None).unwrap_err().code(), 2, "not over a cluster");
}

#[tokio::test]
async fn a_kept_cluster_needs_its_ca_key() {
    let old = Home::with_another().await;
    let (before, file) = (old.state(), backup_file(&old));
    let foreign = Home::founded().await;
    let keep = |home: &Home| KeepCluster { ca_key: home.data().join("ca-key.pem") };
    let new = Home::new();
    let refused = restore(&new.data(), &file, Some(&keep(&foreign))).unwrap_err();
    assert!(refused.to_string().contains("not the CA key of this cluster"), "{refused}");
    restore(&new.data(), &file, Some(&keep(&old))).unwrap();
    let admitted = new.start(false).await.unwrap();
    assert_eq!(cluster_of(&admitted), (before.cluster_id, Epoch(2)));
    drop(admitted);
    assert_eq!(new.state().trust_bundle, before.trust_bundle);
    assert!(new.state().recovery_id.is_some());
    for file in ["ca-key.pem", "ca.pem"] {
        assert_eq!(fs::read(new.data().join(file)).unwrap(), fs::read(old.data().join(file)).unwrap());
    }
}

#[tokio::test]
async fn a_restored_founder_killed_at_any_step_goes_on() {
    let old = Home::with_another().await;
    let new = Home::new();
    let restored = restore(&new.data(), &backup_file(&old), None).unwrap();
    let staged = fs::read(new.data().join("restored.backup")).unwrap();
    drop(new.start(false).await.unwrap());
    // Certified, no store; then a store, and nothing that says so.
    for lost in [&[STORE, RAFT_ID_FILE][..], &[RAFT_ID_FILE]] {
        for name in lost {
            let path = new.data().join(name);
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
        fs::write(new.data().join("restored.backup"), &staged).unwrap();
        drop(new.start(false).await.unwrap());
        let state = new.state();
        assert_eq!(state.cluster_id, restored.state.cluster_id);
        assert_eq!(state.setting(SettingName::Description), "ours");
        assert!(!new.files().contains(&"restored.backup".to_owned()));
    }
    // A state that is not whole begins nothing.
    let torn = Home::new();
    restore(&torn.data(), &backup_file(&old), None).unwrap();
    fs::write(torn.data().join("restored.backup"), &staged[..staged.len() - 1]).unwrap();
    assert_eq!(torn.start(true).await.unwrap_err().code(), 3);
}

#[test]
fn a_log_tells_its_state_also_from_entries_before_its_snapshot() {
    let state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(1), vec![vec![1]]);
    let revoke = |index: u64| {
        let body = CommandBody::RevokeToken(TokenId(index));
        let command = Command { request_id: RequestId::new(Uuid::from_u128(index.into())), body };
        let data = convert::encode_command(&command).into();
        LogEntry { index, term: 1, kind: EntryKind::Normal, data, context: bytes::Bytes::new() }
    };
    let mut founding = p2p_server_raft::founding_write(1, convert::encode_state(&state).into());
    if let Some(snapshot) = &mut founding.snapshot {
        snapshot.index = 3;
    }
    let loaded =
        Loaded { snapshot: founding.snapshot, entries: (2..=5).map(revoke).collect(), ..Loaded::default() };
    let after = state_after(&loaded).unwrap().unwrap();
    let applied: Vec<_> = after.applied_requests.iter().map(|(id, _)| id.uuid().as_u128()).collect();
    assert_eq!(applied, [4, 5]);
    assert_eq!(state_after(&Loaded::default()), Ok(None));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let to = to.join(item.file_name());
        if item.path().is_dir() {
            copy(&item.path(), &to);
        } else {
            fs::copy(item.path(), to).unwrap();
        }
    }
}
