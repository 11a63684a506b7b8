//! What a Peer decides: views, routes, sniffing and framing of client bytes; no IO, no clock.

mod framing;
mod reply;
mod sniff;

pub use framing::{
    After, BodyLength, FramingError, FramingLimits, HttpVersion, RequestFramer, RequestHead, RequestHeads,
    ResponseFramer, Step, TargetForm, Then, after,
};
pub use reply::{ErrorReply, Status};
pub use sniff::{BadHost, ClientHello, Host, PEER_LINK_ALPN, SniffLimits, Sniffed, Unrecognised, sniff};
