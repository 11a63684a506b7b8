//! The lint of the repository itself: rules that neither rustc nor clippy knows.
//!
//! Each check is a pure function from what it reads to a list of complaints, so that it can be fed planted
//! mistakes; `tests/tidy.rs` runs them over the repository. Not here: style that rustfmt or clippy can judge.

mod configs;
mod dependencies;
mod links;
mod sources;
mod tree;
mod words;

pub use configs::{check_config, check_variables};
pub use dependencies::{Workspace, check_dependencies};
pub use links::check_links;
pub use sources::check_sources;
pub use tree::{TextFile, read_tree};
pub use words::check_words;
