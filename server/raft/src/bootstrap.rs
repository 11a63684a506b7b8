//! The first write of a cluster's founder (SPEC C2).
//!
//! The founder starts from a snapshot at index 1 that names it as the only voter, not from an empty log: an
//! entry cannot tell a joiner who voted before it, a snapshot does. A joiner starts from nothing and learns
//! everything from the leader.

use bytes::Bytes;
use p2p_common::member::RaftId;

use crate::log::HardState;
use crate::membership::Membership;
use crate::output::Persist;
use crate::snapshot::Snapshot;

/// What the founder of a cluster stores durably before its first start; then it loads it like at any start.
/// `state` is the encoded initial state machine.
pub fn founding_write(me: RaftId, state: Bytes) -> Persist {
    Persist {
        number: 0,
        snapshot: Some(Snapshot { index: 1, term: 1, membership: Membership::sole_voter(me), data: state }),
        entries: Vec::new(),
        hard_state: HardState { term: 1, vote: 0, commit: 1 },
    }
}
