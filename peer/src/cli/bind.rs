//! `p2p-peer bind`: ports bound to one service each, asked for over the agent's socket.

use p2p_proto::v1;
use p2p_runtime::columns::columns;
use p2p_runtime::exit::Exit;
use serde_json::json;

use super::ClientArgs;
use super::show::{print, print_json, reach, refused};

pub(super) async fn add(args: &ClientArgs, bind: String) -> Result<(), Exit> {
    let request = v1::AgentAddBindRequest { bind };
    let bound = reach(&args.data).await?.add_bind(request).await.map_err(refused)?.into_inner();
    if args.json {
        return print_json(&bind_json(&bound));
    }
    print(&format!("{} now leads to {}, until the Peer stops\n", bound.address, bound.service))
}

pub(super) async fn remove(args: &ClientArgs, address: String) -> Result<(), Exit> {
    let request = v1::AgentRemoveBindRequest { address };
    let bound = reach(&args.data).await?.remove_bind(request).await.map_err(refused)?.into_inner();
    if args.json {
        return print_json(&bind_json(&bound));
    }
    let (address, service, active) = (bound.address, bound.service, bound.connections_active);
    print(&format!("{address} no longer leads to {service}; connections that go on: {active}\n"))
}

pub(super) async fn list(args: &ClientArgs) -> Result<(), Exit> {
    let request = v1::AgentListBindsRequest {};
    let binds = reach(&args.data).await?.list_binds(request).await.map_err(refused)?.into_inner().binds;
    if args.json {
        return print_json(&json!({ "binds": binds.iter().map(bind_json).collect::<Vec<_>>() }));
    }
    let rows: Vec<_> = binds
        .into_iter()
        .map(|b| [b.address, b.service, b.connections_active.to_string(), b.connections_total.to_string()])
        .collect();
    print(&columns(["ADDRESS", "SERVICE", "CONNECTIONS", "SINCE BOUND"], &rows))
}

fn bind_json(bind: &v1::AgentBind) -> serde_json::Value {
    json!({
        "address": bind.address, "service": bind.service, "connections_active": bind.connections_active,
        "connections_total": bind.connections_total,
    })
}
