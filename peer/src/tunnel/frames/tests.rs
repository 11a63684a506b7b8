//! Both ends of a tunnel over a pipe: in order, in pieces, and against the protocol.

use std::future::poll_fn;

use p2p_common::wire::tunnel::FRAME_MAX_BYTES;
use p2p_common::{ClusterId, Epoch, Incarnation, NodeId, NodeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use uuid::Uuid;

use super::*;
use crate::forward::splice::Buffers;
use crate::published::Myself;

const ID: ProxyId = ProxyId(0x3f9a_1c2b);

fn node(n: u128) -> Myself {
    let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(n));
    Myself::new(id, ClusterId::new(Uuid::from_u128(1)), Incarnation::new(Uuid::from_u128(n)), Epoch(1))
}

fn service() -> ServiceName {
    "web.example".parse().unwrap()
}

/// An ingress and an owner that greeted each other; at most `room` bytes lie between them.
async fn greeted(room: usize) -> (Tunnel<DuplexStream>, Tunnel<DuplexStream>) {
    let (near, far) = duplex(room);
    let (a, b) = (node(1), node(2));
    let (hello, expected) = (a.hello(Some(b.id)), a.expected(b.id));
    let ingress = Tunnel::greet(near, Arc::default(), &hello, &expected);
    let owner = async {
        let (mut tunnel, hello) = Tunnel::hear(far, Arc::default()).await.unwrap();
        hello.check(&b.expected(a.id)).unwrap();
        tunnel.welcome(&b.hello(Some(a.id))).await.unwrap();
        tunnel
    };
    let (ingress, owner) = tokio::join!(ingress, owner);
    (ingress.unwrap(), owner)
}

/// An ingress, and the bare stream of its owner.
async fn ingress_and_bytes() -> (Tunnel<DuplexStream>, DuplexStream) {
    let (mut ingress, owner) = greeted(1 << 20).await;
    ingress.begin(ID, &service(), Hop::First);
    (ingress, owner.stream)
}

fn frame(control: &Control) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    control.encode(&mut bytes);
    bytes.to_vec()
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(tunnel: &mut Tunnel<S>, bytes: &[u8], last: bool) {
    let mut buffer = Buffers::default().get();
    buffer.space()[..bytes.len()].copy_from_slice(bytes);
    buffer.fill(bytes.len());
    while !buffer.is_empty() {
        let count = buffer.unread().len();
        poll_fn(|cx| tunnel.poll_send(cx, &mut buffer, count, last)).await.unwrap();
    }
    poll_fn(|cx| tunnel.poll_flush(cx)).await.unwrap();
}

async fn recv_all<S: AsyncRead + AsyncWrite + Unpin>(tunnel: &mut Tunnel<S>) -> Result<Vec<u8>, TunnelError> {
    let (mut all, mut piece) = (Vec::new(), [0; 7]);
    loop {
        match poll_fn(|cx| tunnel.poll_recv(cx, &mut piece)).await? {
            0 => return Ok(all),
            count => all.extend_from_slice(&piece[..count]),
        }
    }
}

#[tokio::test]
async fn forwards_follow_each_other_through_any_pipe() {
    // One byte at a time is the worst that can happen to a frame.
    for room in [1, 2, 3, 5, 64, 100_000] {
        let (mut ingress, mut owner) = greeted(room).await;
        for turn in 0..3u8 {
            let (question, answer) = (vec![turn; 1_000], vec![turn + 100; 2_000]);
            let asking = async {
                ingress.begin(ID, &service(), Hop::First);
                send(&mut ingress, &question, turn == 1).await;
                poll_fn(|cx| ingress.poll_finish(cx)).await.unwrap();
                assert_eq!(recv_all(&mut ingress).await.unwrap(), answer);
                assert!(ingress.is_received());
                ingress.settle(0).await.unwrap();
                assert!(ingress.is_between_forwards());
            };
            let owning = async {
                assert_eq!(owner.next_forward().await.unwrap(), Some((ID, service(), Hop::First)));
                owner.received(ID);
                owner.accept(ID);
                assert_eq!(recv_all(&mut owner).await.unwrap(), question);
                send(&mut owner, &answer, turn == 2).await;
                poll_fn(|cx| owner.poll_finish(cx)).await.unwrap();
                owner.reset();
            };
            tokio::join!(asking, owning);
        }
        drop(ingress);
        assert_eq!(owner.next_forward().await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_refused_forward_leaves_the_tunnel_usable() {
    let (mut ingress, mut owner) = greeted(64).await;
    for _ in 0..2 {
        let asking = async {
            ingress.begin(ID, &service(), Hop::First);
            send(&mut ingress, &[7; 500], false).await;
            let error = recv_all(&mut ingress).await.unwrap_err();
            assert!(
                matches!(&error, TunnelError::Refused { code: ErrorCode::ServiceUnknown, text } if text == "no"),
                "{error:?}"
            );
            ingress.settle(0).await.unwrap();
        };
        let owning = async {
            owner.next_forward().await.unwrap().unwrap();
            owner.received(ID);
            owner.refuse(ID, ErrorCode::ServiceUnknown, "no".into(), 1_000).await.unwrap();
        };
        tokio::join!(asking, owning);
    }
    // One that goes on sending is not waited for.
    let asking = async {
        ingress.begin(ID, &service(), Hop::First);
        send(&mut ingress, &[7; 1_000], false).await;
    };
    let owning = async {
        owner.next_forward().await.unwrap().unwrap();
        owner.received(ID);
        let error = owner.refuse(ID, ErrorCode::Exhausted, String::new(), 100).await.unwrap_err();
        assert!(matches!(error, TunnelError::Unexpected(_)), "{error:?}");
        drop(owner);
    };
    tokio::select! {
        () = asking => panic!("the pipe holds 64 bytes"),
        () = owning => {}
    }
}

#[tokio::test]
async fn an_owner_that_breaks_the_protocol_is_dropped() {
    let received = frame(&Control::Received { proxy_id: ID });
    let accept = frame(&Control::Accept { proxy_id: ID });
    let other = frame(&Control::Received { proxy_id: ProxyId(1) });
    let forward = frame(&Control::Forward { proxy_id: ID, service: service(), hop: Hop::First });
    let good = [&received[..], &accept].concat();
    for (bytes, says) in [
        (other.clone(), "not to 3f9a1c2b"),
        (accept.clone(), "wrong order"),
        ([&received[..], &received].concat(), "wrong order"),
        (forward, "does not ask"),
        (vec![0; 4], "END outside"),
        (vec![0, 0, 0, 1, 99], "kind is malformed"),
        (vec![0, 0, 4, 1], "longer than"),
        (vec![0xff; 4], "longer than"),
        ([&good[..], &(FRAME_MAX_BYTES as u32 + 1).to_be_bytes()].concat(), "longer than"),
        ([&good[..], &[0, 0, 0, 9, 1, 2]].concat(), "in the middle"),
        (good[..good.len() - 1].to_vec(), "in the middle"),
        (Vec::new(), "in the middle"),
    ] {
        let (mut ingress, mut bytes_of_owner) = ingress_and_bytes().await;
        bytes_of_owner.write_all(&bytes).await.unwrap();
        drop(bytes_of_owner);
        let error = recv_all(&mut ingress).await.unwrap_err();
        assert!(error.to_string().contains(says), "{bytes:?}: {error}");
    }
    // What comes between two forwards, an end included, makes an idle tunnel worthless.
    for bytes in [&received[..], &[]] {
        let (mut ingress, owner) = greeted(1_000).await;
        let mut owner = owner.stream;
        let idle = poll_fn(|cx| Poll::Ready(ingress.poll_idle(cx).is_pending())).await;
        assert!(idle);
        owner.write_all(bytes).await.unwrap();
        drop(owner);
        poll_fn(|cx| ingress.poll_idle(cx)).await;
    }
}

#[tokio::test]
async fn an_ingress_that_breaks_the_protocol_is_dropped() {
    let received = frame(&Control::Received { proxy_id: ID });
    for bytes in [&received[..], &[0; 4], &[0xff; 4], &[0, 0, 0, 2, 2, 0], &[0, 0, 0, 1]] {
        let (ingress, mut owner) = greeted(1_000).await;
        let mut ingress = ingress.stream;
        ingress.write_all(bytes).await.unwrap();
        drop(ingress);
        assert!(owner.next_forward().await.is_err(), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_hello_that_does_not_fit_is_told_why() {
    let (near, far) = duplex(1_000);
    let (a, b) = (node(1), node(2));
    let (hello, expected) = (a.hello(Some(b.id)), a.expected(b.id));
    let ingress = Tunnel::greet(near, Arc::default(), &hello, &expected);
    let owner = async {
        let (tunnel, _) = Tunnel::hear(far, Arc::default()).await.unwrap();
        tunnel.turn_away(ErrorCode::WrongEpoch, "another epoch".into()).await;
    };
    let (refused, ()) = tokio::join!(ingress, owner);
    let error = refused.unwrap_err();
    assert_eq!(error.code(), ErrorCode::WrongEpoch);
    assert!(error.to_string().contains("another epoch"), "{error}");

    // One that says nothing to the point.
    let (near, mut far) = duplex(1_000);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let refused = Tunnel::greet(near, Arc::default(), &hello, &expected).await;
    assert!(refused.is_err());
    let mut said = Vec::new();
    far.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, frame(&Control::Hello(hello)));
}
