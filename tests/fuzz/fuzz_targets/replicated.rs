//! What Servers hand each other and restore: commands, outcomes, snapshots, backups. What is read is written and read
//! again the same, and commands leave a state that is too.
#![no_main]

#[allow(dead_code)]
mod steps;

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use p2p_common::cluster_state::ClusterState;
use p2p_common::{ClusterId, Epoch};
use p2p_proto::{convert, v1};
use p2p_server::recovery::backup::Backup;
use p2p_server::transport::Assembly;
use p2p_server_raft::Fsm;
use prost::Message;
use steps::steps;
use uuid::Uuid;

fn same_again(state: &ClusterState) {
    let again = convert::decode_state(&convert::encode_state(state)).expect("we wrote it");
    assert!(again == *state, "a state changes by being written and read");
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 5 {
        0 | 1 => {
            let state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(1), vec![vec![1]]);
            let mut fsm = Fsm::new(state);
            for (_, bytes) in steps(data) {
                let Ok(command) = convert::decode_command(bytes) else { continue };
                assert_eq!(convert::decode_command(&convert::encode_command(&command)), Ok(command.clone()));
                let before = Arc::clone(fsm.state());
                let outcome = fsm.apply(&command);
                assert_eq!(convert::decode_outcome(&convert::encode_outcome(&outcome)), Ok(outcome.clone()));
                assert_eq!(fsm.apply(&command), outcome, "a command applies once");
                assert!(fsm.state().members_version >= before.members_version);
            }
            same_again(fsm.state());
        }
        2 => {
            if let Ok(outcome) = convert::decode_outcome(data) {
                assert_eq!(convert::decode_outcome(&convert::encode_outcome(&outcome)), Ok(outcome));
            }
        }
        3 => {
            let Ok(state) = convert::decode_state(data) else { return };
            same_again(&state);
            let _ = Fsm::new(state);
        }
        _ => {
            let _ = Backup::decode(data);
            let mut snapshot = Assembly::default();
            for (_, bytes) in steps(data) {
                let Ok(chunk) = v1::RaftSnapshotChunk::decode(bytes) else { continue };
                if snapshot.add(&chunk).is_err() {
                    break;
                }
            }
            let _ = snapshot.finish();
        }
    }
});
