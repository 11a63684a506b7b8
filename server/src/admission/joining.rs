//! A join under way, kept in the data directory until its store is begun: the request under which it is asked for,
//! so that a Server killed in between is not given a second raft id, and for one that returns without its log
//! whom to ask.
//!
//! ```text
//! (none) ──first join──────────────────────────► asking ──store begun──► (none)
//! (none) ──rejoin──► discarding ──store moved──► asking
//! ```
//!
//! Written in `discarding` by `p2p-server rejoin` alone, see [`crate::recovery`].

use p2p_common::addr::HostPort;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::{DataDir, DataDirView, FileMode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const FILE: &str = "join.json";

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joining {
    /// The id of the request: however often it is made, it gives one raft id.
    pub request_id: Uuid,
    /// Servers that may be asked, besides those of the command line.
    pub introducers: Vec<HostPort>,
    /// The old store is being moved to this name; nothing may run before it has been.
    pub discarding: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    request_id: String,
    #[serde(default)]
    introducers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    discarding: Option<String>,
}

impl Joining {
    /// A join that nobody has asked for yet.
    pub fn new() -> Result<Self, Exit> {
        Ok(Joining { request_id: super::random_uuid()?, introducers: Vec::new(), discarding: None })
    }

    /// What a data directory holds; `None` when no join is under way.
    pub fn load(dir: &DataDirView) -> Result<Option<Self>, Exit> {
        let Some(bytes) = dir.read(FILE).map_err(|e| Exit::failed(chain(&e)))? else { return Ok(None) };
        let joining = serde_json::from_slice(&bytes).map_err(|e| e.to_string()).and_then(Self::from_file);
        let damaged = |reason: String| {
            Exit::needs_operator(format!(
                "{} is damaged: {reason}. {}",
                dir.join(FILE).display(),
                crate::recovery::advice(dir.path())
            ))
        };
        joining.map(Some).map_err(damaged)
    }

    fn from_file(file: File) -> Result<Self, String> {
        let request_id = file.request_id.parse().map_err(|e: uuid::Error| format!("request_id: {e}"))?;
        let introducers = file.introducers.iter().map(|text| text.parse());
        let introducers = introducers.collect::<Result<_, _>>().map_err(|e| format!("introducers: {e}"))?;
        Ok(Joining { request_id, introducers, discarding: file.discarding })
    }

    /// Keeps it, durably.
    pub fn store(&self, dir: &DataDir) -> Result<(), Exit> {
        let file = File {
            request_id: self.request_id.to_string(),
            introducers: self.introducers.iter().map(ToString::to_string).collect(),
            discarding: self.discarding.clone(),
        };
        let mut json = serde_json::to_vec_pretty(&file).expect("strings are always JSON");
        json.push(b'\n');
        dir.write(FILE, &json, FileMode::Private).map_err(|e| Exit::failed(chain(&e)))
    }

    /// Forgets it, durably: the store is begun.
    pub fn forget(dir: &DataDir) -> Result<(), Exit> {
        dir.remove(FILE).map_err(|e| Exit::failed(chain(&e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_kept_and_forgotten_and_says_when_it_is_damaged() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        assert_eq!(Joining::load(dir.view()).unwrap(), None);
        let mut joining = Joining::new().unwrap();
        for discarding in [Some("store.discarded".to_owned()), None] {
            joining.introducers.push("[::1]:7400".parse().unwrap());
            joining.discarding = discarding;
            joining.store(&dir).unwrap();
            assert_eq!(Joining::load(dir.view()).unwrap(), Some(joining.clone()));
        }
        let whole = std::fs::read(tmp.path().join(FILE)).unwrap();
        for end in 0..whole.len() - 2 {
            std::fs::write(tmp.path().join(FILE), &whole[..end]).unwrap();
            let refused = Joining::load(dir.view()).unwrap_err();
            assert_eq!(refused.code(), 3);
            assert!(refused.to_string().contains("rejoin --discard-state"), "{refused}");
        }
        Joining::forget(&dir).unwrap();
        assert_eq!(Joining::load(dir.view()).unwrap(), None);
    }
}
