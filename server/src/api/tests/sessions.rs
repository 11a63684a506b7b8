//! Sessions of Peers over the port, from the first message to the last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use p2p_common::command::{CommandBody, Outcome};
use p2p_common::push::{PeerEntry, PeerReport, RevokedKey};
use p2p_common::revision::View;
use p2p_common::service::{ServiceOffer, ServiceState, Visibility};
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, ErrorCode, Incarnation, NodeId, UnixMs};
use p2p_proto::v1::cluster_client::ClusterClient;
use p2p_proto::v1::session_client::SessionClient;
use p2p_proto::v1::session_down::Message as Down;
use p2p_proto::v1::session_up::Message as Up;
use p2p_proto::{convert, v1};
use p2p_server_core::{Arrival, Resume};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use uuid::Uuid;

use super::world::{CLUSTER, EPOCH, Node, PATIENCE, World, peer, record, server, until};

fn run(n: u128) -> Incarnation {
    Incarnation::new(Uuid::from_u128(n))
}

fn hello(node: &Node) -> Hello {
    Hello {
        versions: VERSIONS,
        cluster_id: Some(CLUSTER),
        from: node.id,
        to: None,
        epoch: EPOCH,
        recovery_id: None,
        raft_id: 0,
        incarnation: run(1),
        features: 0,
    }
}

/// What `node` says first, on the wire.
pub(super) fn hello_of(node: &Node) -> v1::Hello {
    convert::hello_to(&hello(node))
}

fn offer(name: &str) -> ServiceOffer {
    ServiceOffer {
        name: name.parse().unwrap(),
        backend: "127.0.0.1:80".parse().unwrap(),
        visibility: Visibility::Cluster,
        state: ServiceState::Up,
    }
}

pub(super) fn report(seq: u64, services: Vec<ServiceOffer>) -> PeerReport {
    PeerReport { seq, name: format!("at {seq}"), services, ..PeerReport::default() }
}

pub(super) fn open(node: &Node, report: &PeerReport) -> v1::SessionOpen {
    v1::SessionOpen {
        hello: Some(convert::hello_to(&hello(node))),
        report: Some(convert::report_to(report)),
        view_revision: 0,
        view_server_incarnation: String::new(),
        revocations_known: 0,
        signed_by: Vec::new().into(),
    }
}

/// A Peer's end of a session.
pub(super) struct Attached {
    up: mpsc::Sender<v1::SessionUp>,
    down: Streaming<v1::SessionDown>,
    view: View<NodeId, Arc<PeerEntry>>,
    pushes: usize,
    /// What it heard of revoked keys.
    pub(super) revoked: Vec<RevokedKey>,
    /// What it was told of the CAs.
    pub(super) trusted: Vec<v1::Trust>,
}

impl Attached {
    /// Opens the stream and says nothing.
    async fn silent(world: &World, node: &Node) -> Attached {
        let (up, requests) = mpsc::channel(16);
        let mut client = SessionClient::new(world.node(node).await.unwrap());
        let down = client.attach(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Attached { up, down, view: View::new(100), pushes: 0, revoked: Vec::new(), trusted: Vec::new() }
    }

    pub(super) async fn first(world: &World, node: &Node, message: Up) -> Attached {
        let attached = Self::silent(world, node).await;
        attached.say(message).await;
        attached
    }

    /// A session that is up, and its welcome.
    pub(super) async fn up(
        world: &World,
        node: &Node,
        report: &PeerReport,
    ) -> (Attached, v1::SessionWelcome) {
        let mut attached = Self::first(world, node, Up::Open(open(node, report))).await;
        match attached.next().await {
            Some(Down::Welcome(welcome)) => (attached, welcome),
            other => panic!("no welcome: {other:?}"),
        }
    }

    async fn say(&self, message: Up) {
        // A session that is over takes nothing, which is for the reader to see.
        let _ = self.up.send(v1::SessionUp { message: Some(message) }).await;
    }

    async fn report(&self, report: &PeerReport) {
        self.say(Up::Report(convert::report_to(report))).await;
    }

    /// The next message but for revocations and trusted CAs, which are noted; none at the end of the stream.
    async fn next(&mut self) -> Option<Down> {
        loop {
            match self.next_of_all().await {
                Some(Down::Revocations(push)) => {
                    self.revoked.extend(convert::revocations_from(push).unwrap().keys);
                }
                Some(Down::Trust(told)) => self.trusted.push(told),
                other => return other,
            }
        }
    }

    /// The next message; none at the end of the stream.
    pub(super) async fn next_of_all(&mut self) -> Option<Down> {
        let message = tokio::time::timeout(PATIENCE, self.down.message()).await.expect("something comes");
        message.unwrap().map(|down| down.message.expect("a message of this version"))
    }

    /// The code of the last message, which must be all that comes.
    pub(super) async fn end(&mut self) -> ErrorCode {
        loop {
            match self.next().await {
                Some(Down::End(end)) => {
                    assert!(!end.message.is_empty());
                    assert!(self.next().await.is_none(), "the end is the last message");
                    return ErrorCode::from_number(end.code);
                }
                Some(Down::Push(_) | Down::Members(_) | Down::Heartbeat(_)) => {}
                other => panic!("no end: {other:?}"),
            }
        }
    }

    /// Follows table E until `condition` holds for the Peer `id` as seen here.
    pub(super) async fn follow(&mut self, id: NodeId, mut condition: impl FnMut(Option<&PeerEntry>) -> bool) {
        while !condition(self.view.entries().get(&id).map(|entry| &**entry)) {
            match self.next().await {
                Some(Down::Push(push)) => {
                    self.pushes += 1;
                    let push = convert::push_from(push).unwrap();
                    self.view.apply(run(0x11), push).expect("pushes follow each other");
                }
                Some(Down::Heartbeat(_)) => {}
                other => panic!("not a push: {other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_see_each_other_come_change_and_go() {
    let world = World::start().await;
    let [a, b] = &world.peers;
    let (mut one, welcome) = Attached::up(&world, a, &report(1, vec![])).await;
    assert_eq!(convert::hello_from(welcome.hello).unwrap().from, world.me);
    assert!(welcome.seen_from.parse::<SocketAddr>().unwrap().ip().is_loopback());
    assert_eq!(convert::member_table_from(welcome.members).unwrap().0, 2);

    let (mut two, _) = Attached::up(&world, b, &report(1, vec![offer("web.example")])).await;
    one.follow(b.id, |entry| entry.is_some_and(|entry| entry.report.services.len() == 1)).await;
    two.follow(a.id, |entry| entry.is_some()).await;
    let seen = one.view.entries().get(&b.id).unwrap();
    assert_eq!((seen.key_hash, seen.incarnation), (b.key_hash, run(1)));
    assert!(one.view.entries().get(&a.id).is_none(), "nobody is sent its own entry");

    two.report(&report(2, vec![offer("web.example"), offer("db")])).await;
    one.follow(b.id, |entry| entry.is_some_and(|entry| entry.report.services.len() == 2)).await;
    assert_eq!(world.context.hub.sessions(), 2);

    let mut cluster = ClusterClient::new(world.client(Some(&world.reader)).await);
    let services = cluster.list_services(v1::ListServicesRequest {}).await.unwrap().into_inner().services;
    let listed = services.iter().map(|service| (service.name.as_str(), service.peer_id.as_str()));
    let b_id = b.id.to_string();
    assert_eq!(listed.collect::<Vec<_>>(), [("db", b_id.as_str()), ("web.example", b_id.as_str())]);
    let link = v1::Link { id: a.id.to_string(), reason: "not needed yet".to_owned(), ..v1::Link::default() };
    two.say(Up::Links(v1::LinkReport { links: vec![link.clone()] })).await;
    let mut links = Vec::new();
    while links.is_empty() {
        let peers = cluster.list_peers(v1::ListPeersRequest {}).await.unwrap().into_inner().peers;
        links = peers.into_iter().find(|status| status.id == b_id).unwrap().links;
    }
    assert_eq!(links, [link]);

    drop(two);
    one.follow(b.id, |entry| entry.is_none()).await;
    until("the session to go", || world.context.hub.sessions() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_member_table_is_told_whole() {
    let world = World::start().await;
    let (mut one, _) = Attached::up(&world, &world.peers[0], &report(1, vec![])).await;
    let (enrol, join, token) = world.member_of(3);
    world.propose(CommandBody::CreateToken(record(&token, UnixMs(u64::MAX)))).await;
    assert_eq!(world.propose(enrol).await, Outcome::Done);
    assert_eq!(world.propose(join).await, Outcome::MemberAdded { raft_id: 3 });
    let table = loop {
        match one.next().await {
            Some(Down::Members(table)) => break table,
            Some(Down::Push(_) | Down::Heartbeat(_)) => {}
            other => panic!("no table: {other:?}"),
        }
    };
    let (version, members) = convert::member_table_from(Some(table)).unwrap();
    assert_eq!((version, members.len()), (3, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_resumes_where_it_stood() {
    let world = World::start().await;
    let [a, b] = &world.peers;
    let (_two, _) = Attached::up(&world, b, &report(1, vec![])).await;
    let (mut one, _) = Attached::up(&world, a, &report(1, vec![])).await;
    one.follow(b.id, |entry| entry.is_some()).await;
    let at = one.view.position().unwrap();
    drop(one);
    until("the session to go", || world.context.hub.sessions() == 1).await;
    let resuming = v1::SessionOpen {
        view_revision: at.revision,
        view_server_incarnation: at.incarnation.to_string(),
        ..open(a, &report(2, vec![]))
    };
    let mut again = Attached::first(&world, a, Up::Open(resuming)).await;
    assert!(matches!(again.next().await, Some(Down::Welcome(_))));
    _two.report(&report(2, vec![])).await;
    loop {
        match again.next().await {
            Some(Down::Push(push)) => {
                assert!(!push.snapshot && push.previous >= at.revision, "{push:?}");
                if push.changed.iter().any(|entry| entry.id == b.id.to_string()) {
                    break;
                }
            }
            Some(Down::Heartbeat(_)) => {}
            other => panic!("not a push: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mismatch_ends_the_session_with_its_code() {
    let world = World::start().await;
    let [a, _] = &world.peers;
    let good = open(a, &report(1, vec![]));
    let with = |change: fn(&mut Hello)| {
        let mut hello = hello(a);
        change(&mut hello);
        Up::Open(v1::SessionOpen { hello: Some(convert::hello_to(&hello)), ..good.clone() })
    };
    let twice = report(1, vec![offer("a"), offer("A")]);
    let cases = [
        (with(|hello| hello.versions = (2, 3)), ErrorCode::VersionMismatch),
        (with(|hello| hello.cluster_id = Some(ClusterId::new(Uuid::nil()))), ErrorCode::WrongCluster),
        (with(|hello| hello.cluster_id = None), ErrorCode::WrongCluster),
        (with(|hello| hello.from = peer(2)), ErrorCode::Unauthenticated),
        (with(|hello| hello.to = Some(server(2))), ErrorCode::WrongRecipient),
        (with(|hello| hello.epoch = Epoch(2)), ErrorCode::WrongEpoch),
        (Up::Open(v1::SessionOpen { hello: None, ..good.clone() }), ErrorCode::BadRequest),
        (Up::Open(v1::SessionOpen { report: None, ..good.clone() }), ErrorCode::BadRequest),
        (Up::Open(v1::SessionOpen { view_revision: 5, ..good.clone() }), ErrorCode::BadRequest),
        (Up::Open(open(a, &twice)), ErrorCode::BadRequest),
        (Up::Heartbeat(v1::Heartbeat::default()), ErrorCode::BadRequest),
    ];
    for (first, code) in cases {
        let shown = format!("{first:?}");
        assert_eq!(Attached::first(&world, a, first).await.end().await, code, "{shown}");
    }
    assert_eq!(world.context.hub.sessions(), 0);

    for later in [
        Up::Open(good.clone()),
        Up::Report(v1::PeerReport { seq: 2, name: "a\nb".to_owned(), ..v1::PeerReport::default() }),
        Up::Report(convert::report_to(&PeerReport { seq: 2, ..twice })),
        Up::Links(v1::LinkReport { links: vec![v1::Link::default()] }),
        // More than is taken in one message.
        Up::Report(v1::PeerReport { seq: 2, name: "x".repeat(5 << 20), ..v1::PeerReport::default() }),
    ] {
        let (mut attached, _) = Attached::up(&world, a, &report(1, vec![])).await;
        attached.say(later).await;
        assert_eq!(attached.end().await, ErrorCode::BadRequest);
        until("the session to go", || world.context.hub.sessions() == 0).await;
    }
}

#[tokio::test]
async fn the_first_message_is_not_waited_for_for_ever() {
    let world = World::start().await;
    let mut attached = Attached::silent(&world, &world.peers[0]).await;
    // The wait is on tokio's clock, moved forward by hand.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
    assert_eq!(attached.end().await, ErrorCode::BadRequest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_session_takes_over() {
    let world = World::start().await;
    let [a, b] = &world.peers;
    let (mut watching, _) = Attached::up(&world, b, &report(1, vec![])).await;
    let (mut older, _) = Attached::up(&world, a, &report(1, vec![])).await;
    let (newer, _) = Attached::up(&world, a, &report(2, vec![offer("web")])).await;
    assert_eq!(older.end().await, ErrorCode::Replaced);
    watching.follow(a.id, |entry| entry.is_some_and(|entry| entry.report.seq == 2)).await;
    newer.report(&report(3, vec![])).await;
    watching.follow(a.id, |entry| entry.is_some_and(|entry| entry.report.seq == 3)).await;
    assert_eq!(world.context.hub.sessions(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_server_sends_everyone_elsewhere() {
    let world = World::start().await;
    let (mut up, _) = Attached::up(&world, &world.peers[0], &report(1, vec![])).await;
    let mut opening = Attached::silent(&world, &world.peers[1]).await;
    world.context.stop.cancel();
    assert_eq!(up.end().await, ErrorCode::Draining);
    assert_eq!(opening.end().await, ErrorCode::Draining);
    until("the count to say so", || world.context.hub.sessions() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_the_newest_and_holds_nobody_up() {
    let world = World::start().await;
    let [a, b] = &world.peers;
    let (mut slow, _) = Attached::up(&world, a, &report(1, vec![])).await;
    // Straight to the hub: over the port one Peer may not report as often.
    let arrival = Arrival {
        id: b.id,
        incarnation: run(1),
        key_hash: b.key_hash,
        seen_from: world.addr,
        report: report(1, vec![]),
        since: UnixMs(0),
    };
    let hub = &world.context.hub;
    let busy = hub.open(arrival, Resume::default()).await.unwrap();
    slow.follow(b.id, |entry| entry.is_some()).await;
    // Entries of some 16 KiB, 10 MiB in all: more than connections and windows hold.
    let services = |n: usize| (0..250).map(|i| offer(&format!("{n}-{i}-{}", "x".repeat(30)))).collect();
    let changes = 600;
    for seq in 2..=changes {
        hub.report(busy.id, report(seq, services(seq as usize))).await.unwrap();
    }
    let mut cluster = ClusterClient::new(world.client(Some(&world.reader)).await);
    let newest = format!("at {changes}");
    while !cluster
        .list_peers(v1::ListPeersRequest {})
        .await
        .unwrap()
        .into_inner()
        .peers
        .iter()
        .any(|peer| peer.name == newest)
    {}
    let before = slow.pushes;
    slow.follow(b.id, |entry| entry.is_some_and(|entry| entry.report.seq == changes)).await;
    let pushes = slow.pushes - before;
    assert!(pushes < changes as usize / 2, "{pushes} pushes for {changes} changes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_sessions_in_a_row_leave_nothing() {
    let world = World::start().await;
    for _ in 0..100 {
        let (attached, _) = Attached::up(&world, &world.peers[0], &report(1, vec![])).await;
        drop(attached);
    }
    until("all sessions to go", || world.context.hub.sessions() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_reports_without_end_is_read_slowly() {
    let world = World::start().await;
    let [a, b] = &world.peers;
    let (mut one, _) = Attached::up(&world, a, &report(1, vec![])).await;
    let (two, _) = Attached::up(&world, b, &report(1, vec![])).await;
    let start = Instant::now();
    for seq in 2..=38 {
        two.report(&report(seq, vec![])).await;
    }
    // The 32 at once, the last ones four a second; a report of the other one is not held up by them.
    one.follow(b.id, |entry| entry.is_some_and(|entry| entry.report.seq >= 33)).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    one.report(&report(2, vec![offer("web.example")])).await;
    until("a report of the other", || world.context.hub.sessions() == 2).await;
    one.follow(b.id, |entry| entry.is_some_and(|entry| entry.report.seq == 38)).await;
    assert!(start.elapsed() >= Duration::from_millis(1_200), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_opens_few_sessions_at_a_time() {
    let world = World::start().await;
    let [a, b] = &world.peers;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(Attached::silent(&world, a).await);
    }
    let (_up, requests) = mpsc::channel(1);
    let mut client = SessionClient::new(world.node(a).await.unwrap());
    let refused = client.attach(ReceiverStream::new(requests)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    Attached::up(&world, b, &report(1, vec![])).await;
    drop(silent);
    let mut again = Attached::silent(&world, a).await;
    again.say(Up::Open(open(a, &report(1, vec![])))).await;
    assert!(matches!(again.next().await, Some(Down::Welcome(_))));
}
