//! Frames of a mesh link: wherever the bytes are cut, the same messages; and each is written and read the same.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use p2p_common::wire::link::LinkMessage;
use p2p_proto::convert::{decode_link, encode_link};

/// All messages, and whether the bytes were refused in the end. The pieces are of `step` bytes.
fn read(data: &[u8], step: usize) -> (Vec<LinkMessage>, bool) {
    let mut buffer = BytesMut::new();
    let mut messages = Vec::new();
    for piece in data.chunks(step.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            match decode_link(&mut buffer) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return (messages, true),
            }
        }
    }
    (messages, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((step, data)) = data.split_first() else { return };
    let whole = read(data, data.len());
    assert_eq!(whole, read(data, usize::from(*step)), "in pieces of {step}");
    for message in whole.0 {
        let mut again = BytesMut::new();
        // What was left out on the wire is written out; a frame that was full may not fit any more.
        if encode_link(&message, &mut again).is_err() {
            continue;
        }
        assert_eq!(decode_link(&mut again).as_ref(), Ok(&Some(message)));
        assert!(again.is_empty());
    }
});
