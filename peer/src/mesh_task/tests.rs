//! Links between two nodes in one process, over real TLS; the agents are played by the tests.

use super::*;

use std::net::SocketAddr;

use p2p_common::{Epoch, Incarnation, NodeKind};
use p2p_runtime::identity::{DataDir, NodeIdentity};
use p2p_runtime::mesh_key::MeshKey;
use p2p_runtime::tls::{Face, ServerTls};
use slog::{Discard, o};
use tempfile::TempDir;
use tokio::net::TcpListener;
use uuid::Uuid;

/// A Peer of a mesh whose agent is the test.
struct Node {
    links: Links,
    agent: mpsc::Receiver<Input>,
    attempts: TaskTracker,
    _dir: TempDir,
}

fn node(key: &MeshKey, epoch: u64) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open(dir.path()).unwrap();
    let identity = NodeIdentity::load_or_create(&data, NodeKind::Peer, None, None).unwrap();
    let credentials = Credentials::new(&identity, &key.enrol(&identity).unwrap()).unwrap();
    let incarnation = Incarnation::new(Uuid::now_v7());
    let myself = Arc::new(Myself::new(identity.id(), key.cluster_id(), incarnation, Epoch(epoch)));
    let (mailbox, agent) = mpsc::channel(64);
    let log = Logger::root(Discard, o!());
    Node {
        links: Links { credentials, myself, mailbox, log },
        agent,
        attempts: TaskTracker::new(),
        _dir: dir,
    }
}

impl Node {
    /// Listens, and hands every connection to its links as the port does.
    async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let links = self.links.clone();
        tokio::spawn(async move {
            while let Ok((stream, remote)) = listener.accept().await {
                let (links, tls) = (links.clone(), ServerTls::peer(Arc::clone(&links.credentials)));
                tokio::spawn(async move {
                    let Ok(accepted) = tls.accept(stream).await else { return };
                    let Face::Link(identity) = accepted.face else { panic!("{:?}", accepted.face) };
                    links.accept(accepted.stream, identity, Arc::default(), remote.to_string()).await;
                });
            }
        });
        addr
    }

    fn dial(&self, token: u64, addr: SocketAddr) -> LinkHandle {
        self.links.dial(&self.attempts, LinkToken(token), addr.into())
    }

    async fn heard(&mut self) -> Input {
        let heard = tokio::time::timeout(Duration::from_secs(20), self.agent.recv()).await;
        heard.expect("something happens").expect("the links live")
    }

    /// Takes the link that somebody dials.
    async fn take(&mut self, token: u64) -> (LinkHandle, LinkOpened) {
        let Input::LinkAccepted(offer) = self.heard().await else { panic!("nobody dials") };
        let (handle, end) = link(LinkToken(token), None);
        offer.answer.send(Some(end)).unwrap();
        (handle, offer.opened)
    }
}

/// Why `near` gets no link at `addr`.
async fn failed(mut near: Node, addr: SocketAddr) -> String {
    let _handle = near.dial(1, addr);
    match near.heard().await {
        Input::LinkFailed { link: LinkToken(1), error } => error,
        other => panic!("{other:?}"),
    }
}

fn id(node: &Node) -> p2p_common::NodeId {
    node.links.myself.id
}

#[tokio::test]
async fn both_sides_know_each_other_and_say_what_they_are_given() {
    let key = MeshKey::generate().unwrap();
    let (mut near, mut far) = (node(&key, 0), node(&key, 0));
    let addr = far.listen().await;
    let dialler = near.dial(1, addr);
    let (acceptor, caller) = far.take(2).await;
    assert_eq!(caller.peer, id(&near));
    assert_eq!(caller.key_hash, near.links.credentials.key_hash());
    assert_eq!(caller.incarnation, near.links.myself.incarnation);
    let Input::LinkOpened { link: LinkToken(1), opened } = near.heard().await else { panic!("not open") };
    assert_eq!((opened.peer, opened.address), (id(&far), addr.to_string()));

    // In order, both ways.
    for count in 0..3 {
        assert!(dialler.send(LinkMessage::Registered { count }));
        assert!(acceptor.send(LinkMessage::OpenTunnels { count }));
    }
    for expected in 0..3 {
        let Input::LinkMessage { link: LinkToken(2), message } = far.heard().await else {
            panic!("no message")
        };
        assert_eq!(message, LinkMessage::Registered { count: expected });
        let Input::LinkMessage { link: LinkToken(1), message } = near.heard().await else {
            panic!("no message")
        };
        assert_eq!(message, LinkMessage::OpenTunnels { count: expected });
    }

    // What is said last still arrives; then the other side, and it alone, is told of the end.
    let last = LinkMessage::Refused { code: ErrorCode::Draining, text: "bye".into() };
    assert!(acceptor.send(last.clone()));
    drop(acceptor);
    let Input::LinkMessage { message, .. } = near.heard().await else { panic!("no last words") };
    assert_eq!(message, last);
    assert!(matches!(near.heard().await, Input::LinkClosed { link: LinkToken(1), .. }));
    assert!(far.agent.try_recv().is_err());
    assert!(!dialler.send(LinkMessage::Heartbeat));
}

#[tokio::test]
async fn what_does_not_fit_is_told_to_who_dialled() {
    let key = MeshKey::generate().unwrap();
    let mut far = node(&key, 0);
    let addr = far.listen().await;
    let error = failed(node(&MeshKey::generate().unwrap(), 0), addr).await;
    assert!(error.contains("another cluster or mesh"), "{error}");
    let error = failed(node(&key, 7), addr).await;
    assert!(error.contains("epoch 7"), "{error}");
    assert!(far.agent.try_recv().is_err(), "nothing of it is the agent's");

    // No room: told as well.
    let near = node(&key, 0);
    let refused = tokio::spawn(failed(near, addr));
    let Input::LinkAccepted(offer) = far.heard().await else { panic!("nobody dials") };
    offer.answer.send(None).unwrap();
    let error = refused.await.unwrap();
    assert!(error.contains("as many mesh links"), "{error}");

    // Nobody there.
    drop(far);
    let closed: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let mut near = node(&key, 0);
    let _handle = near.dial(1, closed);
    assert!(matches!(near.heard().await, Input::LinkFailed { .. }));
}

#[tokio::test]
async fn dropping_the_handle_ends_an_attempt_silently() {
    let key = MeshKey::generate().unwrap();
    let mut near = node(&key, 0);
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let handle = near.dial(1, silent.local_addr().unwrap());
    let _connection = silent.accept().await.unwrap();
    drop(handle);
    near.attempts.close();
    tokio::time::timeout(Duration::from_secs(5), near.attempts.wait()).await.unwrap();
    assert!(near.agent.try_recv().is_err());
}

#[tokio::test]
async fn bytes_that_are_no_messages_end_the_link() {
    let key = MeshKey::generate().unwrap();
    let (mut far, caller) = (node(&key, 0), node(&key, 0));
    let identity = PeerIdentity {
        node_id: id(&caller),
        cluster_id: key.cluster_id(),
        key_hash: caller.links.credentials.key_hash(),
    };
    let mut hello = BytesMut::new();
    encode_link(&LinkMessage::Hello(caller.links.myself.hello(Some(id(&far)))), &mut hello).unwrap();
    let mut heartbeat = BytesMut::new();
    encode_link(&LinkMessage::Heartbeat, &mut heartbeat).unwrap();

    // Before the hello: closed without a word to the agent.
    for bytes in [&b""[..], &[0xff; 64], &heartbeat, &hello[..hello.len() - 1], &[0, 0, 0, 0]] {
        let (mut client, stream) = tokio::io::duplex(1024);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        far.links.accept(stream, identity, Arc::default(), "198.51.100.1:1".into()).await;
        assert!(far.agent.try_recv().is_err(), "{bytes:?}");
    }
    // After it: the agent hears the end and why.
    for bytes in [&[0xff; 64][..], &hello, &[0, 0, 0, 2, 0xff, 0xff]] {
        let (mut client, stream) = tokio::io::duplex(1024);
        client.write_all(&hello).await.unwrap();
        client.write_all(bytes).await.unwrap();
        let links = far.links.clone();
        let task = tokio::spawn(async move {
            links.accept(stream, identity, Arc::default(), "198.51.100.1:1".into()).await
        });
        let _handle = far.take(3).await;
        let Input::LinkClosed { link: LinkToken(3), reason } = far.heard().await else { panic!("goes on") };
        assert!(!reason.is_empty());
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_noticed_and_given_up() {
    let key = MeshKey::generate().unwrap();
    let (mut far, caller) = (node(&key, 0), node(&key, 0));
    let identity = PeerIdentity {
        node_id: id(&caller),
        cluster_id: key.cluster_id(),
        key_hash: caller.links.credentials.key_hash(),
    };
    let mut hello = BytesMut::new();
    encode_link(&LinkMessage::Hello(caller.links.myself.hello(None)), &mut hello).unwrap();
    // Room for little more than a hello, and nobody reads.
    let (mut client, stream) = tokio::io::duplex(512);
    client.write_all(&hello).await.unwrap();
    let links = far.links.clone();
    let task =
        tokio::spawn(
            async move { links.accept(stream, identity, Arc::default(), "198.51.100.1:1".into()).await },
        );
    let (handle, _) = far.take(3).await;
    let text = "x".repeat(400);
    let mut sent = 0;
    while handle.send(LinkMessage::Refused { code: ErrorCode::Draining, text: text.clone() }) {
        sent += 1;
        assert!(sent < QUEUE * 4, "the queue has no bound");
        tokio::task::yield_now().await;
    }
    drop(handle);
    tokio::time::timeout(LAST_WORDS_TIMEOUT * 5, task).await.unwrap().unwrap();
    drop(client);
}

#[tokio::test]
async fn a_long_message_on_a_slow_way_is_heard_before_it_is_whole() {
    let key = MeshKey::generate().unwrap();
    let (mut far, caller) = (node(&key, 0), node(&key, 0));
    let identity = PeerIdentity {
        node_id: id(&caller),
        cluster_id: key.cluster_id(),
        key_hash: caller.links.credentials.key_hash(),
    };
    let mut bytes = BytesMut::new();
    encode_link(&LinkMessage::Hello(caller.links.myself.hello(None)), &mut bytes).unwrap();
    let (mut client, stream) = tokio::io::duplex(1024);
    client.write_all(&bytes).await.unwrap();
    let links = far.links.clone();
    tokio::spawn(
        async move { links.accept(stream, identity, Arc::default(), "198.51.100.1:1".into()).await },
    );
    let _handle = far.take(3).await;
    let mut message = BytesMut::new();
    encode_link(&LinkMessage::Heartbeat, &mut message).unwrap();
    let (last, first) = message.split_last().unwrap();
    let drip = async {
        client.write_all(&first[..1]).await.unwrap();
        tokio::time::sleep(HEARD_INTERVAL).await;
        client.write_all(&first[1..]).await.unwrap();
    };
    let (heard, ()) = tokio::join!(far.heard(), drip);
    assert!(matches!(heard, Input::LinkHeard { link: LinkToken(3) }), "{heard:?}");
    client.write_all(&[*last]).await.unwrap();
    assert!(matches!(far.heard().await, Input::LinkMessage { message: LinkMessage::Heartbeat, .. }));
}
