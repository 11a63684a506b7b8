//! Drives the framers as a shell does, with the pieces in which bytes happen to arrive; used by tests and by
//! fuzz targets.

use p2p_peer_core::{
    FramingError, FramingLimits, RequestFramer, RequestHead, RequestHeads, ResponseFramer, Then,
};

/// What came out of one direction: everything a split must not change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Heads of the requests, in order.
    pub heads: Vec<RequestHead>,
    /// The bytes forwarded of each message that ended.
    pub messages: Vec<Vec<u8>>,
    /// The bytes forwarded of the message in progress.
    pub part: Vec<u8>,
    /// What was read and belongs to nothing yet.
    pub unread: Vec<u8>,
    /// Whether the connection left HTTP.
    pub raw: bool,
    /// Why no more is forwarded.
    pub error: Option<FramingError>,
}

impl Outcome {
    /// Without what depends on how far a message got before its error was seen.
    pub fn settled(mut self) -> Self {
        if self.error.is_some() {
            self.part.clear();
            self.unread.clear();
        }
        self
    }
}

/// Reads consecutive requests out of `pieces`.
pub fn requests<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: FramingLimits) -> Outcome {
    let mut heads = RequestHeads::new(limits);
    let mut framer: Option<RequestFramer> = None;
    let mut out = Outcome::default();
    for piece in pieces {
        out.unread.extend_from_slice(piece);
        loop {
            let Some(current) = &mut framer else {
                match heads.next_head(&out.unread) {
                    Ok(Some(head)) => {
                        framer = Some(RequestFramer::new(&head, &limits));
                        out.heads.push(head);
                        continue;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        out.error = Some(error);
                        return out;
                    }
                }
            };
            match current.advance(&out.unread) {
                Ok(step) => {
                    out.part.extend(out.unread.drain(..step.take));
                    if step.then == Then::Read {
                        assert!(out.unread.is_empty(), "a request takes all it is shown until it ends");
                        break;
                    }
                    assert_eq!(step.then, Then::Done);
                    assert!(current.is_done());
                    out.messages.push(std::mem::take(&mut out.part));
                    framer = None;
                }
                Err(error) => {
                    out.error = Some(error);
                    return out;
                }
            }
        }
    }
    out
}

/// Reads the response to `request` out of `pieces`, then the end of the stream if `eof`.
pub fn response<'a>(
    request: &RequestHead,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    eof: bool,
    limits: FramingLimits,
) -> (Outcome, ResponseFramer) {
    let mut framer = ResponseFramer::new(request, &limits);
    let mut out = Outcome::default();
    for piece in pieces {
        out.unread.extend_from_slice(piece);
        match framer.advance(&out.unread) {
            Ok(step) => {
                out.part.extend(out.unread.drain(..step.take));
                match step.then {
                    Then::Read => assert!(!framer.is_done()),
                    Then::Done => assert!(framer.is_done()),
                    Then::Raw => {
                        assert!(out.unread.is_empty(), "raw bytes all go on");
                        out.raw = true;
                    }
                }
            }
            Err(error) => {
                out.error = Some(error);
                return (out, framer);
            }
        }
    }
    if eof && let Err(error) = framer.handle_eof() {
        out.error = Some(error);
    }
    if framer.is_done() {
        out.messages.push(std::mem::take(&mut out.part));
    }
    (out, framer)
}

/// The head of a request that has one and no body.
pub fn head(request: &[u8]) -> RequestHead {
    let outcome = requests([request], FramingLimits::default());
    assert_eq!((outcome.error, outcome.heads.len()), (None, 1), "{:?}", String::from_utf8_lossy(request));
    outcome.heads.into_iter().next().expect("just counted")
}
