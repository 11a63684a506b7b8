//! Simulations, real clusters and benches around the whole system, and the lint of the repository itself.
//!
//! - [`cluster`]: real processes of both binaries, started and asked through their command lines.
//! - [`backend`] and [`http`]: a real HTTP service to forward to and a client that shows what came back.
//! - [`clients`]: programs nobody here wrote, through two Peers.
//! - [`history`]: what clients of a replicated register were told, and whether that is linearizable.
//! - [`kill_rounds`]: no acknowledged write is lost while Servers are killed.
//! - [`lab`]: Servers in network namespaces, on a network that fails.
//! - [`power_loss`]: nothing acknowledged is lost while the disks of Servers lose their power.
//! - [`mod@bench`]: ours and a rival in turns, and how the result is written down.
//! - [`tidy`]: what the compiler does not check about the repository: direction of dependencies, links, words.

pub mod backend;
pub mod bench;
pub mod clients;
pub mod cluster;
pub mod history;
pub mod http;
pub mod kill_rounds;
pub mod lab;
pub mod power_loss;
pub mod tidy;

use std::path::{Path, PathBuf};

/// The root of the repository this crate was built from.
pub fn repository_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the repository").into()
}
