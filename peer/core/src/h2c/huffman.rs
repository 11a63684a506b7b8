//! The Huffman code of HPACK (RFC 7541 appendix B).
//!
//! The code is canonical: codes of one length follow each other in the order of their symbols, and shorter ones
//! come first. So the lengths say it all.

/// Bits of the code of each byte, and of the end of a string.
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, // 0x00
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, // 0x10
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, // 0x20
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, // 0x30
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, // 0x40
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, // 0x50
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, // 0x60
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, // 0x70
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, // 0x80
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, // 0x90
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, // 0xa0
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, // 0xb0
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, // 0xc0
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, // 0xd0
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, // 0xe0
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, // 0xf0
    30, // end
];
const SYMBOLS: usize = 257;
const END: u16 = 256;
const LONGEST: usize = 30;

/// The codes of one length.
#[derive(Clone, Copy)]
struct Codes {
    /// The first of them.
    first: u32,
    count: u32,
    /// Where the symbol of the first lies in [`Table::symbols`].
    offset: u32,
}

struct Table {
    by_length: [Codes; LONGEST + 1],
    /// Sorted by length, then by value.
    symbols: [u16; SYMBOLS],
}

static TABLE: Table = build();

const fn build() -> Table {
    let mut table =
        Table { by_length: [Codes { first: 0, count: 0, offset: 0 }; LONGEST + 1], symbols: [0; SYMBOLS] };
    let (mut length, mut first, mut offset) = (1, 0u32, 0);
    while length <= LONGEST {
        let (mut symbol, mut count) = (0, 0);
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                table.symbols[offset + count] = symbol as u16;
                count += 1;
            }
            symbol += 1;
        }
        table.by_length[length] = Codes { first, count: count as u32, offset: offset as u32 };
        offset += count;
        first = (first + count as u32) << 1;
        length += 1;
    }
    table
}

/// Decodes a string; `None` when it is none (RFC 7541 section 5.2). It is at most 1.6 times as long as `bytes`.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut length) = (0u32, 0);
    for byte in bytes {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            length += 1;
            let codes = TABLE.by_length.get(length)?;
            // A code of this length, unless a longer one begins so.
            if let Some(index) = code.checked_sub(codes.first).filter(|index| *index < codes.count) {
                let symbol = TABLE.symbols[(codes.offset + index) as usize];
                if symbol == END {
                    return None;
                }
                text.push(symbol as u8);
                (code, length) = (0, 0);
            }
        }
    }
    // The last byte is filled up with the beginning of the end's code: ones.
    let padded = length < 8 && code == (1 << length) - 1;
    padded.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
    }

    /// The code of a symbol as text of ones and zeros.
    fn code(symbol: usize) -> String {
        let length = LENGTHS[symbol] as usize;
        let codes = TABLE.by_length[length];
        let at = TABLE.symbols.iter().position(|other| usize::from(*other) == symbol).unwrap() as u32;
        format!("{:0length$b}", codes.first + at - codes.offset)
    }

    #[test]
    fn the_examples_of_the_rfc() {
        for (hex, text) in [
            ("f1e3 c2e5 f23a 6ba0 ab90 f4ff", "www.example.com"),
            ("a8eb 1064 9cbf", "no-cache"),
            ("25a8 49e9 5ba9 7d7f", "custom-key"),
            ("25a8 49e9 5bb8 e8b4 bf", "custom-value"),
            ("6402", "302"),
            ("d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("9d29 ad17 1863 c78f 0b97 c8e9 ae82 ae43 d3", "https://www.example.com"),
            ("", ""),
        ] {
            assert_eq!(decode(&bytes(hex)).as_deref(), Some(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn every_byte_has_its_code_and_no_code_begins_another() {
        let codes: Vec<String> = (0..SYMBOLS).map(code).collect();
        assert_eq!(codes[usize::from(END)], "1".repeat(30));
        assert_eq!(
            (&*codes[0], &*codes[b'0' as usize], &*codes[b'~' as usize]),
            ("1111111111000", "00000", "1111111111101")
        );
        for (symbol, code) in codes.iter().enumerate() {
            let begun = codes.iter().enumerate().filter(|(other, c)| *other != symbol && c.starts_with(code));
            assert_eq!(begun.count(), 0, "{symbol}");
            if symbol == usize::from(END) {
                continue;
            }
            let filled = format!("{code}{}", "1".repeat(code.len().next_multiple_of(8) - code.len()));
            let encoded: Vec<u8> = filled
                .as_bytes()
                .chunks(8)
                .map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0')))
                .collect();
            assert_eq!(decode(&encoded), Some(vec![symbol as u8]));
        }
    }

    #[test]
    fn bad_padding_and_the_end_are_refused() {
        // '0' is 00000.
        assert_eq!(decode(&[0b0000_0111]), Some(vec![b'0']));
        for bad in
            [&[0b0000_0110][..], &[0b0000_0000], &[0b0000_0111, 0xff], &[0xff], &[0xff; 4], &[0xff; 100]]
        {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}
