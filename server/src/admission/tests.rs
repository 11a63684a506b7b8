//! Founding, killed after each step. Joining needs another Server and is tried with real processes.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::config::RawConfig;

fn config(dir: &Path, bootstrap: bool) -> ServerConfig {
    let raw = RawConfig { data: Some(dir.to_owned()), bootstrap: Some(bootstrap), ..RawConfig::default() };
    raw.validate().unwrap()
}

async fn start(dir: &Path, bootstrap: bool) -> Result<Admitted, Exit> {
    let config = config(dir, bootstrap);
    let dir = DataDir::open(dir).unwrap();
    let incarnation = Incarnation::new(Uuid::from_u128(1));
    let addresses = ["s1.example:7400".parse().unwrap()];
    let log = Logger::root(slog::Discard, slog::o!());
    admit(Applicant { dir: &dir, config: &config, addresses: &addresses, incarnation, log: &log }).await
}

async fn founded() -> (TempDir, p2p_common::ClusterId) {
    let dir = tempfile::tempdir().unwrap();
    let admitted = start(dir.path(), true).await.unwrap();
    assert!(admitted.is_new && !admitted.cas.is_empty());
    assert_eq!(admitted.stored.origin.raft_id, 1);
    let cluster_id = admitted.state.cluster_id;
    (dir, cluster_id)
}

#[tokio::test]
async fn an_empty_directory_needs_a_word_and_stays_empty() {
    let dir = tempfile::tempdir().unwrap();
    let refused = start(dir.path(), false).await.unwrap_err();
    assert_eq!(refused.code(), 2);
    for command in ["--bootstrap", "--join HOST:PORT --token TOKEN"] {
        assert!(refused.to_string().contains(command), "{refused}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[tokio::test]
async fn a_founder_comes_back_with_and_without_the_flag() {
    let (dir, cluster_id) = founded().await;
    for bootstrap in [true, false] {
        let admitted = start(dir.path(), bootstrap).await.unwrap();
        assert!(!admitted.is_new);
        assert_eq!(admitted.state.cluster_id, cluster_id);
        assert_eq!(admitted.state.epoch, FIRST_EPOCH);
    }
}

#[tokio::test]
async fn a_founder_killed_at_any_step_goes_on() {
    // With a CA key alone: nobody has seen that cluster, another is begun.
    let dir = tempfile::tempdir().unwrap();
    let (done, _) = founded().await;
    fs::copy(done.path().join("ca-key.pem"), dir.path().join("ca-key.pem")).unwrap();
    assert!(start(dir.path(), true).await.unwrap().is_new);

    // With a certificate and no store: the same cluster, also without the flag.
    let (dir, cluster_id) = founded().await;
    fs::remove_dir_all(dir.path().join(STORE)).unwrap();
    fs::remove_file(dir.path().join(RAFT_ID_FILE)).unwrap();
    let admitted = start(dir.path(), false).await.unwrap();
    assert!(admitted.is_new);
    assert_eq!(admitted.state.cluster_id, cluster_id);
    drop(admitted);

    // With a begun store and nothing that says so.
    fs::remove_file(dir.path().join(RAFT_ID_FILE)).unwrap();
    assert!(!start(dir.path(), false).await.unwrap().is_new);
    assert_eq!(fs::read_to_string(dir.path().join(RAFT_ID_FILE)).unwrap(), "1\n");
}

#[tokio::test]
async fn what_is_lost_needs_an_operator() {
    let (dir, _) = founded().await;
    fs::remove_dir_all(dir.path().join(STORE)).unwrap();
    let refused = start(dir.path(), true).await.unwrap_err();
    assert_eq!(refused.code(), 3, "{refused}");
    assert!(refused.to_string().contains("its store is gone"), "{refused}");

    let (dir, _) = founded().await;
    for file in ["node.json", "key.pem", "cert.pem", "ca-key.pem"] {
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    let refused = start(dir.path(), true).await.unwrap_err();
    assert_eq!(refused.code(), 3, "{refused}");
}
