//! A cluster's trust in miniature: CAs, nodes with certificates, and handshakes over in-memory streams.
#![allow(dead_code)] // Each test binary uses its part.

pub mod stranger;

use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::{ClusterId, NodeId, NodeKind, UnixMs};
use p2p_runtime::ca::{CertificateGrant, ClusterCa};
use p2p_runtime::clock::unix_now;
use p2p_runtime::identity::{DataDir, Enrolment, NodeIdentity, TrustBundle};
use p2p_runtime::mesh_key::MeshKey;
use p2p_runtime::tls::{AcceptError, Accepted, ConnectError, Connector, Credentials, Dialed, ServerTls};
use tempfile::TempDir;
use tokio::io::DuplexStream;
use uuid::Uuid;

pub const CLUSTER: ClusterId = ClusterId::new(Uuid::from_u128(0xc1));
pub const OTHER_CLUSTER: ClusterId = ClusterId::new(Uuid::from_u128(0xc2));
pub const TIMEOUT: Duration = Duration::from_secs(5);

pub fn ca(cluster: ClusterId) -> ClusterCa {
    ClusterCa::create(cluster, unix_now()).unwrap()
}

pub fn server_id(n: u128) -> NodeId {
    NodeId::new(NodeKind::Server, Uuid::from_u128(n))
}

pub fn peer_id(n: u128) -> NodeId {
    NodeId::new(NodeKind::Peer, Uuid::from_u128(n))
}

/// Where test servers claim to be; their certificates carry it.
pub fn address() -> HostPort {
    "127.0.0.1:7400".parse().unwrap()
}

/// A node with its directory.
pub struct Node {
    pub identity: NodeIdentity,
    pub dir: DataDir,
    pub credentials: Arc<Credentials>,
    _tmp: TempDir,
}

impl Node {
    pub fn new(ca: &ClusterCa, id: NodeId) -> Node {
        Self::signed(ca, id, unix_now())
    }

    /// A node whose certificate was signed at `now` with the lifetime of its kind.
    pub fn signed(ca: &ClusterCa, id: NodeId, now: UnixMs) -> Node {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        let mut identity = NodeIdentity::load_or_create(&dir, id.kind(), Some(id), None).unwrap();
        let enrolment = enrolment(ca, &identity, now, ca.trust());
        identity.enrol(&dir, enrolment.clone()).unwrap();
        let credentials = Credentials::new(&identity, &enrolment).unwrap();
        Node { identity, dir, credentials, _tmp: tmp }
    }
}

/// A Peer without Servers, of the mesh of `key`.
pub struct MeshPeer {
    pub identity: NodeIdentity,
    pub credentials: Arc<Credentials>,
    _tmp: TempDir,
}

impl MeshPeer {
    pub fn new(key: &MeshKey) -> MeshPeer {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        let identity = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, None).unwrap();
        let credentials = Credentials::new(&identity, &key.enrol(&identity).unwrap()).unwrap();
        MeshPeer { identity, credentials, _tmp: tmp }
    }
}

pub fn enrolment(ca: &ClusterCa, identity: &NodeIdentity, now: UnixMs, trust: TrustBundle) -> Enrolment {
    let request = identity.key().certificate_request(identity.id()).unwrap();
    let signed = ca.sign(&request, &CertificateGrant::new(identity.id(), now)).unwrap();
    Enrolment { cluster_id: ca.cluster_id(), certificate: signed.certificate, trust }
}

pub type Client = Result<Dialed<DuplexStream>, ConnectError>;
pub type Server = Result<Accepted<DuplexStream>, AcceptError>;

/// Lets both ends shake hands.
pub async fn meet(connector: &Connector, server: &ServerTls) -> (Client, Server) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let to = address();
    tokio::join!(connector.connect(&to, near, TIMEOUT), server.accept(far))
}
