//! The messages of a SOCKS5 client give one answer each, which more bytes do not change.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use p2p_peer_core::{SocksError, SocksMessage, socks_greeting, socks_request};

type Read<T> = fn(&[u8]) -> Result<Option<SocksMessage<T>>, SocksError>;

/// Asks with every prefix; says what is left behind a message.
fn grow<T: Debug + PartialEq>(bytes: &[u8], read: Read<T>) -> Option<&[u8]> {
    let mut decided = None;
    for end in 0..=bytes.len() {
        let answer = read(&bytes[..end]).transpose();
        match &decided {
            Some(before) => assert_eq!(answer.as_ref(), Some(before)),
            None => {
                if let Some(Ok(message)) = &answer {
                    assert_eq!(message.bytes, end, "told as soon as it is whole");
                }
                decided = answer;
            }
        }
    }
    assert!(decided.is_some() || bytes.len() < 512, "asks for more for ever");
    decided?.ok().map(|message| &bytes[message.bytes..])
}

fuzz_target!(|data: &[u8]| {
    if let Some(rest) = grow(data, socks_greeting) {
        grow(rest, socks_request);
    }
    grow(data, socks_request);
});
