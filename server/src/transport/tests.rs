//! Two Servers on loopback with real certificates; raft itself is not there, its mailboxes are looked into.

use std::time::Instant;

use p2p_common::{ClusterId, KeyHash, NodeKind};
use p2p_runtime::ca::{CertificateGrant, ClusterCa};
use p2p_runtime::clock::unix_now;
use p2p_runtime::grpc::{Acceptor, ListenLimits, ListenMetrics};
use p2p_runtime::identity::{DataDir, Enrolment, NodeIdentity};
use p2p_runtime::tcp;
use p2p_runtime::tls::ServerTls;
use p2p_server_raft::{Membership, Role, Snapshot, Status as RaftStatus};
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
    stop: CancellationToken,
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
        let myself = Myself { id: identity.id(), epoch: Epoch(1), incarnation, credentials };
        let listener = tcp::listen("127.0.0.1:0".parse().unwrap(), "--listen").unwrap();
        let member = Member {
            id: identity.id(),
            name: format!("s{raft_id}"),
            addresses: vec![listener.local_addr().unwrap().into()],
            zone: String::new(),
            raft_id,
            key_hash: identity.key().key_hash(),
        };
        let (mailbox, stop) = (Mailbox::new(), CancellationToken::new());
        let metrics = TransportMetrics::default();
        let remotes = Remotes::new(myself.clone(), mailbox.clone(), metrics, stop.clone(), log());
        Node { member, myself, mailbox, remotes, stop, listener: Some(listener) }
    }

    fn view(&self, me: RaftId, members: &[&Node]) -> Arc<View> {
        let mut state =
            p2p_common::cluster_state::ClusterState::new(self.ca.cluster_id(), Epoch(1), Vec::new());
        for node in members {
            state.members.insert(node.member.id, node.member.clone());
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
        let (_, view) = watch::channel(view);
        let metrics = TransportMetrics::default();
        let api =
            RaftApi::new(self.remotes.clone(), view, self.mailbox.clone(), metrics, self.stop.clone(), log());
        let acceptor = Acceptor {
            tls: ServerTls::api(Arc::clone(&self.myself.credentials)),
            limits: ListenLimits::default(),
            metrics: ListenMetrics::default(),
            stop: self.stop.clone(),
            log: log(),
        };
        let incoming = acceptor.incoming(self.listener.take().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(v1::raft_server::RaftServer::new(api))
            .serve_with_incoming_shutdown(incoming, self.stop.clone().cancelled_owned());
        tokio::spawn(async move { server.await.unwrap() })
    }

    async fn until_connected(&self, raft_id: RaftId, connected: bool) {
        let mut watching = self.remotes.connected();
        let seen = watching.wait_for(|now| now.contains(&raft_id) == connected);
        tokio::time::timeout(PATIENCE, seen).await.expect("the state is seen in time").unwrap();
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
    let (one, mut two, mut three) = (world.node(1), world.node(2), world.node(3));
    // Two does not know one; three answers at an address of table C that says it is four.
    two.serve(world.view(2, &[&two]));
    three.serve(world.view(3, &[&one, &three]));
    let mut four = world.node(4);
    four.member.addresses = three.member.addresses.clone();
    let mut wrong_key = world.node(5);
    wrong_key.member = Member { raft_id: 5, key_hash: KeyHash([0; 32]), ..three.member.clone() };
    one.remotes.update(world.view(1, &[&one, &two, &four]).others());
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
    one.remotes.update(world.view(1, &[&one, &three]).others());
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
