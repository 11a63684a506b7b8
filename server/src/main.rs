//! Entry point of `p2p-server`.

fn main() {}
