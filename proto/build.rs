//! Generates the gRPC code from `p2p/v1/*.proto` with a compiler written in Rust: no protoc is needed.

use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

const FILES: &[&str] = &[
    "common.proto",
    "enroll.proto",
    "cluster.proto",
    "session.proto",
    "link.proto",
    "raft.proto",
    "store.proto",
    "agent.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<String> = FILES.iter().map(|f| format!("p2p/v1/{f}")).collect();
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("p2p.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=p2p");
    Ok(())
}
