//! Why a store cannot be used.

use std::path::PathBuf;

/// Why the store cannot be used. The node then takes no part in the cluster until an operator acts.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// sled does not open it.
    #[error("the store {} does not open: {reason}", path.display())]
    Open {
        /// Which directory.
        path: PathBuf,
        /// What sled or the system said.
        reason: String,
    },
    /// What it holds cannot be right.
    #[error("the store {} is damaged: {reason}", path.display())]
    Damaged {
        /// Which directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A write or its sync failed: what is on the disk is not known any more.
    #[error("writing to the store failed: {0}. The process ends; free or repair the disk and start it again")]
    Write(String),
}
