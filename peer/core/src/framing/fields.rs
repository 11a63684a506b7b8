//! [`Fields`]: what the fields of a head say about framing, persistence and the host.

use super::FramingError;

/// The fields that matter here, of one head.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    pub(super) hosts: usize,
    /// The first of them.
    pub(super) host: &'a [u8],
    /// The length all Content-Length values agree on.
    pub(super) length: Option<u64>,
    /// How many values that are.
    pub(super) lengths: usize,
    pub(super) coding: Coding,
    /// How many Transfer-Encoding lines there are.
    pub(super) coding_lines: usize,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    pub(super) expect_continue: bool,
}

/// What all Transfer-Encoding values together, in their order, mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Coding {
    /// There are none.
    #[default]
    None,
    /// `chunked` and nothing else.
    Chunked,
    /// Others, and `chunked` on top of them.
    OthersThenChunked,
    /// Others, and no `chunked`.
    Others,
    /// `chunked` twice, or below another.
    Misplaced,
}

impl Coding {
    fn then(self, coding: &[u8]) -> Coding {
        let chunked = coding.eq_ignore_ascii_case(b"chunked");
        match (self, chunked) {
            (Coding::None, true) => Coding::Chunked,
            (Coding::None | Coding::Others, false) => Coding::Others,
            (Coding::Others, true) => Coding::OthersThenChunked,
            (Coding::Chunked | Coding::OthersThenChunked | Coding::Misplaced, _) => Coding::Misplaced,
        }
    }
}

impl<'a> Fields<'a> {
    pub(super) fn collect(headers: &[httparse::Header<'a>]) -> Result<Self, FramingError> {
        let mut fields = Fields::default();
        for header in headers {
            let value = header.value;
            // By length first: most fields are none of these.
            match header.name.len() {
                4 if is(header, "Host") => {
                    if fields.hosts == 0 {
                        fields.host = value;
                    }
                    fields.hosts += 1;
                }
                6 if is(header, "Expect") => {
                    fields.expect_continue |= value.eq_ignore_ascii_case(b"100-continue")
                }
                7 if is(header, "Upgrade") => fields.upgrade = true,
                10 if is(header, "Connection") => {
                    for option in list(value) {
                        fields.close |= option.eq_ignore_ascii_case(b"close");
                        fields.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                14 if is(header, "Content-Length") => {
                    for text in list(value) {
                        let length = parse_length(text).ok_or(FramingError::ContentLength)?;
                        if fields.length.replace(length).is_some_and(|before| before != length) {
                            return Err(FramingError::SeveralContentLengths);
                        }
                        fields.lengths += 1;
                    }
                }
                17 if is(header, "Transfer-Encoding") => {
                    for coding in list(value) {
                        if coding.is_empty() {
                            return Err(FramingError::TransferEncoding);
                        }
                        fields.coding = fields.coding.then(coding);
                    }
                    fields.coding_lines += 1;
                }
                _ => {}
            }
        }
        Ok(fields)
    }
}

fn is(header: &httparse::Header<'_>, name: &str) -> bool {
    header.name.eq_ignore_ascii_case(name)
}

/// The members of a comma-separated list, without the blanks around them; empty ones too.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(|member| {
        let start = member.iter().position(|byte| !is_blank(*byte)).unwrap_or(member.len());
        let end = member.iter().rposition(|byte| !is_blank(*byte)).map_or(start, |last| last + 1);
        &member[start..end]
    })
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Digits alone, at most `i64::MAX`: some readers count in signed numbers.
fn parse_length(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter()
        .try_fold(0u64, |length, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
            length.checked_mul(10)?.checked_add(digit)
        })
        .filter(|length| *length <= i64::MAX as u64)
}

/// What httparse does not take for a head.
pub(super) fn malformed(error: httparse::Error) -> FramingError {
    FramingError::Malformed(match error {
        httparse::Error::HeaderName => "a field name has a character that it must not have",
        httparse::Error::HeaderValue => "a field value has a character that it must not have",
        httparse::Error::NewLine => "a line does not end where it should",
        httparse::Error::Status => "the status is not three digits and a reason",
        httparse::Error::Token => "the method or the target has a character that it must not have",
        httparse::Error::TooManyHeaders => "it has too many fields",
        httparse::Error::Version => "the version is not HTTP/1.0 or HTTP/1.1",
    })
}
