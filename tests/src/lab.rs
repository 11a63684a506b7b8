//! Servers in network namespaces: real processes, each with an address of its own, on a network that tests cut.
//!
//! [`Lab`] is a network built by `tests/netns/natlab`, taken down when it is dropped, or, where its owner was killed,
//! by the next one that is built. [`partitions`] and [`transcript`] play on it, with [`sightings`] of who is
//! called Master.

pub mod partitions;
pub mod sightings;
pub mod transcript;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::cluster::{Cluster, Seat, run};
use crate::{clients, repository_root};

/// Building a big lab on a busy host takes some seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// The segment that all Servers are on: it reaches each of them, whatever is cut between them.
const SEGMENT: &str = "pub";
/// Ports for gRPC, health and the registry; nobody else is in a Server's namespace.
const PORTS: [u16; 3] = [7000, 7480, 7481];

/// What is missing here for a lab; empty when all is there.
pub fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        missing.push("root".to_owned());
    }
    let programs = [
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("iptables", "iptables"),
        ("nsenter", "util-linux"),
        ("python3", "python3"),
    ];
    for (program, package) in programs {
        if clients::find(program).is_none() {
            missing.push(format!("{program} ({package})"));
        }
    }
    missing
}

/// Whether a lab can be built here; says what is missing if not.
pub fn available() -> bool {
    let missing = missing();
    if !missing.is_empty() {
        eprintln!("skipped: network namespaces need {}", missing.join(", "));
    }
    missing.is_empty()
}

/// A network of its own.
#[derive(Debug)]
pub struct Lab {
    name: String,
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Deserialize)]
struct Listing {
    nodes: BTreeMap<String, Node>,
}

/// What natlab tells of a node.
#[derive(Debug, Deserialize)]
struct Node {
    #[serde(default)]
    v4: Vec<Ipv4Addr>,
}

impl Lab {
    /// Builds one with `servers` places for Servers, named `s1`, `s2` and so on, on one segment.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn up(servers: usize) -> anyhow::Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let owner = std::process::id();
        let name = format!("t{owner}n{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut lab = Lab { name, nodes: BTreeMap::new() };
        let (servers, owner) = (servers.to_string(), owner.to_string());
        let listing = lab.natlab(&["up", "--servers", &servers, "--owner", &owner, "--json"])?;
        lab.nodes = serde_json::from_str::<Listing>(&listing).context("reading natlab's listing")?.nodes;
        Ok(lab)
    }

    /// The address of a node.
    pub fn address(&self, node: &str) -> anyhow::Result<Ipv4Addr> {
        let found = self.nodes.get(node).and_then(|node| node.v4.first());
        found.copied().with_context(|| format!("the lab has no {node}"))
    }

    /// Silent loss of all that passes between any of `a` and any of `b`, in addition to what is cut already.
    pub fn partition(&self, a: &[impl AsRef<str>], b: &[impl AsRef<str>]) -> anyhow::Result<()> {
        self.natlab(&["partition", &list(a), &list(b)]).map(drop)
    }

    /// Silent loss of all that goes from any of `from` to any of `to`.
    pub fn partition_one_way(&self, from: &[impl AsRef<str>], to: &[impl AsRef<str>]) -> anyhow::Result<()> {
        self.natlab(&["partition", &list(from), &list(to), "--oneway"]).map(drop)
    }

    /// Ends all partitions.
    pub fn heal(&self) -> anyhow::Result<()> {
        self.natlab(&["heal"]).map(drop)
    }

    /// Random loss at a node, each way; 0 ends it.
    pub fn loss(&self, node: &str, percent: f64) -> anyhow::Result<()> {
        self.natlab(&["loss", node, &percent.to_string()]).map(drop)
    }

    /// What reaches a node comes later by `ms`, give or take `jitter_ms`; 0 ends it.
    pub fn delay(&self, node: &str, ms: f64, jitter_ms: f64) -> anyhow::Result<()> {
        self.natlab(&["delay", node, &ms.to_string(), &jitter_ms.to_string()]).map(drop)
    }

    /// Runs `f` on a thread in a node's namespace. Sockets it makes stay there, and so do the threads it starts.
    pub fn at<T: Send>(&self, node: &str, f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let namespace = self.namespace(node)?;
        std::thread::scope(|scope| {
            let there = scope.spawn(move || {
                enter(&namespace)?;
                Ok(f())
            });
            match there.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `f` where every Server is reached, whatever is cut between them.
    pub fn outside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        self.at(SEGMENT, f)
    }

    /// A place for a Server at a node, its data below `dir`. Its command lines ask from there as well.
    pub fn seat(&self, node: &str, dir: &Path) -> anyhow::Result<Seat> {
        let (address, namespace) = (self.address(node)?, self.namespace(node)?);
        let seat = Seat::at(dir, PORTS.map(|port| SocketAddr::from((address, port))));
        // SAFETY: one system call and nothing else.
        Ok(unsafe { seat.prepared(move || enter(&namespace)) })
    }

    /// A cluster of `count` Servers at `s1`, `s2` and so on, their data below `dir`; to be called [`Self::outside`].
    pub fn cluster(&self, count: usize, dir: &Path) -> anyhow::Result<Cluster> {
        let seats = (1..=count).map(|number| self.seat(&format!("s{number}"), dir));
        Cluster::start_in(seats.collect::<anyhow::Result<Vec<_>>>()?)
    }

    fn namespace(&self, node: &str) -> anyhow::Result<File> {
        let path = format!("/run/netns/nl-{}-{node}", self.name);
        File::open(&path).with_context(|| format!("opening {path}"))
    }

    fn natlab(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(repository_root().join("tests/netns/natlab"));
        command.args(["-n", &self.name]).args(arguments);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        let output = run(command, PATIENCE)?;
        ensure!(output.status.success(), "`{}`: {}", output.line, output.stderr.trim());
        Ok(output.stdout)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The next one that is built takes down what could not be taken down now.
        let _ = self.natlab(&["down"]);
    }
}

fn list(nodes: &[impl AsRef<str>]) -> String {
    nodes.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(",")
}

/// Puts this thread into a network namespace. Async-signal-safe.
fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
