//! Threads with real stores in temporary directories, and a network that is a map.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex};

use bytes::Bytes;
use p2p_common::command::{Command, CommandBody, TokenId, TokenRecord, TokenRole};
use p2p_common::grants::Grants;
use p2p_common::member::RaftId;
use p2p_common::shared::SharedSet;
use p2p_common::{ClusterId, Epoch, RequestId, UnixMs};
use p2p_server_raft::{Compaction, MembershipChange, MessageKind, Persist, founding_write};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::store::Origin;

const PATIENCE: Duration = Duration::from_secs(30);

/// Mailboxes by raft id; who is missing is not reachable.
#[derive(Clone, Default)]
struct Network(Arc<Mutex<BTreeMap<RaftId, Mailbox>>>);

struct Sender {
    from: RaftId,
    network: Network,
}

impl Outbox for Sender {
    fn send(&mut self, messages: Vec<Message>) {
        let mailboxes = self.network.0.lock().unwrap();
        let Some(own) = mailboxes.get(&self.from) else { return };
        for message in messages {
            let (to, snapshot) = (message.to, message.kind == MessageKind::Snapshot);
            let sent = mailboxes.get(&to).is_some_and(|mailbox| mailbox.message(message).is_ok());
            if snapshot {
                own.snapshot_report(to, sent);
            }
            if !sent {
                own.unreachable(to);
            }
        }
    }
}

/// What becomes of the writes of a [`FaultyDisk`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Hang,
    Fail,
}

/// Tells a disk what to do from now on.
#[derive(Clone)]
struct Faults(Arc<(Mutex<Fault>, Condvar)>);

impl Faults {
    fn new() -> Self {
        Faults(Arc::new((Mutex::new(Fault::None), Condvar::new())))
    }

    fn set(&self, fault: Fault) {
        *self.0.0.lock().unwrap() = fault;
        self.0.1.notify_all();
    }
}

/// A store on a disk that may hang or fail.
struct FaultyDisk {
    store: Store,
    faults: Faults,
}

impl FaultyDisk {
    fn pass(&self) -> Result<(), StoreError> {
        let (fault, changed) = &*self.faults.0;
        let fault = changed.wait_while(fault.lock().unwrap(), |fault| *fault == Fault::Hang).unwrap();
        match *fault {
            Fault::Fail => Err(StoreError::Write("no space left".to_owned())),
            Fault::None | Fault::Hang => Ok(()),
        }
    }
}

impl Disk for FaultyDisk {
    fn persist(&mut self, writes: &[Persist]) -> Result<(), StoreError> {
        self.pass()?;
        self.store.persist(writes)
    }

    fn raise_commit(&mut self, commit: u64) -> Result<(), StoreError> {
        self.pass()?;
        self.store.raise_commit(commit)
    }

    fn begin_compacting(&mut self, compaction: Compaction) {
        self.store.begin_compacting(compaction);
    }

    fn go_on_compacting(&mut self) -> Result<bool, StoreError> {
        self.pass()?;
        self.store.go_on_compacting()
    }
}

fn cluster_state() -> ClusterState {
    ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), vec![vec![1]])
}

struct World {
    dir: TempDir,
    network: Network,
}

struct Node {
    raft_id: RaftId,
    mailbox: Mailbox,
    driver: Driver,
    disk: Faults,
}

impl World {
    fn new() -> Self {
        World { dir: tempfile::tempdir().unwrap(), network: Network::default() }
    }

    fn path(&self, raft_id: RaftId) -> PathBuf {
        self.dir.path().join(raft_id.to_string())
    }

    fn found(&self) -> Node {
        let mut store = Store::open(&self.path(1)).unwrap();
        let state = Bytes::from(convert::encode_state(&cluster_state()));
        let origin = Origin::new(1, Epoch(1), None);
        store.begin(&origin, Some(&founding_write(1, state))).unwrap();
        drop(store);
        self.start(1)
    }

    fn join(&self, raft_id: RaftId) -> Node {
        let mut store = Store::open(&self.path(raft_id)).unwrap();
        store.begin(&Origin::new(raft_id, Epoch(1), None), None).unwrap();
        drop(store);
        self.start(raft_id)
    }

    fn start(&self, raft_id: RaftId) -> Node {
        let store = Store::open(&self.path(raft_id)).unwrap();
        let stored = store.load().unwrap().unwrap();
        let (mailbox, disk) = (Mailbox::new(), Faults::new());
        self.network.0.lock().unwrap().insert(raft_id, mailbox.clone());
        let driver = spawn_driver(DriverParams {
            config: RaftConfig { snapshot_every_entries: 40, keep_entries: 5, ..RaftConfig::new(raft_id, 7) },
            store: FaultyDisk { store, faults: disk.clone() },
            stored,
            state: cluster_state(),
            mailbox: mailbox.clone(),
            outbox: Sender { from: raft_id, network: self.network.clone() },
            logger: Logger::root(slog::Discard, slog::o!()),
        })
        .unwrap();
        Node { raft_id, mailbox, driver, disk }
    }

    /// Ends the thread; nobody is told.
    async fn kill(&self, node: Node) {
        self.network.0.lock().unwrap().remove(&node.raft_id);
        node.mailbox.stop();
        assert!(matches!(node.driver.end.await.unwrap(), DriverEnd::Stopped));
    }
}

impl Node {
    async fn until(&self, what: &str, condition: impl FnMut(&Arc<View>) -> bool) -> Arc<View> {
        let mut view = self.driver.view.clone();
        let found = tokio::time::timeout(PATIENCE, view.wait_for(condition)).await;
        let found = found.unwrap_or_else(|_| panic!("not seen in time: {what}"));
        Arc::clone(&found.unwrap())
    }

    async fn propose(&self, n: u64) -> Result<(u64, Outcome), ProposalFailure> {
        self.offer(n).await.unwrap()
    }

    /// Proposes without waiting for the answer.
    fn offer(&self, n: u64) -> oneshot::Receiver<Result<(u64, Outcome), ProposalFailure>> {
        let (reply, answer) = oneshot::channel();
        let command = Bytes::from(convert::encode_command(&token(n)));
        self.mailbox.request(Request::Propose { command, reply }).unwrap();
        answer
    }

    async fn change(&self, change: MembershipChange) {
        // Refused while a change is under way or a learner is behind: tried again, as its owner would.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (reply, answer) = oneshot::channel();
            self.mailbox.request(Request::Change { change: change.clone(), reply }).unwrap();
            match answer.await.unwrap() {
                Ok(()) => return,
                Err(error) => assert!(Instant::now() < deadline, "{change:?}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn read(&self) -> Result<u64, ReadFailure> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.request(Request::Read { reply }).unwrap();
        answer.await.unwrap()
    }
}

fn token(n: u64) -> Command {
    Command {
        request_id: RequestId::new(Uuid::from_u64_pair(1, n)),
        body: CommandBody::CreateToken(TokenRecord {
            id: TokenId(n),
            role: TokenRole::Peer,
            secret_hash: [0; 32],
            created_at: UnixMs(0),
            expires_at: UnixMs(u64::MAX),
            uses_left: 1,
            bound_id: None,
            bound_name: None,
            grants: Grants::default(),
            ephemeral: false,
            used_by: SharedSet::new(),
        }),
    }
}

fn has(view: &View, n: u64) -> bool {
    view.state.tokens.contains_key(&TokenId(n))
}

#[tokio::test]
async fn alone_it_leads_at_once_and_nothing_acknowledged_is_lost() {
    let world = World::new();
    let mut node = world.found();
    let mut term = 0;
    for round in 0..4_u64 {
        let view = node.until("leading", |view| view.leads()).await;
        assert!(view.status.term > term, "terms rise from start to start");
        term = view.status.term;
        assert!((1..round * 25).all(|n| has(&view, n)), "round {round}");
        for n in round * 25..(round + 1) * 25 {
            let (index, outcome) = node.propose(n).await.unwrap();
            assert_eq!(outcome, Outcome::Done);
            // Whoever was answered finds it published.
            let view = node.driver.view.borrow().clone();
            assert!(view.applied >= index && has(&view, n));
        }
        world.kill(node).await;
        node = world.start(1);
    }
    let store_bytes = directory_bytes(&world.path(1));
    assert!(store_bytes < 64 << 20, "{store_bytes} bytes");
    world.kill(node).await;
}

fn directory_bytes(path: &Path) -> u64 {
    let items = std::fs::read_dir(path).unwrap().map(|item| item.unwrap());
    items
        .map(|item| {
            if item.path().is_dir() { directory_bytes(&item.path()) } else { item.metadata().unwrap().len() }
        })
        .sum()
}

#[tokio::test]
async fn two_join_by_a_snapshot_and_the_third_voter_outlives_the_leader() {
    let world = World::new();
    let first = world.found();
    first.until("leading", |view| view.leads()).await;
    // So many that a joiner needs a snapshot.
    for n in 0..100 {
        first.propose(n).await.unwrap();
    }
    let (second, third) = (world.join(2), world.join(3));
    first.change(MembershipChange::AddLearner(2)).await;
    first.change(MembershipChange::AddLearner(3)).await;
    for node in [&second, &third] {
        node.until("the snapshot", |view| has(view, 99)).await;
        assert!(matches!(node.propose(900).await, Err(ProposalFailure::NotLeader { .. })));
        assert!(node.read().await.is_ok(), "a learner reads through the leader");
    }
    let voters = BTreeSet::from([1, 2, 3]);
    first.change(MembershipChange::SetVoters(voters.clone())).await;
    for node in [&first, &second, &third] {
        node.until("three voters", |v| v.membership.voters == voters && !v.membership.is_joint()).await;
    }
    first.propose(100).await.unwrap();
    let term = first.driver.view.borrow().status.term;
    world.kill(first).await;
    let killed = Instant::now();
    second.mailbox.gone(1);
    third.mailbox.gone(1);
    let leads = |view: &Arc<View>| view.status.leader.is_some_and(|id| id != 1) && view.status.term > term;
    let view = second.until("a new leader", leads).await;
    assert!(killed.elapsed() < Duration::from_secs(5));
    let (leader, follower) = if view.status.leader == Some(2) { (second, third) } else { (third, second) };
    let view = leader.until("ready", |view| view.leads()).await;
    assert!((0..=100).all(|n| has(&view, n)));
    leader.propose(101).await.unwrap();
    follower.until("replicated", |view| has(view, 101)).await;
    assert!(follower.read().await.is_ok());

    // Without a quorum nothing is acknowledged and nothing is read.
    world.kill(leader).await;
    assert_eq!(follower.read().await, Err(ReadFailure::TimedOut));
    // The first comes back, and both go on.
    let first = world.start(1);
    first.until("what it missed", |view| has(view, 101)).await;
    world.kill(first).await;
    world.kill(follower).await;
}

#[tokio::test]
async fn a_store_that_lost_what_it_acknowledged_ends_the_thread() {
    let world = World::new();
    let first = world.found();
    first.until("leading", |view| view.leads()).await;
    let second = world.join(2);
    first.change(MembershipChange::AddLearner(2)).await;
    for n in 0..5 {
        first.propose(n).await.unwrap();
    }
    second.until("replicated", |view| has(view, 4)).await;
    world.kill(second).await;
    std::fs::remove_dir_all(world.path(2)).unwrap();
    let second = world.join(2);
    let end = tokio::time::timeout(PATIENCE, second.driver.end).await.unwrap().unwrap();
    assert!(matches!(end, DriverEnd::LogLost(_)), "{end}");
    world.kill(first).await;
}

/// Three voters; the first leads.
async fn three(world: &World) -> [Node; 3] {
    let first = world.found();
    first.until("leading", |view| view.leads()).await;
    let others = [world.join(2), world.join(3)];
    for raft_id in [2, 3] {
        first.change(MembershipChange::AddLearner(raft_id)).await;
    }
    let voters = BTreeSet::from([1, 2, 3]);
    first.change(MembershipChange::SetVoters(voters.clone())).await;
    let [second, third] = others;
    for node in [&first, &second, &third] {
        node.until("three voters", |v| v.membership.voters == voters && !v.membership.is_joint()).await;
    }
    [first, second, third]
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_neither_heartbeats_nor_reads() {
    let world = World::new();
    let nodes = three(&world).await;
    let [first, second, _] = &nodes;
    first.propose(0).await.unwrap();

    // The others are a quorum: what the leader cannot write yet is committed, read and applied there.
    first.disk.set(Fault::Hang);
    let answers: Vec<_> = (1..4).map(|n| first.offer(n)).collect();
    second.until("what the leader has not stored", |view| has(view, 3)).await;
    assert!(second.read().await.is_ok());
    assert!(!has(&first.driver.view.borrow(), 1), "it applies what it has stored");
    first.disk.set(Fault::None);
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap().1, Outcome::Done);
    }

    // A follower whose disk hangs takes nothing as stored, and still confirms the leader.
    let leader = nodes.iter().find(|node| node.driver.view.borrow().leads()).expect("it has just answered");
    let followers: Vec<_> = nodes.iter().filter(|node| node.raft_id != leader.raft_id).collect();
    world.network.0.lock().unwrap().remove(&followers[1].raft_id);
    followers[0].disk.set(Fault::Hang);
    let answer = leader.offer(4);
    for _ in 0..20 {
        assert!(leader.read().await.is_ok());
        tokio::time::sleep(Duration::from_millis(TICK_MS)).await;
    }
    assert!(!has(&leader.driver.view.borrow(), 4), "one of three disks is no quorum");
    followers[0].disk.set(Fault::None);
    assert_eq!(answer.await.unwrap().unwrap().1, Outcome::Done);
    world.network.0.lock().unwrap().insert(followers[1].raft_id, followers[1].mailbox.clone());

    // For ever is too long: others lead, and the old leader follows when its disk is back.
    leader.disk.set(Fault::Hang);
    let asked = leader.offer(5);
    let old = leader.raft_id;
    followers[0].until("another leader", |view| view.status.leader.is_some_and(|id| id != old)).await;
    leader.disk.set(Fault::None);
    // It may have become known here, or be left unknown.
    assert!(matches!(asked.await.unwrap(), Ok(_) | Err(ProposalFailure::OutcomeUnknown)));
    leader.until("the new leader", |view| view.status.leader.is_some_and(|id| id != old)).await;
    for node in nodes {
        world.kill(node).await;
    }
}

#[tokio::test]
async fn a_disk_that_fails_ends_the_thread_and_nothing_is_acknowledged() {
    let world = World::new();
    let node = world.found();
    node.until("leading", |view| view.leads()).await;
    node.propose(0).await.unwrap();
    node.disk.set(Fault::Fail);
    let answer = node.offer(1);
    let end = tokio::time::timeout(PATIENCE, node.driver.end).await.unwrap().unwrap();
    assert!(matches!(end, DriverEnd::Store(StoreError::Write(_))), "{end}");
    assert!(answer.await.is_err(), "whoever waited learns that nobody will answer");
    let again = world.start(1);
    let view = again.until("leading again", |view| view.leads()).await;
    assert!(has(&view, 0) && !has(&view, 1));
    world.kill(again).await;
}
