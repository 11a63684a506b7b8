//! The look-ups: asked, then printed as a table for people or as JSON for programs.

use std::io::Write;
use std::time::Duration;

use p2p_common::UnixMs;
use p2p_common::addr::HostPort;
use p2p_common::member::MasterTitle;
use p2p_proto::{convert, v1};
use p2p_runtime::clock::{clock_complaint, time_text};
use p2p_runtime::columns::columns;
use p2p_runtime::exit::{Exit, chain};
use serde::Serialize;
use tonic::Status;

use super::ClientArgs;
use super::client::{Client, refused};

pub(super) fn print(text: &str) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Exit::failed(format!("cannot print: {e}")))
}

/// Prints `value` as one line of JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Exit> {
    let mut text = serde_json::to_string(value).map_err(Exit::failed)?;
    text.push('\n');
    print(&text)
}

pub(super) fn malformed(error: convert::ConvertError) -> Exit {
    Exit::failed(format!("the Server's answer makes no sense: {}", chain(&error)))
}

/// A wall time as tables show it.
pub(super) fn time(unix_ms: u64) -> String {
    time_text(UnixMs(unix_ms))
}

pub(super) fn texts(addresses: &[HostPort]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[derive(Serialize)]
struct MasterJson {
    id: String,
    name: String,
    addresses: Vec<String>,
    term: u64,
    cluster_id: String,
    epoch: u64,
    since_unix_ms: u64,
    provisional: bool,
}

impl From<MasterTitle> for MasterJson {
    fn from(master: MasterTitle) -> Self {
        MasterJson {
            id: master.id.to_string(),
            name: master.name,
            addresses: texts(&master.addresses),
            term: master.term,
            cluster_id: master.cluster_id.to_string(),
            epoch: master.epoch.0,
            since_unix_ms: master.since.0,
            provisional: master.provisional,
        }
    }
}

const MASTER_HEAD: [&str; 5] = ["MASTER", "ID", "ADDRESSES", "TERM", "SINCE"];

fn master_row(master: &MasterJson) -> [String; 5] {
    let name =
        if master.provisional { format!("{} (provisional)", master.name) } else { master.name.clone() };
    let since = std::time::UNIX_EPOCH + Duration::from_millis(master.since_unix_ms);
    let since = humantime::format_rfc3339_millis(since).to_string();
    [name, master.id.clone(), master.addresses.join(","), master.term.to_string(), since]
}

pub(super) async fn master(args: &ClientArgs) -> Result<(), Exit> {
    let client = Client::reach(args).await?;
    let reply = client.cluster().get_master(v1::GetMasterRequest {}).await.map_err(refused)?.into_inner();
    let master = reply.master.ok_or_else(|| Exit::unavailable("there is no Master now"))?;
    let master = MasterJson::from(convert::master_from(master).map_err(malformed)?);
    if args.json { print_json(&master) } else { print(&columns(MASTER_HEAD, &[master_row(&master)])) }
}

/// Follows the Master until interrupted. A Server that goes away is asked again each half second.
pub(super) async fn watch_master(args: &ClientArgs) -> Result<(), Exit> {
    const AGAIN: Duration = Duration::from_millis(500);
    let mut follower = Follower { json: args.json, last: None, silent: false };
    // A Server that was never reached is a mistake in the command line more often than an outage.
    let mut client = Some(Client::reach(args).await?);
    loop {
        let ended = match client.take() {
            Some(client) => follow(&client, &mut follower).await?,
            None => match Client::reach_once(args).await {
                Ok(reached) => {
                    client = Some(reached);
                    continue;
                }
                Err(exit) => exit.to_string(),
            },
        };
        follower.lost(&ended);
        tokio::time::sleep(AGAIN).await;
    }
}

async fn follow(client: &Client, follower: &mut Follower) -> Result<String, Exit> {
    let ended = |status: Status| format!("the Server at {} went away: {}", client.address, status.message());
    let mut stream = match client.watching().watch_master(v1::WatchMasterRequest {}).await {
        Ok(reply) => reply.into_inner(),
        Err(status) if status.code() == tonic::Code::Unavailable => return Ok(ended(status)),
        Err(status) => return Err(refused(status)),
    };
    loop {
        match stream.message().await {
            Ok(Some(reply)) => {
                follower.silent = false;
                let master = reply.master.map(convert::master_from).transpose().map_err(malformed)?;
                follower.show(master)?;
            }
            Ok(None) => return Ok(format!("the Server at {} stopped", client.address)),
            Err(status) => return Ok(ended(status)),
        }
    }
}

/// What was printed last, so that a change and nothing else is printed.
struct Follower {
    json: bool,
    last: Option<Option<MasterTitle>>,
    silent: bool,
}

impl Follower {
    fn show(&mut self, master: Option<MasterTitle>) -> Result<(), Exit> {
        let first = self.last.is_none();
        if self.last.as_ref().is_some_and(|last| same(last.as_ref(), master.as_ref())) {
            return Ok(());
        }
        self.last = Some(master.clone());
        let master = master.map(MasterJson::from);
        if self.json {
            return master.map_or(Ok(()), |master| print_json(&master));
        }
        if first {
            print(&format!(
                "{:<24}  {:<16}  {:<37}  {:>6}  {}\n",
                "SINCE", "MASTER", "ID", "TERM", "ADDRESSES"
            ))?;
        }
        match master.as_ref().map(master_row) {
            Some([name, id, addresses, term, since]) => {
                print(&format!("{since:<24}  {name:<16}  {id:<37}  {term:>6}  {addresses}\n"))
            }
            None => print(&format!("{:<24}  no Master now\n", "")),
        }
    }

    /// Says once, on standard error, that nobody answers.
    fn lost(&mut self, why: &str) {
        if !std::mem::replace(&mut self.silent, true) {
            eprintln!("p2p-server: {why}; asking again");
        }
    }
}

/// Another Server's answer for the same title differs in when it learned of it only.
fn same(a: Option<&MasterTitle>, b: Option<&MasterTitle>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            (a.id, a.epoch, a.term, a.provisional, &a.addresses)
                == (b.id, b.epoch, b.term, b.provisional, &b.addresses)
        }
        _ => false,
    }
}

#[derive(Serialize)]
struct PeersJson {
    peers: Vec<PeerJson>,
}

#[derive(Serialize)]
struct PeerJson {
    id: String,
    name: String,
    zone: String,
    addresses: Vec<String>,
    services: Vec<String>,
    connected: bool,
    seen_from: String,
    since_unix_ms: u64,
    links: Vec<PeerLinkJson>,
}

#[derive(Serialize)]
struct PeerLinkJson {
    id: String,
    connected: bool,
    path: &'static str,
    reason: String,
}

pub(super) async fn peers(args: &ClientArgs) -> Result<(), Exit> {
    let client = Client::reach(args).await?;
    let reply = client.cluster().list_peers(v1::ListPeersRequest {}).await.map_err(refused)?.into_inner();
    let mut peers = Vec::new();
    for peer in reply.peers {
        let net = convert::net_info_from(peer.net).map_err(malformed)?;
        let links = convert::links_from(peer.links).map_err(malformed)?;
        peers.push(PeerJson {
            id: peer.id,
            name: peer.name,
            zone: peer.zone,
            addresses: net.candidates.iter().map(|c| c.addr.to_string()).collect(),
            services: peer.services.into_iter().map(|s| s.name).collect(),
            // Table A holds Peers online at the answering Server.
            connected: true,
            seen_from: peer.seen_from,
            since_unix_ms: peer.since_unix_ms,
            links: links
                .into_iter()
                .map(|link| PeerLinkJson {
                    id: link.id.to_string(),
                    connected: link.path.is_some(),
                    path: link.path.map_or("none", |path| path.as_str()),
                    reason: link.reason,
                })
                .collect(),
        });
    }
    if args.json {
        return print_json(&PeersJson { peers });
    }
    let rows: Vec<_> = peers
        .into_iter()
        .map(|p| {
            let links = p.links.iter().filter(|link| link.connected).count();
            [
                p.name,
                p.id,
                dash(p.zone),
                dash(p.addresses.join(",")),
                dash(p.services.join(",")),
                links.to_string(),
            ]
        })
        .collect();
    print(&columns(["NAME", "ID", "ZONE", "ADDRESSES", "SERVICES", "LINKS"], &rows))
}

#[derive(Serialize)]
struct ServicesJson {
    services: Vec<ServiceJson>,
}

#[derive(Serialize)]
struct ServiceJson {
    name: String,
    peer_id: String,
    peer_name: String,
    zone: String,
    backend: String,
}

pub(super) async fn services(args: &ClientArgs) -> Result<(), Exit> {
    let client = Client::reach(args).await?;
    let reply =
        client.cluster().list_services(v1::ListServicesRequest {}).await.map_err(refused)?.into_inner();
    let services: Vec<ServiceJson> = reply
        .services
        .into_iter()
        .map(|s| ServiceJson {
            name: s.name,
            peer_id: s.peer_id,
            peer_name: s.peer_name,
            zone: s.zone,
            backend: s.backend,
        })
        .collect();
    if args.json {
        return print_json(&ServicesJson { services });
    }
    let rows: Vec<_> =
        services.into_iter().map(|s| [s.name, s.peer_name, s.peer_id, dash(s.zone), s.backend]).collect();
    print(&columns(["SERVICE", "PEER", "PEER ID", "ZONE", "BACKEND"], &rows))
}

#[derive(Serialize)]
struct StatusJson {
    id: String,
    name: String,
    cluster_id: String,
    epoch: u64,
    version: String,
    uptime_ms: u64,
    raft_role: String,
    term: u64,
    commit_index: u64,
    applied_index: u64,
    leader_id: Option<String>,
    sessions: u32,
    needs_operator: Option<String>,
    description: Option<String>,
    clock_behind_ms: i64,
    certificate_expires_unix_ms: u64,
}

pub(super) async fn status(args: &ClientArgs) -> Result<(), Exit> {
    let client = Client::reach(args).await?;
    let reply = client.cluster().get_status(v1::GetStatusRequest {}).await.map_err(refused)?.into_inner();
    let filled = |text: String| Some(text).filter(|text| !text.is_empty());
    let status = StatusJson {
        id: reply.id,
        name: reply.name,
        cluster_id: reply.cluster_id,
        epoch: reply.epoch,
        version: reply.version,
        uptime_ms: reply.uptime_ms,
        raft_role: reply.raft_role,
        term: reply.term,
        commit_index: reply.commit_index,
        applied_index: reply.applied_index,
        leader_id: filled(reply.leader_id),
        sessions: reply.sessions,
        needs_operator: filled(reply.needs_operator),
        description: filled(reply.description),
        clock_behind_ms: reply.clock_behind_ms,
        certificate_expires_unix_ms: reply.certificate_expires_unix_ms,
    };
    if args.json {
        return print_json(&status);
    }
    // Whole seconds: nobody reads an uptime in milliseconds.
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_ms / 1000)).to_string();
    let mut rows = vec![
        ["name".into(), status.name],
        ["id".into(), status.id],
        ["cluster".into(), format!("{} (epoch {})", status.cluster_id, status.epoch)],
        ["description".into(), status.description.unwrap_or_else(|| "-".into())],
        ["version".into(), status.version],
        ["uptime".into(), uptime],
        ["raft".into(), format!("{} in term {}", status.raft_role, status.term)],
        ["leader".into(), status.leader_id.unwrap_or_else(|| "none".into())],
        ["log".into(), format!("committed {}, applied {}", status.commit_index, status.applied_index)],
        ["sessions".into(), status.sessions.to_string()],
        ["certificate".into(), format!("expires {}", time_text(UnixMs(status.certificate_expires_unix_ms)))],
        ["needs operator".into(), status.needs_operator.unwrap_or_else(|| "no".into())],
    ];
    rows.extend(clock_complaint(status.clock_behind_ms).map(|complaint| ["clock".into(), complaint]));
    print(&columns(["WHAT", "VALUE"], &rows))
}

/// Rows of other verbs.
pub(super) fn print_columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Result<(), Exit> {
    print(&columns(head, rows))
}

pub(super) fn dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}
