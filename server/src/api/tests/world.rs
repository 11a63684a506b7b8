//! One Server of a cluster of two, the other one not running, and nodes and tokens that it knows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{Command, CommandBody, IdentityRecord, Outcome, TokenRecord, TokenRole};
use p2p_common::grants::Grants;
use p2p_common::member::Member;
use p2p_common::shared::SharedSet;
use p2p_common::{ClusterId, Epoch, Incarnation, KeyHash, NodeId, NodeKind, RequestId, UnixMs};
use p2p_proto::convert;
use p2p_runtime::ca::{CaKeyFiles, CertificateGrant, ClusterCa};
use p2p_runtime::clock::{Clock, ClockBase, unix_now};
use p2p_runtime::grpc::{Acceptor, ChannelParams, ListenLimits, ListenMetrics, NodeConnections, connect};
use p2p_runtime::identity::{DataDir, Enrolment, NodeIdentity, Token};
use p2p_runtime::tcp;
use p2p_runtime::tls::{ConnectError, Connector, Credentials, Expect, ServerTls};
use p2p_server_core::HubConfig;
use p2p_server_raft::{RaftConfig, founding_write};
use slog::{Discard, Logger, o};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};
use uuid::Uuid;

use crate::api::{ApiContext, PeeringApi, RaftApi, router};
use crate::audit::AuditLog;
use crate::ca::CaStore;
use crate::group::Group;
use crate::hub_task::{HubParams, spawn_hub};
use crate::master_task::MasterTask;
use crate::metrics::Metrics;
use crate::raft::{DriverParams, Mailbox, Proposer, spawn_driver};
use crate::revocation::{EmergencyStore, EmergencyTask, Enforcer, Revoker};
use crate::standing::Standing;
use crate::store::{Origin, Store};
use crate::transport::{Myself, Remotes, RemotesParams, TransportMetrics};
use p2p_proto::v1;

pub const PATIENCE: Duration = Duration::from_secs(20);
pub const CLUSTER: ClusterId = ClusterId::new(Uuid::from_u128(0xc1));
pub const EPOCH: Epoch = Epoch(1);

pub fn server(n: u128) -> NodeId {
    NodeId::new(NodeKind::Server, Uuid::from_u128(n))
}

pub fn peer(n: u128) -> NodeId {
    NodeId::new(NodeKind::Peer, Uuid::from_u128(n))
}

pub fn ca(cluster_id: ClusterId) -> ClusterCa {
    ClusterCa::create(cluster_id, unix_now()).unwrap()
}

/// A node with a certificate.
pub struct Node {
    pub id: NodeId,
    pub key_hash: KeyHash,
    pub credentials: Arc<Credentials>,
    identity: NodeIdentity,
    _dir: TempDir,
}

impl Node {
    pub fn new(ca: &ClusterCa, id: NodeId) -> Node {
        Node::signed(ca, id, unix_now())
    }

    /// With a certificate that was signed then.
    pub fn signed(ca: &ClusterCa, id: NodeId, now: UnixMs) -> Node {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        let identity = NodeIdentity::load_or_create(&dir, id.kind(), Some(id), None).unwrap();
        let request = identity.key().certificate_request(id).unwrap();
        let certificate = ca.sign(&request, &CertificateGrant::new(id, now)).unwrap().certificate;
        let enrolment = Enrolment { cluster_id: ca.cluster_id(), certificate, trust: ca.trust() };
        let credentials = Credentials::new(&identity, &enrolment).unwrap();
        Node { id, key_hash: identity.key().key_hash(), credentials, identity, _dir: tmp }
    }

    /// Shows a certificate of `ca` that was signed then, and trusts `trusted`.
    pub fn show(&self, ca: &ClusterCa, now: UnixMs, trusted: &ClusterCa) {
        let certificate = ca.sign(&self.request(), &CertificateGrant::new(self.id, now)).unwrap().certificate;
        self.credentials.replace(&certificate, &trusted.trust()).unwrap();
    }

    /// Asks for a certificate.
    pub fn request(&self) -> Vec<u8> {
        self.identity.key().certificate_request(self.id).unwrap()
    }

    fn record(&self) -> IdentityRecord {
        let (id, key_hash) = (self.id, self.key_hash);
        IdentityRecord::new(id, id.to_string(), key_hash, unix_now())
    }

    fn member(&self, raft_id: u64, address: SocketAddr) -> Member {
        Member {
            id: self.id,
            name: format!("s{raft_id}"),
            addresses: vec![address.into()],
            zone: "z1".to_owned(),
            raft_id,
            key_hash: self.key_hash,
        }
    }
}

/// Shows a bearer token with each call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

pub type Client = InterceptedService<Channel, Bearer>;

/// The Server under test, and who it knows.
pub struct World {
    pub addr: SocketAddr,
    pub ca: ClusterCa,
    pub context: ApiContext,
    pub listen: ListenMetrics,
    /// The open connections of nodes.
    pub nodes: NodeConnections,
    pub transport: TransportMetrics,
    /// Its CAs.
    pub cas: CaStore,
    pub me: NodeId,
    /// A member that is not running.
    pub other: Node,
    pub peers: [Node; 2],
    pub operator: Token,
    pub reader: Token,
    /// An operator's, over.
    pub expired: Token,
    /// For one Peer.
    pub join: Token,
    /// For this run only.
    pub local: Token,
    /// Where its store and its audit log are.
    pub dir: TempDir,
    mailbox: Mailbox,
}

impl Drop for World {
    fn drop(&mut self) {
        self.context.stop.cancel();
        self.mailbox.stop();
    }
}

impl World {
    pub async fn start() -> World {
        let (ca, tmp) = (ca(CLUSTER), tempfile::tempdir().unwrap());
        let (me, other) = (Node::new(&ca, server(1)), Node::new(&ca, server(2)));
        // The other one does not come to tell what time it is.
        me.credentials.clock().set(Some(ClockBase::own()));
        let peers = [Node::new(&ca, peer(1)), Node::new(&ca, peer(2))];
        let token = |role| Token::mint(role, CLUSTER, ca.fingerprint()).unwrap();
        let (operator, reader) = (token(TokenRole::Operator), token(TokenRole::Reader));
        let (expired, join, local) =
            (token(TokenRole::Operator), token(TokenRole::Peer), token(TokenRole::Operator));
        let listener = tcp::listen("127.0.0.1:0".parse().unwrap(), "--listen").unwrap();
        let addr = listener.local_addr().unwrap();

        let mut state = ClusterState::new(CLUSTER, EPOCH, vec![ca.certificate().to_vec()]);
        for node in [&me, &other, &peers[0], &peers[1]] {
            state.identities.insert(node.id, node.record());
        }
        state.members.insert(me.id, me.member(1, addr));
        state.members.insert(other.id, other.member(2, "127.0.0.1:9".parse().unwrap()));
        (state.members_version, state.next_raft_id) = (2, 3);
        for token in [&operator, &reader, &expired, &join] {
            let expires_at = if token.id() == expired.id() { UnixMs(1) } else { UnixMs(u64::MAX) };
            state.tokens.insert(token.id(), record(token, expires_at));
        }

        let mut store = Store::open(&tmp.path().join("raft")).unwrap();
        let founding = founding_write(1, convert::encode_state(&state).into());
        store.begin(&Origin::new(1, Epoch(1), None), Some(&founding)).unwrap();
        let stored = store.load().unwrap().unwrap();
        let (mailbox, stop) = (Mailbox::new(), CancellationToken::new());
        let log = Logger::root(Discard, o!());
        let incarnation = Incarnation::new(Uuid::from_u128(0x11));
        let myself = Myself {
            id: me.id,
            raft_id: 1,
            epoch: EPOCH,
            recovery_id: None,
            incarnation,
            credentials: Arc::clone(&me.credentials),
        };
        let transport_metrics = TransportMetrics::default();
        let clock = Clock::start();
        let remotes = Remotes::new(RemotesParams {
            myself: myself.clone(),
            clock,
            mailbox: mailbox.clone(),
            metrics: transport_metrics.clone(),
            stop: stop.clone(),
            log: log.clone(),
        });
        let raft_config = RaftConfig::new(1, 7);
        let driver = spawn_driver(DriverParams {
            config: raft_config.clone(),
            store,
            stored,
            state,
            mailbox: mailbox.clone(),
            outbox: remotes.clone(),
            logger: log.clone(),
        })
        .unwrap();
        let (title_tx, title) = watch::channel(None);
        let proposer = Proposer::new(mailbox.clone(), driver.view.clone(), title, remotes.clone());
        let group = Group::new(proposer.clone(), remotes.clone(), raft_config, clock, log.clone());
        let master = MasterTask {
            view: driver.view.clone(),
            reach: remotes.reach(),
            title: title_tx,
            clock,
            stop: stop.clone(),
            log: log.clone(),
        };
        tokio::spawn(master.run());
        let data = Arc::new(DataDir::open(tmp.path()).unwrap());
        let emergencies = EmergencyStore::load(Arc::clone(&data)).unwrap();
        let standing = Standing::new(driver.view.clone(), emergencies.watch());
        let pinning = standing.clone();
        me.credentials.set_pins(move |id, key_hash| pinning.is_bound(id, key_hash));
        let revoker =
            Revoker { standing: standing.clone(), store: emergencies.clone(), remotes: remotes.clone() };
        let held = Arc::new(ClusterCa::from_parts(CLUSTER, &ca.key_pem(), &ca.trust()).unwrap());
        let cas = CaStore::new(data, CaKeyFiles::default(), vec![held], Arc::clone(&me.credentials));
        let metrics = Metrics::default();
        let hub = spawn_hub(HubParams {
            config: HubConfig::new(incarnation),
            standing: standing.clone(),
            clock,
            metrics: metrics.clone(),
            stop: stop.clone(),
            log: log.clone(),
        });
        let (audit, audit_writer) = AuditLog::open(tmp.path(), clock.now(), log.clone()).unwrap();
        tokio::spawn(audit_writer.run(stop.clone()));
        let context = ApiContext {
            myself: myself.clone(),
            name: "s1".to_owned(),
            proposer: proposer.clone(),
            reach: remotes.reach(),
            group: group.clone(),
            revoker: revoker.clone(),
            hub,
            cas: cas.clone(),
            local_operator: local.secret_hash(),
            clock,
            metrics,
            audit,
            stop: stop.clone(),
            log: log.clone(),
        };
        let peering = PeeringApi::new(myself, proposer.clone(), group, revoker, cas.clone(), log.clone());
        let nodes = NodeConnections::default();
        let enforcer = Enforcer {
            standing,
            nodes: nodes.clone(),
            own_key: me.key_hash,
            alarms: remotes.alarms().clone(),
            stop: stop.clone(),
            log: log.clone(),
        };
        tokio::spawn(enforcer.run());
        let emergency = EmergencyTask {
            store: emergencies,
            proposer: proposer.clone(),
            remotes: remotes.clone(),
            stop: stop.clone(),
            log: log.clone(),
        };
        tokio::spawn(emergency.run());
        let raft = RaftApi::new(
            remotes,
            driver.view.clone(),
            mailbox.clone(),
            transport_metrics.clone(),
            log.clone(),
        );
        let between = tonic::service::Routes::new(v1::peering_server::PeeringServer::new(peering))
            .add_service(v1::raft_server::RaftServer::new(raft));
        let listen = ListenMetrics::default();
        let acceptor = Acceptor {
            tls: ServerTls::api(Arc::clone(&me.credentials)),
            limits: ListenLimits::default(),
            metrics: listen.clone(),
            nodes: nodes.clone(),
            stop: stop.clone(),
            log,
        };
        let serving = router(context.clone(), between)
            .serve_with_incoming_shutdown(acceptor.incoming(listener), stop.clone().cancelled_owned());
        tokio::spawn(serving);
        let mut master = proposer.watch_master();
        tokio::time::timeout(PATIENCE, master.wait_for(Option::is_some)).await.unwrap().unwrap();
        World {
            addr,
            ca,
            context,
            listen,
            nodes,
            transport: transport_metrics,
            cas,
            me: me.id,
            other,
            peers,
            operator,
            reader,
            expired,
            join,
            local,
            dir: tmp,
            mailbox,
        }
    }

    /// A connection with this node's certificate.
    pub async fn node(&self, node: &Node) -> Result<Channel, ConnectError> {
        self.connect(Connector::node(Arc::clone(&node.credentials), Expect::Kind(NodeKind::Server))).await
    }

    /// A connection without a certificate.
    pub async fn public(&self) -> Channel {
        self.connect(Connector::public(&self.ca.trust()).unwrap()).await.unwrap()
    }

    async fn connect(&self, connector: Connector) -> Result<Channel, ConnectError> {
        Ok(connect(&connector, &self.addr.into(), &ChannelParams::default()).await?.channel)
    }

    /// A client on the public face.
    pub async fn client(&self, token: Option<&Token>) -> Client {
        let bearer = token.map(|token| bearer(token).parse().unwrap());
        InterceptedService::new(self.public().await, Bearer(bearer))
    }

    pub async fn propose(&self, body: CommandBody) -> Outcome {
        let request_id = RequestId::new(Uuid::new_v4());
        self.context.proposer.propose(Command { request_id, body }).await.unwrap().1
    }

    pub fn state(&self) -> Arc<ClusterState> {
        Arc::clone(&self.context.proposer.view().state)
    }

    /// A Server that is enrolled with any key.
    pub fn member_of(&self, n: u128) -> (CommandBody, CommandBody, Token) {
        let token = Token::mint(TokenRole::Server, CLUSTER, self.ca.fingerprint()).unwrap();
        let (id, key_hash) = (server(n), KeyHash([n as u8; 32]));
        let name = format!("s{n}");
        let enrol = CommandBody::Enrol {
            token_id: token.id(),
            secret_hash: token.secret_hash(),
            id,
            name: name.clone(),
            key_hash,
            now: unix_now(),
        };
        let addresses = vec!["127.0.0.1:9".parse().unwrap()];
        let zone = "z1".to_owned();
        let join = CommandBody::UpsertMember { id, name, addresses, zone, key_hash, new_log: false };
        (enrol, join, token)
    }
}

pub fn record(token: &Token, expires_at: UnixMs) -> TokenRecord {
    TokenRecord {
        id: token.id(),
        role: token.role(),
        secret_hash: token.secret_hash(),
        created_at: unix_now(),
        expires_at,
        uses_left: 1,
        bound_id: None,
        bound_name: None,
        grants: Grants::default(),
        ephemeral: false,
        used_by: SharedSet::new(),
    }
}

pub fn bearer(token: &Token) -> String {
    format!("Bearer {}", *token.to_text())
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not seen in time: {what}"));
}
