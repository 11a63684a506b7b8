//! What is carried: every shape of request and response, unchanged and in order.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::*;
use crate::fixture::pair;

#[tokio::test(flavor = "multi_thread")]
async fn kept_alive_requests_use_one_forward_and_one_tunnel() {
    let (_world, owner, ingress) = pair(&service("web.example", echo_backend("b").await));
    let mut client = Client::to(&ingress).await;
    for n in 0..50 {
        let (status, body) = client.get("Web.Example:80", &format!("/{n}")).await;
        assert_eq!((status, body), (200, format!("b GET /{n} HTTP/1.1 ")));
    }
    assert_eq!(ingress.forwards.counts(), (1, 1));
    assert_eq!(owner.forwards.counts(), (1, 1));
    assert_eq!(ingress.pool.tunnels(), (1, 0));
    assert_eq!(owner.pool.tunnels(), (0, 1));
    drop(client);
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_clients_use_one_tunnel_one_after_the_other() {
    let (_world, owner, ingress) = pair(&service("web.example", echo_backend("b").await));
    for n in 0..50 {
        let mut client = Client::to(&ingress).await;
        let request = format!("GET /{n} HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n");
        client.send(request.as_bytes()).await;
        assert_eq!(client.response().await, (200, format!("b GET /{n} HTTP/1.1 ")));
        assert!(client.at_end().await);
    }
    nothing_left(&ingress, &owner).await;
    assert_eq!(ingress.forwards.counts(), (0, 50));
    // One may still be settling when the next client comes.
    assert!(ingress.pool.tunnels().0 <= 2, "{:?}", ingress.pool.tunnels());
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_heads_and_chunks_pass_as_they_are() {
    let (_world, owner, ingress) = pair(&service("web.example", echo_backend("b").await));
    let mut client = Client::to(&ingress).await;
    client.send(b"POST /p HTTP/1.1\r\nHost: web.example\r\nContent-Length: 5\r\n\r\nhello").await;
    assert_eq!(client.response().await, (200, "b POST /p HTTP/1.1 hello".into()));
    let head = b"POST /c HTTP/1.1\r\nHost: web.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(head).await;
    for piece in [&b"3\r\nabc\r\n"[..], b"4\r", b"\ndefg", b"\r\n0\r\n\r\n"] {
        client.send(piece).await;
    }
    assert_eq!(client.response().await, (200, "b POST /c HTTP/1.1 abcdefg".into()));
    // HEAD: a length and no body; the next response follows at once.
    client.send(b"HEAD /h HTTP/1.1\r\nHost: web.example\r\n\r\n").await;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        within(client.0.read_line(&mut head)).await.unwrap();
    }
    assert!(head.contains("Content-Length: 19"), "{head}");
    // Pipelined.
    client
        .send(b"GET /1 HTTP/1.1\r\nHost: web.example\r\n\r\nGET /2 HTTP/1.1\r\nHost: web.example\r\n\r\n")
        .await;
    assert_eq!(client.response().await.1, "b GET /1 HTTP/1.1 ");
    assert_eq!(client.response().await.1, "b GET /2 HTTP/1.1 ");
    assert_eq!(ingress.forwards.counts(), (1, 1));
    drop(client);
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_decides_each_request() {
    let (a, b) = (echo_backend("a").await, echo_backend("b").await);
    let (_world, owner, ingress) = pair(&[format!("a.example={a}"), format!("b.example={b}")]);
    let mut client = Client::to(&ingress).await;
    // Pipelined, with a body that looks like a request for the other one.
    let trap = "GET /trap HTTP/1.1\r\nHost: b.example\r\n\r\n";
    let requests = format!(
        "POST /1 HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\n\r\n{trap}\
         GET /2 HTTP/1.1\r\nHost: b.example\r\n\r\nGET /3 HTTP/1.1\r\nHost: a.example\r\n\r\n",
        trap.len()
    );
    client.send(requests.as_bytes()).await;
    assert_eq!(client.response().await.1, format!("a POST /1 HTTP/1.1 {trap}"));
    assert_eq!(client.response().await.1, "b GET /2 HTTP/1.1 ");
    assert_eq!(client.response().await.1, "a GET /3 HTTP/1.1 ");
    assert_eq!(ingress.forwards.counts().1, 3);
    drop(client);
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn own_services_are_served_without_a_tunnel() {
    let (_world, owner, _ingress) = pair(&service("web.example", echo_backend("b").await));
    let mut client = Client::to(&owner).await;
    assert_eq!(client.get("web.example", "/").await, (200, "b GET / HTTP/1.1 ".into()));
    assert_eq!(owner.pool.tunnels(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_continue_is_the_services_to_answer() {
    let addr = backend(|stream| async move {
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            stream.read_line(&mut head).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let mut body = [0; 4];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"body");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let (_world, _owner, ingress) = pair(&service("web.example", addr));
    let mut client = Client::to(&ingress).await;
    client
        .send(b"PUT / HTTP/1.1\r\nHost: web.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(client.response().await, (100, String::new()));
    client.send(b"body").await;
    assert_eq!(client.response().await, (200, "ok".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn upgraded_connections_carry_bytes_both_ways_and_half_close() {
    let addr = backend(|stream| async move {
        let mut stream = BufReader::new(stream);
        let _ = read_message(&mut stream).await.unwrap();
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\nhi!";
        stream.write_all(switch).await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.write_all(b" bye").await.unwrap();
        write.shutdown().await.unwrap();
    })
    .await;
    let (_world, owner, ingress) = pair(&service("web.example", addr));
    let mut client = Client::to(&ingress).await;
    client
        .send(b"GET / HTTP/1.1\r\nHost: web.example\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\nearly ")
        .await;
    assert_eq!(client.response().await.0, 101);
    let data = pattern(300_000, 7);
    let (mut read, mut write) = tokio::io::split(client.0);
    let sent = data.clone();
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut all = Vec::new();
    within(read.read_to_end(&mut all)).await.unwrap();
    drop(writing.await.unwrap());
    assert_eq!(all, [&b"hi!early "[..], &data, b" bye"].concat());
    nothing_left(&ingress, &owner).await;
    // The tunnel lives on.
    eventually("back in the pool", || ingress.pool.tunnels() == (1, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn big_bodies_both_ways_at_once() {
    const BYTES: usize = 24 << 20;
    let addr = backend(|stream| async move {
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            stream.read_line(&mut head).await.unwrap();
        }
        // Answers while the request is still coming: both directions run at once.
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let (read, mut write) = tokio::io::split(stream);
        tokio::io::copy(&mut read.take(BYTES as u64), &mut write).await.unwrap();
    })
    .await;
    let (_world, owner, ingress) = pair(&service("web.example", addr));
    let client = TcpStream::connect(ingress.listen).await.unwrap();
    let (mut read, mut write) = client.into_split();
    let data = pattern(BYTES, 3);
    let sent = data.clone();
    tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: {BYTES}\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&sent).await.unwrap();
        write
    });
    let mut read = BufReader::new(&mut read);
    let (_, body) = within(read_message(&mut read)).await.unwrap();
    assert!(body == data, "the body arrives as it was sent");
    drop(read);
    let _ = (owner, ingress);
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_reaches_registered_services_only() {
    let addr = backend(|mut stream| async move {
        let mut asked = [0; 4];
        stream.read_exact(&mut asked).await.unwrap();
        stream.write_all(b"pong").await.unwrap();
    })
    .await;
    let (_world, owner, ingress) = pair(&service("redis.example", addr));
    let mut client = Client::to(&ingress).await;
    client.send(b"CONNECT redis.example:6379 HTTP/1.1\r\nHost: redis.example:6379\r\n\r\nping").await;
    let (status, _) = client.response().await;
    assert_eq!(status, 200);
    let mut answer = Vec::new();
    within(client.0.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"pong");
    drop(client);
    let mut client = Client::to(&ingress).await;
    client.send(b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n").await;
    assert_eq!(client.response().await.0, 404);
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_to_the_service_its_sni_names_untouched() {
    let hello = client_hello();
    let addr = backend(|stream| async move {
        let (mut read, mut write) = tokio::io::split(stream);
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    })
    .await;
    let (_world, owner, ingress) = pair(&service("web.example", addr));
    // The ClientHello comes in two pieces.
    let mut client = Client::to(&ingress).await;
    client.send(&hello[..100]).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.send(&hello[100..]).await;
    client.send(b"and what follows").await;
    client.0.get_mut().shutdown().await.unwrap();
    let mut echoed = Vec::new();
    within(client.0.read_to_end(&mut echoed)).await.unwrap();
    assert_eq!(echoed, [&hello[..], b"and what follows"].concat());
    nothing_left(&ingress, &owner).await;
    eventually("back in the pool", || ingress.pool.tunnels() == (1, 0)).await;
    // A name nobody has: a clean close.
    let (_world, _owner, ingress) = pair(&service("other.example", addr));
    let mut client = Client::to(&ingress).await;
    client.send(&hello).await;
    assert!(client.at_end().await);
}

/// An idle connection is probed by the kernel, so that a client, a backend or a Peer whose host vanished without a word
/// does not hold a forward for ever; nothing else ends an idle forward.
#[tokio::test(flavor = "multi_thread")]
async fn every_connection_of_an_idle_forward_is_probed() {
    let silent = backend(|mut stream| async move {
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let (_world, owner, ingress) = pair(&service("raw.example", silent));
    let mut client = Client::to(&ingress).await;
    client.send(b"CONNECT raw.example:80 HTTP/1.1\r\nHost: raw.example:80\r\n\r\n").await;
    assert_eq!(client.response().await.0, 200);
    let client_addr = client.0.get_ref().local_addr().unwrap();
    // Until what was sent last is acknowledged, another timer runs.
    let all = |probed: Vec<bool>| !probed.is_empty() && probed.iter().all(|probed| *probed);
    eventually("the client's probed", || {
        all(probed(|local, remote| (local, remote) == (ingress.listen, client_addr)))
    })
    .await;
    eventually("the tunnel's probed by the ingress", || all(probed(|_, remote| remote == owner.listen)))
        .await;
    eventually("the tunnel's probed by the owner", || all(probed(|local, _| local == owner.listen))).await;
    eventually("the backend's probed", || all(probed(|_, remote| remote == silent))).await;
    drop(client);
    nothing_left(&ingress, &owner).await;
}

/// Of the established connections between these addresses: whether a keepalive timer runs.
fn probed(is_meant: impl Fn(SocketAddr, SocketAddr) -> bool) -> Vec<bool> {
    // proc(5): sl, local and remote address in hexadecimal, state, queues, timer (2: keepalive) ...
    let addr = |text: &str| -> SocketAddr {
        let (ip, port) = text.split_once(':').unwrap();
        let ip = u32::from_str_radix(ip, 16).unwrap().to_le_bytes();
        (ip, u16::from_str_radix(port, 16).unwrap()).into()
    };
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    let meant = rows.filter(|row| row[3] == "01" && is_meant(addr(row[1]), addr(row[2])));
    meant.map(|row| row[5].starts_with("02:")).collect()
}
