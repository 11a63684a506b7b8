//! The look-ups: asked over the agent's socket, then printed as a table for people or as JSON for programs.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use p2p_common::{NodeId, UnixMs};
use p2p_proto::v1;
use p2p_proto::v1::agent_client::AgentClient;
use p2p_runtime::clock::{clock_complaint, time_text};
use p2p_runtime::columns::columns;
use p2p_runtime::exit::Exit;
use serde::Serialize;
use serde_json::json;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::ClientArgs;
use crate::local_api::{SOCKET_FILE, path_name};

/// The agent answers at once, or it is stuck.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A Peer started just before, in the background of the same shell, gets this long to come up.
const COMING_UP_TIMEOUT: Duration = Duration::from_secs(3);
const COMING_UP_POLL: Duration = Duration::from_millis(50);

/// Reaches the agent of a data directory; one that is still coming up is waited for.
pub(super) async fn reach(data: &Path) -> Result<AgentClient<Channel>, Exit> {
    let until = Instant::now() + COMING_UP_TIMEOUT;
    let mut told = false;
    loop {
        match reach_once(data).await {
            Err(exit) if exit.is_unavailable() && Instant::now() < until => {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("p2p-peer: waiting for the Peer of {} to come up", data.display());
                }
                tokio::time::sleep(COMING_UP_POLL).await;
            }
            reached => return reached,
        }
    }
}

async fn reach_once(data: &Path) -> Result<AgentClient<Channel>, Exit> {
    let path = data.join(SOCKET_FILE);
    let stream = UnixStream::connect(&path).await.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Exit::unavailable(format!(
            "no Peer answers for the data directory {}: start one with `p2p-peer run --data {} ...`; one that \
             waits to be enrolled says so in its log",
            data.display(),
            data.display()
        )),
        io::ErrorKind::PermissionDenied => Exit::failed(format!(
            "{} may not be opened: this command needs the rights of the Peer's user",
            path.display()
        )),
        _ => Exit::failed(format!("cannot open {}: {e}", path.display())),
    })?;
    // The address is not looked at: there is one connection, and it is made.
    let endpoint = Endpoint::from_static("http://agent.invalid").timeout(TIMEOUT);
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(stream)
    });
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map(AgentClient::new).map_err(|e| Exit::unavailable(format!("the Peer does not answer: {e}")))
}

/// What a refused call means for the command.
pub(super) fn refused(status: Status) -> Exit {
    let message = match status.message() {
        "" => format!("the Peer answered {}", status.code()),
        text => text.to_owned(),
    };
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Exit::unavailable(message),
        _ => Exit::failed(message),
    }
}

pub(super) fn print(text: &str) -> Result<(), Exit> {
    let mut out = io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match printed {
        // Whoever read has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(|e| Exit::failed(format!("cannot print: {e}"))),
    }
}

pub(super) fn print_json(value: &impl Serialize) -> Result<(), Exit> {
    print(&format!("{}\n", serde_json::to_string(value).map_err(Exit::failed)?))
}

pub(super) async fn status(args: &ClientArgs) -> Result<(), Exit> {
    let request = v1::AgentStatusRequest {};
    let status = reach(&args.data).await?.get_status(request).await.map_err(refused)?.into_inner();
    let net = status.net.unwrap_or_default();
    let candidates: Vec<_> = net.candidates.iter().map(|candidate| candidate.address.as_str()).collect();
    if args.json {
        let servers = status.servers.iter().map(|server| {
            json!({
                "id": server.id, "name": server.name, "addresses": server.addresses,
                "connected": server.connected, "since_unix_ms": server.since_unix_ms,
                "reason": server.reason, "rtt_us": server.rtt_us,
            })
        });
        let services = status.services.iter().map(|service| {
            json!({ "name": service.name, "backend": service.backend, "visibility": service.visibility })
        });
        let mesh_links = status.mesh_links.iter().map(|link| {
            json!({
                "configured": link.configured, "peer_id": link.peer_id, "address": link.address,
                "connected": link.connected, "since_unix_ms": link.since_unix_ms, "reason": link.reason,
            })
        });
        return print_json(&json!({
            "mesh_links": mesh_links.collect::<Vec<_>>(),
            "id": status.id, "name": status.name, "zone": status.zone, "state": status.state,
            "version": status.version, "uptime_ms": status.uptime_ms, "cluster_id": status.cluster_id,
            "listen": net.listen, "addresses": candidates, "servers": servers.collect::<Vec<_>>(),
            "services": services.collect::<Vec<_>>(), "peers": status.peers,
            "forwards_active": status.forwards_active, "forwards_total": status.forwards_total,
            "congestion_control": status.congestion_control,
            "clock_behind_ms": status.clock_behind_ms,
            "certificate_expires_unix_ms": status.certificate_expires_unix_ms,
            "withheld": status.withheld,
        }));
    }
    let uptime = Duration::from_secs(status.uptime_ms / 1000);
    let mut text = String::new();
    for (key, value) in [
        ("id", status.id),
        ("name", status.name),
        ("zone", dash(status.zone)),
        ("state", status.state),
        ("cluster", status.cluster_id),
        ("listens on", net.listen),
        ("offers", dash(candidates.join(", "))),
        ("peers known", status.peers.to_string()),
        ("forwards", format!("{} now, {} since the start", status.forwards_active, status.forwards_total)),
        ("tunnels run on", dash(status.congestion_control)),
        ("running for", format!("{uptime:?}")),
        ("certificate", format!("expires {}", time_text(UnixMs(status.certificate_expires_unix_ms)))),
        ("version", status.version),
    ]
    .into_iter()
    .chain(clock_complaint(status.clock_behind_ms).map(|complaint| ("clock", complaint)))
    {
        text.push_str(&format!("{key:<15} {}\n", value.replace(char::is_control, "?")));
    }
    let rows: Vec<_> = status
        .servers
        .into_iter()
        .map(|s| [dash(s.name), dash(s.id), s.addresses.join(","), yes(s.connected), rtt(s.rtt_us), s.reason])
        .collect();
    // Without Servers the heading alone would look like a fault.
    if !rows.is_empty() || status.mesh_links.is_empty() {
        text.push('\n');
        text.push_str(&columns(["SERVER", "ID", "ADDRESSES", "CONNECTED", "RTT", "REASON"], &rows));
    }
    if !status.mesh_links.is_empty() {
        let side = |link: &v1::AgentMeshLink| if link.configured.is_empty() { "it" } else { "this peer" };
        let rows: Vec<_> = status
            .mesh_links
            .into_iter()
            .map(|link| {
                let side = side(&link).to_owned();
                let address = if link.configured.is_empty() { link.address } else { link.configured };
                [dash(link.peer_id), address, side, yes(link.connected), link.reason]
            })
            .collect();
        text.push('\n');
        text.push_str(&columns(["MESH LINK", "ADDRESS", "DIALLED BY", "CONNECTED", "REASON"], &rows));
    }
    for withheld in &status.withheld {
        text.push_str(&format!("\n{}\n", withheld.replace(char::is_control, "?")));
    }
    if !status.services.is_empty() {
        let rows: Vec<_> = status.services.into_iter().map(|s| [s.name, s.backend, s.visibility]).collect();
        text.push('\n');
        text.push_str(&columns(["OWN SERVICE", "BACKEND", "VISIBLE TO"], &rows));
    }
    print(&text)
}

pub(super) async fn peers(args: &ClientArgs) -> Result<(), Exit> {
    let request = v1::AgentListPeersRequest {};
    let peers = reach(&args.data).await?.list_peers(request).await.map_err(refused)?.into_inner().peers;
    let addresses = |peer: &v1::AgentPeer| -> Vec<String> {
        let candidates = peer.net.iter().flat_map(|net| &net.candidates);
        candidates.map(|candidate| candidate.address.clone()).collect()
    };
    let services =
        |peer: &v1::AgentPeer| -> Vec<String> { peer.services.iter().map(|s| s.name.clone()).collect() };
    if args.json {
        let rows = peers.iter().map(|peer| {
            json!({
                "id": peer.id, "name": peer.name, "zone": peer.zone, "addresses": addresses(peer),
                "services": services(peer), "servers": peer.servers, "linked": peer.linked,
                "connected": peer.connected, "up": peer.up,
            })
        });
        return print_json(&json!({ "peers": rows.collect::<Vec<_>>() }));
    }
    let rows: Vec<_> = peers
        .iter()
        .map(|peer| {
            [
                dash(peer.name.clone()),
                peer.id.clone(),
                dash(peer.zone.clone()),
                dash(addresses(peer).join(",")),
                dash(services(peer).join(",")),
                peer.servers.len().to_string(),
                yes(peer.linked),
                yes(peer.connected),
                yes(peer.up),
            ]
        })
        .collect();
    print(&columns(
        ["NAME", "ID", "ZONE", "ADDRESSES", "SERVICES", "SERVERS", "LINKED", "CONNECTED", "UP"],
        &rows,
    ))
}

async fn get_tables(args: &ClientArgs) -> Result<v1::AgentTables, Exit> {
    let request = v1::AgentTablesRequest {};
    Ok(reach(&args.data).await?.get_tables(request).await.map_err(refused)?.into_inner())
}

pub(super) async fn services(args: &ClientArgs) -> Result<(), Exit> {
    let routes = get_tables(args).await?.routes;
    if args.json {
        return print_json(&json!({ "services": routes.iter().map(route_json).collect::<Vec<_>>() }));
    }
    let rows: Vec<_> = routes
        .into_iter()
        .map(|r| [r.name, r.source, dash(r.source_address), r.backend, r.link, yes(r.connected), r.state])
        .collect();
    print(&columns(["NAME", "SOURCE", "ADDRESS", "BACKEND", "LINK", "CONNECTED", "STATE"], &rows))
}

pub(super) async fn tables(args: &ClientArgs) -> Result<(), Exit> {
    let tables = get_tables(args).await?;
    if !args.json {
        return print(&tables.printed);
    }
    let peer_services = tables.peer_services.iter().map(|list| {
        let services = list.services.iter().map(|s| json!({ "name": s.name, "backend": s.backend }));
        json!({
            "peer_id": list.peer_id, "peer_address": list.peer_address,
            "last_sync_unix_s": list.last_sync_unix_s, "services": services.collect::<Vec<_>>(),
        })
    });
    print_json(&json!({
        "revision": tables.revision,
        "routes": tables.routes.iter().map(route_json).collect::<Vec<_>>(),
        "peer_services": peer_services.collect::<Vec<_>>(),
    }))
}

fn route_json(route: &v1::AgentRoute) -> serde_json::Value {
    json!({
        "name": route.name, "source": route.source, "source_address": route.source_address,
        "backend": route.backend, "link": route.link, "last_seen_unix_ms": route.last_seen_unix_ms,
        "connected": route.connected, "state": route.state,
    })
}

pub(super) async fn links(args: &ClientArgs) -> Result<(), Exit> {
    let request = v1::AgentListLinksRequest {};
    let links = reach(&args.data).await?.list_links(request).await.map_err(refused)?.into_inner().links;
    if args.json {
        return print_json(&json!({ "links": links.iter().map(link_json).collect::<Vec<_>>() }));
    }
    let rows: Vec<_> = links
        .iter()
        .map(|named| {
            let link = named.link.clone().unwrap_or_default();
            [
                dash(named.name.clone()),
                link.id.clone(),
                path_name(&link).to_owned(),
                dash(link.address),
                rtt(link.rtt_us),
                link.tunnels.to_string(),
                link.bytes_in.to_string(),
                link.bytes_out.to_string(),
                link.reason,
            ]
        })
        .collect();
    let head = ["NAME", "ID", "PATH", "ADDRESS", "RTT", "TUNNELS", "BYTES IN", "BYTES OUT", "REASON"];
    print(&columns(head, &rows))
}

fn link_json(named: &v1::AgentLink) -> serde_json::Value {
    let link = named.link.clone().unwrap_or_default();
    json!({
        "id": link.id, "name": named.name, "connected": link.connected, "path": path_name(&link),
        "address": link.address, "rtt_us": link.rtt_us, "tunnels": link.tunnels, "bytes_in": link.bytes_in,
        "bytes_out": link.bytes_out, "since_unix_ms": link.since_unix_ms, "reason": link.reason,
    })
}

pub(super) async fn why(args: &ClientArgs, id: NodeId) -> Result<(), Exit> {
    let request = v1::AgentWhyRequest { id: id.to_string() };
    let reply = reach(&args.data).await?.why(request).await.map_err(refused)?.into_inner();
    let named = reply.link.unwrap_or_default();
    if args.json {
        return print_json(&json!({ "link": link_json(&named), "tried": reply.tried }));
    }
    let link = named.link.unwrap_or_default();
    let path = path_name(&link);
    let mut text = format!("{} {}: {path}\nwhy: {}\n", dash(named.name), link.id, link.reason);
    if !reply.tried.is_empty() {
        text.push_str("tried, newest first:\n");
        for tried in reply.tried {
            text.push_str(&format!("  {tried}\n"));
        }
    }
    print(&text)
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

fn rtt(us: u32) -> String {
    if us == 0 { "-".to_owned() } else { format!("{:.1} ms", f64::from(us) / 1000.0) }
}
