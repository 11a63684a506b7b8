//! Simulations, real clusters and benches around the whole system, and the lint of the repository itself.
//!
//! - [`tidy`]: what the compiler does not check about the repository: direction of dependencies, links, words.

pub mod tidy;

use std::path::{Path, PathBuf};

/// The root of the repository this crate was built from.
pub fn repository_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the repository").into()
}
