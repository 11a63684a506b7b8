//! `p2p-server`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    p2p_server::cli::main(p2p_server::run)
}
