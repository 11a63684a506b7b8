//! How messages come in: which streams are taken, which end, and what waits for what.

use p2p_common::ErrorCode;
use p2p_proto::status::code_of;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::*;
use crate::raft::mailbox::Request;
use crate::standing::Standing;

/// A stream as a test writes it.
struct Raw {
    batches: mpsc::Sender<v1::RaftBatch>,
    replies: Streaming<v1::RaftStreamReply>,
}

fn first(hello: v1::Hello, kind: i32) -> v1::RaftBatch {
    v1::RaftBatch { hello: Some(hello), messages: Vec::new(), kind }
}

const APPEND: i32 = v1::RaftStreamKind::Append as i32;
const MESSAGE: i32 = v1::RaftStreamKind::Message as i32;

/// Opens a stream from `node` to `other`.
async fn open(node: &Node, other: &Node, kind: i32) -> Result<Raw, Status> {
    let (batches, rx) = mpsc::channel(4);
    batches.try_send(first(node.hello_to(other), kind)).unwrap();
    let mut replies = node.client(other).await.stream(ReceiverStream::new(rx)).await?.into_inner();
    replies.message().await?.expect("the first word");
    Ok(Raw { batches, replies })
}

impl Raw {
    /// Why the other side ends it.
    async fn ended(&mut self) -> Option<ErrorCode> {
        let ended = async {
            loop {
                match self.replies.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return code_of(&status),
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("it ends in time")
    }
}

fn two_of_us() -> (World, Node, Node) {
    let world = World::new();
    let (one, mut two) = (world.node(1), world.node(2));
    two.serve(world.view(2, &[&one, &two]));
    (world, one, two)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_stream_of_a_kind_ends_the_older() {
    let (_world, one, two) = two_of_us();
    let mut append = open(&one, &two, APPEND).await.unwrap();
    let mut older = open(&one, &two, MESSAGE).await.unwrap();
    let newer = open(&one, &two, MESSAGE).await.unwrap();
    assert_eq!(older.ended().await, Some(ErrorCode::Replaced));
    let wire = crate::raft::wire::message_to(message(MessageKind::Heartbeat, 1, 2, 5));
    let batch = v1::RaftBatch { messages: vec![wire], ..v1::RaftBatch::default() };
    newer.batches.send(batch).await.unwrap();
    assert_eq!(two.inbox(|inbox| inbox.messages.first().map(|message| message.term)).await, 5);
    // The other kind is not touched; it ends with the Server.
    let open = tokio::time::timeout(Duration::from_millis(50), append.replies.message()).await;
    assert!(open.is_err(), "{open:?}");
    two.stop.cancel();
    append.ended().await;
    one.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_kind_is_refused() {
    let (_world, one, two) = two_of_us();
    for kind in [0, 3, -1, i32::MAX] {
        let Err(refused) = open(&one, &two, kind).await else { panic!("kind {kind} was taken") };
        assert_eq!(code_of(&refused), Some(ErrorCode::BadRequest));
        assert!(refused.message().contains("no kind of stream"), "{}", refused.message());
    }
    assert_eq!(two.metric("raft_messages_received_total", ""), 0.0);
    for node in [one, two] {
        node.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_the_cluster_is_heard_until_raft_has_let_it_go_and_then_told() {
    let (world, one, two) = two_of_us();
    let both = world.view(2, &[&one, &two]);
    let (_emergencies, emergencies) = watch::channel(Arc::default());
    let following =
        tokio::spawn(two.remotes.clone().follow(Standing::new(two.view.subscribe(), emergencies)));
    Node::until("a remote", || two.remotes.remote(1).is_some()).await;
    let mut stream = open(&one, &two, MESSAGE).await.unwrap();

    // Out of table C, still in the raft group.
    let mut leaving = View::clone(&both);
    let mut state = (*leaving.state).clone();
    state.members.remove(&one.member.id);
    leaving.state = Arc::new(state);
    leaving.membership = Membership::sole_voter(1);
    two.view.send_replace(Arc::new(leaving.clone()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(two.remotes.remote(1).is_some());
    let again = open(&one, &two, APPEND).await;
    assert!(again.is_ok(), "{:?}", again.err());

    leaving.membership = Membership::sole_voter(2);
    two.view.send_replace(Arc::new(leaving));
    assert_eq!(stream.ended().await, Some(ErrorCode::RemovedMember));
    Node::until("the end of the remote", || two.remotes.remote(1).is_none()).await;
    let Err(refused) = open(&one, &two, MESSAGE).await else { panic!("a removed one has a stream") };
    assert_eq!(code_of(&refused), Some(ErrorCode::RemovedMember));
    two.stop.cancel();
    following.await.unwrap();
    one.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_remote_closes_every_connection_of_it() {
    let world = World::new();
    let (mut one, mut two) = (world.node(1), world.node(2));
    one.serve(world.view(1, &[]));
    two.serve(world.view(2, &[]));
    for node in [&one, &two] {
        let view = world.view(node.member.raft_id, &[&one, &two]);
        node.view.send_replace(Arc::clone(&view));
        node.remotes.update(view.others());
    }
    let open = |node: &Node| node.metric("connections_open", "node");
    Node::until("three connections each way", || open(&one) == 3.0 && open(&two) == 3.0).await;
    Node::until("their use", || {
        let working =
            [&one, &two].map(|node| node.remotes.shared.remotes.load().values().next().unwrap().working());
        working == [remote::Working { append: true, message: true }; 2]
    })
    .await;
    // One forgets two: its own connections close at once, and it ends the streams of the other one.
    let alone = world.view(1, &[&one]);
    one.view.send_replace(Arc::clone(&alone));
    one.remotes.update(alone.others());
    two.until_connected(1, false).await;
    Node::until("no connection from one", || open(&two) == 0.0).await;
    for node in [one, two] {
        node.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_stuck_proposals_delay_no_heartbeat() {
    let (world, mut one, two) = two_of_us();
    one.remotes.update(world.view(1, &[&one, &two]).others());
    one.until_connected(2, true).await;
    // Nobody answers them; the next one finds no room.
    let mut answers = Vec::new();
    loop {
        let (reply, answer) = oneshot::channel();
        if two.mailbox.request(Request::Propose { command: Bytes::new(), reply }).is_err() {
            break;
        }
        answers.push(answer);
    }
    assert_eq!(answers.len(), 4_096);
    let sent = Instant::now();
    one.remotes.send(vec![message(MessageKind::Heartbeat, 1, 2, 1)]);
    let came =
        two.inbox(|inbox| inbox.messages.first().map(|message| (message.term, inbox.requests.len()))).await;
    // The requests are as far as they were, or have been taken by a look before.
    assert_eq!(came.0, 1);
    assert!(sent.elapsed() < Duration::from_secs(1), "{:?}", sent.elapsed());
    // And the other way round: a full queue of messages refuses no request.
    let mut refused = 0;
    for term in 1..=5_000 {
        refused += u32::from(two.mailbox.message(message(MessageKind::Heartbeat, 1, 2, term)).is_err());
    }
    assert_eq!(refused, 5_000 - 4_096);
    let (reply, _answer) = oneshot::channel();
    assert!(two.mailbox.request(Request::Read { reply }).is_ok());
    one.remotes.send(vec![message(MessageKind::Heartbeat, 1, 2, 2)]);
    Node::until("a refused message", || two.metric("raft_messages_refused_total", "s1") >= 1.0).await;
    for node in [one, two] {
        node.stop.cancel();
    }
}
