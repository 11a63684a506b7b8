//! What a Peer decides: views, routes, sniffing and framing of client bytes; no IO, no clock.

mod sniff;

pub use sniff::{BadHost, ClientHello, Host, PEER_LINK_ALPN, SniffLimits, Sniffed, Unrecognised, sniff};
