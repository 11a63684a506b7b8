//! By what others know this Peer: a certificate of the Servers' cluster, or one of the mesh key.
//!
//! | Servers or a token given | enrolled before | mesh key given | it is known by |
//! |---|---|---|---|
//! | yes | - | - | the cluster's certificate, enrolling first if need be; the mesh key is not used |
//! | no | - | yes | the mesh key |
//! | no | yes | no | the cluster's certificate |
//! | no | no | no | an error with the command to type |
//!
//! Becoming a member of a cluster: the first start of a Peer trades its join token for a certificate (SPEC I3).
//! Any Server of the cluster will do; the CA is recognised by the fingerprint in the token before anything is
//! said. While the cluster has no quorum nothing is consumed and the Peer tries again; what an operator must
//! settle ends the start with the command to type. Later starts find the certificate and need no token.

use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::backoff::{Backoff, Jitter};
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{Epoch, ErrorCode, Incarnation, NodeId};
use p2p_peer_core::KnownServer;
use p2p_proto::v1::enroll_client::EnrollClient;
use p2p_proto::{convert, status, v1};
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::grpc::{ChannelParams, connect};
use p2p_runtime::identity::{
    CaFingerprint, DataDir, DataDirError, DataDirView, Enrolment, FileMode, KeyError, NodeIdentity, Token,
    TrustBundle,
};
use p2p_runtime::mesh_key::MeshKey;
use p2p_runtime::tls::Connector;
use slog::{Logger, info, warn};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use crate::servers;

/// A Server answers within a raft round trip; without a quorum it says so within this.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Waits between rounds over all Servers.
const WAITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// The epoch this Peer followed its cluster to; missing before the first session.
const EPOCH_FILE: &str = "epoch";

/// Why one Server did not enrol this Peer.
pub(crate) enum Refused {
    /// Another try may help.
    ForNow(String),
    /// No try will.
    ForGood(Exit),
}

impl Refused {
    /// The reason, whoever else is asked.
    pub(crate) fn into_reason(self) -> String {
        match self {
            Refused::ForNow(why) => why,
            Refused::ForGood(exit) => exit.to_string(),
        }
    }
}

/// What this Peer was given to be known by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Means<'a> {
    /// The token to enrol with.
    pub(crate) token: Option<&'a Token>,
    /// Servers to enrol at.
    pub(crate) servers: &'a [HostPort],
    /// The key of a mesh without Servers.
    pub(crate) mesh_key: Option<&'a MeshKey>,
}

/// What this Peer shows and trusts, and the epoch it begins in.
#[derive(Debug)]
pub(crate) struct Membership {
    /// The certificate and the CA.
    pub(crate) enrolment: Enrolment,
    /// As the Servers told it last; a mesh without Servers has no other than the first.
    pub(crate) epoch: Epoch,
    /// The Servers known from an earlier run or from the enrolment; none with a mesh key.
    pub(crate) servers: Option<Vec<KnownServer>>,
}

/// By what `identity` is known; enrols it first if need be. None when it was told to stop before it was enrolled.
///
/// # Errors
/// When it was given nothing to be known by, or the cluster refuses it for good.
pub(crate) async fn membership(
    identity: &mut NodeIdentity,
    data: &DataDir,
    means: &Means<'_>,
    stop: &CancellationToken,
    log: &Logger,
) -> Result<Option<Membership>, Exit> {
    let has_servers = means.token.is_some() || !means.servers.is_empty();
    if let Some(key) = means.mesh_key {
        if has_servers {
            warn!(log, "mesh key is not used: this peer is known by the certificate of its servers' cluster");
        } else {
            let enrolment = key.enrol(identity).map_err(|e| Exit::failed(chain(&e)))?;
            return Ok(Some(Membership { enrolment, epoch: Epoch(0), servers: None }));
        }
    } else if !has_servers && identity.enrolment().is_none() {
        return Err(Exit::usage(
            "nobody knows this Peer yet. Without Servers: `p2p-peer mesh-key` prints a key, give the same one to \
             each Peer as PEER_MESH_KEY or --mesh-key-file. With Servers: add --servers HOST:PORT and --token T; \
             `p2p-server token create --role peer` on any Server prints one",
        ));
    }
    if !ensure(identity, data, means.token, means.servers, stop, log).await? {
        return Ok(None);
    }
    let enrolment = identity.enrolment().expect("it was enrolled just now").clone();
    let epoch = load_epoch(data.view()).map_err(|e| Exit::failed(chain(&e)))?;
    let known = servers::load(data.view(), enrolment.cluster_id);
    Ok(Some(Membership { enrolment, epoch, servers: Some(known) }))
}

/// Enrols `identity` unless it is; `false` when it was told to stop first.
///
/// # Errors
/// When there is no token or no Server to ask, or the cluster refuses for good.
async fn ensure(
    identity: &mut NodeIdentity,
    data: &DataDir,
    token: Option<&Token>,
    servers: &[HostPort],
    stop: &CancellationToken,
    log: &Logger,
) -> Result<bool, Exit> {
    if let Some(enrolment) = identity.enrolment() {
        if let Some(token) = token.filter(|token| token.cluster_id() != enrolment.cluster_id) {
            return Err(Exit::usage(format!(
                "{} belongs to a Peer of cluster {}, the token is for cluster {}: give another --data, or the \
                 token of that cluster",
                data.path().display(),
                enrolment.cluster_id,
                token.cluster_id()
            )));
        }
        return Ok(true);
    }
    let Some(token) = token else {
        return Err(Exit::usage(
            "this Peer belongs to no cluster yet: add --token T; `p2p-server token create --role peer` on any \
             Server prints one",
        ));
    };
    if servers.is_empty() {
        return Err(Exit::usage("no Server to enrol at: add --servers HOST:PORT, any one of the cluster"));
    }
    let applicant = Applicant::of(identity).map_err(|e| Exit::failed(chain(&e)))?;
    let (first, max) = WAITS;
    let (mut backoff, mut jitter) = (Backoff::new(first, max), Jitter::new(rand::random()));
    loop {
        for server in servers {
            let enrolled = tokio::select! {
                enrolled = enrol(&applicant, token, server) => enrolled,
                () = stop.cancelled() => return Ok(false),
            };
            match enrolled {
                Ok((enrolment, epoch, known)) => {
                    // Before the certificate: an enrolled Peer knows its Servers by their keys, whatever its clock says.
                    servers::store(data, enrolment.cluster_id, &known)
                        .map_err(|e| Exit::failed(chain(&e)))?;
                    store_epoch(data, epoch).map_err(|e| Exit::failed(chain(&e)))?;
                    let cluster_id = enrolment.cluster_id;
                    identity.enrol(data, enrolment).map_err(|e| Exit::failed(chain(&e)))?;
                    info!(log, "enrolled"; "node_id" => identity.id(), "cluster_id" => %cluster_id,
                        "server" => %server);
                    return Ok(true);
                }
                Err(Refused::ForNow(reason)) => {
                    warn!(log, "not enrolled yet"; "server" => %server, "error" => reason);
                }
                Err(Refused::ForGood(exit)) => return Err(exit),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.fail(&mut jitter)) => {}
            () = stop.cancelled() => return Ok(false),
        }
    }
}

/// Who enrols, and for which key.
#[derive(Debug, Clone)]
pub(crate) struct Applicant {
    id: NodeId,
    name: String,
    /// PKCS #10, DER.
    request: Vec<u8>,
}

impl Applicant {
    /// As `identity` is.
    ///
    /// # Errors
    /// When its key does not sign.
    pub(crate) fn of(identity: &NodeIdentity) -> Result<Self, KeyError> {
        let id = identity.id();
        let request = identity.key().certificate_request(id)?;
        Ok(Applicant { id, name: identity.name().to_owned(), request })
    }
}

/// Asks one Server.
pub(crate) async fn enrol(
    applicant: &Applicant,
    token: &Token,
    server: &HostPort,
) -> Result<(Enrolment, Epoch, Vec<KnownServer>), Refused> {
    let for_good = |e: &(dyn std::error::Error + 'static)| Refused::ForGood(Exit::failed(chain(e)));
    let connector = Connector::enrol(token).map_err(|e| for_good(&e))?;
    let connection =
        connect(&connector, server, &ChannelParams::default()).await.map_err(|e| match e.code() {
            ErrorCode::WrongCluster => Refused::ForGood(Exit::usage(format!(
                "{server}: {}; give --servers of the token's cluster, or a token of theirs",
                chain(&e)
            ))),
            _ => Refused::ForNow(chain(&e)),
        })?;
    let hello = Hello {
        versions: VERSIONS,
        cluster_id: None,
        from: applicant.id,
        to: Some(connection.identity.node_id),
        epoch: Epoch(0),
        recovery_id: None,
        raft_id: 0,
        incarnation: Incarnation::new(uuid::Uuid::now_v7()),
        features: 0,
    };
    let mut request = Request::new(v1::EnrollRequest {
        hello: Some(convert::hello_to(&hello)),
        token_id: token.id().0,
        token_secret: token.secret().to_vec().into(),
        name: applicant.name.clone(),
        csr: applicant.request.clone().into(),
        addresses: Vec::new(),
    });
    request.set_timeout(CALL_TIMEOUT);
    let reply = EnrollClient::new(connection.channel).enroll(request).await;
    let reply = reply.map_err(|status| refused(applicant.id, &status))?.into_inner();
    let trust = TrustBundle::from_der(reply.trust_bundle.iter().map(|der| der.to_vec()));
    let trust = trust.map_err(|e| for_good(&e))?;
    if !trust.certificates().iter().any(|ca| CaFingerprint::of(ca) == token.ca_fingerprint()) {
        let exit = Exit::failed("the Server's trust bundle lacks the CA that the token names");
        return Err(Refused::ForGood(exit));
    }
    let cluster_id = convert::parse(&reply.cluster_id, "cluster_id").map_err(|e| for_good(&e))?;
    let certificate = reply.certificate.to_vec().into();
    // A Server that does not say is learned of with the first session.
    let known = match reply.members {
        Some(table) => convert::member_table_from(Some(table)).map_err(|e| for_good(&e))?.1,
        None => Vec::new(),
    };
    let known = known.iter().map(KnownServer::of).collect();
    Ok((Enrolment { cluster_id, certificate, trust }, Epoch(reply.epoch), known))
}

/// What a refused enrolment means for the start.
fn refused(id: NodeId, status: &Status) -> Refused {
    let said = status.message();
    let new_token = "`p2p-server token create --role peer` on any Server prints a new one";
    match status::code_of(status) {
        Some(ErrorCode::TokenUnknown | ErrorCode::TokenExpired | ErrorCode::TokenUsedUp) => {
            Refused::ForGood(Exit::needs_operator(format!("the token opens nothing: {said}; {new_token}")))
        }
        Some(ErrorCode::TokenRole | ErrorCode::TokenBound) => Refused::ForGood(Exit::needs_operator(
            format!("the token is not for this Peer: {said}; {new_token}"),
        )),
        Some(ErrorCode::IdTaken) => Refused::ForGood(Exit::needs_operator(format!(
            "{id} is taken: {said}; start with the data directory that has its key, or give another --id"
        ))),
        Some(
            ErrorCode::Unavailable | ErrorCode::NotLeader | ErrorCode::OutcomeUnknown | ErrorCode::Draining,
        ) => Refused::ForNow(said.to_owned()),
        // Limits pass.
        Some(ErrorCode::Exhausted) => Refused::ForNow(said.to_owned()),
        Some(code) => {
            Refused::ForGood(Exit::failed(format!("the cluster refuses to enrol this Peer ({code}): {said}")))
        }
        None if matches!(status.code(), Code::Unimplemented | Code::InvalidArgument) => {
            Refused::ForGood(Exit::failed(format!("the Server does not enrol Peers: {said}")))
        }
        None => Refused::ForNow(format!("{}: {said}", status.code())),
    }
}

/// Keeps the epoch for the next start.
pub(crate) fn store_epoch(data: &DataDir, epoch: Epoch) -> Result<(), DataDirError> {
    data.write(EPOCH_FILE, format!("{epoch}\n").as_bytes(), FileMode::Public)
}

/// The epoch this Peer followed its cluster to; without a readable one the lowest, which every Server leads on
/// from.
fn load_epoch(data: &DataDirView) -> Result<Epoch, DataDirError> {
    let text = data.read(EPOCH_FILE)?.unwrap_or_default();
    Ok(Epoch(std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)))
}
