//! Who may depend on whom: the one direction between our crates, and what a core may list.
//!
//! Judged from `cargo metadata`. Development dependencies are free, except that they too never join the two
//! sides; what a core's tests need (a seeded generator, a property tester) does not end up in the core.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;

/// For each of our crates, those of ours it may list. The two binaries never see each other.
const DIRECTION: &[(&str, &[&str])] = &[
    ("p2p-common", &[]),
    ("p2p-proto", &["p2p-common"]),
    ("p2p-runtime", &["p2p-common"]),
    ("p2p-server-raft", &["p2p-common"]),
    ("p2p-server-core", &["p2p-common"]),
    ("p2p-peer-core", &["p2p-common"]),
    ("p2p-server", &["p2p-common", "p2p-proto", "p2p-runtime", "p2p-server-core", "p2p-server-raft"]),
    ("p2p-peer", &["p2p-common", "p2p-proto", "p2p-runtime", "p2p-peer-core"]),
];

/// The crate that may list all of ours.
const ABOVE_ALL: &str = "p2p-tests";

/// For each core, the foreign crates it may list. A new one is a decision: it must do no IO, read no clock
/// and draw no random number.
const CORES: &[(&str, &[&str])] = &[
    ("p2p-common", &["bytes", "rpds", "slog", "thiserror", "uuid"]),
    ("p2p-server-core", &["bytes", "slog", "thiserror", "uuid"]),
    ("p2p-peer-core", &["bytes", "httparse", "slog", "thiserror", "uuid"]),
    ("p2p-server-raft", &["bytes", "protobuf", "raft", "slog", "thiserror", "uuid"]),
];

/// What no core reaches, however indirectly.
const FORBIDDEN_BELOW_CORES: &[&str] = &[
    "tokio",
    "mio",
    "async-std",
    "tonic",
    "prost",
    "hyper",
    "sled",
    "quinn",
    "rustls",
    "socket2",
    "serde_json",
];

/// Features that give a core what it must not have.
const FORBIDDEN_FEATURES: &[(&str, &[&str])] = &[("uuid", &["v1", "v4", "v6", "v7", "fast-rng"])];

/// The store's crate, which only the server knows.
const ONLY_IN_SERVER: &[&str] = &["sled"];

/// What `cargo metadata` says, as far as the rules need it.
#[derive(Debug, Clone, Deserialize)]
pub struct Workspace {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Debug, Clone, Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Clone, Deserialize)]
struct Dependency {
    name: String,
    /// `None` is a normal dependency, else `dev` or `build`.
    kind: Option<String>,
    features: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Clone, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Clone, Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

impl Workspace {
    /// Asks cargo about the workspace at `root`; needs no network when the lock file is complete.
    pub fn load(root: &Path) -> anyhow::Result<Self> {
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["metadata", "--format-version", "1", "--locked"])
            .current_dir(root)
            .output()
            .context("starting cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        Self::parse(&output.stdout)
    }

    /// Reads the JSON that `cargo metadata` prints.
    pub fn parse(json: &[u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(json).context("reading cargo metadata")
    }

    fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Names of all crates that `package` links, through normal dependencies only.
    fn links(&self, package: &Package) -> BTreeSet<&str> {
        let nodes: BTreeMap<&str, &Node> = self.resolve.nodes.iter().map(|node| (&*node.id, node)).collect();
        let names: BTreeMap<&str, &str> = self.packages.iter().map(|p| (&*p.id, &*p.name)).collect();
        let mut seen = BTreeSet::new();
        let mut open = vec![&*package.id];
        while let Some(id) = open.pop() {
            let normal = |edge: &&Edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none());
            for edge in nodes.get(id).into_iter().flat_map(|node| node.deps.iter().filter(normal)) {
                if seen.insert(&*edge.pkg) {
                    open.push(&edge.pkg);
                }
            }
        }
        seen.iter().filter_map(|id| names.get(id).copied()).collect()
    }
}

/// One complaint per rule broken.
pub fn check_dependencies(workspace: &Workspace) -> Vec<String> {
    let ours: BTreeSet<&str> = workspace.members().map(|package| &*package.name).collect();
    let mut complaints = Vec::new();
    for package in workspace.members().filter(|package| package.name != ABOVE_ALL) {
        match find(DIRECTION, &package.name) {
            Some(allowed) => check_direction(package, allowed, &ours, &mut complaints),
            None => {
                complaints.push(format!("{}: not in the table of directions; add it there", package.name))
            }
        }
        if let Some(allowed) = find(CORES, &package.name) {
            check_core(package, allowed, &ours, &mut complaints);
            for reached in workspace.links(package) {
                if FORBIDDEN_BELOW_CORES.contains(&reached) {
                    complaints.push(format!("{}: a core, yet it links {reached}", package.name));
                }
            }
        }
        for dependency in &package.dependencies {
            if ONLY_IN_SERVER.contains(&&*dependency.name) && package.name != "p2p-server" {
                complaints
                    .push(format!("{}: lists {}, which only p2p-server may", package.name, dependency.name));
            }
        }
    }
    complaints
}

fn check_direction(package: &Package, allowed: &[&str], ours: &BTreeSet<&str>, complaints: &mut Vec<String>) {
    for dependency in package.dependencies.iter().filter(|dependency| ours.contains(&*dependency.name)) {
        let name = &*dependency.name;
        let is_self = name == package.name;
        let ends_in_tests_only =
            dependency.kind.as_deref() == Some("dev") && !joins_sides(&package.name, name);
        if !allowed.contains(&name) && !is_self && !ends_in_tests_only {
            complaints.push(format!("{}: must not depend on {name}", package.name));
        }
    }
}

fn check_core(package: &Package, allowed: &[&str], ours: &BTreeSet<&str>, complaints: &mut Vec<String>) {
    let linked = package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"));
    for dependency in linked.filter(|dependency| !ours.contains(&*dependency.name)) {
        let name = &*dependency.name;
        if !allowed.contains(&name) {
            complaints.push(format!("{}: a core, yet it lists {name}", package.name));
        }
        let forbidden = find(FORBIDDEN_FEATURES, name).unwrap_or_default();
        for feature in dependency.features.iter().filter(|feature| forbidden.contains(&feature.as_str())) {
            complaints.push(format!("{}: a core, yet it asks {name} for '{feature}'", package.name));
        }
    }
}

/// Whether the two belong to the server's and the peer's side.
fn joins_sides(a: &str, b: &str) -> bool {
    let side = |name: &str| ["p2p-server", "p2p-peer"].into_iter().find(|side| name.starts_with(side));
    matches!((side(a), side(b)), (Some(a), Some(b)) if a != b)
}

fn find<'a, T: ?Sized>(table: &[(&str, &'a T)], name: &str) -> Option<&'a T> {
    table.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn dependency(name: &str, kind: Option<&str>, features: &[&str]) -> Value {
        json!({"name": name, "kind": kind, "features": features})
    }

    /// A workspace of one crate of ours, which lists `listed`; all names in `below` are linked by `bytes`.
    fn complaints(name: &str, listed: Vec<Value>, below: &[&str]) -> Vec<String> {
        let mut packages = vec![json!({"id": name, "name": name, "dependencies": listed})];
        let others: BTreeSet<&str> = ["bytes", "p2p-common", "p2p-server", "p2p-peer"]
            .into_iter()
            .chain(below.iter().copied())
            .collect();
        packages.extend(
            others.iter().filter(|o| **o != name).map(|o| json!({"id": o, "name": o, "dependencies": []})),
        );
        let edge = |to: &str| json!({"pkg": to, "dep_kinds": [{"kind": null}]});
        let json = json!({
            "packages": packages,
            "workspace_members": ["p2p-common", "p2p-server", "p2p-peer", name],
            "resolve": {"nodes": [
                {"id": name, "deps": [edge("bytes")]},
                {"id": "bytes", "deps": below.iter().map(|to| edge(to)).collect::<Vec<_>>()},
            ]},
        });
        check_dependencies(&Workspace::parse(json.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn allows_what_the_design_allows() {
        let listed = vec![dependency("p2p-common", None, &[]), dependency("uuid", None, &["std"])];
        assert_eq!(complaints("p2p-server-core", listed, &["memchr"]), [""; 0]);
        assert_eq!(complaints("p2p-peer-core", vec![dependency("proptest", Some("dev"), &[])], &[]), [""; 0]);
    }

    #[test]
    fn names_each_broken_rule() {
        let cases = [
            ("p2p-common", dependency("p2p-server", None, &[]), "must not depend on p2p-server"),
            ("p2p-peer", dependency("p2p-server", Some("dev"), &[]), "must not depend on p2p-server"),
            ("p2p-peer-core", dependency("tokio", None, &[]), "lists tokio"),
            ("p2p-peer-core", dependency("cc", Some("build"), &[]), "lists cc"),
            ("p2p-common", dependency("uuid", None, &["v7"]), "asks uuid for 'v7'"),
            ("p2p-peer", dependency("sled", None, &[]), "lists sled"),
            ("p2p-novel", dependency("bytes", None, &[]), "not in the table"),
        ];
        for (package, listed, expected) in cases {
            let found = complaints(package, vec![listed], &[]);
            assert!(found.len() == 1 && found[0].contains(expected), "{package}: {found:?}");
        }
    }

    #[test]
    fn looks_below_what_a_core_lists() {
        let found = complaints("p2p-common", vec![dependency("bytes", None, &[])], &["mio"]);
        assert_eq!(found, ["p2p-common: a core, yet it links mio"]);
    }
}
