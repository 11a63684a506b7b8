//! What comes on a tunnel, to its owner and to its ingress: the same forwards and the same end, in whatever pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2p_peer::fuzzing::{Told, ingress_of, owner_of};

fuzz_target!(|data: &[u8]| {
    let Some((&[choice, step], wire)) = data.split_first_chunk() else { return };
    let read: fn(&[u8], usize) -> Told = if choice % 2 == 0 { owner_of } else { ingress_of };
    let whole = read(wire, wire.len().max(1));
    assert_eq!(whole, read(wire, usize::from(step) + 1), "in pieces of {}", usize::from(step) + 1);
    let carried: usize = whole.forwards.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(carried <= wire.len());
});
