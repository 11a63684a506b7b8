//! The commands for after a loss, and the backup that is taken before one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use p2p_common::addr::HostPort;
use p2p_proto::v1;
use p2p_runtime::exit::Exit;
use serde::Serialize;
use tonic::Streaming;

use super::ClientArgs;
use super::client::{Client, refused, until_known};
use super::show::print_json;
use crate::recovery::backup::Backup;
use crate::recovery::{KeepCluster, discard_state, force_new_cluster, restore};

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Where to write it, readable by its owner alone; a file there is replaced once the new one is whole
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// Empty directory of the Server that is to found the cluster
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The backup
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Keep the cluster's id, so that its nodes and tokens go on; nothing of the old cluster may run any more
    #[arg(long, requires = "ca_key")]
    keep_cluster_id: bool,
    /// The private key of the cluster's CA (ca-key.pem of any of its Servers), for --keep-cluster-id
    #[arg(long, value_name = "FILE", requires = "keep_cluster_id")]
    ca_key: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RejoinArgs {
    /// Data directory of the Server; it must not run
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Yes, what this Server has stored is moved aside and not used again
    #[arg(long)]
    discard_state: bool,
    /// A Server to join through [default: those the old store names]; repeatable
    #[arg(long, value_name = "HOST:PORT")]
    join: Vec<HostPort>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ForceArgs {
    /// Data directory of the Server that is to go on alone; it must not run
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Yes, a quorum is lost for good
    #[arg(long)]
    yes: bool,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct BackupJson {
    file: String,
    cluster_id: String,
    epoch: u64,
    applied_index: u64,
    bytes: u64,
}

pub(super) async fn take_backup(args: BackupArgs) -> Result<(), Exit> {
    let client = Client::reach(&args.client).await?;
    let pieces = until_known(async || client.operator().backup(v1::BackupRequest {}).await).await?;
    let failed = |e: std::io::Error| Exit::failed(format!("cannot write {}: {e}", args.out.display()));
    let beside = beside(&args.out).map_err(failed)?;
    let written = write_whole(&beside, pieces).await;
    let checked = written.and_then(|bytes| {
        // A backup that could not be restored is none: better known now.
        let backup = Backup::read(&beside)
            .map_err(|e| Exit::failed(format!("what the Server sent is no backup: {e}; try again")))?;
        Ok((bytes, backup))
    });
    let (bytes, backup) = checked.inspect_err(|_| drop(fs::remove_file(&beside)))?;
    replace(&beside, &args.out).map_err(failed)?;
    let told = BackupJson {
        file: args.out.display().to_string(),
        cluster_id: backup.state.cluster_id.to_string(),
        epoch: backup.state.epoch.0,
        applied_index: backup.provenance.index,
        bytes,
    };
    if args.client.json {
        return print_json(&told);
    }
    println!(
        "{}: {bytes} bytes, the state of cluster {} after entry {}. It holds no key: keep a copy of ca-key.pem of any \
         Server with it, or a restored cluster has to enrol its nodes again",
        told.file, told.cluster_id, told.applied_index
    );
    Ok(())
}

/// Where the file grows until it is whole.
fn beside(out: &Path) -> std::io::Result<PathBuf> {
    let mut hidden = OsString::from(".");
    hidden.push(out.file_name().ok_or(std::io::ErrorKind::IsADirectory)?);
    hidden.push(".new");
    Ok(out.with_file_name(hidden))
}

async fn write_whole(path: &Path, mut pieces: Streaming<v1::BackupPiece>) -> Result<u64, Exit> {
    let failed = |e: std::io::Error| Exit::failed(format!("cannot write {}: {e}", path.display()));
    // One that was left behind may have other rights.
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(failed)?;
    let mut bytes = 0;
    while let Some(piece) = pieces.message().await.map_err(refused)? {
        file.write_all(&piece.data).map_err(failed)?;
        bytes += piece.data.len() as u64;
    }
    file.sync_all().map_err(failed)?;
    Ok(bytes)
}

fn replace(beside: &Path, out: &Path) -> std::io::Result<()> {
    fs::rename(beside, out)?;
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[derive(Serialize)]
struct RestoredJson {
    cluster_id: String,
    epoch: u64,
    identities: usize,
    tokens: usize,
    made_by: String,
    made_at_unix_ms: u64,
}

pub(super) fn restore_backup(args: &RestoreArgs) -> Result<(), Exit> {
    let keep = args.ca_key.as_ref().map(|ca_key| KeepCluster { ca_key: ca_key.clone() });
    let restored = restore(&args.data, &args.from, keep.as_ref())?;
    let (state, provenance) = (&restored.state, &restored.provenance);
    if args.json {
        return print_json(&RestoredJson {
            cluster_id: state.cluster_id.to_string(),
            epoch: state.epoch.0,
            identities: state.identities.len(),
            tokens: state.tokens.len(),
            made_by: provenance.made_by.to_string(),
            made_at_unix_ms: provenance.made_at.0,
        });
    }
    let data = args.data.display();
    let made_at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(provenance.made_at.0);
    println!(
        "{data} is ready to found cluster {} in epoch {}, with {} identities and {} tokens, as {} had them at {}.\n\
         Start it, with the flags of your server; none of the {} servers of before is asked or dialled:\n  \
         p2p-server run --data {data}\n\
         Then add the other servers with new tokens, on empty directories: `p2p-server token create --role server`.",
        state.cluster_id,
        state.epoch,
        state.identities.len(),
        state.tokens.len(),
        provenance.made_by,
        humantime::format_rfc3339_seconds(made_at),
        restored.members_before,
    );
    println!(
        "{}",
        match keep {
            Some(_) =>
                "Peers and tokens of the old cluster go on as they are, once they are told the new address. Servers of the \
             old cluster are refused: `p2p-server rejoin --discard-state --join` this one, or remove them.",
            None =>
                "It is a new cluster: tokens are listed, but name the old one, so create others; peers enrol again, in the \
             directory they have or an empty one, with a new token.",
        }
    );
    Ok(())
}

#[derive(Serialize)]
struct DiscardedJson {
    moved_to: Option<String>,
    introducers: Vec<String>,
}

pub(super) fn rejoin(args: &RejoinArgs) -> Result<(), Exit> {
    let data = args.data.display();
    if !args.discard_state {
        return Err(Exit::usage(format!(
            "to join again, this server must give up what it has stored. If the others have all of it, type \
             `p2p-server rejoin --discard-state --data {data}`: the store is moved aside, nothing is deleted"
        )));
    }
    let discarded = discard_state(&args.data, &args.join)?;
    let introducers: Vec<String> = discarded.introducers.iter().map(ToString::to_string).collect();
    if args.json {
        return print_json(&DiscardedJson { moved_to: discarded.store, introducers });
    }
    match discarded.store {
        Some(name) => println!("The store is now {data}/{name}; remove it when nobody misses anything."),
        None => println!("There was no store any more."),
    }
    println!(
        "Start the server as before; it joins again through {}, under a new raft id, without a token:\n  \
         p2p-server run --data {data}",
        introducers.join(" or ")
    );
    Ok(())
}

#[derive(Serialize)]
struct ForcedJson {
    epoch: u64,
    done: bool,
    last_index: u64,
    committed_index: u64,
    left_behind: Vec<String>,
}

pub(super) fn force(args: &ForceArgs) -> Result<(), Exit> {
    let data = args.data.display();
    let forced = force_new_cluster(&args.data, args.yes)?;
    let names: Vec<String> =
        forced.left_behind.iter().map(|member| format!("{} ({})", member.name, member.id)).collect();
    let done = args.yes && !forced.was_alone;
    if args.json && (done || forced.was_alone) {
        return print_json(&ForcedJson {
            epoch: forced.epoch.0,
            done,
            last_index: forced.last_index,
            committed_index: forced.committed,
            left_behind: forced.left_behind.iter().map(|member| member.id.to_string()).collect(),
        });
    }
    if forced.was_alone {
        println!(
            "{} is the only server of its cluster, in epoch {}: there is nothing to force. Start it:\n  \
             p2p-server run --data {data}",
            forced.me.name, forced.epoch
        );
        return Ok(());
    }
    if !args.yes {
        return Err(Exit::usage(format!(
            "this would make {} go on alone, from its own log, and give up {}.\n\
             - It has {} entries, {} of them confirmed to it. What the others acknowledged after that is lost.\n\
             - The cluster enters epoch {}. A server that lives in an epoch before it stops when it meets this one, also \
             if a quorum of them is well and merely out of reach: make sure that they are gone for good.\n\
             - Done on two servers, it makes two clusters that refuse each other.\n\
             Choose the server with the most entries. If you are sure:\n  \
             p2p-server force-new-cluster --data {data} --yes",
            forced.me.name,
            names.join(", "),
            forced.last_index,
            forced.committed,
            forced.epoch,
        )));
    }
    println!(
        "{} is the only server of its cluster now, in epoch {}. Start it:\n  p2p-server run --data {data}\n\
         Then bring back the others, each after `p2p-server rejoin --discard-state` on its data directory, or add new \
         ones. Left behind: {}.",
        forced.me.name,
        forced.epoch,
        names.join(", ")
    );
    Ok(())
}
