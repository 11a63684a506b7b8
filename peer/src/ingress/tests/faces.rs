//! The faces beside HTTP/1 and TLS: h2c, SOCKS5, bound ports, the PROXY protocol.

use p2p_common::ErrorCode;
use p2p_peer_core::{H2C_SETTINGS, SocksReply};
use p2p_proto::v1::enroll_client::EnrollClient;
use p2p_proto::v1::enroll_server::{Enroll, EnrollServer};
use p2p_proto::v1::{EnrollReply, EnrollRequest, RenewReply, RenewRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::fixture::{Bounds, pair, pair_with};
use crate::ingress::SourceRanges;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS_ACK: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];

/// HEADERS of a GET on stream 1, for `authority`.
fn headers(authority: &str) -> Vec<u8> {
    let length = u8::try_from(authority.len()).unwrap();
    // Literals of the names 1 (:authority); the others are indexed.
    let block = [&[0x82, 0x84, 0x86, 0x01, length], authority.as_bytes()].concat();
    [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat()
}

/// A backend that says what it was sent, from behind a greeting.
async fn mirror(greeting: &'static [u8]) -> SocketAddr {
    backend(move |mut stream| async move {
        stream.write_all(greeting).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

async fn read_exactly(client: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    within(client.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(bytes, expected);
}

async fn read_to_end(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = within(client.read_to_end(&mut bytes)).await;
    bytes
}

/// A gRPC service that answers by the name it is given.
struct Named;

#[tonic::async_trait]
impl Enroll for Named {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollReply>, Status> {
        match request.get_ref().name.as_str() {
            "refused" => Err(Status::permission_denied("not you")),
            name => Ok(Response::new(EnrollReply {
                certificate: request.get_ref().csr.clone(),
                cluster_id: name.to_owned(),
                ..EnrollReply::default()
            })),
        }
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        Err(Status::unimplemented("never asked"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_passes_both_ways_with_its_status() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(EnrollServer::new(Named));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let (_world, owner, ingress) = pair(&service("grpc.example", addr));

    let endpoint = |name: &str| {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", ingress.listen)).unwrap();
        endpoint.origin(format!("http://{name}:50051").parse().unwrap())
    };
    let channel = within(endpoint("Grpc.Example").connect()).await.unwrap();
    let mut client = EnrollClient::new(channel);
    for (name, bytes) in [("small", 10), ("big", 3_000_000), ("again", 0)] {
        let csr = pattern(bytes, 1);
        let request =
            EnrollRequest { name: name.into(), csr: csr.clone().into(), ..EnrollRequest::default() };
        let reply = within(client.enroll(request)).await.unwrap().into_inner();
        assert_eq!((reply.cluster_id.as_str(), reply.certificate == csr), (name, true));
    }
    let request = EnrollRequest { name: "refused".into(), ..EnrollRequest::default() };
    let status = within(client.enroll(request)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "not you"));
    assert_eq!(ingress.forwards.counts(), (1, 1), "one connection, routed once");
    drop(client);
    nothing_left(&ingress, &owner).await;

    // What is refused has a status of gRPC.
    let channel = within(endpoint("unknown.example").connect()).await.unwrap();
    let status = within(EnrollClient::new(channel).enroll(EnrollRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    assert!(
        status.message().contains("unknown.example") && status.message().contains("proxy_id: "),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_bytes_reach_the_service_as_they_are() {
    let (_world, owner, ingress) = pair(&service("web.example", mirror(b"").await));
    let settings = [PREFACE, H2C_SETTINGS].concat();
    let request = [&settings[..], &headers("web.example:80")].concat();
    let opening = [&request[..], b"and whatever follows"].concat();
    for cut in 0..opening.len() {
        let mut client = Client::to(&ingress).await.0.into_inner();
        client.write_all(&opening[..cut]).await.unwrap();
        // It is taken for a client that waits exactly where it could be one.
        if (settings.len()..request.len()).contains(&cut) {
            read_exactly(&mut client, H2C_SETTINGS).await;
            let rest = [&request[cut..], SETTINGS_ACK, &opening[request.len()..]].concat();
            client.write_all(&rest).await.unwrap();
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            client.write_all(&opening[cut..]).await.unwrap();
        }
        client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut client).await, opening, "cut at {cut}");
    }
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_settings_gets_them_and_the_service_does_not_notice() {
    let (_world, owner, ingress) = pair(&service("web.example", mirror(b"").await));
    let (first, request) = ([PREFACE, H2C_SETTINGS].concat(), headers("web.example"));
    for (why, pieces) in [
        ("at once", vec![[SETTINGS_ACK, &request].concat()]),
        ("behind the request", vec![request.clone(), [b"\0\0\x01\0\0\0\0\0\x01x", SETTINGS_ACK].concat()]),
        ("in pieces", vec![SETTINGS_ACK[..4].to_vec(), SETTINGS_ACK[4..].to_vec(), request.clone()]),
    ] {
        let mut client = Client::to(&ingress).await.0.into_inner();
        client.write_all(&first).await.unwrap();
        read_exactly(&mut client, H2C_SETTINGS).await;
        let mut expected = first.clone();
        for piece in &pieces {
            client.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
            expected.extend_from_slice(piece);
        }
        let ack = expected.windows(9).position(|window| window == SETTINGS_ACK).unwrap();
        expected.drain(ack..ack + 9);
        client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut client).await, expected, "{why}");
    }
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_connections_that_cannot_be_routed_are_told_why() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (_world, owner, ingress) = pair(&service("dead.example", dead));
    let two = [&headers("dead.example")[..8], &[1], &headers("dead.example")[9..]].concat();
    let two_hosts = {
        // The same authority once more, within the same block.
        let block = [&two[9..], &[0x01, 1, b'b']].concat();
        [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat()
    };
    for (why, request, says) in [
        ("an unknown service", headers("unknown.example"), &["404", "unknown.example", "proxy_id: "][..]),
        ("no backend", headers("dead.example"), &["502", "backend"]),
        ("an address", headers("[::1]"), &["404", "IPv6"]),
        ("two hosts", two_hosts, &["400", "twice"]),
    ] {
        let mut client = Client::to(&ingress).await.0.into_inner();
        client.write_all(&[PREFACE, H2C_SETTINGS, &request].concat()).await.unwrap();
        let answer = read_to_end(&mut client).await;
        assert!(answer.starts_with(H2C_SETTINGS), "{why}");
        let text = String::from_utf8_lossy(&answer);
        for part in says {
            assert!(text.contains(part), "{why}: {part}: {text:?}");
        }
    }
    for (why, bytes, code) in [
        ("no settings", &b"\0\0\x01\0\0\0\0\0\x01x"[..], 1),
        ("a huge frame", b"\xff\xff\xff\x04\0\0\0\0\0", 6),
    ] {
        let mut client = Client::to(&ingress).await.0.into_inner();
        client.write_all(&[PREFACE, bytes].concat()).await.unwrap();
        let answer = read_to_end(&mut client).await;
        assert_eq!(answer[H2C_SETTINGS.len() + 3], 7, "{why}: GOAWAY");
        assert_eq!(answer[H2C_SETTINGS.len() + 16], code, "{why}");
    }
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn socks_reaches_registered_services_only() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let services =
        [format!("ssh.example={}", mirror(b"SSH-2.0-x\r\n").await), format!("dead.example={dead}")];
    let (_world, owner, ingress) = pair(&services);
    let name = |name: &str| [&[5, 1, 0, 3, name.len() as u8], name.as_bytes(), &[0, 22]].concat();

    // The server speaks first; the client's bytes may come with its request.
    let mut client = Client::to(&ingress).await.0.into_inner();
    client.write_all(&[5, 2, 2, 0]).await.unwrap();
    read_exactly(&mut client, &[5, 0]).await;
    client.write_all(&[&name("SSH.example")[..], b"early"].concat()).await.unwrap();
    read_exactly(&mut client, &SocksReply::Succeeded.to_bytes()).await;
    read_exactly(&mut client, b"SSH-2.0-x\r\nearly").await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await, b"");

    for (why, request, reply) in [
        ("unknown", name("unknown.example"), SocksReply::of(ErrorCode::ServiceUnknown)),
        ("no backend", name("dead.example"), SocksReply::ConnectionRefused),
        ("an address as a name", name("127.0.0.1"), SocksReply::HostUnreachable),
        ("IPv4", vec![5, 1, 0, 1, 127, 0, 0, 1, 0, 22], SocksReply::AddressTypeNotSupported),
        ("IPv6", [&[5, 1, 0, 4][..], &[0; 15], &[1, 0, 22]].concat(), SocksReply::AddressTypeNotSupported),
        ("BIND", vec![5, 2, 0, 3, 1, b'a', 0, 22], SocksReply::CommandNotSupported),
        ("UDP", vec![5, 3, 0, 1, 0, 0, 0, 0, 0, 0], SocksReply::CommandNotSupported),
    ] {
        let mut client = Client::to(&ingress).await.0.into_inner();
        client.write_all(&[&[5, 1, 0][..], &request].concat()).await.unwrap();
        assert_eq!(read_to_end(&mut client).await, [&[5, 0], &reply.to_bytes()[..]].concat(), "{why}");
    }
    for (bytes, answer) in
        [(&[5, 1, 2][..], &[5, 0xff][..]), (&[5, 0], &[]), (&[4, 1, 0, 22, 1, 2, 3, 4, 0], &[])]
    {
        let mut client = Client::to(&ingress).await.0.into_inner();
        client.write_all(bytes).await.unwrap();
        assert_eq!(read_to_end(&mut client).await, answer, "{bytes:?}");
    }
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bound_ports_lead_to_their_service_and_wait_for_nothing() {
    let (_world, owner, ingress) = pair(&service("ssh.example", mirror(b"SSH-2.0-x\r\n").await));
    let port = ingress.bound.add("0=ssh.example".parse().unwrap()).unwrap();
    assert!(port.addr.ip().is_loopback());

    // Not a byte has come, and the service speaks.
    let mut client = TcpStream::connect(port.addr).await.unwrap();
    read_exactly(&mut client, b"SSH-2.0-x\r\n").await;
    assert_eq!(port.connections(), (1, 1));
    // What a port of everybody would take for something else goes through.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x05\x01\x00", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"] {
        client.write_all(bytes).await.unwrap();
        read_exactly(&mut client, bytes).await;
    }

    // A second one of the same address is refused, and so is one that somebody else has.
    let again = format!("{}=other.example", port.addr).parse().unwrap();
    let refused = ingress.bound.add(again).unwrap_err().to_string();
    assert!(refused.contains("bound to ssh.example already"), "{refused}");
    let taken = format!("{}=ssh.example", owner.listen).parse().unwrap();
    let refused = ingress.bound.add(taken).unwrap_err().to_string();
    assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");

    // Once removed, nobody listens; what is carried goes on.
    let addresses: Vec<_> = ingress.bound.list().iter().map(|port| port.addr).collect();
    assert_eq!(addresses, [port.addr]);
    ingress.bound.remove(port.addr).await.unwrap();
    assert!(TcpStream::connect(port.addr).await.is_err());
    assert!(ingress.bound.remove(port.addr).await.unwrap_err().to_string().contains("no port is bound"));
    client.write_all(b"still").await.unwrap();
    read_exactly(&mut client, b"still").await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await, b"");
    eventually("counted", || port.connections() == (0, 1)).await;

    // The address can be bound again, and to what nobody has yet: a clean close.
    let bind = format!("{}=unknown.example", port.addr).parse().unwrap();
    let port = ingress.bound.add(bind).unwrap();
    let mut client = TcpStream::connect(port.addr).await.unwrap();
    assert_eq!(within(client.read(&mut [0])).await.unwrap(), 0);
    nothing_left(&ingress, &owner).await;

    // All of them close with the Peer.
    ingress.stop.cancel();
    eventually("closed", || std::net::TcpStream::connect(port.addr).is_err()).await;
    assert!(ingress.bound.add("0=ssh.example".parse().unwrap()).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn bound_ports_are_bounded() {
    let (_world, _owner, ingress) = pair(&[]);
    for _ in 0..crate::ingress::BINDS_MAX {
        ingress.bound.add("0=x".parse().unwrap()).unwrap();
    }
    let refused = ingress.bound.add("0=x".parse().unwrap()).unwrap_err().to_string();
    assert!(refused.contains("256 ports are bound already"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_says_whose_connection_it_is() {
    let lan = || SourceRanges::parse(["10.0.0.0/8"]).unwrap();
    let addr = echo_backend("b").await;
    let bounds =
        Bounds { proxy_protocol_from: SourceRanges::loopback(), clients_allow: lan(), ..Bounds::default() };
    let (_world, owner, ingress) = pair_with(&service("web.example", addr), bounds);
    let bound = ingress.bound.add("0=web.example".parse().unwrap()).unwrap();
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let v2 =
        |first: u8| [signature, &[0x21, 0x11, 0, 12, first, 1, 1, 1, 9, 9, 9, 9, 0, 1, 0, 80][..]].concat();
    for (why, header, served) in [
        ("a client that is allowed", b"PROXY TCP4 10.1.1.1 9.9.9.9 1 80\r\n".to_vec(), true),
        ("the same in version 2", v2(10), true),
        ("a client that is not", b"PROXY TCP4 127.0.0.1 9.9.9.9 1 80\r\n".to_vec(), false),
        ("the same in version 2", v2(127), false),
        ("the balancer itself", b"PROXY UNKNOWN\r\n".to_vec(), false),
        ("nobody", Vec::new(), false),
        ("a header that is none", b"PROXY TCP4 10.1.1.1\r\n".to_vec(), false),
    ] {
        for port in [ingress.listen, bound.addr] {
            let request = b"GET / HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n";
            // All at once, and in two pieces.
            for cut in [0, header.len().saturating_sub(3)] {
                let mut client = TcpStream::connect(port).await.unwrap();
                let bytes = [&header[..], request].concat();
                client.write_all(&bytes[..cut]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
                // Who is refused early is gone early.
                let _ = client.write_all(&bytes[cut..]).await;
                let answer = read_to_end(&mut client).await;
                assert_eq!(answer.starts_with(b"HTTP/1.1 200 OK"), served, "{why} at {port}");
                assert!(served || answer.is_empty(), "{why}");
            }
        }
    }
    nothing_left(&ingress, &owner).await;

    // From anybody else it is a protocol that is not spoken.
    let (_world, _owner, ingress) = pair(&service("web.example", addr));
    for header in [&b"PROXY TCP4 127.0.0.1 9.9.9.9 1 80\r\n"[..], &v2(127)] {
        let mut client = TcpStream::connect(ingress.listen).await.unwrap();
        client.write_all(header).await.unwrap();
        assert_eq!(read_to_end(&mut client).await, b"");
    }
}
