//! Records of a tunnel's TLS: whatever the other side seals or does not, in any pieces, gives the same bytes or the
//! same end; what is data comes through whole.
#![no_main]

#[allow(dead_code)]
mod steps;

use libfuzzer_sys::fuzz_target;
use p2p_runtime::tls::fuzzing::Sealer;
use steps::steps;

fuzz_target!(|data: &[u8]| {
    let Some((&step, data)) = data.split_first() else { return };
    let (mut sealer, mut wire) = (Sealer::new(), Vec::new());
    let mut expected = Vec::new();
    let mut plain = true;
    for (choice, bytes) in steps(data) {
        match choice {
            // Data, as it should be.
            0..96 => {
                sealer.seal(23, bytes, usize::from(choice % 4), &mut wire);
                if plain {
                    expected.extend_from_slice(bytes);
                }
            }
            // Anything, sealed right.
            96..192 => {
                let (content, bytes) =
                    bytes.split_first().map_or((0, bytes), |(content, rest)| (*content, rest));
                sealer.seal(content, bytes, usize::from(choice % 4), &mut wire);
                plain = false;
            }
            _ => {
                wire.extend_from_slice(bytes);
                plain = false;
            }
        }
        if wire.len() > 1 << 17 {
            break;
        }
    }
    let whole = p2p_runtime::tls::fuzzing::read(&wire, wire.len().max(1));
    let pieces = p2p_runtime::tls::fuzzing::read(&wire, usize::from(step) + 1);
    assert_eq!(whole.1, pieces.1, "in pieces of {}", usize::from(step) + 1);
    // What was read at one go with an error is not given out: there the shorter one begins the longer one.
    assert!(whole.0.starts_with(&pieces.0) || pieces.0.starts_with(&whole.0));
    if whole.1 {
        assert_eq!(whole.0, pieces.0);
    }
    if plain {
        assert!(!whole.1, "there was no close_notify");
        assert!(expected.starts_with(&pieces.0));
    }
});
