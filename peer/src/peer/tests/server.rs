//! A Server as far as Peers see one: it signs what asks, welcomes sessions and tells each of the others.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use p2p_common::command::TokenRole;
use p2p_common::member::Member;
use p2p_common::push::PeerEntry;
use p2p_common::revision::{Piece, Push};
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, ErrorCode, Incarnation, NodeId, NodeKind};
use p2p_proto::v1::enroll_server::{Enroll, EnrollServer};
use p2p_proto::v1::session_server::{Session, SessionServer};
use p2p_proto::v1::{self, session_down, session_up};
use p2p_proto::{convert, status};
use p2p_runtime::ca::{CertificateGrant, ClusterCa};
use p2p_runtime::clock::unix_now;
use p2p_runtime::grpc::{Acceptor, CallerInfo, ListenLimits, ListenMetrics, NodeConnections};
use p2p_runtime::identity::{DataDir, Enrolment, NodeIdentity, PeerIdentity, Token};
use p2p_runtime::tcp;
use p2p_runtime::tls::{Credentials, ServerTls};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

pub(super) struct PlayedServer {
    pub(super) addr: SocketAddr,
    rooms: Rooms,
    credentials: Arc<Credentials>,
    metrics: ListenMetrics,
    /// Of its own, so that it can be killed with everything in it.
    runtime: Option<Runtime>,
    _dir: TempDir,
}

/// What its services share.
#[derive(Clone)]
struct Rooms {
    ca: Arc<ClusterCa>,
    me: Member,
    incarnation: Incarnation,
    refusals: Arc<Mutex<VecDeque<ErrorCode>>>,
    online: watch::Sender<BTreeMap<NodeId, Arc<PeerEntry>>>,
}

impl PlayedServer {
    pub(super) async fn start() -> Self {
        let ca = ClusterCa::create(ClusterId::new(Uuid::now_v7()), unix_now()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let mut identity = NodeIdentity::load_or_create(&data, NodeKind::Server, None, Some("s1")).unwrap();
        let request = identity.key().certificate_request(identity.id()).unwrap();
        let signed = ca.sign(&request, &CertificateGrant::new(identity.id(), unix_now())).unwrap();
        let (cluster_id, trust) = (ca.cluster_id(), ca.trust());
        identity.enrol(&data, Enrolment { cluster_id, certificate: signed.certificate, trust }).unwrap();
        let credentials = Credentials::new(&identity, identity.enrolment().unwrap()).unwrap();
        let addr = super::free_port();
        let me = Member {
            id: identity.id(),
            name: "s1".into(),
            addresses: vec![addr.into()],
            zone: String::new(),
            raft_id: 1,
            key_hash: identity.key().key_hash(),
        };
        let rooms = Rooms {
            ca: Arc::new(ca),
            me,
            incarnation: Incarnation::new(Uuid::now_v7()),
            refusals: Arc::default(),
            online: watch::Sender::new(BTreeMap::new()),
        };
        let metrics = ListenMetrics::default();
        let mut server = PlayedServer { addr, rooms, credentials, metrics, runtime: None, _dir: dir };
        server.listen();
        server
    }

    fn listen(&mut self) {
        let runtime = Runtime::new().unwrap();
        let entered = runtime.enter();
        let listener = tcp::listen(self.addr, "--listen").unwrap();
        let acceptor = Acceptor {
            tls: ServerTls::api(Arc::clone(&self.credentials)),
            limits: ListenLimits::default(),
            metrics: self.metrics.clone(),
            nodes: NodeConnections::default(),
            stop: CancellationToken::new(),
            log: super::quiet(),
        };
        let serve = tonic::transport::Server::builder()
            .add_service(EnrollServer::new(self.rooms.clone()))
            .add_service(SessionServer::new(self.rooms.clone()))
            .serve_with_incoming(acceptor.incoming(listener));
        runtime.spawn(serve);
        drop(entered);
        self.runtime = Some(runtime);
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Is killed, and comes back in another run.
    pub(super) async fn restart(&mut self) {
        self.kill();
        eventually!("stopped", self.connections() == 0);
        self.rooms.online = watch::Sender::new(BTreeMap::new());
        self.rooms.incarnation = Incarnation::new(Uuid::now_v7());
        self.listen();
    }

    pub(super) fn token(&self) -> String {
        let (cluster_id, fingerprint) = (self.rooms.ca.cluster_id(), self.rooms.ca.fingerprint());
        Token::mint(TokenRole::Peer, cluster_id, fingerprint).unwrap().to_text().to_string()
    }

    /// The next enrolments are refused with these.
    pub(super) fn refuse_next(&self, codes: impl IntoIterator<Item = ErrorCode>) {
        self.rooms.refusals.lock().unwrap().extend(codes);
    }

    /// Who has a session.
    pub(super) fn sessions(&self) -> Vec<NodeId> {
        self.rooms.online.borrow().keys().copied().collect()
    }

    /// Open connections.
    pub(super) fn connections(&self) -> u64 {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let open = text.lines().filter(|line| line.starts_with("connections_open{"));
        open.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

impl Drop for PlayedServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn caller<T>(request: &Request<T>) -> Option<PeerIdentity> {
    request.extensions().get::<CallerInfo>().expect("the acceptor leaves it").face.identity()
}

#[tonic::async_trait]
impl Enroll for Rooms {
    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollReply>, Status> {
        if let Some(code) = self.refusals.lock().unwrap().pop_front() {
            return Err(status::refuse(code, "as the test wants it"));
        }
        assert_eq!(caller(&request), None);
        let request = request.into_inner();
        let hello = convert::hello_from(request.hello).unwrap();
        let signed = self.ca.sign(&request.csr, &CertificateGrant::new(hello.from, unix_now())).unwrap();
        Ok(Response::new(v1::EnrollReply {
            certificate: signed.certificate.to_vec().into(),
            trust_bundle: vec![self.ca.certificate().to_vec().into()],
            cluster_id: self.ca.cluster_id().to_string(),
            epoch: 1,
            members: None,
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewReply>, Status> {
        let caller = caller(&request).expect("a renewal has a certificate");
        let csr = request.into_inner().csr;
        let signed = self.ca.sign(&csr, &CertificateGrant::new(caller.node_id, unix_now())).unwrap();
        assert_eq!(signed.key_hash, caller.key_hash);
        Ok(Response::new(v1::RenewReply {
            certificate: signed.certificate.to_vec().into(),
            trust_bundle: vec![self.ca.certificate().to_vec().into()],
            epoch: 1,
            trust_version: 0,
        }))
    }
}

/// Takes the Peer out of the table when its session ends, however it does.
struct Online {
    id: NodeId,
    table: watch::Sender<BTreeMap<NodeId, Arc<PeerEntry>>>,
}

impl Drop for Online {
    fn drop(&mut self) {
        self.table.send_modify(|table| drop(table.remove(&self.id)));
    }
}

#[tonic::async_trait]
impl Session for Rooms {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::SessionDown, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::SessionUp>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = caller(&request).expect("a session has a certificate");
        let mut up = request.into_inner();
        let Some(session_up::Message::Open(open)) = up.next().await.unwrap()?.message else {
            return Err(Status::invalid_argument("no open"));
        };
        let hello = convert::hello_from(open.hello).unwrap();
        assert_eq!(hello.from, caller.node_id);
        let (tx, rx) = mpsc::channel(16);
        let down = |message| Ok(v1::SessionDown { message: Some(message) });
        let ours = Hello {
            versions: VERSIONS,
            cluster_id: Some(self.ca.cluster_id()),
            from: self.me.id,
            to: Some(hello.from),
            epoch: Epoch(1),
            recovery_id: None,
            raft_id: 0,
            incarnation: self.incarnation,
            features: 0,
        };
        let welcome = session_down::Message::Welcome(v1::SessionWelcome {
            hello: Some(convert::hello_to(&ours)),
            seen_from: String::new(),
            members: Some(convert::member_table_to(1, [&self.me])),
            now_unix_ms: unix_now().0,
            revocations_follow: false,
        });
        tx.send(down(welcome)).await.unwrap();
        let entry = move |report: Option<v1::PeerReport>| PeerEntry {
            id: hello.from,
            incarnation: hello.incarnation,
            key_hash: caller.key_hash,
            grants: Arc::default(),
            grants_revision: 0,
            report: convert::report_from(report).unwrap(),
        };
        let table = self.online.clone();
        table.send_modify(|table| drop(table.insert(hello.from, Arc::new(entry(open.report)))));
        let online = Online { id: hello.from, table: table.clone() };
        tokio::spawn(async move {
            // Whole, not just its Id.
            let online = online;
            let mut changes = table.subscribe();
            changes.mark_changed();
            for revision in 1.. {
                tokio::select! {
                    message = up.next() => match message {
                        Some(Ok(v1::SessionUp { message: Some(session_up::Message::Report(report)) })) => {
                            let entry = Arc::new(entry(Some(report)));
                            table.send_modify(|table| drop(table.insert(online.id, entry)));
                        }
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return,
                    },
                    _ = changes.changed() => {
                        let entries = changes.borrow_and_update().clone().into_iter();
                        let entries = entries.filter(|(id, _)| *id != online.id).collect();
                        let push = Push::Snapshot(Piece { revision, first: true, done: true, entries });
                        if tx.send(down(session_down::Message::Push(convert::push_to(&push)))).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}
