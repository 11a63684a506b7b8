//! HTTP/2 frames as no client library would send them (RFC 9113, RFC 7541).

/// The client's preface and empty SETTINGS.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const CONTINUATION: u8 = 9;
/// Flag: no CONTINUATION follows.
pub(super) const END_HEADERS: u8 = 4;

/// One frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames are small").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The header block of a gRPC call without credentials, or with these.
pub(super) fn call(path: &str, bearer: Option<&str>) -> Vec<u8> {
    // Indexed: POST, https. Then names of the static table, or spelled, with values that are not remembered.
    let mut block = vec![0x83, 0x87];
    block.extend(literal(&[0x04], path));
    block.extend(literal(&[0x01], "localhost"));
    block.extend(literal(&[0x0f, 0x10], "application/grpc"));
    block.extend(literal(b"\0\x02te", "trailers"));
    if let Some(bearer) = bearer {
        block.extend(literal(&[0x0f, 0x08], &format!("Bearer {bearer}")));
    }
    block
}

/// A header of 4 KiB under a name that nobody knows.
pub(super) fn large_header(number: usize) -> Vec<u8> {
    let name = format!("x-{number:06}");
    let mut header = vec![0, u8::try_from(name.len()).expect("short")];
    header.extend(name.as_bytes());
    header.extend(string(&"v".repeat(4_096)));
    header
}

fn literal(name: &[u8], value: &str) -> Vec<u8> {
    [name, &string(value)].concat()
}

/// A string as it is, its length with a prefix of seven bits.
fn string(value: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match u8::try_from(value.len()) {
        Ok(length) if length < 0x7f => bytes.push(length),
        _ => {
            bytes.push(0x7f);
            let mut rest = value.len() - 0x7f;
            while rest >= 0x80 {
                bytes.push((rest % 0x80) as u8 | 0x80);
                rest /= 0x80;
            }
            bytes.push(rest as u8);
        }
    }
    bytes.extend(value.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_have_lengths_of_any_size() {
        assert_eq!(string("ab"), b"\x02ab");
        // RFC 7541, C.1.2: 1337 with a prefix of five bits is 31, 154, 10; here 1433 = 127 + 1306.
        let long = string(&"v".repeat(1_433));
        assert_eq!(long[..3], [0x7f, 0x9a, 0x0a]);
        assert_eq!(long.len(), 3 + 1_433);
        assert_eq!(frame(PING, 0, 0, &[7; 8])[..9], [0, 0, 8, 6, 0, 0, 0, 0, 0]);
    }
}
