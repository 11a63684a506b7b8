//! How messages leave: which way, what happens when one is slow, full or not there, which address is dialled.

use p2p_server_raft::{EntryKind, LogEntry};

use super::stub::Stub;
use super::*;

/// One Server with a stub as its only remote, number 2.
fn with_stub(
    takes_streams: bool,
    reads_appends: bool,
    clock_ahead_ms: u64,
) -> (Node, Node, Stub, stub::Came) {
    let world = World::new();
    let (one, mut two) = (world.node(1), world.node(2));
    let (stub, came) = Stub::new(&two, takes_streams, reads_appends, clock_ahead_ms);
    two.serve_as(stub.routes());
    one.remotes.update(world.view(1, &[&one, &two]).others());
    (one, two, stub, came)
}

fn append(bytes: usize, term: u64) -> Message {
    let entry = LogEntry {
        index: 1,
        term,
        kind: EntryKind::Normal,
        data: vec![7; bytes].into(),
        context: Bytes::new(),
    };
    Message { entries: vec![entry], ..message(MessageKind::Append, 1, 2, term) }
}

async fn next(came: &mut stub::Came) -> (&'static str, u64) {
    let (way, message) =
        tokio::time::timeout(PATIENCE, came.recv()).await.expect("a message comes in time").unwrap();
    (way, message.term)
}

fn works(node: &Node) -> remote::Working {
    node.remotes.remote(2).unwrap().working()
}

fn stop(nodes: [Node; 2]) {
    for node in nodes {
        node.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_and_the_rest_take_streams_of_their_own() {
    let (mut one, two, _stub, mut came) = with_stub(true, true, 0);
    Node::until("a working stream", || works(&one) == remote::Working { append: true, message: true }).await;
    one.remotes.send(vec![append(10, 1)]);
    assert_eq!(next(&mut came).await, ("append", 1));
    one.remotes.send(vec![message(MessageKind::Heartbeat, 1, 2, 2)]);
    assert_eq!(next(&mut came).await, ("message", 2));
    assert_eq!(one.metric("raft_messages_sent_total", "append"), 1.0);
    assert_eq!(one.metric("raft_message_seconds_count", "remote=\"s2\""), 2.0);
    // Who leaves the cluster leaves the metrics.
    one.remotes.update(BTreeMap::new());
    assert_eq!(one.metric("raft_messages_sent_total", "append"), 0.0);
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_streams_calls_carry_messages_four_at_a_time() {
    let (mut one, two, stub, mut came) = with_stub(false, true, 0);
    Node::until("a connection for calls", || one.remotes.channel(2).is_some()).await;
    assert_eq!(works(&one), remote::Working::default());
    let fill = |one: &mut Node, terms: std::ops::RangeInclusive<u64>| {
        one.remotes.send(terms.map(|term| message(MessageKind::Heartbeat, 1, 2, term)).collect());
    };
    // Four are called, 64 wait, the rest finds no room and is reported.
    fill(&mut one, 1..=4);
    Node::until("four calls", || stub.waiting() == 4).await;
    fill(&mut one, 5..=68);
    assert_eq!(one.metric("raft_messages_dropped_total", "pipeline"), 0.0);
    fill(&mut one, 69..=70);
    assert_eq!(one.metric("raft_messages_dropped_total", "pipeline"), 2.0);
    one.inbox(|inbox| inbox.unreachable.contains(&2).then_some(())).await;
    stub.answer(70);
    let mut terms = Vec::new();
    for _ in 1..=68 {
        let (way, term) = next(&mut came).await;
        assert_eq!(way, "pipeline");
        terms.push(term);
    }
    terms.sort_unstable();
    assert!(terms.into_iter().eq(1..=68));
    assert_eq!(stub.waiting_most(), 4);
    Node::until("all answers", || one.metric("raft_messages_sent_total", "pipeline") == 68.0).await;
    // What is under way when the remote ends is lost, and said to be.
    fill(&mut one, 71..=73);
    Node::until("a call that waits", || stub.waiting() >= 1).await;
    two.stop.cancel();
    one.remotes.update(BTreeMap::new());
    one.inbox(|inbox| inbox.unreachable.contains(&2).then_some(())).await;
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_append_stream_delays_no_heartbeat_and_holds_little() {
    let (mut one, two, _stub, mut came) = with_stub(true, false, 0);
    Node::until("working streams", || works(&one) == remote::Working { append: true, message: true }).await;
    // Far more than a receiver that does not read can be sent.
    for term in 1..=400 {
        one.remotes.send(vec![append(1 << 20, term)]);
    }
    let dropped = one.metric("raft_messages_dropped_total", "append");
    // 64 MiB wait, and what HTTP/2 has taken on; the rest is dropped and reported.
    assert!((200.0..=400.0).contains(&dropped), "{dropped}");
    one.inbox(|inbox| inbox.unreachable.contains(&2).then_some(())).await;
    let mut worst = Duration::ZERO;
    for term in 1..=50 {
        let sent = Instant::now();
        one.remotes.send(vec![message(MessageKind::Heartbeat, 1, 2, term)]);
        assert_eq!(next(&mut came).await, ("message", term));
        worst = worst.max(sent.elapsed());
    }
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    assert_eq!(one.metric("raft_messages_dropped_total", "message"), 0.0);
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_snapshot_goes_at_a_time_and_one_without_room_is_reported_as_failed() {
    let (mut one, two, stub, _came) = with_stub(true, true, 0);
    let snapshot = || vec![message(MessageKind::Snapshot, 1, 2, 1)];
    one.remotes.send(snapshot());
    Node::until("a snapshot on its way", || stub.waiting() == 1).await;
    one.remotes.send(snapshot());
    one.remotes.send(snapshot());
    assert_eq!(one.metric("raft_messages_dropped_total", "snapshot"), 1.0);
    let (unreachable, taken) = one
        .inbox(|inbox| {
            let taken = inbox.snapshot_reports.get(&2).copied()?;
            Some((inbox.unreachable.contains(&2), taken))
        })
        .await;
    assert!(unreachable && !taken);
    stub.answer(1);
    assert!(one.inbox(|inbox| inbox.snapshot_reports.get(&2).copied()).await);
    // The one that waited follows; what is given up is reported as well.
    Node::until("the next snapshot", || stub.waiting() == 1).await;
    one.remotes.update(BTreeMap::new());
    assert!(!one.inbox(|inbox| inbox.snapshot_reports.get(&2).copied()).await);
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_remote_hears_and_says_nothing_and_nobody_is_told() {
    let world = World::new();
    let (mut one, mut two) = (world.node(1), world.node(2));
    one.serve(world.view(1, &[]));
    two.serve(world.view(2, &[]));
    for node in [&one, &two] {
        let view = world.view(node.member.raft_id, &[&one, &two]);
        node.view.send_replace(Arc::clone(&view));
        node.remotes.update(view.others());
    }
    one.until_connected(2, true).await;
    two.until_connected(1, true).await;
    one.remotes.pause(2);
    one.remotes.send(vec![message(MessageKind::Heartbeat, 1, 2, 1)]);
    two.remotes.send(vec![message(MessageKind::Heartbeat, 2, 1, 1)]);
    one.remotes.resume(2);
    // What was sent to the paused one may only have been on its way: the next one tells.
    two.remotes.send(vec![message(MessageKind::Heartbeat, 2, 1, 2)]);
    one.remotes.send(vec![message(MessageKind::Heartbeat, 1, 2, 2)]);
    let heard = two.inbox(|inbox| inbox.messages.first().map(|message| message.term)).await;
    assert_eq!(heard, 2);
    let inbox = one.mailbox.wait(Instant::now());
    assert!(inbox.unreachable.is_empty() && inbox.gone.is_empty());
    assert_eq!(one.metric("raft_messages_dropped_total", "s2"), 0.0);

    one.remotes.pause(2);
    two.remotes.send(vec![message(MessageKind::Heartbeat, 2, 1, 3)]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    one.remotes.resume(2);
    two.remotes.send(vec![message(MessageKind::Heartbeat, 2, 1, 4)]);
    let heard =
        one.inbox(|inbox| inbox.messages.iter().map(|message| message.term).find(|term| *term > 2)).await;
    assert_eq!(heard, 4);
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_address_is_tried_and_new_ones_are_taken_at_run_time() {
    let world = World::new();
    let (one, mut two) = (world.node(1), world.node(2));
    // Nobody listens there.
    let closed = {
        let listener = tcp::listen("127.0.0.1:0".parse().unwrap(), "--listen").unwrap();
        listener.local_addr().unwrap()
    };
    two.serve(world.view(2, &[&one, &two]));
    let row = |addresses| BTreeMap::from([(2, Member { addresses, ..two.member.clone() })]);
    let works = two.member.addresses[0].clone();
    one.remotes.update(row(vec![closed.into(), works.clone()]));
    one.until_connected(2, true).await;
    // An address it has not: away from there.
    one.remotes.update(row(vec![closed.into()]));
    one.until_connected(2, false).await;
    Node::until("a refusal", || one.reason(&two).contains("refused")).await;
    one.remotes.update(row(vec![works.clone()]));
    one.until_connected(2, true).await;
    let since = one.remotes.status()[&two.member.id].since;
    // The one in use is still there: nothing changes.
    one.remotes.update(row(vec![closed.into(), works]));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let status = one.remotes.status()[&two.member.id].clone();
    assert_eq!((status.active, status.since), (true, since));
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_every_connection_at_once_is_not_dialled_in_a_flood() {
    let world = World::new();
    let (one, mut two) = (world.node(1), world.node(2));
    let listener = two.listener.take().unwrap();
    let dials = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counting = Arc::clone(&dials);
    let closing = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counting.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            drop(stream);
        }
    });
    one.remotes.update(world.view(1, &[&one, &two]).others());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let dials = dials.load(std::sync::atomic::Ordering::SeqCst);
    // Three connections, at 0, 50, 150, 350, 750, 1550 ms or so.
    assert!((6..=45).contains(&dials), "{dials}");
    closing.abort();
    stop([one, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_trips_and_clocks_are_probed() {
    let (one, two, _stub, _came) = with_stub(true, true, 600_000);
    let reached = one.until_reached(2, |reached| reached.rtt.is_some()).await;
    let ahead = reached.clock_ahead_ms.unwrap();
    assert!((595_000..=605_000).contains(&ahead), "{ahead}");
    let exported = one.metric("remote_clock_ahead_seconds", "s2");
    assert!((595.0..=605.0).contains(&exported), "{exported}");
    let trip = one.metric("remote_round_trip_seconds", "s2");
    // The earliest telling of its start counts.
    let uptime = one.clock.now().since(reached.started);
    assert!(uptime >= Duration::from_millis(stub::PROBED_UPTIME_MS), "{uptime:?}");
    assert!(trip > 0.0 && reached.rtt.unwrap() < Duration::from_secs(5), "{reached:?}");
    assert_eq!(one.metric("remote_active", "s2"), 1.0);
    stop([one, two]);
}
