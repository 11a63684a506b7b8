//! What a Peer decides: views, routes, sniffing and framing of client bytes; no IO, no clock.
