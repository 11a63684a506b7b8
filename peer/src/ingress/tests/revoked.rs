//! A Peer is revoked while forwards from and to it run.

use p2p_common::push::{RevocationPush, RevokedKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::fixture::pair;

/// A backend that sends without end.
async fn endless_backend() -> SocketAddr {
    backend(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n";
        let _ = stream.write_all(head).await;
        while stream.write_all(&[7; 4096]).await.is_ok() {}
    })
    .await
}

fn revoke(at: &Node, whom: &Node) {
    let key = RevokedKey { number: 1, id: whom.id, key_hash: whom.key_hash() };
    at.hear_revoked(RevocationPush { keys: vec![key], up_to: 1, done: true });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_with_a_revoked_peer_ends_at_once_also_when_its_client_is_stuck() {
    let (_world, owner, ingress) = pair(&service("web.example", endless_backend().await));
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = TcpStream::connect(ingress.listen).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n").await.unwrap();
        within(client.read(&mut [0; 100])).await.unwrap();
        clients.push(client);
    }
    // Nobody reads: everything on the way is full.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((ingress.pool.tunnels().0, owner.pool.tunnels().1), (3, 3));
    let began = Instant::now();
    revoke(&ingress, &owner);
    eventually("the owner to lose its forwards", || owner.forwards.counts().0 == 0).await;
    eventually("the owner to lose its tunnels", || owner.pool.tunnels().1 == 0).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for mut client in clients {
        // What was on its way may still come; the end is no orderly one.
        let mut rest = Vec::new();
        assert!(within(client.read_to_end(&mut rest)).await.is_err());
    }
    eventually("the ingress to have nothing left", || ingress.pool.tunnels().0 == 0).await;
    let mut client = Client::to(&ingress).await;
    assert_eq!(client.get("web.example", "/").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_peer_s_tunnels_are_closed_and_its_new_ones_refused() {
    let (_world, owner, ingress) = pair(&service("web.example", echo_backend("b").await));
    let mut client = Client::to(&ingress).await;
    assert_eq!(client.get("web.example", "/1").await.0, 200);
    drop(client);
    eventually("the tunnel to be idle", || ingress.forwards.counts().0 == 0).await;
    revoke(&owner, &ingress);
    eventually("the tunnel to be closed", || owner.pool.tunnels().1 == 0).await;
    let mut client = Client::to(&ingress).await;
    let (status, _) = client.get("web.example", "/2").await;
    assert!(status == 502 || status == 503, "{status}");
    assert_eq!(owner.pool.tunnels().1, 0);
    assert!(owner.ingress_metrics.count_refused("revoked") >= 1);
}
