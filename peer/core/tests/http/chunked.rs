//! The chunked coding, scanned in pieces, against a reader that has the whole buffer.

use p2p_peer_core::{FramingError, FramingLimits};
use proptest::prelude::*;

use crate::driver::{Outcome, requests};

const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Padding and extensions.
const BEHIND_SIZE: &str = "[ \t]{0,2}(;[a-z]{1,5}(=\"[a-z; \t]{0,5}\")?){0,2}";

/// What the reference makes of the bytes behind a head.
#[derive(Debug, PartialEq)]
enum Reference {
    /// The body has this many bytes.
    Ends(usize),
    Unfinished,
    Bad,
}

/// RFC 9112 section 7.1.3, line by line; sizes may be padded.
fn reference(bytes: &[u8]) -> Reference {
    let mut at = 0;
    let mut trailers = false;
    loop {
        let Some(length) = bytes[at..].windows(2).position(|pair| pair == b"\r\n") else {
            return Reference::Unfinished;
        };
        let line = &bytes[at..at + length];
        at += length + 2;
        if line.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return Reference::Bad;
        }
        if trailers {
            if line.is_empty() {
                return Reference::Ends(at);
            }
            let name: Vec<u8> = line.iter().copied().take_while(|byte| *byte != b':').collect();
            let tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
            if name.is_empty() || name.len() == line.len() || !name.iter().all(tchar) {
                return Reference::Bad;
            }
            continue;
        }
        let size = line.split(|byte| *byte == b';').next().unwrap();
        let size = String::from_utf8_lossy(size);
        let size = size.trim_end_matches([' ', '\t']);
        if size.is_empty() || size.len() > 16 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Reference::Bad;
        }
        match i64::from_str_radix(size, 16) {
            Ok(0) => trailers = true,
            Ok(size) => {
                let Some(end) = usize::try_from(size).ok().and_then(|size| at.checked_add(size)) else {
                    return Reference::Bad;
                };
                let Some(behind) = bytes.get(end..end + 2) else { return Reference::Unfinished };
                if behind != b"\r\n" {
                    return Reference::Bad;
                }
                at = end + 2;
            }
            Err(_) => return Reference::Bad,
        }
    }
}

/// Frames HEAD and `body` in pieces that end at `cuts`.
fn scan(body: &[u8], cuts: &[usize]) -> Outcome {
    let bytes = [HEAD, body].concat();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| HEAD.len() + cut % (body.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let limits = FramingLimits {
        max_chunk_extension_bytes: usize::MAX,
        max_trailer_bytes: usize::MAX,
        ..FramingLimits::default()
    };
    requests(cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]), limits)
}

fn agree(body: &[u8], cuts: &[usize]) -> Result<(), TestCaseError> {
    let outcome = scan(body, cuts);
    match reference(body) {
        Reference::Ends(length) => {
            prop_assert_eq!(outcome.messages.first().map(|m| m.len() - HEAD.len()), Some(length));
        }
        Reference::Unfinished => prop_assert!(outcome.messages.is_empty()),
        Reference::Bad => {
            prop_assert!(outcome.messages.is_empty());
            prop_assert!(matches!(outcome.error, Some(FramingError::Chunk(_))), "{:?}", outcome);
        }
    }
    Ok(())
}

prop_compose! {
    fn valid_body()(
        chunks in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 1..40), any::<bool>(), 0usize..4, BEHIND_SIZE),
            0..6,
        ),
        zeros in "0{1,3}",
        trailers in prop::collection::vec("[A-Za-z-]{1,8}:[ -~]{0,10}", 0..3),
    ) -> Vec<u8> {
        let mut body = Vec::new();
        for (data, upper, zeros, behind) in chunks {
            let size = if upper { format!("{:X}", data.len()) } else { format!("{:x}", data.len()) };
            body.extend_from_slice(format!("{}{size}{behind}\r\n", "0".repeat(zeros)).as_bytes());
            body.extend_from_slice(&data);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("{zeros}\r\n").as_bytes());
        for trailer in trailers {
            body.extend_from_slice(format!("{trailer}\r\n").as_bytes());
        }
        body.extend_from_slice(b"\r\n");
        body
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn valid_bodies_end_where_they_end(
        body in valid_body(),
        behind in prop::collection::vec(any::<u8>(), 0..20),
        cuts in prop::collection::vec(any::<usize>(), 0..8),
    ) {
        prop_assert_eq!(reference(&body), Reference::Ends(body.len()));
        let bytes = [&body[..], &behind].concat();
        let outcome = scan(&bytes, &cuts);
        prop_assert_eq!(outcome.messages.first().map(Vec::len), Some(HEAD.len() + body.len()));
        agree(&bytes, &cuts)?;
    }

    #[test]
    fn damaged_bodies_get_the_answer_of_the_reference(
        body in valid_body(),
        damage in prop::collection::vec((any::<usize>(), prop::option::of(any::<u8>())), 1..4),
        cuts in prop::collection::vec(any::<usize>(), 0..8),
    ) {
        let mut body = body;
        for (at, byte) in damage {
            let at = at % body.len().max(1);
            match byte {
                Some(byte) => body[at] = byte,
                None if body.len() > 1 => { body.remove(at); }
                None => {}
            }
        }
        agree(&body, &cuts)?;
    }

    #[test]
    fn nonsense_gets_the_answer_of_the_reference(
        body in "[0-3aF;:x \t\r\n]{0,40}",
        cuts in prop::collection::vec(any::<usize>(), 0..8),
    ) {
        agree(body.as_bytes(), &cuts)?;
    }

    #[test]
    fn near_sense_gets_the_answer_of_the_reference(
        lines in prop::collection::vec("([0-2]|00|;x|A:b|x|xx||\r|\n)", 0..10),
        cuts in prop::collection::vec(any::<usize>(), 0..8),
    ) {
        agree(lines.join("\r\n").as_bytes(), &cuts)?;
    }
}
