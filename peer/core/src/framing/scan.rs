//! [`HeadScan`]: where a head ends, without looking at a byte twice.

use super::{FramingError, FramingLimits};

/// Looks for the empty line that ends a head, over bytes that grow at their end.
///
/// Each line must end in CR LF, and neither may stand alone: httparse takes a bare LF for a line end, and
/// readers that differ on that see different heads.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct HeadScan {
    /// Bytes already looked at.
    looked: usize,
    /// Where the line in progress starts.
    line: usize,
    /// Ended lines that are not empty.
    lines: usize,
}

impl HeadScan {
    /// The length of the head at the front of `bytes`, its empty line included; `None` if more is needed.
    ///
    /// `empty_before` empty lines may come ahead and count as part of the head.
    pub(super) fn end(
        &mut self,
        bytes: &[u8],
        empty_before: usize,
        limits: &FramingLimits,
    ) -> Result<Option<usize>, FramingError> {
        if bytes.len() < self.looked {
            // Not the bytes seen before.
            *self = HeadScan::default();
        }
        let HeadScan { looked, mut line, mut lines } = *self;
        let max_headers = limits.max_headers.min(FramingLimits::HEADERS_MAX);
        let window = &bytes[..bytes.len().min(limits.max_head_bytes)];
        let mut after_cr = looked > 0 && window[looked - 1] == b'\r';
        for (at, byte) in window.iter().enumerate().skip(looked) {
            if *byte == b'\n' {
                if !after_cr {
                    return Err(FramingError::BareLineEnd);
                }
                let empty = at == line + 1;
                if empty && lines > 0 {
                    *self = HeadScan::default();
                    return Ok(Some(at + 1));
                }
                line = at + 1;
                lines += usize::from(!empty);
                if empty && line > 2 * empty_before {
                    return Err(FramingError::Malformed("an empty line where a head should start"));
                }
                if lines > max_headers + 1 {
                    return Err(FramingError::TooManyHeaders { max: max_headers });
                }
            } else if after_cr {
                return Err(FramingError::BareLineEnd);
            }
            after_cr = *byte == b'\r';
        }
        if window.len() == limits.max_head_bytes {
            return Err(FramingError::HeadTooLarge { max_bytes: limits.max_head_bytes });
        }
        *self = HeadScan { looked: window.len(), line, lines };
        Ok(None)
    }
}
