//! What the Peer's one port does with client bytes, through the public API: sniffing and framing.

mod chunked;
mod driver;
mod framing;
mod smuggling;
mod sniff;
