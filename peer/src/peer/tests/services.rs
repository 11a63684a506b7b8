//! The own services of a running Peer: added, drained, checked and removed, and what clients see of it.

use tonic::Code;

use super::*;

type Rows = Vec<(String, String, u64)>;

/// Two Peers of one Server: the first with these services, clients come to the second.
async fn pair(server: &PlayedServer, services: Vec<String>) -> (Running, Running) {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let owner = RawConfig { services, ..raw(dir.path(), server, Some(server.token())) };
    let ingress = raw(other.path(), server, Some(server.token()));
    tokio::join!(start(owner, dir), start(ingress, other))
}

impl Running {
    /// Name, state and forwards of each own service.
    async fn services(&self) -> Rows {
        let request = v1::AgentListServicesRequest {};
        let services = self.api().await.list_services(request).await.unwrap().into_inner().services;
        services.into_iter().map(|own| (own.name, own.state, own.forwards_active)).collect()
    }

    async fn add(&self, service: &str) -> Result<v1::AgentOwnService, Code> {
        let request = v1::AgentAddServiceRequest { service: service.into() };
        let added = self.api().await.add_service(request).await;
        added.map(tonic::Response::into_inner).map_err(|status| status.code())
    }
}

fn named(name: &str) -> v1::AgentServiceRequest {
    v1::AgentServiceRequest { name: name.into() }
}

fn row(name: &str, state: &str, active: u64) -> Rows {
    vec![(name.into(), state.into(), active)]
}

#[tokio::test(flavor = "multi_thread")]
async fn services_come_drain_and_go_while_it_runs() {
    let server = PlayedServer::start().await;
    let (owner, ingress) = pair(&server, Vec::new()).await;
    eventually!("working", owner.status().await.state == "working" && ingress.status().await.peers == 1);
    assert!(get(owner.listen, "web.example", "/").await.starts_with("HTTP/1.1 404"));
    let web = format!("Web.Example={}", hello().await);
    let added = owner.add(&web).await.unwrap();
    assert_eq!((added.name.as_str(), added.state.as_str()), ("web.example", "up"));
    // At once here, and as soon as it is told elsewhere.
    assert!(get(owner.listen, "web.example", "/").await.ends_with("hello"));
    eventually!("told", get(ingress.listen, "web.example", "/").await.ends_with("hello"));
    assert_eq!(owner.add(&web).await.unwrap_err(), Code::AlreadyExists);
    assert_eq!(owner.add("web").await.unwrap_err(), Code::InvalidArgument);
    assert_eq!(owner.add("none=127.0.0.1:0").await.unwrap_err(), Code::InvalidArgument);

    // What runs when it drains goes on; nothing new comes, whoever asks.
    let mut open = TcpStream::connect(ingress.listen).await.unwrap();
    open.write_all(b"CONNECT web.example:80 HTTP/1.1\r\nHost: web.example:80\r\n\r\n").await.unwrap();
    within(open.read_exact(&mut [0; 39])).await.unwrap();
    eventually!("carried", owner.services().await == row("web.example", "up", 1));
    let drained = owner.api().await.drain_service(named("WEB.example.")).await.unwrap().into_inner();
    assert_eq!((drained.state.as_str(), drained.forwards_active), ("draining", 1));
    for peer in [&owner, &ingress] {
        assert!(get(peer.listen, "web.example", "/").await.starts_with("HTTP/1.1 503"));
    }
    open.write_all(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within(open.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
    drop(open);
    eventually!("drained", owner.services().await == row("web.example", "draining", 0));
    owner.api().await.resume_service(named("web.example")).await.unwrap();
    assert!(get(owner.listen, "web.example", "/").await.ends_with("hello"));
    eventually!("told", get(ingress.listen, "web.example", "/").await.ends_with("hello"));

    owner.api().await.remove_service(named("web.example")).await.unwrap();
    assert!(get(owner.listen, "web.example", "/").await.starts_with("HTTP/1.1 404"));
    eventually!("told", get(ingress.listen, "web.example", "/").await.starts_with("HTTP/1.1 404"));
    assert_eq!(owner.services().await, []);
    let gone = owner.api().await.drain_service(named("web.example")).await.unwrap_err();
    assert_eq!((gone.code(), gone.message().contains("service list")), (Code::NotFound, true));
    owner.stopped().await;
    ingress.stopped().await;
}

/// A web server that keeps connections, and says its name.
async fn keeps(name: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}");
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_leave_a_service_that_drains_when_another_peer_has_it() {
    let server = PlayedServer::start().await;
    let service = |addr| vec![format!("web.example={addr}")];
    let (a, b) = pair(&server, service(keeps("a").await)).await;
    eventually!("told", b.printed().await.contains("web.example"));
    let mut client = TcpStream::connect(a.listen).await.unwrap();
    let mut ask = async || {
        client.write_all(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n").await.unwrap();
        let mut answer = [0; 39];
        within(client.read_exact(&mut answer)).await.unwrap();
        char::from(answer[38])
    };
    assert_eq!(ask().await, 'a');
    // Nobody else has it: what runs goes on.
    a.api().await.drain_service(named("web.example")).await.unwrap();
    assert_eq!(ask().await, 'a');
    assert_eq!(a.services().await, row("web.example", "draining", 1));
    b.add(&service(keeps("b").await)[0]).await.unwrap();
    eventually!("told", a.printed().await.matches("web.example").count() > 1);
    assert_eq!(ask().await, 'b');
    eventually!("drained", a.services().await == row("web.example", "draining", 0));
    a.stopped().await;
    b.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_fails_its_check_gets_no_requests_until_it_works() {
    let server = PlayedServer::start().await;
    let addr = free_port();
    let (owner, ingress) = pair(&server, vec![format!("web.example={addr} check=http:/")]).await;
    eventually!("down", owner.services().await == row("web.example", "down", 0));
    let request = v1::AgentListServicesRequest {};
    let services = owner.api().await.list_services(request).await.unwrap().into_inner().services;
    assert_eq!((services[0].check.as_str(), services[0].error.contains("refused")), ("http:/", true));
    // 503, not the 502 of a backend that is tried: others are told before they ask.
    eventually!("told", get(ingress.listen, "web.example", "/").await.starts_with("HTTP/1.1 503"));
    assert!(get(owner.listen, "web.example", "/").await.starts_with("HTTP/1.1 503"));
    let listener = TcpListener::bind(addr).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
            let _ = stream.write_all(answer).await;
        }
    });
    eventually!("up", owner.services().await == row("web.example", "up", 0));
    assert!(get(owner.listen, "web.example", "/").await.ends_with("hello"));
    eventually!("told", get(ingress.listen, "web.example", "/").await.ends_with("hello"));
    owner.stopped().await;
    ingress.stopped().await;
}
