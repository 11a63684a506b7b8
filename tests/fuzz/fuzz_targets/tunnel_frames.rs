//! Control frames of a tunnel: what is read is written and read again the same; lengths stay in their bounds.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use p2p_common::wire::tunnel::{CONTROL_MAX_BYTES, Control, FRAME_MAX_BYTES, LENGTH_BYTES, frame_length};

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Some((header, behind)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let Ok(length) = frame_length(*header) else { return };
        assert!(length <= FRAME_MAX_BYTES);
        let (frame, behind) = behind.split_at(length.min(behind.len()));
        rest = behind;
        let Ok(control) = Control::decode(frame) else { continue };
        assert!(frame.len() <= CONTROL_MAX_BYTES);
        let mut again = BytesMut::new();
        control.encode(&mut again);
        let (header, written) = again.split_first_chunk::<LENGTH_BYTES>().expect("a frame has a length");
        assert_eq!(frame_length(*header), Ok(written.len()));
        assert_eq!(Control::decode(written), Ok(control));
    }
});
