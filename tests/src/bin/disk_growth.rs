//! `make disk-growth`: what a million writes leave on the disk and in memory.
//!
//! One Server's raft thread with its store and state machine, as a process runs them, takes `DISK_GROWTH_WRITES`
//! (1,000,000) writes of 256 bytes, with the snapshots and compactions they bring. There is no rival: the bound is the
//! project's own. The figures at the tenth part say whether anything still grows.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{Command, CommandBody, Outcome};
use p2p_common::setting::SettingName;
use p2p_common::{ClusterId, Epoch, RequestId};
use p2p_proto::convert;
use p2p_server::raft::mailbox::Request;
use p2p_server::raft::{DriverParams, Mailbox, Outbox, spawn_driver};
use p2p_server::store::{Origin, Store};
use p2p_server_raft::{Message, RaftConfig, founding_write};
use p2p_tests::bench::{Better, Report, Row, footprint};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use uuid::Uuid;

const VALUE_BYTES: usize = 256;
/// Writes under way at a time.
const WRITERS: u64 = 256;
/// The figures are taken after each of this many parts.
const PARTS: u64 = 10;
/// What a Server may need for its store.
const STORE_MB_MAX: f64 = 128.0;
/// ... and in memory, with everything that is in this process.
const RESIDENT_MB_MAX: f64 = 256.0;

/// Nobody else is there.
struct Alone;

impl Outbox for Alone {
    fn send(&mut self, _: Vec<Message>) {}
}

/// What the store and the process occupy, in 10^6 bytes.
#[derive(Debug, Clone, Copy)]
struct Size {
    store: f64,
    resident: f64,
}

fn main() -> anyhow::Result<()> {
    let writes: u64 = match std::env::var("DISK_GROWTH_WRITES") {
        Ok(text) => text.parse().context("DISK_GROWTH_WRITES is no number")?,
        Err(_) => 1_000_000,
    };
    ensure!(writes >= WRITERS * PARTS, "at least {} writes are needed", WRITERS * PARTS);
    let dir = tempfile::Builder::new().prefix("p2pcore-disk-growth-").tempdir()?;
    let path = dir.path().join("store");
    let state = || ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), vec![vec![1]]);
    let mut store = Store::open(&path)?;
    let founding = founding_write(1, Bytes::from(convert::encode_state(&state())));
    store.begin(&Origin::new(1, Epoch(0), None), Some(&founding))?;
    let stored = store.load()?.context("it was just begun")?;
    let mailbox = Mailbox::new();
    let driver = spawn_driver(DriverParams {
        config: RaftConfig::new(1, 7),
        store,
        stored,
        state: state(),
        mailbox: mailbox.clone(),
        outbox: Alone,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
    })?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut view = driver.view.clone();
    runtime.block_on(view.wait_for(|view| view.leads()))?;
    let mut sizes = Vec::new();
    let begun = Instant::now();
    for part in 0..PARTS {
        runtime.block_on(write(&mailbox, part * (writes / PARTS), writes / PARTS))?;
        let size = Size {
            store: directory_bytes(&path)? as f64 / 1e6,
            resident: footprint(std::process::id())?.resident_bytes as f64 / 1e6,
        };
        println!(
            "{:>9} writes, {:>4.0} s: store {:.1} MB, resident memory {:.1} MB",
            (part + 1) * (writes / PARTS),
            begun.elapsed().as_secs_f64(),
            size.store,
            size.resident
        );
        sizes.push(size);
    }
    mailbox.stop();
    runtime.block_on(driver.end)?;
    let stopped = directory_bytes(&path)? as f64 / 1e6;

    let mut report = Report::new("disk-growth");
    let mut add = |name: String, figure: f64, aim: Option<f64>| {
        report.add(Row::alone(&name, "MB", Better::Lower, &[figure]).map(|row| row.with_aim(aim)));
    };
    let largest = |of: fn(&Size) -> f64| sizes.iter().map(of).fold(0.0, f64::max);
    add(format!("store after {} writes", writes / PARTS), sizes[0].store, None);
    add(format!("store after {writes} writes"), sizes[sizes.len() - 1].store, None);
    add("store, largest seen".to_owned(), largest(|size| size.store), Some(STORE_MB_MAX));
    add("store of the stopped Server".to_owned(), stopped, None);
    add(format!("resident memory after {} writes", writes / PARTS), sizes[0].resident, None);
    add(format!("resident memory after {writes} writes"), sizes[sizes.len() - 1].resident, None);
    add("resident memory, largest seen".to_owned(), largest(|size| size.resident), Some(RESIDENT_MB_MAX));
    println!("\n{}", report.table());
    println!("written: {}", report.write()?.display());
    Ok(())
}

/// `count` writes from number `first` on, many at a time.
async fn write(mailbox: &Mailbox, first: u64, count: u64) -> anyhow::Result<()> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mailbox = mailbox.clone();
        let numbers = (first + writer..first + count).step_by(WRITERS as usize);
        writers.spawn(async move {
            for number in numbers {
                let command = Command {
                    request_id: RequestId::new(Uuid::from_u64_pair(1, number)),
                    body: CommandBody::ChangeSetting {
                        name: SettingName::Description,
                        value: Some(format!("{number:0VALUE_BYTES$}")),
                        expected: None,
                    },
                };
                let (reply, answer) = oneshot::channel();
                let command = Bytes::from(convert::encode_command(&command));
                mailbox.request(Request::Propose { command, reply })?;
                let (_, outcome) = answer.await??;
                ensure!(matches!(outcome, Outcome::SettingChanged { .. }), "{outcome:?}");
            }
            Ok(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done.context("a writer panicked")??;
    }
    Ok(())
}

fn directory_bytes(path: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for item in std::fs::read_dir(path)? {
        let item = item?;
        let about = item.metadata()?;
        bytes += if about.is_dir() { directory_bytes(&item.path())? } else { about.len() };
    }
    Ok(bytes)
}
