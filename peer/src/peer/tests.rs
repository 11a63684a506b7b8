//! Whole Peers against a Server played by the test: real enrolment, sessions, tunnels and requests.

/// Asks again until it holds.
macro_rules! eventually {
    ($what:expr, $holds:expr) => {
        let holds = async {
            while !$holds {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let held = tokio::time::timeout(std::time::Duration::from_secs(20), holds).await;
        assert!(held.is_ok(), "never {}", $what);
    };
}

mod documented;
mod server;
mod services;

use std::path::Path;
use std::time::Duration;

use p2p_common::ErrorCode;
use p2p_proto::v1;
use p2p_proto::v1::agent_client::AgentClient;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use self::server::PlayedServer;
use slog::o;

use super::*;
use crate::config::RawConfig;

/// A running Peer with its directory.
struct Running {
    peer: Peer,
    stop: CancellationToken,
    listen: std::net::SocketAddr,
    metrics: std::net::SocketAddr,
    dir: TempDir,
}

fn free_port() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn quiet() -> Logger {
    Logger::root(slog::Discard, o!())
}

fn raw(dir: &Path, server: &PlayedServer, token: Option<String>) -> RawConfig {
    RawConfig {
        data: Some(dir.into()),
        servers: vec![server.addr.to_string()],
        token,
        listen: Some(free_port().to_string()),
        metrics: Some(free_port().to_string()),
        ..RawConfig::default()
    }
}

async fn start(raw: RawConfig, dir: TempDir) -> Running {
    let config = raw.validate().unwrap();
    let (listen, metrics) = (config.listen, config.metrics);
    let stop = CancellationToken::new();
    let started = Peer::start(config, stop.clone(), quiet());
    let peer = within(started).await.unwrap().expect("nobody stops it");
    Running { peer, stop, listen, metrics, dir }
}

impl Running {
    async fn api(&self) -> AgentClient<tonic::transport::Channel> {
        let path = self.dir.path().join("agent.sock");
        let stream = UnixStream::connect(path).await.unwrap();
        let mut stream = Some(hyper_util::rt::TokioIo::new(stream));
        let connector =
            tower::service_fn(move |_| std::future::ready(Ok::<_, std::io::Error>(stream.take().unwrap())));
        let endpoint = tonic::transport::Endpoint::from_static("http://agent.invalid");
        AgentClient::new(endpoint.connect_with_connector(connector).await.unwrap())
    }

    async fn status(&self) -> v1::AgentStatus {
        self.api().await.get_status(v1::AgentStatusRequest {}).await.unwrap().into_inner()
    }

    async fn links(&self) -> Vec<v1::Link> {
        let links = self.api().await.list_links(v1::AgentListLinksRequest {}).await.unwrap().into_inner();
        links.links.into_iter().map(|named| named.link.unwrap()).collect()
    }

    async fn printed(&self) -> String {
        self.api().await.get_tables(v1::AgentTablesRequest {}).await.unwrap().into_inner().printed
    }

    async fn stopped(self) -> TempDir {
        self.stop.cancel();
        within(self.peer.stopped()).await.unwrap();
        self.dir
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it takes too long")
}

async fn get(addr: std::net::SocketAddr, host: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

/// A web server that says hello.
async fn hello() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
                let _ = stream.write_all(answer).await;
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_meet_through_a_server_and_serve_each_other() {
    let server = PlayedServer::start().await;
    // Nobody can enrol at first: the cluster has no quorum.
    server.refuse_next([ErrorCode::Unavailable, ErrorCode::Unavailable]);
    let dir = tempfile::tempdir().unwrap();
    let mut with_service = raw(dir.path(), &server, Some(server.token()));
    with_service.name = Some("shop".into());
    with_service.services = vec![format!("web.example={}", hello().await)];
    let (a, b) = tokio::join!(start(with_service, dir), async {
        let dir = tempfile::tempdir().unwrap();
        start(raw(dir.path(), &server, Some(server.token())), dir).await
    });
    eventually!("working", a.status().await.state == "working" && b.status().await.state == "working");
    eventually!("told of the service", b.printed().await.contains("web.example"));

    let answer = get(b.listen, "web.example", "/").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
    let own = get(a.listen, "web.example", "/").await;
    assert!(own.ends_with("hello"), "{own}");
    assert!(get(b.listen, "other.example", "/").await.starts_with("HTTP/1.1 404"));

    // Both say the same of their link: two warm tunnels each way.
    let linked = |links: Vec<v1::Link>, to: NodeId| {
        links.into_iter().any(|link| link.id == to.to_string() && link.connected && link.tunnels == 4)
    };
    eventually!("linked", linked(b.links().await, a.peer.id()) && linked(a.links().await, b.peer.id()));
    eventually!("counted", b.links().await.iter().any(|link| link.bytes_in > 5 && link.rtt_us > 0));
    let why = v1::AgentWhyRequest { id: a.peer.id().to_string() };
    let why = b.api().await.why(why).await.unwrap().into_inner();
    assert!(why.link.unwrap().link.unwrap().reason.starts_with("direct: dialled 127.0.0.1:"));
    assert!(why.tried.iter().any(|tried| tried.contains("direct: open")), "{:?}", why.tried);
    let unknown = v1::AgentWhyRequest { id: "C00000000-0000-0000-0000-0000000000ff".into() };
    assert_eq!(b.api().await.why(unknown).await.unwrap_err().code(), tonic::Code::NotFound);

    // What is told of the other, and of the Server.
    let peers = b.api().await.list_peers(v1::AgentListPeersRequest {}).await.unwrap().into_inner().peers;
    assert_eq!((peers.len(), peers[0].name.as_str()), (1, "shop"));
    assert_eq!((peers[0].linked, peers[0].connected, peers[0].up), (false, true, true));
    let status = b.status().await;
    assert_eq!((status.peers, status.servers.len(), status.servers[0].connected), (1, 1, true));
    assert!(get(b.metrics, "ops", "/readyz").await.ends_with("ready\n"));
    let metrics = get(b.metrics, "ops", "/metrics").await;
    assert!(
        metrics.contains("p2p_peer_routes 1") && metrics.contains("p2p_peer_peers{learned=\"servers\"} 1"),
        "{metrics}"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(b.dir.path().join("agent.sock")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);

    // A Peer that stops ends its session properly, and leaves no connection behind.
    let (a_id, b_id) = (a.peer.id(), b.peer.id());
    let dir = a.stopped().await;
    eventually!("offline", server.sessions() == [b_id]);
    eventually!("forgotten", !b.printed().await.contains("web.example"));
    assert!(get(b.listen, "web.example", "/").await.starts_with("HTTP/1.1 404"));
    assert!(!dir.path().join("agent.sock").exists());

    // It comes back without a token, as the same.
    let mut again = raw(dir.path(), &server, None);
    again.services = vec![format!("web.example={}", hello().await)];
    let a = start(again, dir).await;
    assert_eq!(a.peer.id(), a_id);
    eventually!("learned again", get(b.listen, "web.example", "/").await.ends_with("hello"));
    a.stopped().await;
    b.stopped().await;
    eventually!("without connections", server.sessions().is_empty() && server.connections() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_must_settle_ends_the_start_with_a_code() {
    let server = PlayedServer::start().await;
    let stop = CancellationToken::new();
    for (code, exit, says) in [
        (ErrorCode::TokenExpired, 3, "token create --role peer"),
        (ErrorCode::TokenUsedUp, 3, "token create --role peer"),
        (ErrorCode::TokenUnknown, 3, "token create --role peer"),
        (ErrorCode::TokenBound, 3, "not for this Peer"),
        (ErrorCode::IdTaken, 3, "is taken"),
        (ErrorCode::BadRequest, 1, "refuses"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        server.refuse_next([code]);
        let config = raw(dir.path(), &server, Some(server.token())).validate().unwrap();
        let refused = within(Peer::start(config, stop.clone(), quiet())).await.unwrap_err();
        assert_eq!(refused.code(), exit, "{refused}");
        assert!(refused.to_string().contains(says), "{refused}");
    }
    // A token of another cluster: its CA is not the one that answers.
    let other = PlayedServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = raw(dir.path(), &server, Some(other.token())).validate().unwrap();
    let refused = within(Peer::start(config, stop.clone(), quiet())).await.unwrap_err();
    assert_eq!(refused.code(), 2, "{refused}");
    assert!(refused.to_string().contains("not of the cluster"), "{refused}");
    // No token, and a directory that is in use.
    let dir = tempfile::tempdir().unwrap();
    let config = raw(dir.path(), &server, None).validate().unwrap();
    let refused = within(Peer::start(config.clone(), stop.clone(), quiet())).await.unwrap_err();
    assert_eq!(refused.code(), 2, "{refused}");
    let _held = DataDir::open(dir.path()).unwrap();
    let refused = within(Peer::start(config, stop, quiet())).await.unwrap_err();
    assert!(refused.to_string().contains("in use by process"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_bound_by_configuration_and_over_the_socket() {
    let backend = hello().await;
    let dir = tempfile::tempdir().unwrap();
    let mesh_key = p2p_runtime::mesh_key::MeshKey::generate().unwrap().to_text();
    let raw = |bind: String| RawConfig {
        data: Some(dir.path().into()),
        mesh_key: Some(mesh_key.to_string()),
        listen: Some(free_port().to_string()),
        metrics: Some(free_port().to_string()),
        services: vec![format!("web.example={backend}")],
        bind: vec![bind],
        ..RawConfig::default()
    };
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let held = TcpListener::bind(taken).await.unwrap();
    let config = raw(format!("{taken}=web.example")).validate().unwrap();
    let refused = within(Peer::start(config, CancellationToken::new(), quiet())).await.unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("is in use") && refused.contains("another --bind"), "{refused}");
    drop(held);

    let running = start(raw(format!("{}=Web.Example", taken.port())), dir).await;
    assert!(get(taken, "any.host", "/").await.ends_with("hello"));

    let mut api = running.api().await;
    let mut add = async |bind: &str| {
        let request = v1::AgentAddBindRequest { bind: bind.to_owned() };
        api.add_bind(request).await.map(|bound| bound.into_inner().address).map_err(|status| status.code())
    };
    let second = add("0=web.example").await.unwrap();
    assert!(get(second.parse().unwrap(), "x", "/").await.ends_with("hello"));
    for (bind, code) in [
        ("web.example".to_owned(), tonic::Code::InvalidArgument),
        (format!("{second}=web.example"), tonic::Code::AlreadyExists),
        (format!("{}=web.example", running.metrics), tonic::Code::AlreadyExists),
        ("192.0.2.1:1=web.example".to_owned(), tonic::Code::FailedPrecondition),
    ] {
        assert_eq!(add(&bind).await, Err(code), "{bind}");
    }
    let binds = api.list_binds(v1::AgentListBindsRequest {}).await.unwrap().into_inner().binds;
    let mut addresses: Vec<_> = binds.iter().map(|bind| bind.address.clone()).collect();
    addresses.sort();
    let mut expected = vec![taken.to_string(), second.clone()];
    expected.sort();
    assert_eq!(addresses, expected);
    assert!(binds.iter().all(|bind| bind.service == "web.example" && bind.connections_total == 1));

    // Those of the configuration can be closed as well.
    for address in [taken.port().to_string(), second] {
        let request = v1::AgentRemoveBindRequest { address };
        api.remove_bind(request.clone()).await.unwrap();
        assert_eq!(api.remove_bind(request).await.unwrap_err().code(), tonic::Code::NotFound);
    }
    assert!(TcpStream::connect(taken).await.is_err());
    running.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_server_is_redialled() {
    let mut server = PlayedServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let peer = start(raw(dir.path(), &server, Some(server.token())), dir).await;
    eventually!("working", peer.status().await.state == "working");
    server.restart().await;
    eventually!("back", server.sessions() == [peer.peer.id()]);
    assert_eq!(peer.status().await.state, "working");
    peer.stopped().await;
}

#[test]
fn the_bounds_of_all_ports_fit_into_the_files() {
    for files in [1_024, 4_096, 20_000, 1 << 20, u64::MAX] {
        let limits = limits(files);
        let http = admin::connections_within(files) as u64;
        let all = 2 * limits.connections as u64 + http + FILES_RESERVED;
        assert!(all <= files && limits.connections >= 64, "{files}: {limits:?}");
        assert!(limits.newcomers > 0 && limits.newcomers <= limits.connections, "{files}: {limits:?}");
    }
}
