//! Revocations: a node is thrown out, and who has been is listed.

use std::time::Duration;

use clap::Args;
use p2p_common::KeyHash;
use p2p_proto::{convert, v1};
use p2p_runtime::exit::Exit;
use serde::Serialize;

use super::ClientArgs;
use super::client::{Client, random_uuid, refused, until_known};
use super::show::{dash, malformed, print, print_columns, print_json};

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Whose key: the Id of a Peer or a Server, or a name that only one of them has
    #[arg(value_name = "ID|NAME")]
    target: String,
    /// Why, for those who read the list
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Another key than the one the Id is bound to
    #[arg(long, value_name = "KEY-HASH")]
    key: Option<KeyHash>,
    /// Without a quorum: at once at the asked Server and all it reaches; the cluster follows when it can
    #[arg(long)]
    emergency: bool,
    /// Also a Server whose vote is needed to decide anything
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct RevokedJson {
    id: String,
    name: String,
    key_hash: String,
    /// A Server, which stays in the list of members until it is removed.
    member: bool,
    replicated: bool,
    servers_told: u32,
}

pub(super) async fn revoke(args: RevokeArgs) -> Result<(), Exit> {
    let client = Client::reach(&args.client).await?;
    let request = v1::RevokeRequest {
        request_id: random_uuid()?.to_string(),
        target: args.target,
        key_hash: args.key.map(|key| key.0.to_vec()).unwrap_or_default().into(),
        reason: args.reason,
        emergency: args.emergency,
        force: args.force,
    };
    let answer = until_known(async || client.operator().revoke(request.clone()).await);
    let reply = match tokio::time::timeout(args.client.timeout, answer).await {
        Ok(Err(exit)) if exit.is_unavailable() && !args.emergency => {
            return Err(Exit::unavailable(format!(
                "{exit}. Without a quorum: `p2p-server revoke --emergency`"
            )));
        }
        Ok(answer) => answer?,
        Err(_) => {
            return Err(Exit::unavailable(
                "no answer in time: nobody leads. Without a quorum: `p2p-server revoke --emergency`",
            ));
        }
    };
    let revoked = RevokedJson {
        key_hash: key_text(&reply.key_hash)?,
        id: reply.id,
        name: reply.name,
        member: reply.member,
        replicated: reply.replicated,
        servers_told: reply.servers_told,
    };
    if args.client.json {
        return print_json(&revoked);
    }
    let RevokedJson { id, name, member, replicated, servers_told, .. } = revoked;
    let who = if name.is_empty() { id.clone() } else { format!("{name} ({id})") };
    let mut text = format!("{who} is revoked: its key opens nothing any more\n");
    if !replicated {
        text.push_str(&format!(
            "here and at {servers_told} other servers; the cluster takes it over when a quorum is there\n"
        ));
    }
    if member {
        text.push_str(&format!(
            "it is a server and still counts as a member: `p2p-server remove {id}` takes it out\n"
        ));
    }
    print(&text)
}

#[derive(Serialize)]
struct RevocationsJson {
    revocations: Vec<RevocationJson>,
}

#[derive(Serialize)]
struct RevocationJson {
    /// 0: an emergency, which is not replicated yet.
    number: u64,
    id: String,
    name: String,
    key_hash: String,
    reason: String,
    revoked_at_unix_ms: u64,
}

pub(super) async fn list(args: &ClientArgs) -> Result<(), Exit> {
    let client = Client::reach(args).await?;
    let mut revocations = Vec::new();
    let mut after = 0;
    loop {
        let request = v1::ListRevocationsRequest { after, limit: 0 };
        let page = client.operator().list_revocations(request).await.map_err(refused)?.into_inner();
        let Some(last) = page.revocations.last().map(|last| last.number) else { break };
        for status in page.revocations {
            revocations.push(RevocationJson {
                number: status.number,
                id: status.id,
                name: status.name,
                key_hash: key_text(&status.key_hash)?,
                reason: status.reason,
                revoked_at_unix_ms: status.revoked_at_unix_ms,
            });
        }
        // A page that does not lead on would be asked for again without end.
        if !page.more || last <= after {
            break;
        }
        after = last;
    }
    if args.json {
        return print_json(&RevocationsJson { revocations });
    }
    let rows: Vec<_> = revocations
        .into_iter()
        .map(|revocation| {
            let at = std::time::UNIX_EPOCH + Duration::from_millis(revocation.revoked_at_unix_ms);
            let number = match revocation.number {
                0 => "emergency".to_owned(),
                number => number.to_string(),
            };
            let key: String = revocation.key_hash.chars().take(16).collect();
            let at = humantime::format_rfc3339_seconds(at).to_string();
            [number, at, dash(revocation.name), revocation.id, key, dash(revocation.reason)]
        })
        .collect();
    print_columns(["NUMBER", "REVOKED AT", "NAME", "ID", "KEY", "REASON"], &rows)
}

fn key_text(bytes: &[u8]) -> Result<String, Exit> {
    convert::key_hash(bytes).map(|key| key.to_string()).map_err(malformed)
}
