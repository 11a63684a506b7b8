//! Who does not say who he is: gives way to others, and to those of other sources first.

use std::time::Duration;

use tokio::net::TcpSocket;

use super::*;
use crate::fixture::{Bounds, World, pair_with};
use crate::ingress::{IngressLimits, SourceRanges};

/// A connection from another address of this host.
async fn from(source: &str, node: &Node) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(node.listen).await.unwrap()
}

fn bounds(connections: usize, newcomers: usize) -> Bounds {
    Bounds {
        ingress: IngressLimits { connections, newcomers, newcomers_per_source: 2 },
        clients_allow: SourceRanges::parse(["127.0.0.1"]).unwrap(),
        ..Bounds::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_silent_keep_nobody_waiting() {
    let services = service("web.example", echo_backend("b").await);
    let (_world, owner, ingress) = pair_with(&services, bounds(64, 4));
    let mut silent = Vec::new();
    for source in ["127.0.0.2", "127.0.0.3"] {
        for _ in 0..2 {
            let mut stream = from(source, &ingress).await;
            // One that has begun is not silent, and knows how to wait.
            stream.write_all(b"\x16\x03\x01").await.unwrap();
            silent.push(stream);
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let asked = Instant::now();
    let mut client = Client::to(&ingress).await;
    assert_eq!(client.get("web.example", "/").await, (200, "b GET / HTTP/1.1 ".into()));
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    eventually("displaced", || ingress.ingress_metrics.count_refused("displaced") == 1).await;
    drop(silent);
    drop(client);
    nothing_left(&ingress, &owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_and_slowness_have_their_times() {
    let (_world, _owner, ingress) = pair_with(&[], bounds(64, 16));
    let began = Instant::now();
    let mut silent = from("127.0.0.2", &ingress).await;
    let mut slow = from("127.0.0.3", &ingress).await;
    slow.write_all(b"\x16\x03\x01").await.unwrap();
    let mut byte = [0];
    assert!(matches!(within(silent.read(&mut byte)).await, Ok(0) | Err(_)));
    assert_eq!(began.elapsed().as_secs(), 3);
    assert!(matches!(within(slow.read(&mut byte)).await, Ok(0) | Err(_)));
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_do_not_take_the_places_of_peers() {
    let services = service("web.example", echo_backend("b").await);
    let world = World::new();
    let owner = world.node(1, &services, bounds(16, 8));
    let ingress = world.node(2, &[], Bounds::default());
    owner.learn(&[&ingress], 1);
    ingress.learn(&[&owner], 1);
    let mut clients = Vec::new();
    for _ in 0..14 {
        let mut client = Client::to(&owner).await;
        assert_eq!(client.get("web.example", "/").await.0, 200);
        clients.push(client);
    }
    let mut refused = Client::to(&owner).await;
    refused.send(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n").await;
    let read = within(refused.0.read(&mut [0])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(owner.ingress_metrics.count_refused("limit"), 1);
    let mut client = Client::to(&ingress).await;
    let (status, body) = client.get("web.example", "/").await;
    assert_eq!(status, 200, "by a tunnel: {body}");
}
