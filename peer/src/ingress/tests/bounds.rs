//! What is refused, broken, slow or too much, and that nothing of it stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::fixture::{Bounds, pair, pair_with};
use crate::tunnel::PoolLimits;

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_the_sender_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let addr = backend(move |stream| {
        let counted = Arc::clone(&counted);
        async move {
            let mut stream = BufReader::new(stream);
            let _ = read_message(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 268435456\r\n\r\n").await.unwrap();
            let block = vec![7; 65_536];
            for _ in 0..4_096 {
                if stream.write_all(&block).await.is_err() {
                    return;
                }
                counted.fetch_add(block.len(), Ordering::Relaxed);
            }
        }
    })
    .await;
    let (_world, owner, ingress) = pair(&service("web.example", addr));
    let mut client = Client::to(&ingress).await;
    client.send(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n").await;
    // It reads nothing: what is on the way is bounded by socket buffers and two copy buffers.
    let mut before = usize::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = sent.load(Ordering::Relaxed);
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < 64 << 20, "{before} bytes are on the way");
    // The client leaves: everything behind it ends.
    drop(client);
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_told_with_their_status() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let garbage = backend(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"SSH-2.0-nonsense\r\n\r\n").await;
    })
    .await;
    let hangs_up = backend(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
    })
    .await;
    let services = [
        format!("dead.example={dead}"),
        format!("garbage.example={garbage}"),
        format!("hangs-up.example={hangs_up}"),
    ];
    let (_world, owner, ingress) = pair(&services);
    for (host, status, says) in [
        ("unknown.example", 404, "unknown.example"),
        ("[::1]", 404, "IPv6"),
        ("dead.example", 502, "backend"),
        ("garbage.example", 502, "answer"),
        ("hangs-up.example", 502, "closed before"),
    ] {
        let mut client = Client::to(&ingress).await;
        let (got, body) = client.get(host, "/").await;
        assert_eq!(got, status, "{host}: {body}");
        assert!(body.contains(says), "{host}: {body}");
        assert!(body.contains("proxy_id: "), "{host}: {body}");
        // Where the request was taken whole and nothing broke, the connection goes on.
        if host == "unknown.example" || host == "dead.example" {
            assert_eq!(client.get(host, "/again").await.0, status);
        }
    }
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    ] {
        let mut client = Client::to(&ingress).await;
        client.send(request.as_bytes()).await;
        let (got, body) = client.response().await;
        assert_eq!(got, status, "{request:?}: {body}");
        assert!(client.at_end().await, "{request:?}");
    }
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_chunk_in_the_middle_of_a_request_is_told() {
    let (_world, owner, ingress) = pair(&service("web.example", echo_backend("b").await));
    let mut client = Client::to(&ingress).await;
    client
        .send(b"POST / HTTP/1.1\r\nHost: web.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.send(b"zz\r\n").await;
    assert_eq!(client.response().await.0, 400);
    assert!(client.at_end().await);
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_cut_short_is_never_taken_for_whole() {
    let addr = backend(|stream| async move {
        let mut stream = BufReader::new(stream);
        let _ = read_message(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this").await.unwrap();
    })
    .await;
    let (_world, owner, ingress) = pair(&service("web.example", addr));
    let mut client = Client::to(&ingress).await;
    client.send(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n").await;
    let mut all = Vec::new();
    let ended = within(client.0.read_to_end(&mut all)).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_closes_between_requests_is_opened_again() {
    let addr = backend(|stream| async move {
        let mut stream = BufReader::new(stream);
        let _ = read_message(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        // Closes without having said so.
    })
    .await;
    let (_world, owner, ingress) = pair(&service("web.example", addr));
    let mut client = Client::to(&ingress).await;
    for n in 1..=5 {
        assert_eq!(client.get("web.example", "/").await, (200, "ok".into()));
        eventually("closed", || ingress.forwards.counts() == (0, n)).await;
    }
    assert!(ingress.pool.tunnels().0 <= 2);
    drop(client);
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_goes_and_comes_back() {
    let (world, owner, ingress) = pair(&service("web.example", echo_backend("b").await));
    let mut client = Client::to(&ingress).await;
    assert_eq!(client.get("web.example", "/").await.0, 200);
    // The port closes and, with the grace over, everything on it.
    owner.stop.cancel();
    eventually("without a tunnel", || ingress.pool.tunnels() == (0, 0)).await;
    let mut client = Client::to(&ingress).await;
    let (status, body) = client.get("web.example", "/").await;
    assert_eq!(status, 503, "{body}");
    let changes = ingress.pool.take_changes();
    let (id, changes) = changes.into_iter().next().unwrap();
    assert_eq!(id, owner.id);
    assert!(
        changes.failed.is_some() && changes.closed_dialled >= 1 && !changes.opened.is_empty(),
        "{changes:?}"
    );

    let back = world.node(1, &service("web.example", echo_backend("c").await), Bounds::default());
    back.learn(&[&ingress], 1);
    ingress.learn(&[&back], 2);
    assert_eq!(client.get("web.example", "/").await, (200, "c GET / HTTP/1.1 ".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_in_the_table_gets_no_tunnel() {
    let (world, owner, ingress) = pair(&service("web.example", echo_backend("b").await));
    // It knows the owner, the owner does not know it.
    let stranger = world.node(3, &[], Bounds::default());
    stranger.learn(&[&owner], 1);
    let mut client = Client::to(&stranger).await;
    let (status, body) = client.get("web.example", "/").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("is not known here"), "{body}");
    // An impostor shows another key under a known Id.
    let impostor = world.node(2, &[], Bounds::default());
    impostor.learn(&[&owner], 1);
    let mut client = Client::to(&impostor).await;
    let (status, body) = client.get("web.example", "/").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("is bound to"), "{body}");
    drop(ingress);
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_are_told_as_503() {
    // Answers nothing, and leaves when its client does.
    let hangs = backend(|mut stream| async move {
        while stream.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    let bounds = Bounds { forwards: 2, ..Bounds::default() };
    let (_world, _owner, ingress) = pair_with(&service("web.example", hangs), bounds);
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::to(&ingress).await;
        client.send(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n").await;
        clients.push(client);
    }
    eventually("full", || ingress.forwards.counts().0 == 2).await;
    let mut client = Client::to(&ingress).await;
    assert_eq!(client.get("web.example", "/").await.0, 503);
    clients.clear();
    eventually("free again", || ingress.forwards.counts().0 == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_per_remote_are_bounded_and_waited_for() {
    let bounds = Bounds { pool: PoolLimits { per_remote: 2, ..PoolLimits::default() }, ..Bounds::default() };
    let (_world, owner, ingress) = pair_with(&service("web.example", echo_backend("b").await), bounds);
    let mut tasks = Vec::new();
    for n in 0..40 {
        let addr = ingress.listen;
        tasks.push(tokio::spawn(async move {
            let mut client = Client(BufReader::new(TcpStream::connect(addr).await.unwrap()));
            let request = format!("GET /{n} HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n");
            client.send(request.as_bytes()).await;
            assert_eq!(client.response().await.0, 200);
        }));
    }
    for task in tasks {
        within(task).await.unwrap();
    }
    assert!(ingress.pool.tunnels().0 <= 2, "{:?}", ingress.pool.tunnels());
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_protocols_are_closed_cleanly() {
    let (_world, _owner, ingress) = pair(&[]);
    for bytes in [&b"\x00\x01\x02\x03garbage"[..], b"SSH-2.0-x\r\n", b"\x16\x03\x01\xff\xff"] {
        let mut client = Client::to(&ingress).await;
        client.send(bytes).await;
        let mut rest = Vec::new();
        let _ = within(client.0.read_to_end(&mut rest)).await;
        assert_eq!(rest, b"", "{bytes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_at_once_and_nothing_is_left() {
    let before = open_files();
    let addr = echo_backend("b").await;
    let (_world, owner, ingress) = pair(&service("web.example", addr));
    let body = pattern(20_000, 5).iter().map(|byte| b'a' + byte % 26).collect::<Vec<_>>();
    let mut tasks = Vec::new();
    for n in 0..500 {
        let (addr, body) = (ingress.listen, body.clone());
        tasks.push(tokio::spawn(async move {
            let mut client = Client(BufReader::new(TcpStream::connect(addr).await.unwrap()));
            for turn in 0..3 {
                let head = format!(
                    "POST /{n}/{turn} HTTP/1.1\r\nHost: web.example\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                client.send(head.as_bytes()).await;
                client.send(&body).await;
                let (status, answer) = client.response().await;
                assert_eq!(status, 200, "{answer}");
                assert!(answer.starts_with(&format!("b POST /{n}/{turn} ")));
                assert!(answer.as_bytes().ends_with(&body));
            }
        }));
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(120), task).await.expect("not stuck").unwrap();
    }
    nothing_left(&ingress, &owner).await;
    let tunnels = ingress.pool.tunnels().0;
    assert_eq!(tunnels, owner.pool.tunnels().1);
    assert!(tunnels <= 500);
    // Dropping what is idle closes both ends.
    ingress.pool.drop_idle(owner.id);
    eventually("without tunnels", || ingress.pool.tunnels() == (0, 0) && owner.pool.tunnels() == (0, 0))
        .await;
    owner.stop.cancel();
    ingress.stop.cancel();
    // Other tests run beside this one in the same process; what must not happen is that hundreds stay.
    eventually("closed", || open_files() < before + 200).await;
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_does_not_answer_is_504() {
    // A full backlog: the kernel drops what comes.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let _first = TcpStream::connect(addr).await.unwrap();
    let (_world, owner, ingress) = pair(&service("web.example", addr));
    let mut client = Client::to(&ingress).await;
    let (status, body) = client.get("web.example", "/").await;
    assert_eq!(status, 504, "{body}");
    assert!(body.contains("in time"), "{body}");
    drop(client);
    nothing_left(&ingress, &owner).await;
}
