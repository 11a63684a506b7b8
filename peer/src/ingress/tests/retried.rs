//! Forwards that are asked for twice, or of two owners: each backend runs at most once, and the client's bytes
//! arrive as they were sent (SPEC F7).

mod elsewhere;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use p2p_common::ErrorCode;
use p2p_common::wire::tunnel::{Hop, ProxyId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::fixture::played::{Asked, PlayedTunnel, accept, asked, end, play, refuse};
use crate::fixture::{Bounds, World};
use crate::forward::splice::{Buffers, Carrier};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// What the tunnels of a played owner were asked for, in order.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(usize, Asked)>>>);

impl Seen {
    fn note(&self, nth: usize, asked: &Asked) {
        self.0.lock().unwrap().push((nth, asked.clone()));
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// All were the same forward with the same first bytes.
    fn is_one_forward(&self) -> bool {
        let seen = self.0.lock().unwrap();
        seen.windows(2).all(|pair| pair[0].1 == pair[1].1)
    }
}

/// An ingress whose only other Peer has web.example and is played by `serve`.
async fn played<F, Fut>(serve: F) -> (World, Node, Node)
where
    F: Fn(usize, PlayedTunnel) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    played_runs(|_| 1, serve).await
}

async fn played_runs<F, Fut>(runs: fn(usize) -> u128, serve: F) -> (World, Node, Node)
where
    F: Fn(usize, PlayedTunnel) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let world = World::new();
    let owner = world.node(1, &["web.example=127.0.0.1:1".to_owned()], Bounds::default());
    let ingress = world.node(2, &[], Bounds::default());
    let addr = play(&owner, runs, serve).await;
    ingress.learn_entries([owner.entry_at(addr)], 1);
    (world, owner, ingress)
}

/// One request on a connection of its own: status, body, and how long it took.
async fn once(ingress: &Node, request: &[u8]) -> (u16, String, Duration) {
    let start = Instant::now();
    let mut client = Client::to(ingress).await;
    client.send(request).await;
    let (status, body) = client.response().await;
    (status, body, start.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_received_is_asked_again_and_the_first_goes_on() {
    let seen = Seen::default();
    let noted = seen.clone();
    let (_world, _owner, ingress) = played(move |nth, mut tunnel| {
        let seen = noted.clone();
        async move {
            let asked = asked(&mut tunnel, REQUEST.len()).await.unwrap();
            seen.note(nth, &asked);
            if nth == 0 {
                tokio::time::sleep(Duration::from_millis(600)).await;
                accept(&mut tunnel, &asked, ANSWER).await.unwrap();
                end(&mut tunnel).await.unwrap();
            } else {
                refuse(&mut tunnel, &asked, ErrorCode::AlreadyRuns).await;
            }
        }
    })
    .await;
    let (status, _, took) = once(&ingress, REQUEST).await;
    assert_eq!(status, 200);
    assert!(took >= Duration::from_millis(600), "{took:?}");
    assert_eq!(seen.len(), 2);
    assert!(seen.is_one_forward());
    // Nothing broke on either tunnel.
    assert_eq!(ingress.pool.tunnels().0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_accept_wins_and_the_other_tunnel_is_dropped() {
    let (dropped, mut is_dropped) = watch::channel(false);
    let seen = Seen::default();
    let noted = seen.clone();
    let (_world, _owner, ingress) = played(move |nth, mut tunnel| {
        let (seen, dropped) = (noted.clone(), dropped.clone());
        async move {
            let asked = asked(&mut tunnel, REQUEST.len()).await.unwrap();
            seen.note(nth, &asked);
            if nth == 0 {
                // Says nothing, and sees the reset.
                let ended = poll_recv(&mut tunnel).await;
                dropped.send_replace(ended.is_err());
            } else {
                accept(&mut tunnel, &asked, ANSWER).await.unwrap();
                let _ = end(&mut tunnel).await;
            }
        }
    })
    .await;
    let (status, _, took) = once(&ingress, REQUEST).await;
    assert_eq!(status, 200);
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(2), "{took:?}");
    assert_eq!(seen.len(), 2);
    assert!(seen.is_one_forward());
    within(is_dropped.wait_for(|dropped| *dropped)).await.unwrap();
}

async fn poll_recv(tunnel: &mut PlayedTunnel) -> Result<usize, crate::tunnel::TunnelError> {
    let mut byte = [0];
    std::future::poll_fn(|cx| tunnel.poll_recv(cx, &mut byte)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_lost_before_received_is_replaced_at_once() {
    let seen = Seen::default();
    let noted = seen.clone();
    let (_world, _owner, ingress) = played(move |nth, mut tunnel| {
        let seen = noted.clone();
        async move {
            let asked = asked(&mut tunnel, REQUEST.len()).await.unwrap();
            seen.note(nth, &asked);
            if nth > 0 {
                accept(&mut tunnel, &asked, ANSWER).await.unwrap();
                let _ = end(&mut tunnel).await;
            }
        }
    })
    .await;
    let (status, _, took) = once(&ingress, REQUEST).await;
    assert_eq!(status, 200);
    assert!(took < Duration::from_millis(250), "it does not wait for what cannot come: {took:?}");
    assert_eq!(seen.len(), 2);
    assert!(seen.is_one_forward());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_answers_amiss_is_asked_on_another_tunnel_once() {
    // Another forward's RECEIVED; half an ACCEPT; an ACCEPT without RECEIVED.
    for way in 0..3 {
        let seen = Seen::default();
        let noted = seen.clone();
        let (_world, _owner, ingress) = played(move |nth, mut tunnel| {
            let seen = noted.clone();
            async move {
                let Some(asked) = asked(&mut tunnel, REQUEST.len()).await else { return };
                seen.note(nth, &asked);
                match (nth, way) {
                    (0, 0) => tunnel.received(ProxyId(asked.proxy_id.0 ^ 1)),
                    (0, 1) => {
                        tunnel.received(asked.proxy_id);
                        tunnel.flush().await.unwrap();
                        let mut stream = tunnel.into_inner();
                        stream.write_all(&[0, 0, 0, 5, 4, 0]).await.unwrap();
                        return stream.shutdown().await.unwrap();
                    }
                    (0, _) => tunnel.accept(asked.proxy_id),
                    _ => return refuse(&mut tunnel, &asked, ErrorCode::AlreadyRuns).await,
                }
                tunnel.flush().await.unwrap();
                // The ingress closes it.
                assert!(poll_recv(&mut tunnel).await.is_err());
            }
        })
        .await;
        let (status, body, _) = once(&ingress, REQUEST).await;
        assert_eq!(status, 502, "{body}");
        assert!(body.contains("proxy_id: "), "{body}");
        assert_eq!(seen.len(), 2, "way {way}");
        assert!(seen.is_one_forward());
        // The one that was answered amiss is gone, the other is kept.
        eventually("one tunnel", || ingress.pool.tunnels().0 == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_run_of_the_owner_is_not_asked_for_what_has_left() {
    let seen = Seen::default();
    let noted = seen.clone();
    let (_world, _owner, ingress) = played_runs(
        |nth| nth as u128 + 1,
        move |nth, mut tunnel| {
            let seen = noted.clone();
            async move {
                if let Some(asked) = asked(&mut tunnel, REQUEST.len()).await {
                    seen.note(nth, &asked);
                }
            }
        },
    )
    .await;
    let (status, body, _) = once(&ingress, REQUEST).await;
    assert_eq!(status, 502, "{body}");
    assert!(body.contains("started anew"), "{body}");
    assert_eq!(seen.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_again_after_accept() {
    let seen = Seen::default();
    let noted = seen.clone();
    let (_world, _owner, ingress) = played(move |nth, mut tunnel| {
        let seen = noted.clone();
        async move {
            let asked = asked(&mut tunnel, REQUEST.len()).await.unwrap();
            seen.note(nth, &asked);
            accept(&mut tunnel, &asked, b"").await.unwrap();
        }
    })
    .await;
    let (status, body, _) = once(&ingress, REQUEST).await;
    assert_eq!(status, 502, "{body}");
    assert_eq!(seen.len(), 1);
}

async fn read_exact(tunnel: &mut PlayedTunnel, into: &mut [u8]) {
    let mut have = 0;
    while have < into.len() {
        let more = std::future::poll_fn(|cx| tunnel.poll_recv(cx, &mut into[have..])).await.unwrap();
        assert!(more > 0, "the request is cut short");
        have += more;
    }
}

async fn send(tunnel: &mut PlayedTunnel, bytes: &[u8]) {
    let mut buffer = Buffers::default().get();
    for piece in bytes.chunks(60_000) {
        buffer.space()[..piece.len()].copy_from_slice(piece);
        buffer.fill(piece.len());
        while !buffer.is_empty() {
            let count = buffer.unread().len();
            std::future::poll_fn(|cx| tunnel.poll_send(cx, &mut buffer, count, false)).await.unwrap();
        }
    }
    tunnel.flush().await.unwrap();
}

fn post(body: &[u8]) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Between an ingress and an owner: connections whose bytes towards the owner can be held back.
async fn stalling_proxy(to: SocketAddr) -> (SocketAddr, watch::Sender<Option<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stall, stalled) = watch::channel(None);
    tokio::spawn(async move {
        for nth in 0.. {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(to).await.unwrap();
            let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                (near.into_split(), far.into_split());
            let mut stalled = stalled.clone();
            tokio::spawn(async move {
                let mut bytes = vec![0; 65_536];
                while let Ok(count @ 1..) = near_read.read(&mut bytes).await {
                    let _ = stalled.wait_for(|stalled| *stalled != Some(nth)).await;
                    if far_write.write_all(&bytes[..count]).await.is_err() {
                        return;
                    }
                }
            });
            tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
        }
    });
    (addr, stall)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_held_up_on_its_way_runs_once() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let addr = backend(move |stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut stream = BufReader::new(stream);
            let (_, body) = read_message(&mut stream).await.unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        }
    })
    .await;
    let world = World::new();
    let owner = world.node(1, &service("web.example", addr), Bounds::default());
    let ingress = world.node(2, &[], Bounds::default());
    owner.learn(&[&ingress], 1);
    let (front, stall) = stalling_proxy(owner.listen).await;
    ingress.learn_entries([owner.entry_at(front)], 1);
    // The first tunnel works, and lies idle when its way is blocked.
    let mut client = Client::to(&ingress).await;
    client.send(&post(b"warm")).await;
    assert_eq!(client.response().await, (200, "warm".into()));
    drop(client);
    nothing_left(&ingress, &owner).await;
    let body = "x".repeat(50_000);
    for turn in 0..3 {
        let before = runs.load(Ordering::Relaxed);
        stall.send_replace(Some(turn));
        let start = Instant::now();
        let mut client = Client::to(&ingress).await;
        client.send(&post(body.as_bytes())).await;
        assert_eq!(client.response().await, (200, body.clone()));
        assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
        // What was held up arrives after all.
        stall.send_replace(None);
        drop(client);
        nothing_left(&ingress, &owner).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(runs.load(Ordering::Relaxed), before + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_runs_a_forward_that_came_twice_once() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let addr = backend(move |mut stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(ANSWER).await;
        }
    })
    .await;
    let (_world, owner, ingress) = crate::fixture::pair(&service("web.example", addr));
    let deadline = Instant::now() + Duration::from_secs(5);
    for n in 1..=20 {
        let mut codes = Vec::new();
        let (mut first, mut second) = (
            ingress.pool.take_fresh(owner.id, deadline).await.unwrap(),
            ingress.pool.take_fresh(owner.id, deadline).await.unwrap(),
        );
        for lease in [&mut first, &mut second] {
            lease.tunnel().begin(ProxyId(n), &"web.example".parse().unwrap(), Hop::First);
            lease.tunnel().flush().await.unwrap();
        }
        for lease in [&mut first, &mut second] {
            let verdict = within(std::future::poll_fn(|cx| lease.tunnel().poll_verdict(cx))).await;
            codes.push(verdict.err().map(|error| error.code()));
        }
        codes.sort();
        assert_eq!(codes, [None, Some(ErrorCode::AlreadyRuns)]);
        first.retire().await;
        second.retire().await;
    }
    eventually("run", || runs.load(Ordering::Relaxed) == 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_never_decides_is_504() {
    let seen = Seen::default();
    let noted = seen.clone();
    let (_world, _owner, ingress) = played(move |nth, mut tunnel| {
        let seen = noted.clone();
        async move {
            let asked = asked(&mut tunnel, REQUEST.len()).await.unwrap();
            seen.note(nth, &asked);
            if nth == 1 {
                // It has arrived; that is all.
                tunnel.received(asked.proxy_id);
                tunnel.flush().await.unwrap();
            }
            assert!(poll_recv(&mut tunnel).await.is_err());
        }
    })
    .await;
    let (status, body, took) = once(&ingress, REQUEST).await;
    assert_eq!(status, 504, "{body}");
    assert!(took >= Duration::from_secs(8) && took < Duration::from_secs(10), "{took:?}");
    assert_eq!(seen.len(), 2);
    eventually("no tunnel left", || ingress.pool.tunnels().0 == 0).await;
}
