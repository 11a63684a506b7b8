//! What nobody of ours would send: every refusal has its own code, memory stays bounded, nothing panics.

use p2p_common::ErrorCode;
use p2p_proto::status::code_of;
use p2p_server_raft::{EntryKind, LogEntry};
use proptest::prelude::*;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::*;
use crate::raft::wire;

const MESSAGE: i32 = v1::RaftStreamKind::Message as i32;

/// A stream of these batches; what becomes of it.
async fn stream_of(node: &Node, other: &Node, batches: Vec<v1::RaftBatch>) -> Status {
    let (tx, rx) = mpsc::channel(batches.len() + 1);
    for batch in batches {
        tx.try_send(batch).unwrap();
    }
    let mut client = node.client(other).await;
    let ended = async {
        let mut replies = client.stream(ReceiverStream::new(rx)).await?.into_inner();
        while replies.message().await?.is_some() {}
        Ok(())
    };
    let ended: Result<(), Status> = tokio::time::timeout(PATIENCE, ended).await.expect("it ends in time");
    drop(tx);
    ended.expect_err("it ends with an error")
}

fn batch(hello: v1::Hello, messages: Vec<v1::RaftMessage>) -> v1::RaftBatch {
    v1::RaftBatch { hello: Some(hello), messages, kind: MESSAGE }
}

fn stop<const N: usize>(nodes: [Node; N]) {
    for node in nodes {
        node.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hello_that_does_not_fit_has_its_own_error_on_every_call() {
    let world = World::new();
    let (one, mut two) = (world.node_of(1, Epoch(5), Some(7)), world.node_of(2, Epoch(5), Some(7)));
    // Raft ids 1, 2 and 3 were given out; 3 is nobody's any more.
    let mut view = View::clone(&world.view(2, &[&one, &two]));
    let mut state = (*view.state).clone();
    state.next_raft_id = 4;
    view.state = Arc::new(state);
    two.serve(Arc::new(view));
    let good = one.hello_to(&two);
    let other = NodeId::new(NodeKind::Server, Uuid::from_u128(77)).to_string();
    let with = |change: &dyn Fn(&mut v1::Hello)| {
        let mut hello = good.clone();
        change(&mut hello);
        hello
    };
    let cases = [
        (with(&|hello| hello.version_min = 9), ErrorCode::VersionMismatch),
        (with(&|hello| (hello.version_min, hello.version_max) = (8, 9)), ErrorCode::VersionMismatch),
        (with(&|hello| hello.cluster_id = Uuid::from_u128(9).to_string()), ErrorCode::WrongCluster),
        (with(&|hello| hello.from = other.clone()), ErrorCode::Unauthenticated),
        (with(&|hello| hello.to = other.clone()), ErrorCode::WrongRecipient),
        (with(&|hello| hello.epoch = 4), ErrorCode::WrongEpoch),
        (with(&|hello| hello.epoch = 6), ErrorCode::WrongEpoch),
        (with(&|hello| hello.recovery_id.clear()), ErrorCode::SplitHistory),
        (with(&|hello| hello.raft_id = 3), ErrorCode::RemovedMember),
        (with(&|hello| hello.raft_id = 4), ErrorCode::Forbidden),
        (with(&|hello| hello.raft_id = 2), ErrorCode::Forbidden),
        (with(&|hello| hello.incarnation = "yesterday".to_owned()), ErrorCode::BadRequest),
    ];
    for (hello, code) in cases {
        let mut client = one.client(&two).await;
        let stream = stream_of(&one, &two, vec![batch(hello.clone(), Vec::new())]).await;
        let send = client.send(batch(hello.clone(), Vec::new())).await.unwrap_err();
        let probe = tokio_stream::once(v1::RaftProbe { hello: Some(hello.clone()) });
        let probe = client.probe(probe).await.unwrap_err();
        let chunk = v1::RaftSnapshotChunk { hello: Some(hello.clone()), ..v1::RaftSnapshotChunk::default() };
        let snapshot = client.send_snapshot(tokio_stream::once(chunk)).await.unwrap_err();
        for refused in [stream, send, probe, snapshot] {
            assert_eq!(code_of(&refused), Some(code), "{hello:?}: {refused}");
        }
    }
    assert!(one.client(&two).await.send(batch(good, Vec::new())).await.is_ok());
    assert!(two.mailbox.wait(Instant::now()).messages.is_empty());
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_none_end_their_stream_and_nothing_else() {
    let world = World::new();
    let (one, mut two, three) = (world.node(1), world.node(2), world.node(3));
    let view = world.view(2, &[&one, &two, &three]);
    two.serve(Arc::clone(&view));
    // An honest one is connected all the while.
    three.remotes.update(world.view(3, &[&two, &three]).others());
    three.until_connected(2, true).await;

    let good = wire::message_to(message(MessageKind::Heartbeat, 1, 2, 1));
    let large = LogEntry {
        index: 1,
        term: 1,
        kind: EntryKind::Normal,
        data: vec![0; BATCH_BYTES_MAX].into(),
        context: Bytes::new(),
    };
    let large = Message { entries: vec![large], ..message(MessageKind::Append, 1, 2, 1) };
    let cases = [
        (v1::RaftMessage { from: 3, ..good.clone() }, Code::InvalidArgument),
        (v1::RaftMessage { kind: 0, ..good.clone() }, Code::InvalidArgument),
        (v1::RaftMessage { kind: 99, ..good.clone() }, Code::InvalidArgument),
        (wire::message_to(message(MessageKind::Snapshot, 1, 2, 1)), Code::InvalidArgument),
        (wire::message_to(large), Code::OutOfRange),
    ];
    for (bad, code) in cases {
        let hello = one.hello_to(&two);
        let ended = stream_of(
            &one,
            &two,
            vec![
                batch(hello.clone(), Vec::new()),
                v1::RaftBatch { messages: vec![good.clone(), bad.clone()], ..v1::RaftBatch::default() },
            ],
        )
        .await;
        assert_eq!(ended.code(), code, "{ended}");
        let refused = one.client(&two).await.send(batch(hello, vec![bad])).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    // Nothing of the large one came, of the others what stood before the bad one.
    let taken = two.mailbox.wait(Instant::now()).messages;
    assert_eq!(taken.len(), 4);
    assert!(taken.iter().all(|message| message.kind == MessageKind::Heartbeat && message.from == 1));
    assert_eq!(three.remotes.connected().borrow().len(), 1);
    stop([one, two, three]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_never_speak_end_and_hold_nothing() {
    let world = World::new();
    let (one, mut two) = (world.node(1), world.node(2));
    two.serve(world.view(2, &[&one, &two]));
    let mut client = one.client(&two).await;
    let (_held, rx) = mpsc::channel(1);
    let ended = client.stream(ReceiverStream::new(rx)).await.unwrap_err();
    assert_eq!(code_of(&ended), Some(ErrorCode::BadRequest));
    let (_held, rx) = mpsc::channel(1);
    let ended = client.send_snapshot(ReceiverStream::new(rx)).await.unwrap_err();
    assert_eq!(code_of(&ended), Some(ErrorCode::BadRequest));
    // Ended without a word.
    let ended = client.stream(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(code_of(&ended), Some(ErrorCode::BadRequest));
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_and_does_not_listen_waits() {
    let world = World::new();
    let (one, mut two) = (world.node(1), world.node(2));
    two.serve(world.view(2, &[&one, &two]));
    let (questions, rx) = mpsc::channel(1);
    questions.send(v1::RaftProbe { hello: Some(one.hello_to(&two)) }).await.unwrap();
    let mut client = one.client(&two).await;
    let _unread = client.probe(ReceiverStream::new(rx)).await.unwrap();
    let mut asked = 0_u32;
    // The windows of HTTP/2 fill with answers nobody takes; then no question is taken either, or the stream ends.
    while let Ok(Ok(room)) = tokio::time::timeout(Duration::from_millis(300), questions.reserve()).await {
        room.send(v1::RaftProbe { hello: None });
        asked += 1;
        assert!(asked < 10_000_000, "questions are taken for ever");
    }
    println!("{asked} questions were taken");
    // That one alone has to wait.
    assert!(one.client(&two).await.send(batch(one.hello_to(&two), Vec::new())).await.is_ok());
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_snapshots_are_few_and_leave_room_for_others_afterwards() {
    let world = World::new();
    let (one, mut two) = (world.node(1), world.node(2));
    two.serve(world.view(2, &[&one, &two]));
    let client = one.client(&two).await;
    let begin = || {
        let (tx, rx) = mpsc::channel(2);
        let chunk = v1::RaftSnapshotChunk {
            hello: Some(one.hello_to(&two)),
            data: vec![0; 1000].into(),
            sha256: Bytes::new(),
        };
        tx.try_send(chunk).unwrap();
        let mut client = client.clone();
        (tx, tokio::spawn(async move { client.send_snapshot(ReceiverStream::new(rx)).await }))
    };
    let held = [begin(), begin()];
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (_third, refused) = begin();
    assert_eq!(code_of(&refused.await.unwrap().unwrap_err()), Some(ErrorCode::Exhausted));
    for (tx, ended) in held {
        drop(tx);
        let refused = ended.await.unwrap().unwrap_err();
        assert!(refused.message().contains("no end"), "{refused}");
    }
    let (fourth, ended) = begin();
    drop(fourth);
    assert!(ended.await.unwrap().unwrap_err().message().contains("no end"));
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_a_hello_or_of_another_is_no_connection() {
    let world = World::new();
    let (one, mut two, three) = (world.node(1), world.node(2), world.node(3));
    // Two answers with the words of three.
    let (stub, _came) = stub::Stub::new(&three, true, true, 0);
    two.serve_as(stub.routes());
    one.remotes.update(world.view(1, &[&one, &two]).others());
    Node::until("a refusal", || one.reason(&two).contains("its certificate says")).await;
    assert!(one.remotes.connected().borrow().is_empty() && one.remotes.reach().borrow().of.is_empty());
    assert!(one.remotes.channel(2).is_none());
    stop([one, two, three]);
}

fn valid() -> Vec<u8> {
    let entry = LogEntry {
        index: 3,
        term: 2,
        kind: EntryKind::Normal,
        data: vec![1; 40].into(),
        context: vec![2; 24].into(),
    };
    let message = Message { entries: vec![entry], ..message(MessageKind::Append, 1, 2, 9) };
    let hello = v1::Hello { version_min: 1, version_max: 1, raft_id: 7, ..v1::Hello::default() };
    let snapshot = Message {
        snapshot: Some(Snapshot {
            index: 5,
            term: 1,
            membership: Membership::sole_voter(1),
            data: vec![7; 30].into(),
        }),
        ..message.clone()
    };
    let messages = vec![wire::message_to(message), wire::message_to(snapshot)];
    v1::RaftBatch { hello: Some(hello), messages, kind: MESSAGE }.encode_to_vec()
}

/// All that is decoded of a batch.
fn read(bytes: &[u8]) {
    if let Ok(batch) = v1::RaftBatch::decode(bytes) {
        let _ = StreamKind::of(&batch);
        let _ = convert::hello_from(batch.hello);
        for message in batch.messages {
            if let Ok(read) = wire::message_from(message) {
                // What has a domain form has one wire form.
                let again = wire::message_from(wire::message_to(read.clone()));
                assert_eq!(again, Ok(read));
            }
        }
    }
}

#[test]
fn every_prefix_of_a_batch_is_read_or_refused() {
    let bytes = valid();
    for end in 0..=bytes.len() {
        read(&bytes[..end]);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read(&bytes);
    }

    #[test]
    fn any_change_of_a_batch_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = valid();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read(&bytes);
    }
}
