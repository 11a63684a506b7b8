//! Requests end where they end, in whatever pieces they arrive.
#![no_main]

#[allow(dead_code)]
#[path = "../../../peer/core/tests/http/driver.rs"]
mod driver;
#[allow(dead_code)]
mod input;

use driver::requests;
use input::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::read(data) else { return };
    let whole = requests([input.bytes], input.limits);

    // Nothing is lost and nothing invented.
    let seen = [whole.messages.concat(), whole.part.clone(), whole.unread.clone()].concat();
    assert_eq!(seen, input.bytes);

    // What left as one request is one request to whoever reads it alone.
    for (message, head) in whole.messages.iter().zip(&whole.heads) {
        let alone = requests([&message[..]], input.limits);
        assert_eq!((alone.messages.len(), alone.error), (1, None));
        assert_eq!(&alone.heads[0], head);
        let lines = &message[..head.head_bytes];
        assert!(lines.split(|byte| *byte == b'\n').rev().skip(1).all(|line| line.ends_with(b"\r")));
    }

    let whole = whole.settled();
    assert_eq!(requests(input.pieces(), input.limits).settled(), whole);
    assert_eq!(requests(input.bytes.chunks(1), input.limits).settled(), whole);
});
