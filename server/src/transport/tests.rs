//! Servers on loopback with real certificates; raft itself is not there, its mailboxes are looked into.
//!
//! Here are the world and what two Servers say of themselves; `ways` has how messages leave, `streams` how they come
//! in, `hostile` what nobody of ours would send.

mod hostile;
mod streams;
mod stub;
mod ways;

use std::time::Instant;

use p2p_common::{ClusterId, KeyHash, NodeKind};
use p2p_runtime::ca::{CertificateGrant, ClusterCa};
use p2p_runtime::clock::unix_now;
use p2p_runtime::grpc::{self, Acceptor, ChannelParams, ListenLimits, ListenMetrics, NodeConnections};
use p2p_runtime::identity::{DataDir, Enrolment, NodeIdentity};
use p2p_runtime::tcp;
use p2p_runtime::tls::{Connector, Expect, ServerTls};
use p2p_server_raft::{Membership, Role, Snapshot, Status as RaftStatus};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::*;
use crate::api::RaftApi;

const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    ca: ClusterCa,
}

struct Node {
    member: Member,
    myself: Myself,
    mailbox: Mailbox,
    remotes: Remotes,
    clock: Clock,
    stop: CancellationToken,
    metrics: TransportMetrics,
    listen: ListenMetrics,
    /// What it serves goes by this.
    view: watch::Sender<Arc<View>>,
    listener: Option<TcpListener>,
}

fn log() -> Logger {
    Logger::root(slog::Discard, o!())
}

impl World {
    fn new() -> Self {
        World { ca: ClusterCa::create(ClusterId::new(Uuid::from_u128(1)), unix_now()).unwrap() }
    }

    fn node(&self, raft_id: RaftId) -> Node {
        self.node_of(raft_id, Epoch(1), None)
    }

    fn node_of(&self, raft_id: RaftId, epoch: Epoch, recovery: Option<u128>) -> Node {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        let identity = NodeIdentity::load_or_create(&dir, NodeKind::Server, None, None).unwrap();
        let request = identity.key().certificate_request(identity.id()).unwrap();
        let grant = CertificateGrant::new(identity.id(), unix_now());
        let enrolment = Enrolment {
            cluster_id: self.ca.cluster_id(),
            certificate: self.ca.sign(&request, &grant).unwrap().certificate,
            trust: self.ca.trust(),
        };
        let credentials = Credentials::new(&identity, &enrolment).unwrap();
        let incarnation = Incarnation::new(Uuid::from_u64_pair(2, raft_id));
        let recovery_id = recovery.map(|n| RecoveryId::new(Uuid::from_u128(n)));
        let myself = Myself { id: identity.id(), raft_id, epoch, recovery_id, incarnation, credentials };
        let listener = tcp::listen("127.0.0.1:0".parse().unwrap(), "--listen").unwrap();
        let member = Member {
            id: identity.id(),
            name: format!("s{raft_id}"),
            addresses: vec![listener.local_addr().unwrap().into()],
            zone: String::new(),
            raft_id,
            key_hash: identity.key().key_hash(),
        };
        let (mailbox, clock, stop) = (Mailbox::new(), Clock::start(), CancellationToken::new());
        let metrics = TransportMetrics::default();
        let remotes = Remotes::new(RemotesParams {
            myself: myself.clone(),
            clock,
            mailbox: mailbox.clone(),
            metrics: metrics.clone(),
            stop: stop.clone(),
            log: log(),
        });
        let (listen, view) = (ListenMetrics::default(), watch::Sender::new(self.view(raft_id, &[])));
        let listener = Some(listener);
        Node { member, myself, mailbox, remotes, clock, stop, metrics, listen, view, listener }
    }

    fn view(&self, me: RaftId, members: &[&Node]) -> Arc<View> {
        let mut state =
            p2p_common::cluster_state::ClusterState::new(self.ca.cluster_id(), Epoch(1), Vec::new());
        for node in members {
            state.members.insert(node.member.id, node.member.clone());
            state.next_raft_id = state.next_raft_id.max(node.member.raft_id + 1);
        }
        Arc::new(View {
            raft_id: me,
            status: RaftStatus { role: Role::Follower, leader: None, term: 0, leader_ready: false },
            membership: Membership::default(),
            applied: 1,
            committed: 1,
            state: Arc::new(state),
        })
    }
}

impl Node {
    /// Takes raft messages of the members in `view`.
    fn serve(&mut self, view: Arc<View>) -> JoinHandle<()> {
        self.view.send_replace(view);
        let (view, metrics) = (self.view.subscribe(), self.metrics.clone());
        let api = RaftApi::new(self.remotes.clone(), view, self.mailbox.clone(), metrics, log());
        let service = v1::raft_server::RaftServer::new(api).max_decoding_message_size(BATCH_BYTES_MAX);
        self.serve_as(tonic::service::Routes::new(service))
    }

    /// Answers with `routes`, whatever they do.
    fn serve_as(&mut self, routes: tonic::service::Routes) -> JoinHandle<()> {
        let acceptor = Acceptor {
            tls: ServerTls::api(Arc::clone(&self.myself.credentials)),
            limits: ListenLimits::default(),
            metrics: self.listen.clone(),
            nodes: NodeConnections::default(),
            stop: self.stop.clone(),
            log: log(),
        };
        let incoming = acceptor.incoming(self.listener.take().unwrap());
        let server = tonic::transport::Server::builder()
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, self.stop.clone().cancelled_owned());
        tokio::spawn(async move { server.await.unwrap() })
    }

    /// A connection to `other` with this one's certificate, for whatever the transport itself would not say.
    async fn client(&self, other: &Node) -> v1::raft_client::RaftClient<Channel> {
        let (id, key_hash) = (other.member.id, Some(other.member.key_hash));
        let connector = Connector::node(Arc::clone(&self.myself.credentials), Expect::Node { id, key_hash });
        let address = &other.member.addresses[0];
        let connection = grpc::connect(&connector, address, &ChannelParams::default()).await.unwrap();
        v1::raft_client::RaftClient::new(connection.channel)
    }

    fn hello_to(&self, other: &Node) -> v1::Hello {
        convert::hello_to(&self.myself.hello(Some(other.member.id)))
    }

    /// How a metric of this one stands, of all lines whose labels hold `label` together.
    fn metric(&self, name: &str, label: &str) -> f64 {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        self.listen.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let lines =
            text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("} "));
        lines
            .filter(|(labels, _)| labels.contains(label))
            .map(|(_, value)| value.parse::<f64>().unwrap())
            .sum()
    }

    async fn until_connected(&self, raft_id: RaftId, connected: bool) {
        let mut watching = self.remotes.connected();
        let seen = watching.wait_for(|now| now.contains(&raft_id) == connected);
        tokio::time::timeout(PATIENCE, seen).await.expect("the state is seen in time").unwrap();
    }

    async fn until_alarmed(&self, wanted: impl FnMut(&Alarm) -> bool) -> Alarm {
        let mut watching = self.remotes.alarms().watch();
        let seen = tokio::time::timeout(PATIENCE, watching.wait_for(wanted)).await;
        seen.expect("the alarm comes in time").unwrap().clone()
    }

    async fn until_reached(&self, raft_id: RaftId, wanted: impl Fn(&Reached) -> bool) -> Reached {
        let mut watching = self.remotes.reach();
        let seen = watching.wait_for(|reach| reach.of.get(&raft_id).is_some_and(&wanted));
        let seen = tokio::time::timeout(PATIENCE, seen).await.expect("it is reached in time").unwrap();
        seen.of[&raft_id].clone()
    }

    /// Waits until `seen` says so.
    async fn until(what: &str, mut seen: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !seen() {
            assert!(Instant::now() < deadline, "{what} does not come");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn reason(&self, of: &Node) -> String {
        self.remotes.status()[&of.member.id].reason.clone()
    }

    /// The next inbox that `wanted` finds something in.
    async fn inbox<T: Send + 'static>(
        &self,
        mut wanted: impl FnMut(crate::raft::mailbox::Inbox) -> Option<T> + Send + 'static,
    ) -> T {
        let mailbox = self.mailbox.clone();
        let waiting = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + PATIENCE;
            loop {
                if let Some(found) = wanted(mailbox.wait(deadline)) {
                    return found;
                }
                assert!(Instant::now() < deadline, "nothing came in time");
            }
        });
        waiting.await.unwrap()
    }
}

fn message(kind: MessageKind, from: RaftId, to: RaftId, term: u64) -> Message {
    let snapshot =
        Snapshot { index: 5, term, membership: Membership::sole_voter(from), data: vec![7; 1 << 20].into() };
    Message {
        kind,
        from,
        to,
        term,
        log_term: 0,
        index: 0,
        entries: Vec::new(),
        commit: 0,
        commit_term: 0,
        snapshot: (kind == MessageKind::Snapshot).then_some(snapshot),
        reject: false,
        reject_hint: 0,
        context: Bytes::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_and_snapshots_arrive_and_a_dead_process_is_noticed() {
    let world = World::new();
    let (mut one, mut two) = (world.node(1), world.node(2));
    let view = world.view(2, &[&one, &two]);
    let serving = two.serve(view);
    one.remotes.update(world.view(1, &[&one, &two]).others());
    one.until_connected(2, true).await;
    for term in 1..=300 {
        one.remotes.send(vec![message(MessageKind::Heartbeat, 1, 2, term)]);
    }
    one.remotes.send(vec![message(MessageKind::Snapshot, 1, 2, 301)]);
    let mut terms = Vec::new();
    let mut snapshot = None;
    let (terms, snapshot) = two
        .inbox(move |inbox| {
            for message in inbox.messages {
                match message.snapshot {
                    Some(received) => snapshot = Some(received),
                    None => terms.push(message.term),
                }
            }
            (terms.len() == 300 && snapshot.is_some()).then(|| (terms.clone(), snapshot.take()))
        })
        .await;
    assert!(terms.into_iter().eq(1..=300), "in order");
    assert_eq!(snapshot.map(|s| s.data.len()), Some(1 << 20));
    let taken = one.inbox(|inbox| inbox.snapshot_reports.get(&2).copied()).await;
    assert!(taken);

    // Its process ends: the connection breaks and the port refuses.
    two.stop.cancel();
    serving.await.unwrap();
    let gone = one.inbox(|mut inbox| inbox.gone.pop_first()).await;
    assert_eq!(gone, 2);
    one.until_connected(2, false).await;
    // What is sent now is lost, and said to be.
    one.remotes.send(vec![message(MessageKind::Snapshot, 1, 2, 302)]);
    assert!(!one.inbox(|inbox| inbox.snapshot_reports.get(&2).copied()).await);
    one.remotes.send(vec![message(MessageKind::Heartbeat, 1, 9, 302)]);
    one.inbox(|inbox| inbox.unreachable.contains(&9).then_some(())).await;
    one.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_member_or_another_is_refused() {
    let world = World::new();
    let (one, mut two, mut three) = (world.node(9), world.node(2), world.node(3));
    // Two does not know one yet; three answers at an address of table C that says it is four.
    two.serve(world.view(2, &[&two]));
    three.serve(world.view(3, &[&one, &three]));
    let mut four = world.node(4);
    four.member.addresses = three.member.addresses.clone();
    let mut wrong_key = world.node(5);
    wrong_key.member = Member { raft_id: 5, key_hash: KeyHash([0; 32]), ..three.member.clone() };
    one.remotes.update(world.view(9, &[&one, &two, &four]).others());
    for (node, expected) in [(&two, "not in this server's member table"), (&four, "answers there, not")] {
        let deadline = Instant::now() + PATIENCE;
        while !one.reason(node).contains(expected) {
            assert!(Instant::now() < deadline, "{}", one.reason(node));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    one.remotes.update(BTreeMap::from([(5, wrong_key.member.clone())]));
    let deadline = Instant::now() + PATIENCE;
    while !one.remotes.status()[&three.member.id].reason.contains("is bound to key") {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(one.remotes.connected().borrow().is_empty());
    // Learned of, it is connected to; forgotten, it is not.
    one.remotes.update(world.view(9, &[&one, &three]).others());
    one.until_connected(3, true).await;
    one.remotes.update(BTreeMap::new());
    one.until_connected(3, false).await;
    for node in [one, two, three] {
        node.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_in_another_name_ends_the_stream() {
    let world = World::new();
    let (mut one, mut two) = (world.node(1), world.node(2));
    two.serve(world.view(2, &[&one, &two]));
    one.remotes.update(world.view(1, &[&one, &two]).others());
    one.until_connected(2, true).await;
    one.remotes.send(vec![message(MessageKind::Heartbeat, 3, 2, 1)]);
    one.inbox(|inbox| inbox.unreachable.contains(&2).then_some(())).await;
    // Dialled again at once, and the honest go on.
    one.until_connected(2, true).await;
    one.remotes.send(vec![message(MessageKind::Heartbeat, 1, 2, 2)]);
    let term = two.inbox(|inbox| inbox.messages.first().map(|message| message.term)).await;
    assert_eq!(term, 2);
    for node in [one, two] {
        node.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_tells_how_long_it_has_run_and_that_it_stops() {
    let world = World::new();
    let mut two = world.node(2);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let one = world.node(1);
    two.serve(world.view(2, &[&one, &two]));
    one.remotes.update(world.view(1, &[&one, &two]).others());
    let reached = one.until_reached(2, |_| true).await;
    let longer = one.clock.started().since(reached.started);
    assert!((40..10_000).contains(&longer.as_millis()), "it has run {longer:?} longer");
    assert!(!reached.stopping && reached.since > one.clock.started());
    two.remotes.tell_stopping();
    let stopping = one.until_reached(2, |reached| reached.stopping).await;
    assert_eq!((stopping.started, stopping.since), (reached.started, reached.since));
    two.stop.cancel();
    let mut reach = one.remotes.reach();
    let gone = reach.wait_for(|reach| reach.of.is_empty());
    tokio::time::timeout(PATIENCE, gone).await.expect("it is reached no more").unwrap();
    // A late answer does not bring it back.
    one.remotes.shared.change_reached(2, |reached| reached.stopping = false);
    assert_eq!(one.remotes.reach().borrow().of, BTreeMap::new());
    one.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_removed_is_told_and_who_is_not_known_yet_is_not() {
    let world = World::new();
    let (mut two, removed, new) = (world.node(2), world.node(1), world.node(3));
    // Two has given out raft ids 1 and 2, and knows itself only.
    two.serve(world.view(2, &[&two]));
    for node in [&removed, &new] {
        node.remotes.update(world.view(node.member.raft_id, &[node, &two]).others());
    }
    let alarm = removed.until_alarmed(|alarm| alarm.must_stop.is_some()).await;
    let Some(MustStop::Removed { by, words }) = alarm.must_stop else { panic!("{alarm:?}") };
    assert_eq!(by, two.member.id);
    assert!(words.contains("raft id 1 was removed"), "{words}");
    let deadline = Instant::now() + PATIENCE;
    while !new.reason(&two).contains("not in this server's member table") {
        assert!(Instant::now() < deadline, "{}", new.reason(&two));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*new.remotes.alarms().watch().borrow(), Alarm::default());
    for node in [two, removed, new] {
        node.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lives_in_an_epoch_that_is_over_learns_it_whoever_dials() {
    let world = World::new();
    for old_dials in [true, false] {
        let (mut old, mut new) = (world.node(1), world.node_of(2, Epoch(2), Some(7)));
        let everybody = [&old, &new].map(|node| node.member.clone());
        let old_view = world.view(1, &[&old, &new]);
        // In the new history the old Server is no member.
        let new_view = world.view(2, &[&new]);
        old.serve(Arc::clone(&old_view));
        new.serve(new_view);
        if old_dials {
            old.remotes.update(old_view.others());
        } else {
            new.remotes.update(BTreeMap::from([(1, everybody[0].clone())]));
        }
        let alarm = old.until_alarmed(|alarm| alarm.must_stop.is_some()).await;
        let (by, theirs, ours) = (new.member.id, Epoch(2), Epoch(1));
        assert_eq!(alarm.must_stop, Some(MustStop::EpochOver { by, theirs, ours }));
        assert_eq!(*new.remotes.alarms().watch().borrow(), Alarm::default());
        for node in [old, new] {
            node.stop.cancel();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_of_a_higher_epoch_stops_nobody() {
    let world = World::new();
    let (mut one, stranger) = (world.node(1), world.node_of(2, Epoch(2), Some(7)));
    one.serve(world.view(1, &[&one]));
    stranger.remotes.update(BTreeMap::from([(1, one.member.clone())]));
    let deadline = Instant::now() + PATIENCE;
    while !stranger.reason(&one).contains("lives in epoch 2") {
        assert!(Instant::now() < deadline, "{}", stranger.reason(&one));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*one.remotes.alarms().watch().borrow(), Alarm::default());
    for node in [one, stranger] {
        node.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_histories_of_one_epoch_alarm_both_sides_and_stop_neither() {
    let world = World::new();
    let (mut one, mut two) = (world.node_of(1, Epoch(2), Some(7)), world.node_of(2, Epoch(2), Some(8)));
    one.serve(world.view(1, &[&one, &two]));
    two.serve(world.view(2, &[&one, &two]));
    one.remotes.update(world.view(1, &[&one, &two]).others());
    for (node, from) in [(&one, &two), (&two, &one)] {
        let alarm = node.until_alarmed(|alarm| !alarm.split_from.is_empty()).await;
        assert_eq!(alarm.split_from, BTreeSet::from([from.member.id]));
        assert_eq!(alarm.must_stop, None);
    }
    assert!(one.remotes.connected().borrow().is_empty());
    // The operator has taken the other one out of table C.
    one.remotes.update(BTreeMap::new());
    one.until_alarmed(|alarm| alarm.split_from.is_empty()).await;
    for node in [one, two] {
        node.stop.cancel();
    }
}
