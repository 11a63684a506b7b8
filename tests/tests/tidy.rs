//! Lints the repository: each test runs one check of `p2p_tests::tidy` over the tree.

use p2p_tests::repository_root;
use p2p_tests::tidy::{
    TextFile, Workspace, check_config, check_dependencies, check_links, check_sources, check_variables,
    check_words, read_tree,
};

fn tree() -> Vec<TextFile> {
    let files = read_tree(&repository_root()).expect("the repository is readable");
    assert!(files.iter().any(|file| file.path == "Cargo.toml"), "the walk found the repository");
    files
}

#[track_caller]
fn expect_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn dependencies_run_one_way() {
    let workspace = Workspace::load(&repository_root()).expect("cargo describes the workspace");
    expect_none(check_dependencies(&workspace));
}

#[test]
fn links_in_docs_lead_somewhere() {
    let root = repository_root();
    expect_none(check_links(&tree(), |path| root.join(path).exists()));
}

#[test]
fn sources_are_documented_and_short() {
    expect_none(check_sources(&tree()));
}

#[test]
fn words_belong_to_the_product() {
    expect_none(check_words(&tree()));
}

#[test]
fn cores_share_one_set_of_bans() {
    // clippy merges no files: a core without its own is judged by the shells' rules.
    let root = repository_root();
    let bans = std::fs::read_to_string(root.join("common/clippy.toml")).expect("the cores' bans exist");
    for core in ["server/core", "server/raft", "peer/core"] {
        let found = std::fs::read_to_string(root.join(core).join("clippy.toml")).unwrap_or_default();
        assert_eq!(found, bans, "{core}/clippy.toml is not the cores' file");
    }
}

#[test]
fn example_configs_show_every_key_and_its_default() {
    let tree = tree();
    let example = |path: &str| tree.iter().find(|file| file.path == path).expect("the example exists");
    let server = example("deploy/config/p2p-server.toml");
    expect_none(check_config(server, p2p_server::config::RawConfig::validate));
    let peer = example("deploy/config/p2p-peer.toml");
    expect_none(check_config(peer, p2p_peer::config::RawConfig::validate));
}

#[test]
fn variables_of_deployments_set_something() {
    let tree = tree();
    let deploy: Vec<_> = tree.into_iter().filter(|file| file.path.starts_with("deploy/")).collect();
    use p2p_peer::config as peer;
    use p2p_server::config as server;
    expect_none(check_variables::<server::RawConfig>(&deploy, server::VARIABLES.prefix));
    expect_none(check_variables::<peer::RawConfig>(&deploy, peer::VARIABLES.prefix));
}
