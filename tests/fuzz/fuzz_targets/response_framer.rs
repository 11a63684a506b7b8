//! Responses end where they end, in whatever pieces they arrive.
#![no_main]

#[path = "../../../peer/core/tests/http/driver.rs"]
mod driver;
mod input;

use driver::{head, response};
use input::Input;
use libfuzzer_sys::fuzz_target;

const REQUESTS: [&[u8]; 4] = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
];

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::read(data) else { return };
    let request = head(REQUESTS[usize::from(input.choice % 4)]);
    let eof = input.choice & 4 != 0;
    let (whole, framer) = response(&request, [input.bytes], eof, input.limits);

    let seen = [whole.messages.concat(), whole.part.clone(), whole.unread.clone()].concat();
    assert_eq!(seen, input.bytes);
    assert_eq!(framer.is_done(), whole.messages.len() == 1);

    // What was taken is a response by itself, and all of it.
    if let Some(message) = whole.messages.first() {
        let (alone, _) = response(&request, [&message[..]], eof, input.limits);
        assert_eq!((alone.messages.len(), alone.unread.len(), alone.error), (1, 0, None));
    }

    let whole = whole.settled();
    let (pieces, other) = response(&request, input.pieces(), eof, input.limits);
    assert_eq!(pieces.settled(), whole);
    assert_eq!(other.status(), framer.status());
    assert_eq!(response(&request, input.bytes.chunks(1), eof, input.limits).0.settled(), whole);
});
