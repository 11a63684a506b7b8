//! What the Peer's one port does with client bytes, through the public API.

mod sniff;
