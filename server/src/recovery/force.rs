//! `force-new-cluster`: after a quorum is lost for good, one Server goes on alone from what its log holds.
//!
//! The log as it is becomes a snapshot with this Server as the only voter; entries nobody confirmed are kept, since
//! one of them may have been acknowledged by those who are gone. The epoch rises above every known one and a random
//! recovery id names this recovery: who lives in a lower epoch is refused, and whoever recovered into the same epoch
//! elsewhere is another history (SPEC C11). All of it is one write; before it nothing has changed, after it everything.

use std::path::Path;

use p2p_common::member::Member;
use p2p_common::{Epoch, RecoveryId};
use p2p_proto::convert;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::NodeIdentity;
use p2p_server_raft::{HardState, Membership, Persist, Snapshot};

use super::{STORE, advice, read_store, state_after, take};
use crate::admission::{Joining, random_uuid};
use crate::store::{Origin, StoreError};

/// What a forced recovery does, or did.
#[derive(Debug)]
pub struct Forced {
    /// The Server that goes on.
    pub me: Member,
    /// The epoch it lives in from now on.
    pub epoch: Epoch,
    /// The last entry of its log.
    pub last_index: u64,
    /// Those of them that it knows were confirmed by a quorum.
    pub committed: u64,
    /// The others, out of table C now.
    pub left_behind: Vec<Member>,
    /// It was alone already: nothing was changed.
    pub was_alone: bool,
}

/// Makes the Server of `data` the only one of its cluster, in a new epoch; only tells what it would do unless `really`.
///
/// # Errors
/// When a Server runs on the directory, or it holds no state to go on with.
pub fn force_new_cluster(data: &Path, really: bool) -> Result<Forced, Exit> {
    let dir = take(data)?;
    let identity = NodeIdentity::load(dir.view()).map_err(|e| Exit::failed(chain(&e)))?;
    let nothing = |why: &str| {
        Exit::usage(format!(
            "{}: {why}, so it cannot go on alone: choose another server, or a backup (`p2p-server restore`)",
            data.display()
        ))
    };
    let identity = identity.filter(|identity| identity.enrolment().is_some());
    let identity = identity.ok_or_else(|| nothing("it has never belonged to a cluster"))?;
    if Joining::load(dir.view())?.is_some() || !dir.view().join(STORE).exists() {
        return Err(nothing("it has no state of the cluster"));
    }
    let damaged = |e: StoreError| Exit::needs_operator(format!("{e}. {}", advice(data)));
    let (mut store, stored) = read_store(&dir.view().join(STORE)).map_err(damaged)?;
    let stored = stored.ok_or_else(|| nothing("it has no state of the cluster"))?;
    let state = state_after(&stored.loaded).map_err(|e| {
        Exit::failed(format!("the log cannot be read: {e}. Is this version older than the server's?"))
    })?;
    let mut state = state.ok_or_else(|| nothing("the cluster's state had not reached it"))?;

    let me = state.members.get(&identity.id()).filter(|me| me.raft_id == stored.origin.raft_id).cloned();
    let me = me.ok_or_else(|| nothing("it was removed from the cluster"))?;
    let last_entry = stored.loaded.entries.last().map_or(0, |entry| entry.index);
    let last_index = stored.loaded.snapshot.as_ref().map_or(0, |snapshot| snapshot.index).max(last_entry);
    let hard_state = stored.loaded.hard_state;
    let left_behind: Vec<Member> =
        state.members.values().filter(|member| member.id != me.id).cloned().collect();
    let mut forced = Forced {
        epoch: state.epoch,
        last_index,
        committed: hard_state.commit.min(last_index),
        was_alone: left_behind.is_empty(),
        left_behind,
        me,
    };
    if forced.was_alone {
        return Ok(forced);
    }
    forced.epoch = Epoch(state.epoch.max(stored.origin.epoch).max(identity.epoch()).0 + 1);
    if !really {
        return Ok(forced);
    }
    state.epoch = forced.epoch;
    state.recovery_id = Some(RecoveryId::new(random_uuid()?));
    state.members.retain(|id, _| *id == forced.me.id);
    state.members_version += 1;
    let (index, term) = (last_index + 1, hard_state.term + 1);
    let mut origin = Origin::new(forced.me.raft_id, state.epoch, state.recovery_id);
    origin.former = forced.left_behind.clone();
    let membership = Membership::sole_voter(forced.me.raft_id);
    let persist = Persist {
        number: 0,
        snapshot: Some(Snapshot { index, term, membership, data: convert::encode_state(&state).into() }),
        entries: Vec::new(),
        hard_state: HardState { term, vote: 0, commit: index },
    };
    store.begin(&origin, Some(&persist)).map_err(Exit::needs_operator)?;
    Ok(forced)
}
