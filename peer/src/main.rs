//! Entry point of `p2p-peer`.

use std::process::ExitCode;

use p2p_peer::{Peer, cli};

fn main() -> ExitCode {
    cli::main(async |config, log, shutdown| {
        if let Some(peer) = Peer::start(config, shutdown.token(), log).await? {
            peer.stopped().await;
        }
        Ok(())
    })
}
