//! `rejoin --discard-state`: a Server whose store is lost or damaged, or whose history was given up, comes back as a
//! new member of the raft group, under its old identity.
//!
//! ```text
//! join.json (discarding) ─► raft-id removed ─► store moved aside ─► join.json (asking) ─► run joins
//! ```
//!
//! Each arrow is durable before the next step, and the command may be repeated from anywhere in between; a Server
//! does not start before the last one. Nothing is deleted.

use std::fs::{self, File};
use std::path::Path;

use p2p_common::NodeId;
use p2p_common::addr::HostPort;
use p2p_runtime::clock::unix_now;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::{DataDir, NodeIdentity};

use super::{RAFT_ID_FILE, STORE, read_store, state_after, take};
use crate::admission::Joining;

/// What was done.
#[derive(Debug)]
pub struct Discarded {
    /// Where the store is now; `None` when there was none any more.
    pub store: Option<String>,
    /// Who will be asked to take this Server in.
    pub introducers: Vec<HostPort>,
}

/// Moves the store of a data directory aside and prepares its Server to join again, through `join` or any Server that
/// the old store names.
///
/// # Errors
/// When a Server runs on it, it never belonged to a cluster, or nobody is known who could take it in.
pub fn discard_state(data: &Path, join: &[HostPort]) -> Result<Discarded, Exit> {
    let dir = take(data)?;
    let identity = NodeIdentity::load(dir.view()).map_err(|e| Exit::failed(chain(&e)))?;
    let identity = identity.filter(|identity| identity.enrolment().is_some()).ok_or_else(|| {
        Exit::usage(format!(
            "{} has no identity of a server that belongs to a cluster, so there is nothing to come back with: start it \
             with an empty directory, --join and a token",
            data.display()
        ))
    })?;
    let interrupted = Joining::load(dir.view())?;
    let introducers = introducers(&dir, &identity, join, interrupted.as_ref())?;
    let moved_to = match interrupted.and_then(|joining| joining.discarding) {
        Some(begun) => begun,
        None => free_name(&dir),
    };
    let mut joining = Joining { introducers, discarding: Some(moved_to.clone()), ..Joining::new()? };
    joining.store(&dir)?;
    dir.remove(RAFT_ID_FILE).map_err(|e| Exit::failed(chain(&e)))?;
    move_store(&dir, &moved_to)?;
    joining.discarding = None;
    joining.store(&dir)?;
    let store = dir.view().join(&moved_to).exists().then_some(moved_to);
    Ok(Discarded { store, introducers: joining.introducers })
}

/// Whom to ask: as told, then who was known before, then the members of the old store.
fn introducers(
    dir: &DataDir,
    identity: &NodeIdentity,
    join: &[HostPort],
    interrupted: Option<&Joining>,
) -> Result<Vec<HostPort>, Exit> {
    let (others, unreadable) = match others(dir, identity.id()) {
        Ok(others) => (others, None),
        Err(reason) => (Vec::new(), Some(reason)),
    };
    let before = interrupted.into_iter().flat_map(|joining| &joining.introducers);
    let mut found: Vec<HostPort> = Vec::new();
    for address in join.iter().chain(before).chain(&others) {
        if !found.contains(address) {
            found.push(address.clone());
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    Err(Exit::usage(match unreadable {
        Some(reason) => format!(
            "the old store names no other server ({reason}): say which one to join with --join HOST:PORT. Nothing was \
             changed"
        ),
        None => "the old store knows no other server: nobody else has this cluster's state, and it would be lost. With \
                 another server running, name it with --join HOST:PORT; with a backup, use `p2p-server restore` on an \
                 empty directory. Nothing was changed"
            .to_owned(),
    }))
}

/// Where the other Servers are, as far as the store can tell. There may be no store.
fn others(dir: &DataDir, me: NodeId) -> Result<Vec<HostPort>, String> {
    let path = dir.view().join(STORE);
    if !path.exists() {
        return Err("it is gone".to_owned());
    }
    let (_store, stored) = read_store(&path).map_err(|e| e.to_string())?;
    let stored = stored.ok_or("it is empty")?;
    let state = state_after(&stored.loaded).map_err(|e| e.to_string())?;
    let table: Vec<_> = match state {
        Some(state) => state.members.values().cloned().collect(),
        None => stored.origin.members,
    };
    // Left behind by a forced recovery here; if this Server is discarded, they are whom it returns to.
    let former = stored.origin.former;
    let others = table.into_iter().chain(former).filter(|member| member.id != me);
    Ok(others.flat_map(|member| member.addresses).collect())
}

/// A name beside the store that is not taken.
fn free_name(dir: &DataDir) -> String {
    let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_now().secs());
    let now = humantime::format_rfc3339_seconds(now).to_string().replace(':', "");
    let mut name = format!("{STORE}.discarded-{now}");
    while dir.view().join(&name).exists() {
        name.push('+');
    }
    name
}

fn move_store(dir: &DataDir, name: &str) -> Result<(), Exit> {
    let (from, to) = (dir.view().join(STORE), dir.view().join(name));
    if !from.exists() {
        return Ok(());
    }
    let moved = fs::rename(&from, &to).and_then(|()| File::open(dir.path())?.sync_all());
    moved.map_err(|e| Exit::failed(format!("cannot move {} to {}: {e}", from.display(), to.display())))
}
