//! What an operator does after a loss (SPEC C9, C11); everything but the backup is done while no Server runs on the
//! data directory.
//!
//! | what is lost | command | what it does |
//! |---|---|---|
//! | the store of one Server | `rejoin --discard-state` | moves what is left aside; the Server returns under a new raft id |
//! | a quorum, for good | `force-new-cluster` | this Server goes on alone from its own log, in a new epoch |
//! | everything | `restore` | founds a cluster from a backup |
//!
//! Nothing here happens by itself: forgetting acknowledged writes, or a second history, is a person's decision. What
//! a Server does when it may not go on is told by [`advice`].

pub mod backup;
mod force;
mod rejoin;
mod restore;

use std::path::Path;

use p2p_common::cluster_state::ClusterState;
use p2p_proto::convert;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::{DataDir, DataDirView};
use p2p_server_raft::{EntryKind, Fsm, Loaded};

use crate::store::{Store, StoreError, Stored};

pub use force::{Forced, force_new_cluster};
pub use rejoin::{Discarded, discard_state};
pub(crate) use restore::StagedState;
pub use restore::{KeepCluster, Restored, restore};

/// Where the log and the state are, in the data directory.
pub(crate) const STORE: &str = "store";
/// A Server's raft id, left in the data directory once its store was begun.
pub(crate) const RAFT_ID_FILE: &str = "raft-id";

/// What to type when this Server must not go on with what it has.
pub fn advice(data: &Path) -> String {
    format!(
        "This server neither votes nor writes until you act: bring the directory {data} back as it was, or type \
         `p2p-server rejoin --discard-state --data {data}` and start the server again: its store is moved aside, and \
         it returns under a new raft id",
        data = data.display()
    )
}

/// Takes an existing data directory from whoever may run on it.
fn take(data: &Path) -> Result<DataDir, Exit> {
    // To open it alone would make one.
    DataDirView::open(data).and_then(|view| DataDir::open(view.path())).map_err(|e| Exit::failed(chain(&e)))
}

/// Everything a store holds.
fn read_store(path: &Path) -> Result<(Store, Option<Stored>), StoreError> {
    let store = Store::open(path)?;
    let stored = store.load()?;
    Ok((store, stored))
}

/// The replicated state after every entry of a log, committed or not; `None` for a log that has not begun.
fn state_after(loaded: &Loaded) -> Result<Option<ClusterState>, convert::ConvertError> {
    let Some(snapshot) = &loaded.snapshot else { return Ok(None) };
    let mut fsm = Fsm::new(convert::decode_state(&snapshot.data)?);
    let later = loaded.entries.iter().filter(|entry| entry.index > snapshot.index);
    for entry in later.filter(|entry| entry.kind == EntryKind::Normal && !entry.data.is_empty()) {
        fsm.apply(&convert::decode_command(&entry.data)?);
    }
    Ok(Some(ClusterState::clone(fsm.state())))
}

#[cfg(test)]
mod tests;
