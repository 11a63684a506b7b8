//! The agent's local API: gRPC over a UNIX socket in the data directory (SPEC M6). Whoever may open the socket
//! may call; its mode is 0600.
//!
//! Tables are read from what is published; what only the agent knows is asked through its mailbox.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use p2p_common::link::PathKind;
use p2p_common::service::{LocalService, ServiceName};
use p2p_peer_core::{LinePrefix, MeshLinkStatus, Route, RouteLink, ServicesError, Source, Tables, render};
use p2p_proto::v1::agent_server::{Agent, AgentServer};
use p2p_proto::{convert, v1};
use p2p_runtime::clock::{Clock, unix_now};
use p2p_runtime::tcp::ListenError;
use p2p_runtime::tls::Credentials;
use slog::{Logger, warn};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::agent_task::{Input, NamedLink, Question};
use crate::health::{self, Change, Refused, Row};
use crate::ingress::{Bind, BindError, BoundPort, BoundPorts, bind_addr};
use crate::published::Views;
use crate::tunnel::Pool;

/// The socket's name in the data directory.
pub(crate) const SOCKET_FILE: &str = "agent.sock";
/// The agent answers within this, or something is very wrong with it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the API reads.
#[derive(Debug, Clone)]
pub(crate) struct LocalApi {
    /// The own Id.
    pub(crate) id: String,
    /// What people call this Peer.
    pub(crate) name: String,
    /// Its room or region.
    pub(crate) zone: String,
    /// The cluster.
    pub(crate) cluster_id: String,
    /// When the process started.
    pub(crate) clock: Clock,
    /// The tables.
    pub(crate) views: Arc<Views>,
    /// The tunnels.
    pub(crate) pool: Pool,
    /// The bound ports.
    pub(crate) bound: BoundPorts,
    /// The agent's mailbox.
    pub(crate) mailbox: mpsc::Sender<Input>,
    /// Who owns the own services.
    pub(crate) services: mpsc::Sender<health::Request>,
    /// What this Peer shows, and the cluster clock.
    pub(crate) credentials: Arc<Credentials>,
}

/// A socket that is listened on; the file goes with it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

/// Listens on the socket in `data`, whose lock the caller holds: a socket that lies there is nobody's.
///
/// # Errors
/// When the file system refuses; mostly because the path is longer than about 100 bytes.
pub(crate) fn listen(data: &Path) -> io::Result<Socket> {
    let path = data.join(SOCKET_FILE);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    // The directory is private since it was made; until here its mode alone keeps others out.
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(Socket { listener, path })
}

impl LocalApi {
    /// Serves until stopped.
    pub(crate) async fn serve(self, socket: Socket, stop: CancellationToken, log: Logger) {
        let server = tonic::transport::Server::builder()
            .add_service(AgentServer::new(self))
            .serve_with_incoming_shutdown(UnixListenerStream::new(socket.listener), stop.cancelled());
        if let Err(error) = server.await {
            warn!(log, "the local api stopped"; "error" => %error);
        }
        // Already gone, or the next start removes it.
        let _ = fs::remove_file(&socket.path);
    }

    async fn change(&self, change: Change) -> Result<Response<v1::AgentOwnService>, Status> {
        let changed = self.ask_services(|answer| health::Request::Change(change, answer)).await?;
        changed.map(|row| Response::new(own_service_to(row))).map_err(|refused| {
            let text = refused.to_string();
            match refused {
                Refused::NotOwn(_) => Status::not_found(text),
                Refused::Services(ServicesError::Duplicate { .. }) => Status::already_exists(text),
                Refused::Services(ServicesError::TooMany) => Status::resource_exhausted(text),
                Refused::Services(_) => Status::invalid_argument(text),
            }
        })
    }

    async fn ask_services<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> health::Request,
    ) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.services.send(request(answer)).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Status::unavailable("the Peer is stopping")),
            Err(_) => Err(Status::unavailable("the owner of the services does not answer")),
        }
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.mailbox.send(Input::Ask(question(answer))).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Status::unavailable("the agent is stopping")),
            Err(_) => Err(Status::unavailable("the agent does not answer")),
        }
    }
}

#[tonic::async_trait]
impl Agent for LocalApi {
    async fn get_status(
        &self,
        _request: Request<v1::AgentStatusRequest>,
    ) -> Result<Response<v1::AgentStatus>, Status> {
        let status = self.ask(Question::Status).await?;
        let servers = status.servers.into_iter().map(|server| v1::AgentServer {
            id: server.id.map(|id| id.to_string()).unwrap_or_default(),
            name: server.name,
            addresses: server.addresses.iter().map(ToString::to_string).collect(),
            connected: server.connected,
            since_unix_ms: server.since.map_or(0, |since| since.0),
            reason: server.reason,
            rtt_us: server.rtt_us.unwrap_or(0),
        });
        Ok(Response::new(v1::AgentStatus {
            id: self.id.clone(),
            name: self.name.clone(),
            zone: self.zone.clone(),
            state: status.state.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.clock.uptime().as_millis()).unwrap_or(u64::MAX),
            cluster_id: self.cluster_id.clone(),
            net: Some(convert::net_info_to(&status.net)),
            servers: servers.collect(),
            services: own_services(&self.views.tables()),
            peers: u32::try_from(status.peers).unwrap_or(u32::MAX),
            forwards_active: status.forwards.active,
            forwards_total: status.forwards.total,
            withheld: status.withheld,
            mesh_links: status.mesh_links.into_iter().map(mesh_link_to).collect(),
            congestion_control: self.pool.congestion().map(ToString::to_string).unwrap_or_default(),
            clock_behind_ms: self.credentials.clock().ahead_ms(),
            certificate_expires_unix_ms: self.credentials.dates().not_after.0,
        }))
    }

    async fn list_peers(
        &self,
        _request: Request<v1::AgentListPeersRequest>,
    ) -> Result<Response<v1::AgentListPeersReply>, Status> {
        let tables = self.views.tables();
        let peers = tables.peers().iter().map(|(id, known)| {
            let report = &known.entry.report;
            v1::AgentPeer {
                id: id.to_string(),
                name: report.name.clone(),
                zone: report.zone.clone(),
                net: Some(convert::net_info_to(&report.net)),
                services: report.services.iter().map(convert::offer_to).collect(),
                servers: known.servers.iter().map(ToString::to_string).collect(),
                linked: known.linked,
                connected: known.connected,
                up: matches!(known.link, RouteLink::Up(_)),
            }
        });
        Ok(Response::new(v1::AgentListPeersReply { peers: peers.collect() }))
    }

    async fn get_tables(
        &self,
        _request: Request<v1::AgentTablesRequest>,
    ) -> Result<Response<v1::AgentTables>, Status> {
        let tables = self.views.tables();
        let peer_services = tables.peer_services().values().map(|list| v1::AgentPeerServices {
            peer_id: list.peer.to_string(),
            peer_address: list.address.as_ref().map(ToString::to_string).unwrap_or_default(),
            last_sync_unix_s: list.last_sync.secs(),
            services: list
                .services
                .iter()
                .map(|(name, service)| v1::AgentService {
                    name: name.to_string(),
                    backend: service.backend.to_string(),
                    visibility: String::new(),
                })
                .collect(),
        });
        Ok(Response::new(v1::AgentTables {
            revision: tables.revision(),
            routes: tables.routes().map(route_to).collect(),
            peer_services: peer_services.collect(),
            printed: render(&tables, LinePrefix::Plain).iter().map(|line| format!("{line}\n")).collect(),
        }))
    }

    async fn list_links(
        &self,
        _request: Request<v1::AgentListLinksRequest>,
    ) -> Result<Response<v1::AgentListLinksReply>, Status> {
        let links = self.ask(Question::Links).await?;
        Ok(Response::new(v1::AgentListLinksReply { links: links.iter().map(link_to).collect() }))
    }

    async fn why(
        &self,
        request: Request<v1::AgentWhyRequest>,
    ) -> Result<Response<v1::AgentWhyReply>, Status> {
        let id = convert::parse(&request.get_ref().id, "id")
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let link = self.ask(|answer| Question::Why(id, answer)).await?;
        let link = link.ok_or_else(|| {
            Status::not_found(format!("{id} is not known here; `p2p-peer peers` lists who is"))
        })?;
        let now = unix_now();
        let tried = link.link.tried().map(|tried| {
            let ago = now.secs().saturating_sub(tried.at.secs());
            format!("{ago} s ago: {}: {}", tried.address, tried.outcome)
        });
        Ok(Response::new(v1::AgentWhyReply { link: Some(link_to(&link)), tried: tried.collect() }))
    }

    async fn add_service(
        &self,
        request: Request<v1::AgentAddServiceRequest>,
    ) -> Result<Response<v1::AgentOwnService>, Status> {
        let service = request.get_ref().service.parse::<LocalService>();
        let service = service.map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.change(Change::Add(service)).await
    }

    async fn remove_service(
        &self,
        request: Request<v1::AgentServiceRequest>,
    ) -> Result<Response<v1::AgentOwnService>, Status> {
        self.change(Change::Remove(service_name(request)?)).await
    }

    async fn drain_service(
        &self,
        request: Request<v1::AgentServiceRequest>,
    ) -> Result<Response<v1::AgentOwnService>, Status> {
        self.change(Change::Drain(service_name(request)?, true)).await
    }

    async fn resume_service(
        &self,
        request: Request<v1::AgentServiceRequest>,
    ) -> Result<Response<v1::AgentOwnService>, Status> {
        self.change(Change::Drain(service_name(request)?, false)).await
    }

    async fn list_services(
        &self,
        _request: Request<v1::AgentListServicesRequest>,
    ) -> Result<Response<v1::AgentListServicesReply>, Status> {
        let rows = self.ask_services(health::Request::List).await?;
        let services = rows.into_iter().map(own_service_to).collect();
        Ok(Response::new(v1::AgentListServicesReply { services }))
    }

    async fn add_bind(
        &self,
        request: Request<v1::AgentAddBindRequest>,
    ) -> Result<Response<v1::AgentBind>, Status> {
        let bind = request.get_ref().bind.parse::<Bind>();
        let bind = bind.map_err(|e| Status::invalid_argument(e.to_string()))?;
        let port = self.bound.add(bind).map_err(bind_refused)?;
        Ok(Response::new(bind_to(&port)))
    }

    async fn remove_bind(
        &self,
        request: Request<v1::AgentRemoveBindRequest>,
    ) -> Result<Response<v1::AgentBind>, Status> {
        let addr = bind_addr(&request.get_ref().address);
        let addr = addr.map_err(|e| Status::invalid_argument(e.to_string()))?;
        let port = self.bound.remove(addr).await.map_err(bind_refused)?;
        Ok(Response::new(bind_to(&port)))
    }

    async fn list_binds(
        &self,
        _request: Request<v1::AgentListBindsRequest>,
    ) -> Result<Response<v1::AgentListBindsReply>, Status> {
        let binds = self.bound.list().iter().map(|port| bind_to(port)).collect();
        Ok(Response::new(v1::AgentListBindsReply { binds }))
    }
}

/// The name of a service, as it is kept.
fn service_name(request: Request<v1::AgentServiceRequest>) -> Result<String, Status> {
    let name = request.get_ref().name.parse::<ServiceName>();
    name.map(|name| name.to_string()).map_err(|e| Status::invalid_argument(e.to_string()))
}

fn own_service_to(row: Row) -> v1::AgentOwnService {
    v1::AgentOwnService {
        name: row.name,
        backend: row.service.backend.to_string(),
        visibility: visibility(&row.service.visibility),
        check: row.service.check.map(|check| check.to_string()).unwrap_or_default(),
        state: row.service.state.as_str().to_owned(),
        error: row.error,
        forwards_active: row.active,
    }
}

fn bind_refused(error: BindError) -> Status {
    let text = error.to_string();
    match error {
        BindError::Listen(ListenError::InUse { .. }) | BindError::Bound { .. } => {
            Status::already_exists(text)
        }
        BindError::Listen(_) => Status::failed_precondition(text),
        BindError::Full => Status::resource_exhausted(text),
        BindError::NotBound(_) => Status::not_found(text),
        BindError::Stopping => Status::unavailable(text),
    }
}

fn bind_to(port: &BoundPort) -> v1::AgentBind {
    let (connections_active, connections_total) = port.connections();
    v1::AgentBind {
        address: port.addr.to_string(),
        service: port.service.to_string(),
        connections_active,
        connections_total,
    }
}

fn mesh_link_to(link: MeshLinkStatus) -> v1::AgentMeshLink {
    v1::AgentMeshLink {
        configured: link.configured.map(|address| address.to_string()).unwrap_or_default(),
        peer_id: link.peer.map(|id| id.to_string()).unwrap_or_default(),
        address: link.address,
        connected: link.connected,
        since_unix_ms: link.since.map_or(0, |since| since.0),
        reason: link.reason,
    }
}

fn own_services(tables: &Tables) -> Vec<v1::AgentService> {
    let own = tables.own().iter().map(|(name, service)| v1::AgentService {
        name: name.to_string(),
        backend: service.backend.to_string(),
        visibility: visibility(&service.visibility),
    });
    own.collect()
}

fn visibility(visibility: &p2p_common::service::Visibility) -> String {
    use p2p_common::service::Visibility;
    match visibility {
        Visibility::Linked => "linked".to_owned(),
        Visibility::Cluster => "cluster".to_owned(),
        Visibility::Private => "private".to_owned(),
        Visibility::Ids(ids) => ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

fn route_to(route: &Route) -> v1::AgentRoute {
    v1::AgentRoute {
        name: route.name.to_string(),
        source: route.source.to_string(),
        source_address: route.address.as_ref().map(ToString::to_string).unwrap_or_default(),
        backend: route.backend.to_string(),
        link: match (route.source, route.link) {
            (Source::Local, _) => "local".to_owned(),
            (Source::Peer(_), link) => link.as_str().to_owned(),
        },
        last_seen_unix_ms: route.last_seen.0,
        connected: route.connected,
        state: route.state.to_string(),
    }
}

fn link_to(named: &NamedLink) -> v1::AgentLink {
    v1::AgentLink { link: Some(convert::link_to(named.link.row())), name: named.name.clone() }
}

/// The name of a path from the wire; `none` when not connected.
pub(crate) fn path_name(link: &v1::Link) -> &'static str {
    match v1::PathKind::try_from(link.path) {
        Ok(v1::PathKind::Direct) => PathKind::Direct.as_str(),
        Ok(v1::PathKind::Punched) => PathKind::Punched.as_str(),
        Ok(v1::PathKind::Relayed) => PathKind::Relayed.as_str(),
        Ok(v1::PathKind::Unspecified) | Err(_) => "none",
    }
}
