//! The p2p.v1 protocol: generated gRPC code and the conversions between wire and domain types.
