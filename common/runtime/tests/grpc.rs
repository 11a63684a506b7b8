//! gRPC over the port: who is calling reaches the service, bad clients cost only themselves, bounds hold.

mod world;

use std::convert::Infallible;
use std::future::Ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use p2p_common::NodeKind;
use p2p_common::addr::HostPort;
use p2p_common::command::TokenRole;
use p2p_runtime::ca::ClusterCa;
use p2p_runtime::grpc::{
    Acceptor, CallerInfo, ChannelParams, Connection, ListenLimits, ListenMetrics, NodeConnections, connect,
};
use p2p_runtime::identity::Token;
use p2p_runtime::tcp;
use p2p_runtime::tls::{CLIENT_HELLO_TIMEOUT, Connector, Expect, FIRST_BYTE_TIMEOUT, ServerTls};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use slog::{Discard, Logger, o};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tower_service::Service;
use world::{CLUSTER, Node, ca, peer_id, server_id};

const ASK: &str = "/test.WhoAmI/Ask";
/// A call with good credentials.
const GOOD: &str = "/test.WhoAmI/AskWithCredentials";

/// Answers every call with who made it.
#[derive(Clone)]
struct WhoAmI;

impl NamedService for WhoAmI {
    const NAME: &'static str = "test.WhoAmI";
}

impl Service<Request<Body>> for WhoAmI {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let caller = request.extensions().get::<CallerInfo>().expect("put there by the port");
        if request.uri().path() == GOOD {
            caller.vouch();
        }
        let who = caller.face.identity().map_or("nobody".to_owned(), |identity| identity.node_id.to_string());
        let response = Response::builder()
            .header("grpc-status", "0")
            .header("who", who)
            .header("scheme", request.uri().scheme_str().unwrap_or_default())
            .body(Body::empty());
        std::future::ready(Ok(response.expect("plain headers")))
    }
}

struct Port {
    addr: SocketAddr,
    metrics: ListenMetrics,
    nodes: NodeConnections,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

impl Port {
    fn open(node: &Node, limits: ListenLimits) -> Port {
        let listener = tcp::listen("127.0.0.1:0".parse().unwrap(), "--listen").unwrap();
        let addr = listener.local_addr().unwrap();
        let (metrics, nodes) = (ListenMetrics::default(), NodeConnections::default());
        let stop = CancellationToken::new();
        let acceptor = Acceptor {
            tls: ServerTls::api(Arc::clone(&node.credentials)),
            limits,
            metrics: metrics.clone(),
            nodes: nodes.clone(),
            stop: stop.clone(),
            log: Logger::root(Discard, o!()),
        };
        let incoming = acceptor.incoming(listener);
        let stopped = stop.clone().cancelled_owned();
        let done = tokio::spawn(async move {
            let server = Server::builder().add_service(WhoAmI);
            server.serve_with_incoming_shutdown(incoming, stopped).await.unwrap();
        });
        Port { addr, metrics, nodes, stop, done }
    }

    fn to(&self) -> HostPort {
        self.addr.into()
    }

    fn counts(&self) -> String {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    fn shows(&self, line: &str) -> bool {
        self.counts().lines().any(|shown| shown == line)
    }

    /// Waits until a metric reads so: the other side of a socket closes in its own time.
    async fn until(&self, line: &str) {
        let start = Instant::now();
        while !self.shows(line) {
            assert!(start.elapsed() < Duration::from_secs(10), "never: {line}\n{}", self.counts());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn who(connection: &mut Connection) -> Result<(String, String), tonic::transport::Error> {
    ask(connection, ASK).await
}

async fn ask(connection: &mut Connection, path: &str) -> Result<(String, String), tonic::transport::Error> {
    std::future::poll_fn(|cx| connection.channel.poll_ready(cx)).await?;
    let request = Request::post(path).body(Body::empty()).unwrap();
    let response = connection.channel.call(request).await?;
    let header = |name| response.headers()[name].to_str().unwrap().to_owned();
    Ok((header("who"), header("scheme")))
}

fn node(from: &Node) -> Connector {
    Connector::node(Arc::clone(&from.credentials), Expect::Kind(NodeKind::Server))
}

fn token(ca: &ClusterCa) -> Connector {
    Connector::enrol(&Token::mint(TokenRole::Peer, CLUSTER, ca.fingerprint()).unwrap()).unwrap()
}

#[tokio::test]
async fn services_learn_who_calls() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let port = Port::open(&server, ListenLimits::default());
    let params = ChannelParams::default();

    let mut connection = connect(&node(&peer), &port.to(), &params).await.unwrap();
    assert_eq!(connection.identity.node_id, server_id(1));
    assert_eq!(connection.remote, port.addr);
    assert_eq!(who(&mut connection).await.unwrap(), (peer_id(2).to_string(), "https".to_owned()));

    let mut public = connect(&token(&ca), &port.to(), &params).await.unwrap();
    assert_eq!(who(&mut public).await.unwrap().0, "nobody");
    assert!(port.shows("connections_open{face=\"node\"} 1"));
    drop(connection);
    port.until("connections_open{face=\"node\"} 0").await;
}

#[tokio::test]
async fn a_broken_channel_fails_and_dials_nobody_else() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let port = Port::open(&server, ListenLimits::default());
    let mut connection = connect(&node(&peer), &port.to(), &ChannelParams::default()).await.unwrap();
    who(&mut connection).await.unwrap();
    port.stop.cancel();
    port.done.await.unwrap();
    assert!(who(&mut connection).await.is_err());
    assert!(who(&mut connection).await.is_err());
    let refused = connect(&node(&peer), &port.addr.into(), &ChannelParams::default()).await.unwrap_err();
    assert!(refused.is_refused(), "the port is closed: {refused}");
}

#[tokio::test]
async fn bad_clients_cost_only_themselves() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let port = Port::open(&server, ListenLimits::default());

    let mut half_open = Vec::new();
    for _ in 0..50 {
        half_open.push(TcpStream::connect(port.addr).await.unwrap());
    }
    let mut http = TcpStream::connect(port.addr).await.unwrap();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    http.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[0], 21, "a TLS alert: {answer:?}");
    let mut garbage = TcpStream::connect(port.addr).await.unwrap();
    garbage.write_all(&[0xff; 1000]).await.unwrap();
    let _ = garbage.read_to_end(&mut Vec::new()).await;

    let mut connection = connect(&node(&peer), &port.to(), &ChannelParams::default()).await.unwrap();
    who(&mut connection).await.unwrap();
    assert!(port.shows("connections_refused_total{reason=\"not_tls\"} 2"));
}

/// A silent connection from another address of this host.
async fn silent(port: &Port, source: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(port.addr).await.unwrap()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut [0; 16])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn silent_clients_keep_nobody_waiting() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let limits = ListenLimits { handshakes_max: 8, handshakes_per_source: 4, ..ListenLimits::default() };
    let port = Port::open(&server, limits);
    let mut held = Vec::new();
    for source in ["127.0.0.2", "127.0.0.3"] {
        for _ in 0..4 {
            held.push(silent(&port, source).await);
        }
    }
    let asked = Instant::now();
    let mut connection = connect(&node(&peer), &port.to(), &ChannelParams::default()).await.unwrap();
    who(&mut connection).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    port.until("connections_refused_total{reason=\"displaced\"} 1").await;
    let mut closed = 0;
    for stream in &mut held {
        closed += usize::from(is_closed(stream).await);
    }
    assert_eq!(closed, 1, "one made room, the others have their time");
}

#[tokio::test]
async fn one_source_harms_itself() {
    let ca = ca(CLUSTER);
    let server = Node::new(&ca, server_id(1));
    let limits = ListenLimits { handshakes_max: 8, handshakes_per_source: 2, ..ListenLimits::default() };
    let port = Port::open(&server, limits);
    let mut other = silent(&port, "127.0.0.2").await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(silent(&port, "127.0.0.3").await);
    }
    // Half of all are lent to one source; the next one is turned away as long as all of its own are young.
    let mut further = silent(&port, "127.0.0.3").await;
    port.until("connections_refused_total{reason=\"crowded\"} 1").await;
    assert!(is_closed(&mut further).await);
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut newest = silent(&port, "127.0.0.3").await;
    port.until("connections_refused_total{reason=\"displaced\"} 1").await;
    assert!(is_closed(&mut held[0]).await);
    assert!(!is_closed(&mut other).await && !is_closed(&mut newest).await);
}

#[tokio::test]
async fn silence_is_given_up_before_slowness() {
    let ca = ca(CLUSTER);
    let server = Node::new(&ca, server_id(1));
    let port = Port::open(&server, ListenLimits::default());
    let mut held = [silent(&port, "127.0.0.2").await, silent(&port, "127.0.0.2").await];
    held[1].write_all(b"\x16\x03\x01").await.unwrap();
    // What was written has been read, and both wait for more.
    tokio::time::sleep(Duration::from_millis(100)).await;
    tokio::time::pause();
    tokio::time::advance(FIRST_BYTE_TIMEOUT).await;
    tokio::time::resume();
    port.until("connections_refused_total{reason=\"silent\"} 1").await;
    assert!(!is_closed(&mut held[1]).await);
    tokio::time::pause();
    tokio::time::advance(CLIENT_HELLO_TIMEOUT - FIRST_BYTE_TIMEOUT).await;
    tokio::time::resume();
    port.until("connections_refused_total{reason=\"timed_out\"} 1").await;
}

#[tokio::test]
async fn a_full_public_face_leaves_nodes_and_the_known_alone() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let limits = ListenLimits { public_max: 2, public_per_source: 2, ..ListenLimits::default() };
    let port = Port::open(&server, limits);
    let params = ChannelParams::default();

    let mut known = connect(&token(&ca), &port.to(), &params).await.unwrap();
    ask(&mut known, GOOD).await.unwrap();
    let mut stranger = connect(&token(&ca), &port.to(), &params).await.unwrap();
    who(&mut stranger).await.unwrap();
    // Who was at work a moment ago makes no room yet.
    if let Ok(mut refused) = connect(&token(&ca), &port.to(), &params).await {
        assert!(who(&mut refused).await.is_err());
    }
    port.until("connections_refused_total{reason=\"crowded\"} 1").await;
    let mut connection = connect(&node(&peer), &port.to(), &params).await.unwrap();
    who(&mut connection).await.unwrap();

    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut newcomer = connect(&token(&ca), &port.to(), &params).await.unwrap();
    who(&mut newcomer).await.unwrap();
    assert!(who(&mut stranger).await.is_err(), "made room");
    ask(&mut known, GOOD).await.unwrap();
    port.until("connections_open{face=\"public\"} 2").await;
}

#[tokio::test]
async fn nodes_are_bounded_one_by_one_and_together() {
    let ca = ca(CLUSTER);
    let server = Node::new(&ca, server_id(1));
    let peers = [2, 3, 4].map(|n| Node::new(&ca, peer_id(n)));
    let port = Port::open(&server, ListenLimits { nodes_max: 3, per_node: 2, ..ListenLimits::default() });
    let params = ChannelParams::default();
    let mut held = Vec::new();
    for peer in [0, 0, 1, 0] {
        let mut connection = connect(&node(&peers[peer]), &port.to(), &params).await.unwrap();
        who(&mut connection).await.unwrap();
        held.push(connection);
    }
    assert!(who(&mut held[0]).await.is_err(), "the oldest of the one that has too many");
    for connection in &mut held[1..] {
        who(connection).await.unwrap();
    }
    if let Ok(mut refused) = connect(&node(&peers[2]), &port.to(), &params).await {
        assert!(who(&mut refused).await.is_err());
    }
    port.until("connections_refused_total{reason=\"full\"} 1").await;
}

#[tokio::test]
async fn the_connections_of_one_key_can_be_closed() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let other = Node::new(&ca, peer_id(3));
    let port = Port::open(&server, ListenLimits::default());
    let params = ChannelParams::default();
    let mut closed = connect(&node(&peer), &port.to(), &params).await.unwrap();
    let mut kept = connect(&node(&other), &port.to(), &params).await.unwrap();
    who(&mut closed).await.unwrap();
    who(&mut kept).await.unwrap();
    assert_eq!(port.nodes.open(), 2);
    let key = peer.identity.key().key_hash();
    assert_eq!(port.nodes.close_where(|identity| identity.key_hash == key), 1);
    port.until("connections_open{face=\"node\"} 1").await;
    assert!(who(&mut closed).await.is_err());
    who(&mut kept).await.unwrap();
}

#[tokio::test]
async fn a_client_that_never_starts_http_2_is_dropped() {
    let ca = ca(CLUSTER);
    let server = Node::new(&ca, server_id(1));
    let port = Port::open(&server, ListenLimits::default());
    let mut silent = token(&ca).dial(&port.to(), world::TIMEOUT).await.unwrap();
    port.until("connections_open{face=\"public\"} 1").await;
    // The time limit of the port is waited for on tokio's clock, moved forward by hand.
    tokio::time::pause();
    tokio::time::advance(p2p_runtime::tls::HANDSHAKE_TIMEOUT).await;
    tokio::time::resume();
    let end = tokio::time::timeout(Duration::from_secs(5), silent.stream.read_to_end(&mut Vec::new())).await;
    end.expect("closed").ok();
    port.until("connections_open{face=\"public\"} 0").await;
}

#[tokio::test]
async fn floods_without_credentials_are_read_slowly() {
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let ca = ca(CLUSTER);
    let server = Node::new(&ca, server_id(1));
    let port = Port::open(&server, ListenLimits::default());
    let stream = token(&ca).dial(&port.to(), world::TIMEOUT).await.unwrap().stream;
    let (mut read, mut write) = tokio::io::split(stream);
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    write.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let flood = tokio::spawn(async move {
        let pings = PING.repeat(256);
        while write.write_all(&pings).await.is_ok() {}
    });
    let (mut answered, start) = (0, Instant::now());
    let mut bytes = vec![0; 64 * 1024];
    while start.elapsed() < Duration::from_secs(2) {
        let read = tokio::time::timeout(Duration::from_millis(100), read.read(&mut bytes)).await;
        answered += match read {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(count)) => count,
            Err(_) => 0,
        };
    }
    flood.abort();
    // What it may send at once and in two seconds, and one read of the HTTP implementation.
    assert!(answered > 16 * 1024 && answered < 96 * 1024, "{answered}");
    // Calls of others go on, and so do those of one connection that has shown credentials.
    let mut known = connect(&token(&ca), &port.to(), &ChannelParams::default()).await.unwrap();
    let start = Instant::now();
    for _ in 0..3_000 {
        ask(&mut known, GOOD).await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
