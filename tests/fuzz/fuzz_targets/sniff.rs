//! First bytes give one answer, which more bytes do not change.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2p_peer_core::{SniffLimits, Sniffed, sniff};

fuzz_target!(|data: &[u8]| {
    for limits in [SniffLimits::default(), SniffLimits { max_client_hello_bytes: 200, max_method_bytes: 5 }] {
        let whole = sniff(data, &limits);
        let mut decided = None;
        for end in 0..=data.len() {
            let answer = sniff(&data[..end], &limits);
            match &decided {
                Some(before) => assert_eq!(&answer, before),
                None if answer != Sniffed::Incomplete => decided = Some(answer),
                None => assert!(end < limits.max_client_hello_bytes, "asks for more for ever"),
            }
        }
        assert_eq!(decided.unwrap_or(Sniffed::Incomplete), whole);
        if let Sniffed::Tls(hello) = &whole {
            assert!(hello.alpn().all(|protocol| !protocol.is_empty()));
        }
    }
});
