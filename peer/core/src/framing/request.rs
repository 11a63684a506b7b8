//! Requests: their heads, one after the other, and where each ends.

use std::mem::MaybeUninit;

use super::body::{Body, ChunkScan};
use super::fields::{Coding, Fields};
use super::scan::HeadScan;
use super::{FramingError, FramingLimits, Step, Then};
use crate::sniff::{BadHost, Host};

/// Finds the next request head on a client's connection, before a byte of it is forwarded.
#[derive(Debug)]
pub struct RequestHeads {
    limits: FramingLimits,
    scan: HeadScan,
}

/// What a request head says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestHead {
    /// Its length, the empty line that ends it and one that may come before it included.
    pub head_bytes: usize,
    /// As the client spelled it; methods are case-sensitive.
    pub method: Box<str>,
    /// Which of the four forms the target has.
    pub target: TargetForm,
    /// Whom the request is for: what Host and the target, if that has an authority, both say.
    pub host: Host,
    /// What the client speaks.
    pub version: HttpVersion,
    /// Where its body ends.
    pub body: BodyLength,
    /// Whether the client wants to send another request on this connection.
    pub persistent: bool,
    /// Whether the client offers to speak another protocol (WebSocket, h2c). An HTTP/1.0 client cannot.
    pub upgrade: bool,
    /// Whether the client waits for 100 (Continue) before it sends the body. An HTTP/1.0 client does not.
    pub expect_continue: bool,
    /// Where the target starts and how long scheme and authority are, if they can go because Host says the same.
    removable: Option<(usize, usize)>,
}

/// The forms of a request target (RFC 9112 section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`.
    Origin,
    /// `http://host/path?query`, as to a proxy.
    Absolute,
    /// `host:port`, of CONNECT alone.
    Authority,
    /// `*`, of OPTIONS alone.
    Asterisk,
}

/// The versions that are framed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// Where a request's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// After this many bytes; 0 without a body.
    Bytes(u64),
    /// With its last chunk.
    Chunked,
}

impl RequestHeads {
    /// For a new client connection.
    pub fn new(limits: FramingLimits) -> Self {
        RequestHeads { limits, scan: HeadScan::default() }
    }

    /// The head at the front of `bytes`, or `None` if it is not whole yet: read more behind them and ask with
    /// all.
    ///
    /// Nothing is taken: [`RequestFramer`] takes the head with the body. `bytes` reaching
    /// [`FramingLimits::max_head_bytes`] never gives `None`.
    ///
    /// The host is decided as RFC 9112 section 3.2 and 3.3 say, stricter where two readers may differ:
    /// HTTP/1.1 needs exactly one Host even if the target has an authority, and a target's authority must
    /// name the same host (port, case and final dot aside). An origin server would let the target win; but
    /// whoever is behind us may not, so a disagreement is refused.
    ///
    /// # Errors
    ///
    /// What [`FramingError::status`] answers; the connection cannot be used again.
    pub fn next_head(&mut self, bytes: &[u8]) -> Result<Option<RequestHead>, FramingError> {
        match self.scan.end(bytes, 1, &self.limits)? {
            Some(end) => RequestHead::parse(&bytes[..end]).map(Some),
            None => Ok(None),
        }
    }
}

impl RequestHead {
    /// Whether no body follows.
    pub fn is_bodiless(&self) -> bool {
        self.body == BodyLength::Bytes(0)
    }

    /// Whether a tunnel to the host is asked for.
    pub fn is_connect(&self) -> bool {
        self.target == TargetForm::Authority
    }

    /// Whether the response has no body whatever its fields say.
    pub fn is_head(&self) -> bool {
        &*self.method == "HEAD"
    }

    /// Turns a target in absolute form, which is for proxies, into what the service it is for expects: origin
    /// form, or `*` (RFC 9112 section 3.2). `bytes` begins with the head and is rewritten in place, so that the
    /// head begins later by as many bytes as are returned; those are to be dropped.
    ///
    /// Nothing changes, and 0 is returned, for any other form, and for an HTTP/1.0 request whose host stands
    /// nowhere but in the target.
    pub fn to_origin_form(&mut self, bytes: &mut [u8]) -> usize {
        let Some((start, length)) = self.removable.take() else { return 0 };
        let bytes = &mut bytes[..self.head_bytes];
        let end = start + length;
        let (dropped, target) = match bytes.get(end) {
            Some(b'/') => (length, TargetForm::Origin),
            behind => {
                // There is no path: the last byte of the authority has to stand for it.
                let whole = &*self.method == "OPTIONS" && behind == Some(&b' ');
                bytes[end - 1] = if whole { b'*' } else { b'/' };
                (length - 1, if whole { TargetForm::Asterisk } else { TargetForm::Origin })
            }
        };
        bytes.copy_within(..start, dropped);
        self.head_bytes -= dropped;
        self.target = target;
        dropped
    }

    /// `bytes` is a whole head whose lines are well-formed.
    fn parse(bytes: &[u8]) -> Result<Self, FramingError> {
        let mut slots = [const { MaybeUninit::uninit() }; FramingLimits::HEADERS_MAX];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(bytes, &mut slots) {
            Ok(httparse::Status::Complete(end)) if end == bytes.len() => {}
            Ok(_) => return Err(FramingError::Malformed("it ends in the wrong place")),
            Err(httparse::Error::Version) if names_other_version(bytes) => return Err(FramingError::Version),
            Err(error) => return Err(super::fields::malformed(error)),
        }
        let method = request.method.unwrap_or_default();
        let fields = Fields::collect(request.headers)?;
        let version = if request.version == Some(0) { HttpVersion::Http10 } else { HttpVersion::Http11 };
        let modern = version == HttpVersion::Http11;
        let (target, authority) = read_target(method, request.path.unwrap_or_default())?;
        let body = body_length(&fields, version)?;
        if target == TargetForm::Authority && body != BodyLength::Bytes(0) {
            return Err(FramingError::ConnectBody);
        }
        Ok(RequestHead {
            head_bytes: bytes.len(),
            method: method.into(),
            target,
            host: decide_host(&fields, authority, version)?,
            version,
            body,
            persistent: !fields.close && (modern || fields.keep_alive),
            upgrade: modern && fields.upgrade,
            expect_continue: modern && fields.expect_continue,
            removable: match authority {
                Some(authority) if target == TargetForm::Absolute && fields.hosts == 1 => {
                    let start = request.path.map_or(0, |path| offset(bytes, path.as_bytes()));
                    Some((start, offset(bytes, authority) + authority.len() - start))
                }
                _ => None,
            },
        })
    }
}

/// Where `part`, a piece of `bytes`, starts in them.
fn offset(bytes: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - bytes.as_ptr() as usize
}

/// Whether the request line ends in a version, just not in one of ours.
fn names_other_version(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    match line.rsplit(|byte| *byte == b' ').next() {
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]) => {
            major.is_ascii_digit() && minor.is_ascii_digit() && !matches!((major, minor), (b'1', b'0' | b'1'))
        }
        _ => false,
    }
}

/// The form of a target, and its authority if it has one.
fn read_target<'a>(method: &str, target: &'a str) -> Result<(TargetForm, Option<&'a [u8]>), FramingError> {
    if method == "CONNECT" {
        let (_, port) = target.rsplit_once(':').unwrap_or_default();
        return if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            Err(FramingError::Target("CONNECT takes host:port"))
        } else {
            Ok((TargetForm::Authority, Some(target.as_bytes())))
        };
    }
    if target.starts_with('/') {
        return Ok((TargetForm::Origin, None));
    }
    if target == "*" {
        return if method == "OPTIONS" {
            Ok((TargetForm::Asterisk, None))
        } else {
            Err(FramingError::Target("* is for OPTIONS alone"))
        };
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Err(FramingError::Target("it is neither a path nor an absolute URI"));
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(FramingError::Target("its scheme is not http or https"));
    }
    if target.contains('#') {
        // Some end the authority there, some do not.
        return Err(FramingError::Target("it has a fragment"));
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    Ok((TargetForm::Absolute, Some(&rest.as_bytes()[..end])))
}

fn decide_host(
    fields: &Fields<'_>,
    authority: Option<&[u8]>,
    version: HttpVersion,
) -> Result<Host, FramingError> {
    if fields.hosts > 1 {
        return Err(FramingError::SeveralHosts);
    }
    let of_target = match authority {
        None => None,
        Some(authority) => {
            Some(Host::from_authority(authority).map_err(|BadHost(why)| FramingError::Target(why))?)
        }
    };
    if fields.hosts == 0 {
        return match of_target {
            Some(host) if version == HttpVersion::Http10 => Ok(host),
            _ => Err(FramingError::NoHost),
        };
    }
    if fields.host.is_empty() && of_target.is_none() {
        return Err(FramingError::NoHost);
    }
    let host = Host::from_authority(fields.host).map_err(|BadHost(why)| FramingError::Host(why))?;
    match of_target {
        Some(other) if other != host => Err(FramingError::HostMismatch),
        _ => Ok(host),
    }
}

/// RFC 9112 section 6.3 for requests, and only what every reader reads alike: one Content-Length with one
/// value, or `chunked` alone in one Transfer-Encoding of HTTP/1.1.
fn body_length(fields: &Fields<'_>, version: HttpVersion) -> Result<BodyLength, FramingError> {
    if fields.coding_lines == 0 {
        return if fields.lengths > 1 {
            Err(FramingError::SeveralContentLengths)
        } else {
            Ok(BodyLength::Bytes(fields.length.unwrap_or(0)))
        };
    }
    if fields.lengths > 0 {
        return Err(FramingError::LengthAndCoding);
    }
    if version == HttpVersion::Http10 {
        return Err(FramingError::TransferEncodingIn10);
    }
    match fields.coding {
        Coding::Chunked if fields.coding_lines == 1 => Ok(BodyLength::Chunked),
        Coding::OthersThenChunked => Err(FramingError::UnknownTransferEncoding),
        _ => Err(FramingError::TransferEncoding),
    }
}

/// Where one request, head and body, ends.
#[derive(Debug)]
pub struct RequestFramer {
    head_left: usize,
    body: Body,
    done: bool,
    persistent: bool,
}

impl RequestFramer {
    /// For the request whose head lies, not yet taken, at the front of the client's bytes.
    pub fn new(head: &RequestHead, limits: &FramingLimits) -> Self {
        let body = match head.body {
            BodyLength::Bytes(length) => Body::Length(length),
            BodyLength::Chunked => Body::Chunked(ChunkScan::new(limits)),
        };
        RequestFramer {
            head_left: head.head_bytes,
            body,
            done: false,
            // A client may talk into a tunnel before it knows that it has none; that is not a request.
            persistent: head.persistent && !head.is_connect(),
        }
    }

    /// How much of the client's unread `bytes` belongs to this request. Never [`Then::Raw`].
    ///
    /// # Errors
    ///
    /// When the chunked coding is broken: forward nothing of `bytes`.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Step, FramingError> {
        if self.done {
            return Ok(Step { take: 0, then: Then::Done });
        }
        let head = self.head_left.min(bytes.len());
        self.head_left -= head;
        if self.head_left > 0 {
            return Ok(Step { take: head, then: Then::Read });
        }
        let (body, done) = self.body.advance(&bytes[head..])?;
        self.done = done;
        Ok(Step { take: head + body, then: if done { Then::Done } else { Then::Read } })
    }

    /// Whether all of the request was taken.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The client sends no more. Once the request is done that is no fault: the answer is still wanted, and
    /// requests already read behind it are too.
    ///
    /// # Errors
    ///
    /// When the request is not whole: what was forwarded of it must not be ended properly.
    pub fn handle_eof(&self) -> Result<(), FramingError> {
        if self.done { Ok(()) } else { Err(FramingError::Truncated) }
    }

    pub(super) fn persists(&self) -> bool {
        self.done && self.persistent
    }
}
