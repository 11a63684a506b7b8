//! A PROXY header gives one answer, which more bytes do not change; and whoever is not believed is not served.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2p_peer_core::{SniffLimits, Sniffed, Unrecognised, proxy_header, sniff};

fuzz_target!(|data: &[u8]| {
    let mut decided = None;
    for end in 0..=data.len() {
        let answer = proxy_header(&data[..end]).transpose();
        match &decided {
            Some(before) => assert_eq!(answer.as_ref(), Some(before)),
            None => decided = answer,
        }
    }
    assert!(decided.is_some() || data.len() < 4_096, "asks for more for ever");
    if let Some(Ok(header)) = decided {
        assert!(header.bytes <= data.len());
        let sniffed = sniff(data, &SniffLimits::default());
        assert_eq!(sniffed, Sniffed::Unknown(Unrecognised::ProxyHeader));
    }
});
