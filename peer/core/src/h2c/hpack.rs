//! The first header block of a connection, decoded (HPACK, RFC 7541).
//!
//! The first block alone: the dynamic table is empty before it and forgotten after it. It is decoded whole,
//! because a field may refer to an earlier one of the block, and because two readers who stop at different places
//! read different requests. No crate is used (docs/decisions/0005-hpack.md).

use std::borrow::Cow;
use std::collections::VecDeque;

use super::huffman;

/// What a client may make a server keep, as nobody told it otherwise (RFC 9113 section 6.5.2).
const TABLE_MAX_BYTES: usize = 4_096;
/// What an entry costs besides its text (RFC 7541 section 4.1).
const ENTRY_BYTES: usize = 32;

/// The fields that everybody knows (RFC 7541 appendix A); the first has index 1.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// A rule of the compression that does not hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HpackError(pub(super) &'static str);

const SHORT: HpackError = HpackError("the header block ends inside a field");

/// Reads the fields of `block` and shows each, name and value, to `field`.
pub(super) fn decode(block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), HpackError> {
    let mut reader = Reader(block);
    let mut table = Dynamic { entries: VecDeque::new(), bytes: 0, max_bytes: TABLE_MAX_BYTES };
    let mut begun = false;
    while let Some(first) = reader.0.first().copied() {
        // The high bits say what it is (RFC 7541 section 6).
        if first & 0x80 != 0 {
            let (name, value) = table.get(reader.integer(7)?)?;
            field(name, value);
        } else if first & 0xe0 == 0x20 {
            let max_bytes = reader.integer(5)?;
            if begun {
                return Err(HpackError("the size of the table changes inside a header block"));
            }
            table.resize(max_bytes)?;
            continue;
        } else {
            let kept = first & 0x40 != 0;
            let name = match reader.integer(if kept { 6 } else { 4 })? {
                0 => reader.string()?,
                index => Cow::Owned(table.get(index)?.0.to_vec()),
            };
            let value = reader.string()?;
            field(&name, &value);
            if kept {
                table.insert(name.into_owned(), value.into_owned());
            }
        }
        begun = true;
    }
    Ok(())
}

/// The dynamic table, the newest entry first.
struct Dynamic {
    entries: VecDeque<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
    max_bytes: usize,
}

impl Dynamic {
    /// The field of an index, of this table or the static one.
    fn get(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        let index = index.checked_sub(1).ok_or(HpackError("a field has index 0"))?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(index - STATIC.len());
        entry
            .map(|(name, value)| (&name[..], &value[..]))
            .ok_or(HpackError("a field has an index beyond the table"))
    }

    /// An entry that does not fit empties the table and is not kept (RFC 7541 section 4.4).
    fn insert(&mut self, name: Vec<u8>, value: Vec<u8>) {
        let bytes = size(&(&*name, &*value));
        self.shrink(self.max_bytes.saturating_sub(bytes));
        if bytes <= self.max_bytes {
            self.bytes += bytes;
            self.entries.push_front((name, value));
        }
    }

    fn resize(&mut self, max_bytes: usize) -> Result<(), HpackError> {
        if max_bytes > TABLE_MAX_BYTES {
            return Err(HpackError("the table grows beyond what was allowed"));
        }
        self.max_bytes = max_bytes;
        self.shrink(max_bytes);
        Ok(())
    }

    fn shrink(&mut self, max_bytes: usize) {
        while self.bytes > max_bytes {
            let Some((name, value)) = self.entries.pop_back() else { break };
            self.bytes -= size(&(&*name, &*value));
        }
    }
}

fn size((name, value): &(&[u8], &[u8])) -> usize {
    name.len() + value.len() + ENTRY_BYTES
}

/// Takes integers and strings off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, HpackError> {
        let (byte, rest) = self.0.split_first().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*byte)
    }

    /// An integer whose first `bits` bits are the low ones of the next byte (RFC 7541 section 5.1).
    fn integer(&mut self, bits: u32) -> Result<usize, HpackError> {
        const LARGE: HpackError = HpackError("a number is larger than any in a header block");
        let most = (1 << bits) - 1;
        let mut value = usize::from(self.byte()?) & most;
        if value < most {
            return Ok(value);
        }
        // Three bytes say 2 million, which is beyond every bound here.
        for shift in [0, 7, 14] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(LARGE)
    }

    /// A string, decoded if need be (RFC 7541 section 5.2).
    fn string(&mut self) -> Result<Cow<'a, [u8]>, HpackError> {
        let coded = self.0.first().ok_or(SHORT)? & 0x80 != 0;
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        if coded {
            huffman::decode(text).map(Cow::Owned).ok_or(HpackError("a string is not Huffman-coded"))
        } else {
            Ok(Cow::Borrowed(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(hex: &str) -> Result<Vec<(String, String)>, HpackError> {
        let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
        let block: Vec<u8> = digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut fields = Vec::new();
        decode(&block, |name, value| fields.push((text(name), text(value))))?;
        Ok(fields)
    }

    fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_first_blocks_of_the_rfc() {
        // Appendix C.2.1 to C.2.4, C.3.1, C.4.1.
        for (hex, expected) in [
            (
                "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
                &[("custom-key", "custom-header")][..],
            ),
            ("040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")]),
            ("1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")]),
            ("82", &[(":method", "GET")]),
            (
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
            ),
            (
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
            ),
        ] {
            assert_eq!(fields(hex), Ok(owned(expected)), "{hex}");
        }
    }

    #[test]
    fn later_fields_refer_to_earlier_ones() {
        // a: b is kept (62), c: d is kept (62, a: b is 63 then), both are used, one by name alone.
        let hex = "4001 6101 62 4001 6301 64 be bf 0f30 0178";
        assert_eq!(fields(hex), Ok(owned(&[("a", "b"), ("c", "d"), ("c", "d"), ("a", "b"), ("a", "x")])));
        // A table of 34 bytes keeps one of them, one of 0 keeps none.
        assert_eq!(
            fields("3f03 4001 6101 62 4001 6301 64 bf"),
            Err(HpackError("a field has an index beyond the table"))
        );
        assert_eq!(fields("3f03 4001 6101 62 4001 6301 64 be").unwrap().len(), 3);
        assert!(fields("20 4001 6101 62 be").is_err());
        assert_eq!(fields("20 3fe1 1f 82"), Ok(owned(&[(":method", "GET")])));
    }

    #[test]
    fn what_is_broken_is_told() {
        for (why, hex) in [
            ("ends inside", "41"),
            ("ends inside", "4105 6162"),
            ("ends inside", "ff"),
            ("ends inside", "00"),
            ("index 0", "80"),
            ("beyond the table", "be"),
            ("beyond the table", "7f00 0161"),
            ("larger than any", "ff80 8080 00"),
            ("larger than any", "00ff ffff ffff 0f"),
            ("grows beyond", "3fe2 1f"),
            ("inside a header block", "82 20"),
            ("not Huffman-coded", "4182 ffff"),
        ] {
            let HpackError(said) = fields(hex).unwrap_err();
            assert!(said.contains(why), "{hex}: {said}");
        }
    }
}
