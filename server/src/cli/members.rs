//! The Servers of the cluster: listed, removed, and which of them is Master.

use std::time::Duration;

use clap::Args;
use p2p_common::NodeId;
use p2p_common::member::{Member, MemberRole};
use p2p_proto::{convert, v1};
use p2p_runtime::exit::Exit;
use serde::Serialize;

use super::ClientArgs;
use super::client::{Client, random_uuid, refused, until_known};
use super::show::{dash, malformed, print, print_columns, print_json, texts};

#[derive(Debug, Args)]
pub(super) struct MembersArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Answer from the asked Server's own state, without asking the leader
    #[arg(long)]
    stale: bool,
}

#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// To this Server; without it, to any voter that is up to date
    #[arg(long, value_name = "NAME|ID")]
    to: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Which Server; it may be dead
    #[arg(value_name = "NAME|ID")]
    member: String,
}

#[derive(Serialize)]
struct MembersJson {
    version: u64,
    stale: bool,
    members: Vec<MemberJson>,
}

#[derive(Serialize)]
struct MemberJson {
    id: String,
    name: String,
    addresses: Vec<String>,
    zone: String,
    raft_id: u64,
    role: &'static str,
    /// `no`, `yes`, or `provisional`: named for want of a quorum.
    master: &'static str,
    connected: bool,
    uptime_ms: Option<u64>,
    behind: Option<u64>,
}

pub(super) async fn list(args: &MembersArgs) -> Result<(), Exit> {
    let client = Client::reach(&args.client).await?;
    let request = v1::ListMembersRequest { stale: args.stale };
    let reply = client.cluster().list_members(request).await.map_err(refused)?.into_inner();
    let master = reply.master.map(convert::master_from).transpose().map_err(malformed)?;
    let mut members = Vec::new();
    for status in reply.members {
        let role = match convert::member_role_from(status.role).map_err(malformed)? {
            MemberRole::Voter => "voter",
            MemberRole::Learner => "learner",
            MemberRole::Joining => "joining",
        };
        let member = member(status.member)?;
        let title = master.as_ref().filter(|title| title.id == member.id);
        members.push(MemberJson {
            id: member.id.to_string(),
            name: member.name,
            addresses: texts(&member.addresses),
            zone: member.zone,
            raft_id: member.raft_id,
            role,
            master: title.map_or("no", |title| if title.provisional { "provisional" } else { "yes" }),
            connected: status.connected,
            uptime_ms: status.uptime_ms,
            behind: status.behind,
        });
    }
    if args.client.json {
        return print_json(&MembersJson { version: reply.version, stale: reply.stale, members });
    }
    let rows: Vec<_> = members
        .into_iter()
        .map(|m| {
            let connected = if m.connected { "yes" } else { "no" };
            // Whole seconds: nobody reads an uptime in milliseconds.
            let uptime = m.uptime_ms.map(|ms| Duration::from_secs(ms / 1000));
            let uptime = uptime.map(|uptime| humantime::format_duration(uptime).to_string());
            let behind = m.behind.map(|entries| entries.to_string());
            [
                m.name,
                m.id,
                m.addresses.join(","),
                dash(m.zone),
                m.role.into(),
                m.master.into(),
                connected.into(),
                dash(uptime.unwrap_or_default()),
                dash(behind.unwrap_or_default()),
            ]
        })
        .collect();
    print_columns(
        ["NAME", "ID", "ADDRESSES", "ZONE", "ROLE", "MASTER", "CONNECTED", "UPTIME", "BEHIND"],
        &rows,
    )?;
    if reply.stale {
        print("stale: as this Server knows them, without asking the leader\n")?;
    }
    Ok(())
}

fn member(member: Option<v1::Member>) -> Result<Member, Exit> {
    let member = member.ok_or_else(|| Exit::failed("the Server's answer lacks a member"))?;
    convert::member_from(member).map_err(malformed)
}

/// The Server that goes by `name`, or has that Id.
async fn find(client: &Client, name: &str) -> Result<Member, Exit> {
    let list =
        client.cluster().list_members(v1::ListMembersRequest { stale: true }).await.map_err(refused)?;
    let members: Result<Vec<_>, _> =
        list.into_inner().members.into_iter().map(|status| member(status.member)).collect();
    let mut found: Vec<_> =
        members?.into_iter().filter(|member| member.name == name || member.id.to_string() == name).collect();
    match (found.pop(), found.is_empty()) {
        (Some(member), true) => Ok(member),
        (Some(_), false) => {
            Err(Exit::usage(format!("several servers are called {name}: give the Id of one")))
        }
        (None, _) => {
            Err(Exit::failed(format!("there is no server {name}: `p2p-server members` lists all of them")))
        }
    }
}

pub(super) async fn transfer(args: &TransferArgs) -> Result<(), Exit> {
    let client = Client::reach(&args.client).await?;
    let to = match &args.to {
        Some(name) => find(&client, name).await?.id.to_string(),
        None => String::new(),
    };
    let request = v1::TransferMasterRequest { to };
    let reply = client.operator().transfer_master(request).await.map_err(refused)?.into_inner();
    if args.client.json {
        return print_json(&serde_json::json!({ "master": reply.id }));
    }
    print(&format!("{} is Master\n", reply.id))
}

pub(super) async fn remove(args: &RemoveArgs) -> Result<(), Exit> {
    let client = Client::reach(&args.client).await?;
    let Member { id, name, .. } = find(&client, &args.member).await?;
    take_out(&client, id, args.client.timeout).await?;
    if args.client.json {
        return print_json(&serde_json::json!({ "removed": id.to_string() }));
    }
    print(&format!(
        "{name} ({id}) is removed: if it runs it stops, and its data directory is of no more use\n"
    ))
}

pub(super) async fn leave(args: &ClientArgs) -> Result<(), Exit> {
    let client = Client::reach(args).await?;
    let status = client.cluster().get_status(v1::GetStatusRequest {}).await.map_err(refused)?.into_inner();
    let id: NodeId = convert::parse(&status.id, "id").map_err(malformed)?;
    take_out(&client, id, args.timeout).await?;
    if args.json {
        return print_json(&serde_json::json!({ "left": id.to_string() }));
    }
    print(&format!("{} ({id}) has left the cluster; its process stops\n", status.name))
}

async fn take_out(client: &Client, id: NodeId, within: Duration) -> Result<(), Exit> {
    let request = v1::RemoveMemberRequest { request_id: random_uuid()?.to_string(), id: id.to_string() };
    let answer = until_known(async || client.operator().remove_member(request.clone()).await);
    match tokio::time::timeout(within, answer).await {
        Ok(answer) => answer.map(|_| ()),
        Err(_) => Err(Exit::unavailable(
            "no answer in time: nobody leads, or the vote cannot be taken now; see `p2p-server members`, then try again",
        )),
    }
}
