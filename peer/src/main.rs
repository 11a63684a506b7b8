//! Entry point of `p2p-peer`.

fn main() {}
