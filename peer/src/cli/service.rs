//! `p2p-peer service`: the own services, asked for and changed over the agent's socket.

use std::time::Duration;

use p2p_proto::v1;
use p2p_proto::v1::agent_client::AgentClient;
use p2p_runtime::columns::columns;
use p2p_runtime::exit::Exit;
use serde_json::json;
use tonic::transport::Channel;

use super::ClientArgs;
use super::show::{print, print_json, reach, refused};

/// Between two looks at what still runs.
const WAIT_POLL: Duration = Duration::from_millis(200);

pub(super) async fn add(args: &ClientArgs, service: String) -> Result<(), Exit> {
    let request = v1::AgentAddServiceRequest { service };
    let own = reach(&args.data).await?.add_service(request).await.map_err(refused)?.into_inner();
    tell(args, &own, |own| format!("{} is offered at {} until the Peer stops", own.name, own.backend))
}

pub(super) async fn remove(args: &ClientArgs, name: String) -> Result<(), Exit> {
    let request = v1::AgentServiceRequest { name };
    let own = reach(&args.data).await?.remove_service(request).await.map_err(refused)?.into_inner();
    tell(args, &own, |own| {
        format!("{} is no longer offered; forwards that go on: {}", own.name, own.forwards_active)
    })
}

pub(super) async fn drain(args: &ClientArgs, name: String, wait: bool) -> Result<(), Exit> {
    let mut agent = reach(&args.data).await?;
    let request = v1::AgentServiceRequest { name };
    let mut own = agent.drain_service(request).await.map_err(refused)?.into_inner();
    while wait && own.forwards_active > 0 {
        tokio::time::sleep(WAIT_POLL).await;
        own = find(&mut agent, &own.name).await?;
    }
    tell(args, &own, |own| {
        format!("{} takes no new forwards; forwards that go on: {}", own.name, own.forwards_active)
    })
}

pub(super) async fn resume(args: &ClientArgs, name: String) -> Result<(), Exit> {
    let request = v1::AgentServiceRequest { name };
    let own = reach(&args.data).await?.resume_service(request).await.map_err(refused)?.into_inner();
    tell(args, &own, |own| format!("{} takes forwards again; it is {}", own.name, own.state))
}

pub(super) async fn list(args: &ClientArgs) -> Result<(), Exit> {
    let request = v1::AgentListServicesRequest {};
    let services =
        reach(&args.data).await?.list_services(request).await.map_err(refused)?.into_inner().services;
    if args.json {
        return print_json(&json!({ "services": services.iter().map(service_json).collect::<Vec<_>>() }));
    }
    let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let rows: Vec<_> = services
        .into_iter()
        .map(|s| {
            let active = s.forwards_active.to_string();
            [s.name, s.backend, s.visibility, dash(s.check), s.state, active, dash(s.error)]
        })
        .collect();
    let head = ["NAME", "BACKEND", "VISIBLE TO", "CHECK", "STATE", "FORWARDS", "LAST CHECK FAILED"];
    print(&columns(head, &rows))
}

/// The service as it is now.
async fn find(agent: &mut AgentClient<Channel>, name: &str) -> Result<v1::AgentOwnService, Exit> {
    let request = v1::AgentListServicesRequest {};
    let services = agent.list_services(request).await.map_err(refused)?.into_inner().services;
    let found = services.into_iter().find(|own| own.name == name);
    found.ok_or_else(|| Exit::failed(format!("{name} was removed meanwhile")))
}

fn tell(
    args: &ClientArgs,
    own: &v1::AgentOwnService,
    text: impl FnOnce(&v1::AgentOwnService) -> String,
) -> Result<(), Exit> {
    if args.json { print_json(&service_json(own)) } else { print(&format!("{}\n", text(own))) }
}

fn service_json(own: &v1::AgentOwnService) -> serde_json::Value {
    json!({
        "name": own.name, "backend": own.backend, "visibility": own.visibility, "check": own.check,
        "state": own.state, "error": own.error, "forwards_active": own.forwards_active,
    })
}
