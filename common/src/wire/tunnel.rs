//! Frames of a tunnel between two Peers: one TLS connection that carries one forward at a time (SPEC F7).
//!
//! Every frame is a 4-byte big-endian length and that many bytes. Between forwards a frame is a control
//! frame: one byte of kind, then its fields. From FORWARD to the end of both directions the frames towards
//! the owner are client bytes; the owner sends RECEIVED and ACCEPT or REFUSE as control frames first, then
//! backend bytes. An empty frame ends a direction. When both directions have ended the tunnel may carry the
//! next forward; after any error it is dropped.
//!
//! ```text
//! ingress -> owner   HELLO
//! owner   -> ingress HELLO
//! ingress -> owner   FORWARD(proxy_id, service, hop) DATA* END
//! owner   -> ingress RECEIVED(proxy_id) ACCEPT(proxy_id) DATA* END      then the next FORWARD
//!                 or RECEIVED(proxy_id) REFUSE(proxy_id, code, text)     then END from the ingress
//! ```
//!
//! The ingress is the side that dialled, unless the dialler sends OFFER right after the HELLOs: then the dialler
//! is the owner, and the side that took the connection forwards to it. It may do so only if it was asked for
//! tunnels over a mesh link ([`super::link::LinkMessage::OpenTunnels`]).
//!
//! A HELLO that does not fit is answered by REFUSE with proxy_id 0, which no forward has, and the end of the
//! connection, so that the other side learns why. The ingress may send FORWARD and client bytes at one go: an
//! owner that refuses throws the bytes away up to END.
//!
//! The codec is pure: it encodes into and decodes from byte slices. Nothing here allocates per data frame.

use std::fmt;
use std::str;

use bytes::{BufMut, BytesMut};

use crate::error::ErrorCode;
use crate::id::{ClusterId, Epoch, Incarnation, NodeId};
use crate::service::ServiceName;
use crate::wire::Hello;

/// Bytes of the length in front of every frame.
pub const LENGTH_BYTES: usize = 4;
/// The largest frame; a longer one ends the tunnel. A read of 256 KiB fits into one frame.
pub const FRAME_MAX_BYTES: usize = 256 * 1024;
/// The largest control frame.
pub const CONTROL_MAX_BYTES: usize = 1024;
/// The longest text of a REFUSE; longer ones are cut.
pub const REFUSE_TEXT_MAX_BYTES: usize = 512;

/// Names a forward: 8 random hex digits, unique among forwards in flight (SPEC F7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProxyId(pub u32);

impl fmt::Display for ProxyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for ProxyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far a FORWARD has come: it is carried on once at most, so that it cannot go in circles (SPEC F3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hop {
    /// From the Peer whose client asks.
    First,
    /// Carried on by a Peer between.
    Carried,
}

/// A control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// First in both directions.
    Hello(Hello),
    /// The side that dialled serves this tunnel: the other side sends the FORWARDs. Right after the HELLOs or never.
    Offer,
    /// Asks the owner to open a service's backend. A name, never an address.
    Forward {
        /// Names the forward.
        proxy_id: ProxyId,
        /// Whose backend.
        service: ServiceName,
        /// How far it has come.
        hop: Hop,
    },
    /// The FORWARD has arrived; the backend is being opened.
    Received {
        /// Of which forward.
        proxy_id: ProxyId,
    },
    /// The backend is open; its bytes follow.
    Accept {
        /// Of which forward.
        proxy_id: ProxyId,
    },
    /// The forward will not happen; no byte reached a backend.
    Refuse {
        /// Of which forward.
        proxy_id: ProxyId,
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        text: String,
    },
}

/// Why bytes are not a control frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than its kind may be.
    #[error("a frame of {bytes} bytes is longer than the {max} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A field is cut short or has no meaning.
    #[error("a control frame's {field} is malformed")]
    Malformed {
        /// Which field.
        field: &'static str,
    },
}

const HELLO: u8 = 1;
const FORWARD: u8 = 2;
const RECEIVED: u8 = 3;
const ACCEPT: u8 = 4;
const REFUSE: u8 = 5;
const OFFER: u8 = 6;

/// The header of a data frame of `len` bytes, or with 0 of the end of a direction.
///
/// # Panics
/// When `len` is over [`FRAME_MAX_BYTES`]: callers cut their reads.
pub fn data_header(len: usize) -> [u8; LENGTH_BYTES] {
    assert!(len <= FRAME_MAX_BYTES, "callers cut data at FRAME_MAX_BYTES");
    (len as u32).to_be_bytes()
}

/// The length a frame header announces.
///
/// # Errors
/// When it is over [`FRAME_MAX_BYTES`].
pub fn frame_length(header: [u8; LENGTH_BYTES]) -> Result<usize, FrameError> {
    let bytes = u32::from_be_bytes(header) as usize;
    if bytes > FRAME_MAX_BYTES {
        return Err(FrameError::TooLong { bytes, max: FRAME_MAX_BYTES });
    }
    Ok(bytes)
}

impl Control {
    /// Appends the frame, length included.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(0);
        match self {
            Control::Hello(hello) => {
                out.put_u8(HELLO);
                out.put_u32(hello.versions.0);
                out.put_u32(hello.versions.1);
                put_text(out, &hello.cluster_id.map(|id| id.to_string()).unwrap_or_default());
                put_text(out, &hello.from.to_string());
                put_text(out, &hello.to.map(|id| id.to_string()).unwrap_or_default());
                out.put_u64(hello.epoch.0);
                out.put_u64(hello.features);
                put_text(out, &hello.incarnation.to_string());
            }
            Control::Offer => out.put_u8(OFFER),
            Control::Forward { proxy_id, service, hop } => {
                out.put_u8(FORWARD);
                out.put_u32(proxy_id.0);
                put_text(out, service.as_str());
                out.put_u8(u8::from(*hop == Hop::Carried));
            }
            Control::Received { proxy_id } => {
                out.put_u8(RECEIVED);
                out.put_u32(proxy_id.0);
            }
            Control::Accept { proxy_id } => {
                out.put_u8(ACCEPT);
                out.put_u32(proxy_id.0);
            }
            Control::Refuse { proxy_id, code, text } => {
                out.put_u8(REFUSE);
                out.put_u32(proxy_id.0);
                out.put_u32(code.number());
                put_text(out, cut(text, REFUSE_TEXT_MAX_BYTES));
            }
        }
        let length = (out.len() - start - LENGTH_BYTES) as u32;
        out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    }

    /// Decodes the bytes behind a frame's length. Bytes behind the known fields are skipped, so that a newer
    /// version may add some.
    ///
    /// # Errors
    /// When it is too long or not a control frame of this version.
    pub fn decode(frame: &[u8]) -> Result<Control, FrameError> {
        if frame.len() > CONTROL_MAX_BYTES {
            return Err(FrameError::TooLong { bytes: frame.len(), max: CONTROL_MAX_BYTES });
        }
        let mut fields = Fields(frame);
        match fields.u8("kind")? {
            HELLO => Ok(Control::Hello(Hello {
                versions: (fields.u32("version_min")?, fields.u32("version_max")?),
                cluster_id: match fields.text("cluster_id")? {
                    "" => None,
                    text => Some(parse::<ClusterId>(text, "cluster_id")?),
                },
                from: parse::<NodeId>(fields.text("from")?, "from")?,
                to: match fields.text("to")? {
                    "" => None,
                    text => Some(parse::<NodeId>(text, "to")?),
                },
                epoch: Epoch(fields.u64("epoch")?),
                // Matters of Servers among themselves.
                recovery_id: None,
                raft_id: 0,
                features: fields.u64("features")?,
                incarnation: parse::<Incarnation>(fields.text("incarnation")?, "incarnation")?,
            })),
            OFFER => Ok(Control::Offer),
            FORWARD => Ok(Control::Forward {
                proxy_id: ProxyId(fields.u32("proxy_id")?),
                service: parse::<ServiceName>(fields.text("service")?, "service")?,
                hop: match fields.u8("hop")? {
                    0 => Hop::First,
                    1 => Hop::Carried,
                    _ => return Err(FrameError::Malformed { field: "hop" }),
                },
            }),
            RECEIVED => Ok(Control::Received { proxy_id: ProxyId(fields.u32("proxy_id")?) }),
            ACCEPT => Ok(Control::Accept { proxy_id: ProxyId(fields.u32("proxy_id")?) }),
            REFUSE => Ok(Control::Refuse {
                proxy_id: ProxyId(fields.u32("proxy_id")?),
                code: ErrorCode::from_number(fields.u32("code")?),
                // It goes into logs and answers: whoever sends more than we would is cut as we are.
                text: cut(fields.text("text")?, REFUSE_TEXT_MAX_BYTES).to_owned(),
            }),
            _ => Err(FrameError::Malformed { field: "kind" }),
        }
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
}

fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let end = (0..=max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    &text[..end]
}

fn parse<T: str::FromStr>(text: &str, field: &'static str) -> Result<T, FrameError> {
    text.parse().map_err(|_| FrameError::Malformed { field })
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], FrameError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(FrameError::Malformed { field })?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FrameError> {
        self.take(N, field)?.try_into().map_err(|_| FrameError::Malformed { field })
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, FrameError> {
        Ok(self.array::<1>(field)?[0])
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, FrameError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, FrameError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, FrameError> {
        let len = u16::from_be_bytes(self.array(field)?);
        str::from_utf8(self.take(usize::from(len), field)?).map_err(|_| FrameError::Malformed { field })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeKind;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn samples() -> Vec<Control> {
        let proxy_id = ProxyId(0x3f9a_1c2b);
        let hello = Hello {
            versions: (1, 7),
            cluster_id: Some(ClusterId::new(Uuid::from_u128(1))),
            from: NodeId::new(NodeKind::Peer, Uuid::from_u128(2)),
            to: Some(NodeId::new(NodeKind::Peer, Uuid::from_u128(3))),
            epoch: Epoch(4),
            recovery_id: None,
            raft_id: 0,
            incarnation: Incarnation::new(Uuid::from_u128(5)),
            features: 6,
        };
        vec![
            Control::Hello(Hello { cluster_id: None, to: None, ..hello.clone() }),
            Control::Hello(hello),
            Control::Offer,
            Control::Forward { proxy_id, service: "web.example".parse().unwrap(), hop: Hop::First },
            Control::Forward { proxy_id, service: "web.example".parse().unwrap(), hop: Hop::Carried },
            Control::Received { proxy_id },
            Control::Accept { proxy_id },
            Control::Refuse { proxy_id, code: ErrorCode::ServiceUnknown, text: "no such service".into() },
        ]
    }

    fn encoded(control: &Control) -> BytesMut {
        let mut out = BytesMut::new();
        control.encode(&mut out);
        out
    }

    #[test]
    fn every_frame_comes_back_and_no_prefix_of_one_does() {
        for control in samples() {
            let bytes = encoded(&control);
            let length = frame_length(bytes[..LENGTH_BYTES].try_into().unwrap()).unwrap();
            let frame = &bytes[LENGTH_BYTES..];
            assert_eq!(length, frame.len());
            assert_eq!(Control::decode(frame), Ok(control));
            for cut in 0..frame.len() {
                assert!(Control::decode(&frame[..cut]).is_err(), "a prefix of {cut} bytes was taken");
            }
        }
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let text = "é".repeat(REFUSE_TEXT_MAX_BYTES);
        let refuse = Control::Refuse { proxy_id: ProxyId(1), code: ErrorCode::Internal, text };
        let Ok(Control::Refuse { text, .. }) = Control::decode(&encoded(&refuse)[LENGTH_BYTES..]) else {
            panic!("not a refuse");
        };
        assert_eq!(text.len(), REFUSE_TEXT_MAX_BYTES);
        // Also one that was sent whole.
        let mut frame = vec![REFUSE, 0, 0, 0, 1, 0, 0, 0, 1];
        let longer = "é".repeat(REFUSE_TEXT_MAX_BYTES / 2 + 1);
        frame.extend((longer.len() as u16).to_be_bytes());
        frame.extend(longer.as_bytes());
        assert!(frame.len() <= CONTROL_MAX_BYTES);
        assert_eq!(
            Control::decode(&frame),
            Ok(Control::Refuse { proxy_id: ProxyId(1), code: ErrorCode::Internal, text })
        );
    }

    #[test]
    fn lengths_are_bounded() {
        assert_eq!(frame_length(data_header(FRAME_MAX_BYTES)), Ok(FRAME_MAX_BYTES));
        assert!(frame_length((FRAME_MAX_BYTES as u32 + 1).to_be_bytes()).is_err());
        assert!(Control::decode(&[RECEIVED; CONTROL_MAX_BYTES + 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(control) = Control::decode(&bytes) {
                prop_assert_eq!(Control::decode(&encoded(&control)[LENGTH_BYTES..]), Ok(control));
            }
        }
    }
}
