//! The CA: looked at, changed, and the secret over its key files.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use p2p_proto::v1;
use p2p_runtime::ca::{CaKeyFiles, CaSecret};
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::{CaFingerprint, DataDir};
use serde::Serialize;

use super::ClientArgs;
use super::client::{Client, random_uuid, refused, until_known};
use super::show::{print_columns, print_json};

#[derive(Debug, Subcommand)]
pub(super) enum CaVerb {
    /// Show the trusted CAs, who has their keys, and what a change of the CA waits for
    Status(ClientArgs),
    /// Change the CA without a stop: begin; once everybody has a new certificate, finish
    Rotate(RotateArgs),
    /// Encrypt the CA keys of a stopped Server under another secret, or under none
    Secret(SecretArgs),
}

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Trust the old CA no more
    #[arg(long, conflicts_with = "abort")]
    finish: bool,
    /// Go back to the old CA
    #[arg(long)]
    abort: bool,
    /// Finish although connected nodes show certificates of the old CA: they renew them before anything else
    #[arg(long, requires = "finish")]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct SecretArgs {
    /// Data directory of the stopped Server
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// File with the secret so far, if there is one; or P2P_CA_SECRET
    #[arg(long, value_name = "FILE")]
    ca_secret_file: Option<PathBuf>,
    /// File with the secret from now on
    #[arg(long, value_name = "FILE", required_unless_present = "remove", conflicts_with = "remove")]
    new_secret_file: Option<PathBuf>,
    /// Leave the keys in the clear from now on
    #[arg(long)]
    remove: bool,
}

pub(super) async fn ask(verb: CaVerb) -> Result<(), Exit> {
    match verb {
        CaVerb::Status(args) => {
            let client = Client::reach(&args).await?;
            let reply = client.operator().get_ca_status(v1::GetCaStatusRequest {}).await.map_err(refused)?;
            show(&reply.into_inner(), None, args.json)
        }
        CaVerb::Rotate(args) => rotate(&args).await,
        CaVerb::Secret(_) => Err(Exit::failed("this asks no Server")),
    }
}

async fn rotate(args: &RotateArgs) -> Result<(), Exit> {
    let client = Client::reach(&args.client).await?;
    let (step, done) = match (args.finish, args.abort) {
        (true, _) => (v1::RotateCaStep::Finish, "finished"),
        (_, true) => (v1::RotateCaStep::Abort, "taken back"),
        _ => (v1::RotateCaStep::Begin, "begun"),
    };
    let request =
        v1::RotateCaRequest { request_id: random_uuid()?.to_string(), step: step.into(), force: args.force };
    let reply = until_known(async || client.operator().rotate_ca(request.clone()).await).await?;
    let status = reply.status.ok_or_else(|| Exit::failed("the Server did not say how it is now"))?;
    show(&status, Some((reply.changed, done)), args.client.json)
}

/// Writes the key files of a stopped Server again.
pub(super) fn secret(args: &SecretArgs) -> Result<(), Exit> {
    let usage = |e: &(dyn std::error::Error + 'static)| Exit::usage(chain(e));
    let before = match (&args.ca_secret_file, std::env::var("P2P_CA_SECRET").ok()) {
        (Some(path), _) => Some(CaSecret::read(path).map_err(|e| usage(&e))?),
        (None, Some(text)) if !text.is_empty() => Some(CaSecret::new(&text).map_err(|e| usage(&e))?),
        _ => None,
    };
    let after = args.new_secret_file.as_deref().map(CaSecret::read).transpose().map_err(|e| usage(&e))?;
    if !args.data.is_dir() {
        return Err(Exit::usage(format!("{} is no data directory", args.data.display())));
    }
    let dir = DataDir::open(&args.data).map_err(|e| Exit::failed(chain(&e)))?;
    CaKeyFiles::new(before).change_secret(&dir, after).map_err(|e| usage(&e))?;
    let now = if args.remove { "in the clear" } else { "under the new secret" };
    println!("the CA keys in {} are {now}; start the Server accordingly", args.data.display());
    Ok(())
}

#[derive(Serialize)]
struct StatusJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<bool>,
    phase: &'static str,
    trust_version: u64,
    cas: Vec<CaJson>,
    servers: Vec<ServerJson>,
    waiting_for: Vec<String>,
    away: u32,
    away_ids: Vec<String>,
}

#[derive(Serialize)]
struct CaJson {
    fingerprint: String,
    subject: String,
    expires_unix_ms: u64,
    signs: bool,
    /// In a change: the one that is trusted until it is finished.
    goes: bool,
    sessions: u32,
}

#[derive(Serialize)]
struct ServerJson {
    id: String,
    name: String,
    connected: bool,
    /// Fingerprints of the CAs whose keys it holds.
    keys: Vec<String>,
    /// Fingerprint of the CA of its own certificate.
    certificate_of: Option<String>,
}

fn fingerprint(bytes: &[u8]) -> String {
    <[u8; 32]>::try_from(bytes).map(|bytes| CaFingerprint(bytes).to_string()).unwrap_or_default()
}

fn phase(status: &v1::GetCaStatusReply) -> &'static str {
    match status.phase() {
        v1::CaPhase::Settled => "settled",
        v1::CaPhase::Handing => "handing",
        v1::CaPhase::Switched => "switched",
        v1::CaPhase::Unspecified => "unknown",
    }
}

fn show(status: &v1::GetCaStatusReply, step: Option<(bool, &str)>, json: bool) -> Result<(), Exit> {
    let is_change = status.cas.len() > 1;
    let cas = status.cas.iter().enumerate().map(|(place, ca)| CaJson {
        fingerprint: fingerprint(&ca.fingerprint),
        subject: ca.subject.clone(),
        expires_unix_ms: ca.expires_unix_ms,
        signs: ca.signs,
        goes: is_change && place == 0,
        sessions: ca.sessions,
    });
    let servers = status.servers.iter().map(|server| ServerJson {
        id: server.id.clone(),
        name: server.name.clone(),
        connected: server.connected,
        keys: server.cas.iter().filter(|ca| ca.has_key).map(|ca| fingerprint(&ca.fingerprint)).collect(),
        certificate_of: server.cas.iter().find(|ca| ca.is_own).map(|ca| fingerprint(&ca.fingerprint)),
    });
    let all = StatusJson {
        changed: step.map(|(changed, _)| changed),
        phase: phase(status),
        trust_version: status.trust_version,
        cas: cas.collect(),
        servers: servers.collect(),
        waiting_for: status.waiting_for.clone(),
        away: status.away,
        away_ids: status.away_ids.clone(),
    };
    if json {
        return print_json(&all);
    }
    match step {
        Some((true, done)) => println!("{done}"),
        Some((false, _)) => println!("nothing to change: that was done before, or nothing is under way"),
        None => {}
    }
    let short = |text: &str| text.chars().take(16).collect::<String>();
    let rows: Vec<_> = all
        .cas
        .iter()
        .map(|ca| {
            let expires = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ca.expires_unix_ms);
            let expires = humantime::format_rfc3339_seconds(expires).to_string();
            let role = match (ca.signs, ca.goes) {
                (true, true) => "signs, goes",
                (true, false) => "signs",
                (false, true) => "goes",
                (false, false) => "next",
            };
            [short(&ca.fingerprint), role.into(), expires, ca.sessions.to_string(), ca.subject.clone()]
        })
        .collect();
    print_columns(["CA", "ROLE", "EXPIRES", "SESSIONS", "SUBJECT"], &rows)?;
    println!();
    let rows: Vec<_> = all
        .servers
        .iter()
        .map(|server| {
            let keys: Vec<_> = server.keys.iter().map(|key| short(key)).collect();
            let keys = if keys.is_empty() { "-".to_owned() } else { keys.join(" ") };
            let own = server.certificate_of.as_deref().map_or_else(|| "-".to_owned(), short);
            let connected = if server.connected { "yes" } else { "no" };
            [server.name.clone(), connected.to_owned(), keys, own]
        })
        .collect();
    print_columns(["SERVER", "CONNECTED", "KEYS", "CERTIFICATE BY"], &rows)?;
    println!();
    println!("{}", next(status));
    for reason in &all.waiting_for {
        println!("  waiting for: {reason}");
    }
    if all.away > 0 {
        println!("  away: {} peers have no session; they come back by their keys and renew then", all.away);
        for id in &all.away_ids {
            println!("    {id}");
        }
    }
    Ok(())
}

fn next(status: &v1::GetCaStatusReply) -> &'static str {
    match (status.phase(), status.waiting_for.is_empty()) {
        (v1::CaPhase::Settled, _) => "settled: one CA",
        (v1::CaPhase::Handing, true) => "handing: every server has the keys, the next CA signs within 10 s",
        (v1::CaPhase::Handing, false) => "handing: the next CA signs when every server has its key",
        (v1::CaPhase::Switched, true) => {
            "switched: everybody has a new certificate; end it with `ca rotate --finish`"
        }
        (v1::CaPhase::Switched, false) => "switched: nodes renew their certificates by themselves",
        (v1::CaPhase::Unspecified, _) => "the Server says something this version does not know",
    }
}
