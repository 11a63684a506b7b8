//! [`NodeConnections`]: the open connections of nodes on a port, so that those of one can be closed.
//!
//! A handshake says who somebody is at its time. What is learnt later, as that its key was revoked, closes by this.
//! Whoever does so publishes first that the node is unwelcome and closes then: a connection that comes in between is
//! open, and its calls are refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use p2p_common::NodeId;
use tokio_util::sync::CancellationToken;

use crate::identity::PeerIdentity;

/// The open connections of nodes on a port. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub struct NodeConnections {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    open: usize,
    next: u64,
    nodes: BTreeMap<NodeId, BTreeMap<u64, Open>>,
}

#[derive(Debug)]
struct Open {
    identity: PeerIdentity,
    close: CancellationToken,
}

/// A connection in the table, until dropped.
#[derive(Debug)]
pub(super) struct ListenGuard {
    connections: NodeConnections,
    node: NodeId,
    number: u64,
    close: CancellationToken,
}

impl NodeConnections {
    /// Closes the connections of all nodes that are `unwelcome`, and says how many they were. They are out of the
    /// table at once; what they carry fails at both ends.
    pub fn close_where(&self, mut unwelcome: impl FnMut(&PeerIdentity) -> bool) -> usize {
        let mut table = self.table();
        let before = table.open;
        table.nodes.retain(|_, connections| {
            connections.retain(|_, open| {
                let goes = unwelcome(&open.identity);
                if goes {
                    open.close.cancel();
                }
                !goes
            });
            !connections.is_empty()
        });
        table.open = table.nodes.values().map(BTreeMap::len).sum();
        before - table.open
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.table().open
    }

    /// Adds a connection; one more than `per_node` of one node closes its oldest. None when `all` are open.
    pub(super) fn enter(&self, identity: PeerIdentity, all: usize, per_node: usize) -> Option<ListenGuard> {
        let mut table = self.table();
        let node = identity.node_id;
        let held = table.nodes.get_mut(&node);
        if let Some(held) = held.filter(|held| held.len() >= per_node)
            && let Some((_, oldest)) = held.pop_first()
        {
            oldest.close.cancel();
            table.open -= 1;
        }
        if table.open >= all {
            return None;
        }
        let (number, close) = (table.next, CancellationToken::new());
        table.next += 1;
        table.open += 1;
        table.nodes.entry(node).or_default().insert(number, Open { identity, close: close.clone() });
        Some(ListenGuard { connections: self.clone(), node, number, close })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change is whole before anything can fail, but for a closure of the owner, which leaves connections in.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ListenGuard {
    /// Cancelled when the connection must end.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.close
    }
}

impl Drop for ListenGuard {
    fn drop(&mut self) {
        let mut table = self.connections.table();
        let Some(held) = table.nodes.get_mut(&self.node) else { return };
        let removed = held.remove(&self.number).is_some();
        let is_last = held.is_empty();
        if is_last {
            table.nodes.remove(&self.node);
        }
        table.open -= usize::from(removed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::{ClusterId, KeyHash, NodeKind};
    use uuid::Uuid;

    fn identity(n: u8, key: u8) -> PeerIdentity {
        PeerIdentity {
            node_id: NodeId::new(NodeKind::Peer, Uuid::from_u128(n.into())),
            cluster_id: ClusterId::new(Uuid::nil()),
            key_hash: KeyHash([key; 32]),
        }
    }

    #[test]
    fn closes_those_of_a_key_and_no_others() {
        let connections = NodeConnections::default();
        let enter = |n, key| connections.enter(identity(n, key), 10, 10).unwrap();
        let (old, new, other) = (enter(1, 1), enter(1, 2), enter(2, 3));
        assert_eq!(connections.close_where(|identity| identity.key_hash == KeyHash([1; 32])), 1);
        assert!(
            old.closed().is_cancelled() && !new.closed().is_cancelled() && !other.closed().is_cancelled()
        );
        assert_eq!(connections.open(), 2);
        drop(old);
        assert_eq!(connections.open(), 2);
        drop(new);
        assert_eq!(connections.close_where(|_| true), 1);
        assert!(other.closed().is_cancelled());
        drop(other);
        assert_eq!((connections.open(), connections.table().nodes.len()), (0, 0));
    }

    #[test]
    fn one_node_displaces_itself_and_all_are_bounded() {
        let connections = NodeConnections::default();
        let enter = |n| connections.enter(identity(n, n), 3, 2);
        let first = enter(1).unwrap();
        let held = [enter(1).unwrap(), enter(1).unwrap(), enter(2).unwrap()];
        assert!(first.closed().is_cancelled());
        assert!(held.iter().all(|guard| !guard.closed().is_cancelled()));
        assert!(enter(3).is_none());
        assert!(enter(1).is_some_and(|guard| !guard.closed().is_cancelled()), "takes its own place");
        assert_eq!(connections.open(), 2);
    }
}
