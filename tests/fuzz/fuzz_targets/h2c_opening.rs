//! The opening of an HTTP/2 connection gives one answer, which more bytes do not change.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2p_peer_core::{
    ErrorReply, H2cError, H2cLimits, H2cOpening, H2cReply, H2cRequest, Status, h2c_opening,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fuzz_target!(|data: &[u8]| {
    let bytes = [PREFACE, data].concat();
    for limits in [H2cLimits::default(), H2cLimits { max_header_block_bytes: 40, max_frames: 4 }] {
        let mut decided: Option<Result<H2cRequest, H2cError>> = None;
        let mut ack = None;
        for end in PREFACE.len()..=bytes.len() {
            let opening = h2c_opening(&bytes[..end], &limits);
            if let Ok(opening) = &opening {
                assert!(ack.is_none() || opening.ack == ack, "an acknowledgement moves");
                ack = opening.ack;
                if let Some(at) = ack {
                    // Zeros but for the type and the flag, which others may be set beside.
                    let frame = &bytes[at..at + H2cOpening::ACK_BYTES];
                    assert_eq!((&frame[..4], frame[4] & 1), (&[0, 0, 0, 4][..], 1));
                }
            }
            let answer = opening.map(|opening| opening.request).transpose();
            match &decided {
                Some(before) => assert_eq!(answer.as_ref(), Some(before)),
                None => decided = answer,
            }
        }
        let stream = match decided {
            Some(Ok(request)) => request.stream,
            Some(Err(H2cError::Request { stream, .. })) => stream,
            _ => continue,
        };
        assert!(stream.id % 2 == 1);
        let (status, proxy_id) = (Status::NotFound, p2p_common::wire::tunnel::ProxyId(1));
        let error = ErrorReply { status, proxy_id, why: &"x", keep_alive: false, to_head: false };
        assert!(!H2cReply { error, stream, has_settings: false }.to_bytes().is_empty());
    }
});
