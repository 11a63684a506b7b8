//! Identities: who is bound to which key, and what they may do; certificates carried to their Peer as files.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use p2p_common::grants::{Grants, NamePatterns};
use p2p_common::{KeyHash, NodeId, NodeKind};
use p2p_proto::{convert, v1};
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::{DataDir, Enrolment, NodeIdentity, TrustBundle};
use serde::Serialize;

use super::ClientArgs;
use super::client::{Client, random_uuid, refused, until_known};
use super::show::{malformed, print, print_columns, print_json, time};

#[derive(Debug, Subcommand)]
pub(super) enum IdentityVerb {
    /// List who is enrolled
    List(ListArgs),
    /// Show one identity
    Show(OneArgs),
    /// Free an Id from a lost key; the key opens nothing any more
    Reset(OneArgs),
    /// Change what a Peer may offer, reach and advertise; what is not given stays
    Set(SetArgs),
    /// Make the data directory of a Peer that cannot enrol by itself
    Issue(IssueArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Only Servers, or only Peers
    #[arg(long, value_name = "server|peer", value_parser = kind)]
    kind: Option<NodeKind>,
    /// Only those that are revoked
    #[arg(long)]
    revoked: bool,
    /// Answer without asking the leader; may be behind
    #[arg(long)]
    stale: bool,
}

fn kind(text: &str) -> Result<NodeKind, String> {
    match text {
        "server" => Ok(NodeKind::Server),
        "peer" => Ok(NodeKind::Peer),
        _ => Err("expected server or peer".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(super) struct OneArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The Id, as `identity list` shows it
    id: NodeId,
}

/// What a Peer may do, as it is typed: comma-separated name patterns, `*` for any run of characters.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct GrantArgs {
    /// Services it may offer, as name patterns: 'team-a-*,db.example'; '' for none [default: *]
    #[arg(long, value_name = "PATTERNS")]
    may_offer: Option<NamePatterns>,
    /// Services of others that it may reach [default: *]
    #[arg(long, value_name = "PATTERNS")]
    may_reach: Option<NamePatterns>,
    /// Public addresses, HOST:PORT, it may name as its own besides the one it is seen at [default: none]
    #[arg(long, value_name = "PATTERNS")]
    may_advertise: Option<NamePatterns>,
}

impl GrantArgs {
    /// Whether anything is given.
    pub(super) fn is_given(&self) -> bool {
        self.may_offer.is_some() || self.may_reach.is_some() || self.may_advertise.is_some()
    }

    /// What is given, and of `base` what is not.
    pub(super) fn over(&self, base: Grants) -> Grants {
        Grants {
            may_offer: self.may_offer.clone().unwrap_or(base.may_offer),
            may_reach: self.may_reach.clone().unwrap_or(base.may_reach),
            may_advertise: self.may_advertise.clone().unwrap_or(base.may_advertise),
        }
    }

    /// For a request that makes something new.
    pub(super) fn asked(&self) -> Option<v1::Grants> {
        self.is_given().then(|| convert::grants_to(&self.over(Grants::default())))
    }
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The Peer's Id
    id: NodeId,
    #[command(flatten)]
    grants: GrantArgs,
}

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The directory to make; it holds the Peer's key: carry it to the Peer's host and give it to `p2p-peer run --data`
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The Peer's Id; one is made when it is not given
    #[arg(long, value_name = "ID")]
    id: Option<NodeId>,
    /// What people call the Peer
    #[arg(long, value_name = "NAME")]
    name: String,
    #[command(flatten)]
    grants: GrantArgs,
}

pub(super) async fn run(verb: IdentityVerb) -> Result<(), Exit> {
    match verb {
        IdentityVerb::List(args) => list(&args).await,
        IdentityVerb::Show(args) => show(&args).await,
        IdentityVerb::Reset(args) => reset(&args).await,
        IdentityVerb::Set(args) => set(&args).await,
        IdentityVerb::Issue(args) => issue(&args).await,
    }
}

/// What an identity or a token may do, for programs.
#[derive(Serialize)]
pub(super) struct GrantsJson {
    may_offer: Vec<String>,
    may_reach: Vec<String>,
    may_advertise: Vec<String>,
}

impl From<&Grants> for GrantsJson {
    fn from(grants: &Grants) -> Self {
        let texts = |patterns: &NamePatterns| patterns.iter().map(ToString::to_string).collect();
        GrantsJson {
            may_offer: texts(&grants.may_offer),
            may_reach: texts(&grants.may_reach),
            may_advertise: texts(&grants.may_advertise),
        }
    }
}

/// A list of patterns in a table.
pub(super) fn cell(patterns: &NamePatterns) -> String {
    if patterns.is_empty() { "-".to_owned() } else { patterns.to_string() }
}

#[derive(Serialize)]
struct IdentitiesJson {
    total: u64,
    maximum: u64,
    identities: Vec<IdentityJson>,
}

#[derive(Serialize)]
struct IdentityJson {
    id: String,
    name: String,
    key_hash: String,
    enrolled_at_unix_ms: u64,
    ephemeral: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen_at_unix_ms: Option<u64>,
    revoked: bool,
    #[serde(flatten)]
    grants: GrantsJson,
}

/// An identity as a Server told it.
struct Identity {
    status: v1::IdentityStatus,
    key_hash: KeyHash,
    grants: Grants,
}

impl Identity {
    fn of(status: v1::IdentityStatus) -> Result<Self, Exit> {
        let key_hash = KeyHash(convert::sha256(&status.key_hash, "key_hash").map_err(malformed)?);
        let grants = status.grants.clone().map_or(Ok(Grants::default()), convert::grants_from);
        Ok(Identity { key_hash, grants: grants.map_err(malformed)?, status })
    }

    fn state(&self) -> &'static str {
        match (self.status.revoked, self.status.ephemeral) {
            (true, _) => "revoked",
            (false, true) => "ephemeral",
            (false, false) => "enrolled",
        }
    }

    fn json(&self) -> IdentityJson {
        IdentityJson {
            id: self.status.id.clone(),
            name: self.status.name.clone(),
            key_hash: self.key_hash.to_string(),
            enrolled_at_unix_ms: self.status.enrolled_at_unix_ms,
            ephemeral: self.status.ephemeral,
            seen_at_unix_ms: self.status.ephemeral.then_some(self.status.seen_at_unix_ms),
            revoked: self.status.revoked,
            grants: GrantsJson::from(&self.grants),
        }
    }
}

async fn list(args: &ListArgs) -> Result<(), Exit> {
    let client = Client::reach(&args.client).await?;
    let kind = match args.kind {
        None => v1::NodeKind::Unspecified,
        Some(NodeKind::Server) => v1::NodeKind::Server,
        Some(NodeKind::Peer) => v1::NodeKind::Peer,
    };
    let mut request = v1::ListIdentitiesRequest {
        kind: kind.into(),
        revoked: args.revoked.then_some(true),
        stale: args.stale,
        ..v1::ListIdentitiesRequest::default()
    };
    let mut identities = Vec::new();
    let (total, maximum) = loop {
        let reply = client.operator().list_identities(request.clone()).await.map_err(refused)?.into_inner();
        for status in reply.identities {
            identities.push(Identity::of(status)?);
        }
        if reply.next.is_empty() {
            break (reply.total, reply.maximum);
        }
        request.after = reply.next;
        // The first page is as new as it must be.
        request.stale = true;
    };
    if args.client.json {
        let identities = identities.iter().map(Identity::json).collect();
        return print_json(&IdentitiesJson { total, maximum, identities });
    }
    let row = |identity: &Identity| {
        [
            identity.status.name.clone(),
            identity.status.id.clone(),
            identity.state().to_owned(),
            cell(&identity.grants.may_offer),
            cell(&identity.grants.may_reach),
            cell(&identity.grants.may_advertise),
            time(identity.status.enrolled_at_unix_ms),
        ]
    };
    let rows: Vec<_> = identities.iter().map(row).collect();
    print_columns(["NAME", "ID", "STATE", "MAY OFFER", "MAY REACH", "MAY ADVERTISE", "ENROLLED"], &rows)
}

async fn find(client: &Client, id: NodeId) -> Result<Identity, Exit> {
    let request = v1::ListIdentitiesRequest { id: id.to_string(), ..v1::ListIdentitiesRequest::default() };
    let reply = client.operator().list_identities(request).await.map_err(refused)?.into_inner();
    let found = reply.identities.into_iter().next();
    let none = || Exit::failed(format!("{id} is not enrolled; `p2p-server identity list` shows who is"));
    Identity::of(found.ok_or_else(none)?)
}

async fn show(args: &OneArgs) -> Result<(), Exit> {
    let client = Client::reach(&args.client).await?;
    let identity = find(&client, args.id).await?;
    if args.client.json {
        return print_json(&identity.json());
    }
    let mut lines = vec![
        ("id", identity.status.id.clone()),
        ("name", identity.status.name.clone()),
        ("state", identity.state().to_owned()),
        ("key", identity.key_hash.to_string()),
        ("enrolled", time(identity.status.enrolled_at_unix_ms)),
    ];
    if identity.status.ephemeral {
        lines.push(("last seen", time(identity.status.seen_at_unix_ms)));
    }
    if args.id.kind() == NodeKind::Peer {
        lines.push(("may offer", cell(&identity.grants.may_offer)));
        lines.push(("may reach", cell(&identity.grants.may_reach)));
        lines.push(("may advertise", cell(&identity.grants.may_advertise)));
    }
    let shown = |text: &str| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let lines = lines.iter().map(|(what, text)| format!("{what:<15}{}\n", shown(text)));
    print(&lines.collect::<String>())
}

async fn reset(args: &OneArgs) -> Result<(), Exit> {
    let client = Client::reach(&args.client).await?;
    let request =
        v1::ResetIdentityRequest { request_id: random_uuid()?.to_string(), id: args.id.to_string() };
    until_known(async || client.operator().reset_identity(request.clone()).await).await?;
    if args.client.json {
        return print_json(&serde_json::json!({ "reset": args.id.to_string() }));
    }
    println!(
        "{} is free, and the key it had opens nothing any more. Whoever enrols under it next, with another key and a \
         token, has it",
        args.id
    );
    Ok(())
}

async fn set(args: &SetArgs) -> Result<(), Exit> {
    if !args.grants.is_given() {
        return Err(Exit::usage("give --may-offer, --may-reach or --may-advertise: what is not given stays"));
    }
    let client = Client::reach(&args.client).await?;
    let grants = args.grants.over(find(&client, args.id).await?.grants);
    let request = v1::ChangeGrantsRequest {
        request_id: random_uuid()?.to_string(),
        id: args.id.to_string(),
        grants: Some(convert::grants_to(&grants)),
    };
    until_known(async || client.operator().change_grants(request.clone()).await).await?;
    if args.client.json {
        return print_json(&GrantsJson::from(&grants));
    }
    println!(
        "{} may offer {}, reach {}, advertise {} from now on",
        args.id,
        cell(&grants.may_offer),
        cell(&grants.may_reach),
        cell(&grants.may_advertise)
    );
    Ok(())
}

#[derive(Serialize)]
struct IssuedJson {
    id: String,
    name: String,
    data: String,
    expires_unix_ms: u64,
}

/// The key is made here and stays in the directory. A repeat after a lost answer goes on with the same Id and key.
async fn issue(args: &IssueArgs) -> Result<(), Exit> {
    let failed = |e: &dyn std::error::Error| Exit::failed(format!("{}: {e}", args.out.display()));
    let client = Client::reach(&args.client).await?;
    let dir = DataDir::open(&args.out).map_err(|e| failed(&e))?;
    let mut identity = NodeIdentity::load_or_create(&dir, NodeKind::Peer, args.id, Some(&args.name))
        .map_err(|e| failed(&e))?;
    if identity.enrolment().is_some() {
        return Err(Exit::failed(format!(
            "{} holds {} with a certificate already: give another --out",
            args.out.display(),
            identity.id()
        )));
    }
    let csr = identity.key().certificate_request(identity.id()).map_err(Exit::failed)?;
    let request = v1::IssueCertificateRequest {
        request_id: random_uuid()?.to_string(),
        id: identity.id().to_string(),
        name: args.name.clone(),
        csr: csr.into(),
        grants: args.grants.asked(),
    };
    let reply = until_known(async || client.operator().issue_certificate(request.clone()).await).await?;
    let trust = TrustBundle::from_der(reply.trust_bundle.iter().map(|der| der.to_vec()));
    let enrolment = Enrolment {
        cluster_id: convert::parse(&reply.cluster_id, "cluster_id").map_err(malformed)?,
        certificate: reply.certificate.to_vec().into(),
        trust: trust.map_err(|e| Exit::failed(chain(&e)))?,
    };
    identity.enrol(&dir, enrolment).map_err(|e| failed(&e))?;
    if args.client.json {
        return print_json(&IssuedJson {
            id: identity.id().to_string(),
            name: args.name.clone(),
            data: args.out.display().to_string(),
            expires_unix_ms: reply.expires_unix_ms,
        });
    }
    println!(
        "{} holds {} until {}. Carry it to the Peer's host, and start it without a token:\n  \
         p2p-peer run --data DIR --servers {} --service NAME=HOST:PORT",
        args.out.display(),
        identity.id(),
        time(reply.expires_unix_ms),
        client.address
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays() {
        let base = Grants { may_offer: "a".parse().unwrap(), ..Grants::default() };
        let given = GrantArgs { may_reach: Some("b,c".parse().unwrap()), ..GrantArgs::default() };
        let grants = given.over(base.clone());
        assert_eq!((grants.may_offer.to_string(), grants.may_reach.to_string()), ("a".into(), "b,c".into()));
        let none = GrantArgs { may_offer: Some("".parse().unwrap()), ..GrantArgs::default() };
        assert!(none.over(base).may_offer.is_empty() && none.is_given());
        assert_eq!((GrantArgs::default().asked(), cell(&NamePatterns::none())), (None, "-".to_owned()));
    }
}
