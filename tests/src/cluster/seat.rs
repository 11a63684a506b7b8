//! Where a Server of a test runs and keeps its things: on loopback below the cluster's directory, or wherever a
//! test puts it.

use std::fmt::{Debug, Formatter};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::PortLease;

/// What a child does between its fork and its program; async-signal-safe calls only, nothing allocated.
type Preparation = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The place of one Server.
#[derive(Clone)]
pub struct Seat {
    /// Its data directory is made in it.
    pub dir: PathBuf,
    /// Where it serves gRPC.
    pub listen: SocketAddr,
    /// Where it serves health and metrics.
    pub ops: SocketAddr,
    /// Where it serves the registry's HTTP face.
    pub registry: SocketAddr,
    preparations: Vec<Preparation>,
    variables: Vec<(String, String)>,
    /// Of the three addresses, where they are on loopback.
    _leases: Arc<[PortLease]>,
}

impl Seat {
    /// Free ports of loopback.
    ///
    /// # Errors
    /// When there are none.
    pub fn loopback(dir: &Path) -> anyhow::Result<Self> {
        let leases = [PortLease::take()?, PortLease::take()?, PortLease::take()?];
        let [listen, ops, registry] = leases.each_ref().map(PortLease::addr);
        Ok(Seat { _leases: Arc::new(leases), ..Seat::at(dir, [listen, ops, registry]) })
    }

    /// Addresses for gRPC, health and the registry that are free for other reasons.
    pub fn at(dir: &Path, [listen, ops, registry]: [SocketAddr; 3]) -> Self {
        Seat {
            dir: dir.into(),
            listen,
            ops,
            registry,
            preparations: Vec::new(),
            variables: Vec::new(),
            _leases: Arc::new([]),
        }
    }

    /// The same place, where each process of the Server and each command line that asks it does `preparation`
    /// before anything else, after those added before.
    ///
    /// # Safety
    /// `preparation` runs between fork and exec: it makes async-signal-safe calls only and allocates nothing.
    pub unsafe fn prepared(
        mut self,
        preparation: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.preparations.push(Arc::new(preparation));
        self
    }

    /// The same place, where each process of the Server and each command line that asks it has these variables.
    pub fn with_variables(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.variables.extend(variables);
        self
    }

    /// Has `command` run here.
    pub(super) fn prepare(&self, command: &mut Command) {
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        for preparation in &self.preparations {
            let preparation = Arc::clone(preparation);
            // SAFETY: whoever added it promised what `pre_exec` wants.
            unsafe { command.pre_exec(move || preparation()) };
        }
    }
}

impl Debug for Seat {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").field("dir", &self.dir).field("listen", &self.listen).finish_non_exhaustive()
    }
}
