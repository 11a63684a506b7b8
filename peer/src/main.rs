//! Entry point of `p2p-peer`.

use std::process::ExitCode;

use p2p_peer::{Peer, cli};

fn main() -> ExitCode {
    cli::main(async |config, log, shutdown| match Peer::start(config, shutdown.token(), log).await? {
        Some(peer) => peer.stopped().await,
        None => Ok(()),
    })
}
