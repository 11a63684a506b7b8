//! Tokens: minted here, so that the secret is printed once and never stored; the cluster keeps its hash.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use p2p_common::NodeId;
use p2p_common::command::{TokenId, TokenRole};
use p2p_common::grants::Grants;
use p2p_proto::{convert, v1};
use p2p_runtime::exit::Exit;
use p2p_runtime::identity::{CaFingerprint, Token};
use serde::Serialize;

use super::ClientArgs;
use super::client::{Client, random_uuid, refused, until_known};
use super::identity::{GrantArgs, GrantsJson, cell};
use super::show::{malformed, print_columns, print_json, time};

#[derive(Debug, Subcommand)]
pub(super) enum TokenVerb {
    /// Create a token and print it, once
    Create(CreateArgs),
    /// List the tokens, without their secrets
    List(ClientArgs),
    /// Make a token open nothing from now on
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// What it opens: server and peer enrol nodes, operator changes things, reader looks
    #[arg(long, value_name = "server|peer|operator|reader")]
    role: TokenRole,
    /// How many nodes may enrol with it (server and peer)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    uses: u32,
    /// How long it is good for
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Only this Id may enrol with it
    #[arg(long, value_name = "ID")]
    id: Option<NodeId>,
    /// Only a node that calls itself so may enrol with it
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    grants: GrantArgs,
    /// Peers that enrol with it are forgotten 1 h after their last session: for pods and other short-lived workloads
    #[arg(long)]
    ephemeral: bool,
    /// Write the token to this file, readable by its owner alone, instead of printing it
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    out: Option<PathBuf>,
    /// Create nothing when the file of --out is there already
    #[arg(long, requires = "out")]
    keep: bool,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The token's id, as `token list` shows it
    #[arg(value_name = "TOKEN-ID")]
    token_id: String,
}

pub(super) async fn run(verb: TokenVerb) -> Result<(), Exit> {
    match verb {
        TokenVerb::Create(args) => create(args).await,
        TokenVerb::List(args) => list(&args).await,
        TokenVerb::Revoke(args) => revoke(args).await,
    }
}

#[derive(Serialize)]
struct CreatedJson {
    token: String,
    token_id: String,
    role: &'static str,
    expires_at_unix_ms: u64,
    uses: u32,
}

async fn create(args: CreateArgs) -> Result<(), Exit> {
    if let Some(path) = args.out.as_ref().filter(|path| args.keep && path.exists()) {
        eprintln!("{} is there already", path.display());
        return Ok(());
    }
    let client = Client::reach(&args.client).await?;
    let status = client.cluster().get_status(v1::GetStatusRequest {}).await.map_err(refused)?.into_inner();
    let cluster_id = convert::parse(&status.cluster_id, "cluster_id").map_err(Exit::failed)?;
    // Which CA signs is told with the answer, by a Server that was verified.
    let token = Token::mint(args.role, cluster_id, CaFingerprint([0; 32])).map_err(Exit::failed)?;
    let request = v1::CreateTokenRequest {
        request_id: random_uuid()?.to_string(),
        role: convert::token_role_to(args.role).into(),
        uses: args.uses,
        ttl_ms: u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX),
        bound_id: args.id.map(|id| id.to_string()).unwrap_or_default(),
        token_id: token.id().0,
        secret_hash: token.secret_hash().to_vec().into(),
        grants: args.grants.asked(),
        ephemeral: args.ephemeral,
        bound_name: args.name.clone().unwrap_or_default(),
    };
    let reply = until_known(async || client.operator().create_token(request.clone()).await).await?;
    let ca = convert::sha256(&reply.ca_fingerprint, "ca_fingerprint").map_err(Exit::failed)?;
    let token = token.with_ca(CaFingerprint(ca));
    let text = token.to_text();
    if args.client.json {
        return print_json(&CreatedJson {
            token: text.to_string(),
            token_id: token.id().to_string(),
            role: args.role.as_str(),
            expires_at_unix_ms: reply.expires_at_unix_ms,
            uses: args.uses,
        });
    }
    match args.out {
        Some(path) => write_private(&path, &text)
            .map_err(|e| Exit::failed(format!("cannot write the token to {}: {e}", path.display()))),
        None => {
            println!("{}", *text);
            Ok(())
        }
    }
}

/// Replaces the file as a whole, so that who waits for it never reads half a token.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let name = path.file_name().ok_or(std::io::ErrorKind::IsADirectory)?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    let beside = path.with_file_name(hidden);
    // One that was left behind may have other rights.
    match std::fs::remove_file(&beside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(beside, path)
}

#[derive(Serialize)]
struct TokensJson {
    tokens: Vec<TokenJson>,
}

#[derive(Serialize)]
struct TokenJson {
    token_id: String,
    role: &'static str,
    expires_at_unix_ms: u64,
    uses_left: u32,
    bound_id: Option<String>,
    bound_name: Option<String>,
    /// What those who enrol with it may do; of join tokens of Peers.
    grants: Option<GrantsJson>,
    ephemeral: bool,
    used_by: Vec<String>,
}

async fn list(args: &ClientArgs) -> Result<(), Exit> {
    let client = Client::reach(args).await?;
    let reply = client.operator().list_tokens(v1::ListTokensRequest {}).await.map_err(refused)?.into_inner();
    let (mut tokens, mut may) = (Vec::new(), Vec::new());
    for token in reply.tokens {
        let role = convert::token_role_from(token.role).map_err(Exit::failed)?;
        let grants = token.grants.filter(|_| role == TokenRole::Peer).map(convert::grants_from);
        let grants = grants.transpose().map_err(malformed)?;
        may.push(grants.as_ref().map_or_else(|| "-".to_owned(), summary));
        tokens.push(TokenJson {
            token_id: TokenId(token.token_id).to_string(),
            role: role.as_str(),
            expires_at_unix_ms: token.expires_at_unix_ms,
            uses_left: token.uses_left,
            bound_id: Some(token.bound_id).filter(|id| !id.is_empty()),
            bound_name: Some(token.bound_name).filter(|name| !name.is_empty()),
            grants: grants.as_ref().map(GrantsJson::from),
            ephemeral: token.ephemeral,
            used_by: token.used_by,
        });
    }
    if args.json {
        return print_json(&TokensJson { tokens });
    }
    let rows: Vec<_> = tokens
        .into_iter()
        .zip(may)
        .map(|(t, may)| {
            let uses = if matches!(t.role, "server" | "peer") { t.uses_left.to_string() } else { "-".into() };
            let bound: Vec<String> = t.bound_id.into_iter().chain(t.bound_name).collect();
            let bound = if bound.is_empty() { "any".into() } else { bound.join(" ") };
            let may = if t.ephemeral { format!("{may} ephemeral") } else { may };
            let (expires, used) = (time(t.expires_at_unix_ms), t.used_by.len().to_string());
            [t.token_id, t.role.into(), expires, uses, bound, may, used]
        })
        .collect();
    print_columns(["TOKEN ID", "ROLE", "EXPIRES", "USES LEFT", "FOR", "MAY", "USED BY"], &rows)
}

/// What differs from everybody's grants.
fn summary(grants: &Grants) -> String {
    let all = Grants::default();
    let lists = [
        ("offer", &grants.may_offer, &all.may_offer),
        ("reach", &grants.may_reach, &all.may_reach),
        ("advertise", &grants.may_advertise, &all.may_advertise),
    ];
    let differing = lists.iter().filter(|(_, patterns, usual)| patterns != usual);
    let texts: Vec<String> =
        differing.map(|(what, patterns, _)| format!("{what}={}", cell(patterns))).collect();
    if texts.is_empty() { "*".to_owned() } else { texts.join(" ") }
}

async fn revoke(args: RevokeArgs) -> Result<(), Exit> {
    let token_id = u64::from_str_radix(&args.token_id, 16)
        .map_err(|_| Exit::usage(format!("'{}' is not a token id: 16 hex digits", args.token_id)))?;
    let client = Client::reach(&args.client).await?;
    let request = v1::RevokeTokenRequest { request_id: random_uuid()?.to_string(), token_id };
    client.operator().revoke_token(request).await.map_err(refused)?;
    if args.client.json {
        return print_json(&serde_json::json!({ "revoked": TokenId(token_id).to_string() }));
    }
    println!("revoked {}", TokenId(token_id));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_shows_what_is_not_usual() {
        assert_eq!(summary(&Grants::default()), "*");
        let grants = Grants {
            may_offer: "".parse().unwrap(),
            may_advertise: "a,b".parse().unwrap(),
            ..Grants::default()
        };
        assert_eq!(summary(&grants), "offer=- advertise=a,b");
    }

    #[test]
    fn a_token_file_is_private_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("join.token");
        std::fs::write(&path, "an older and longer token").unwrap();
        for text in ["one", "two"] {
            write_private(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{text}\n"));
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
        assert!(write_private(&dir.path().join("no/such/dir"), "x").is_err());
    }
}
