//! The API port: every gRPC service of a Server behind one gate.
//!
//! ```text
//! connection (TLS, face) ──► gate: who calls? may it? how often? ──► service ──► raft, hub
//! ```
//!
//! [`router`] puts it together: look-ups ([`cluster`](v1::cluster_server)), changes by operators, enrolment, sessions
//! of Peers, health and reflection, and what Servers say among themselves, which comes from the caller. Reflection is
//! open to everyone known, also to readers by their token, and to nobody else: it tells how the API looks, which the
//! source does as well, but an open port that describes itself invites.
//!
//! Errors leave through `p2p_proto::status`. Source: SPEC I3, I4, C6, C7, P1-P5, O4.

mod body;
mod cluster;
pub(crate) mod enroll;
pub(crate) mod gate;
mod health;
mod lasting;
pub(crate) mod operator;
pub(crate) mod pace;
pub(crate) mod peering;
mod raft;
mod rate_limit;
mod recording;
mod revoke;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::command::{Command, CommandBody, Outcome};
use p2p_common::{ErrorCode, RequestId};
use p2p_proto::status::refuse;
use p2p_proto::v1;
use p2p_runtime::clock::{Clock, ClusterClock};
use p2p_server_core::METHODS;
use slog::Logger;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower_layer::{Identity, Stack};

pub use gate::GateLayer;
pub use peering::PeeringApi;
pub use raft::RaftApi;

use crate::audit::AuditLog;
use crate::ca::CaStore;
use crate::group::Group;
use crate::hub_task::HubHandle;
use crate::metrics::Metrics;
use crate::raft::{ProposeError, Proposer, View};
use crate::revocation::Revoker;
use crate::transport::{Myself, Reach};

/// Calls and streams at a time on one connection: a Peer needs two; a Server runs the proposals of its clients at the
/// leader over one. Further ones wait at the caller.
const STREAMS_PER_CONNECTION: u32 = 256;
/// A call that has not been answered by then is not going to be; streams are answered at once. A big snapshot on a slow
/// path takes longest.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Header list of one call: a token has under 200 bytes.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// As clients of ours have them: enough for 100 Mbit/s at 80 ms.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// All streams of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;
/// An HTTP/2 ping goes out this often, so that a connection whose other end is gone is noticed ...
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// ... when the ping is not answered for this long: 30 s of silence in all (SPEC P5).
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams that a client opens and resets before they are looked at, at a time; more end its connection
/// (CVE-2023-44487).
const RESETS_PENDING_MAX: usize = 20;
/// Streams reset here for what the client did wrong on them, in the life of a connection; more end it.
const RESETS_OF_ERRORS_MAX: usize = 128;
/// Requests that name a thing or two.
const SMALL_REQUEST_BYTES: usize = 16 * 1024;
/// An enrolment: a certificate request and up to 16 addresses.
const ENROLMENT_BYTES: usize = 64 * 1024;
/// A message of a Peer: 4,096 links with their reasons are the most.
const SESSION_MESSAGE_BYTES: usize = 4 << 20;

/// What the services work with. Cheap to copy.
#[derive(Debug, Clone)]
pub struct ApiContext {
    /// Who this Server is.
    pub myself: Myself,
    /// What people call it.
    pub name: String,
    /// The way to raft, and what it publishes.
    pub proposer: Proposer,
    /// Which other Servers are connected, and since when they run.
    pub reach: watch::Receiver<Arc<Reach>>,
    /// The care for the raft group.
    pub group: Group,
    /// Emergencies, and who is welcome.
    pub revoker: Revoker,
    /// The sessions of Peers.
    pub hub: HubHandle,
    /// The CAs and the keys of theirs that are here.
    pub cas: CaStore,
    /// SHA-256 of the secret of the operator token that is good for this run and this Server only.
    pub local_operator: [u8; 32],
    /// The process's clock; its start counts as the Server's.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Metrics,
    /// Where calls of operators are recorded.
    pub audit: AuditLog,
    /// Ends the streams that would go on for ever.
    pub stop: CancellationToken,
    /// Where to report.
    pub log: Logger,
}

/// The router of the API port, ready for `serve_with_incoming_shutdown`. `between_servers` are the services only
/// Servers call; they pass the same gate, which knows every method.
///
/// Must be called inside a tokio runtime: health follows the Master in a task of its own.
pub fn router(context: ApiContext, between_servers: Routes) -> Router<Stack<GateLayer, Identity>> {
    let gate = GateLayer::new(&context);
    let health = health::spawn(context.proposer.watch_master(), context.stop.clone());
    let served: BTreeSet<&str> =
        METHODS.iter().filter_map(|(path, _)| path.strip_prefix('/')?.split('/').next()).collect();
    let reflection = || {
        let described = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        served.iter().copied().fold(described, tonic_reflection::server::Builder::with_service_name)
    };
    let (v1, v1alpha) = (reflection().build_v1(), reflection().build_v1alpha());
    let context = Arc::new(context);
    let cluster = cluster::ClusterApi::new(Arc::clone(&context));
    let operator = operator::OperatorApi::new(Arc::clone(&context));
    let enroll = enroll::EnrollApi::new(Arc::clone(&context));
    let session = session::SessionApi::new(context);
    let routes = between_servers
        .add_service(
            v1::cluster_server::ClusterServer::new(cluster).max_decoding_message_size(SMALL_REQUEST_BYTES),
        )
        .add_service(
            v1::operator_server::OperatorServer::new(operator).max_decoding_message_size(SMALL_REQUEST_BYTES),
        )
        .add_service(v1::enroll_server::EnrollServer::new(enroll).max_decoding_message_size(ENROLMENT_BYTES))
        .add_service(
            v1::session_server::SessionServer::new(session).max_decoding_message_size(SESSION_MESSAGE_BYTES),
        )
        .add_service(health)
        .add_service(v1.expect("our own descriptors are well formed"))
        .add_service(v1alpha.expect("our own descriptors are well formed"));
    Server::builder()
        .timeout(CALL_TIMEOUT)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_OF_ERRORS_MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(gate)
        .add_routes(routes)
}

impl ApiContext {
    /// By which tokens and certificates begin and end.
    fn cluster_clock(&self) -> &ClusterClock {
        self.myself.credentials.clock()
    }

    /// Puts a command to raft and counts what became of it.
    async fn propose(&self, request_id: RequestId, body: CommandBody) -> Result<Outcome, Status> {
        self.propose_indexed(request_id, body).await.map(|(_, outcome)| outcome)
    }

    /// As [`Self::propose`], for who wants to see what it made: a view in which it is applied.
    ///
    /// # Errors
    /// Also when this Server does not come so far in time, as when its disk fails: what its view lacks then may
    /// be there all the same.
    async fn propose_and_see(
        &self,
        request_id: RequestId,
        body: CommandBody,
    ) -> Result<(Outcome, Arc<View>), Status> {
        let (index, outcome) = self.propose_indexed(request_id, body).await?;
        let view = self.proposer.view();
        if view.applied < index {
            return Err(unanswered(&ProposeError::OutcomeUnknown));
        }
        Ok((outcome, view))
    }

    async fn propose_indexed(
        &self,
        request_id: RequestId,
        body: CommandBody,
    ) -> Result<(u64, Outcome), Status> {
        let name = match &body {
            CommandBody::CreateToken(_) => "create_token",
            CommandBody::RevokeToken(_) => "revoke_token",
            CommandBody::Enrol { .. } => "enrol",
            CommandBody::UpsertMember { .. } => "upsert_member",
            CommandBody::RemoveMember(_) => "remove_member",
            CommandBody::ChangeSetting { .. } => "change_setting",
            CommandBody::Revoke { .. } => "revoke",
            CommandBody::ResetIdentity { .. } => "reset_identity",
            CommandBody::ChangeGrants { .. } => "change_grants",
            CommandBody::SeeIdentities { .. } => "see_identities",
            CommandBody::ForgetIdentities(_) => "forget_identities",
            CommandBody::BindIdentity { .. } => "bind_identity",
            CommandBody::ChangeTrust { .. } => "change_trust",
        };
        let (result, answer) = match self.proposer.propose(Command { request_id, body }).await {
            Ok((_, Outcome::Refused { code, message })) => ("refused", Err(refuse(code, message))),
            Ok(done) => ("done", Ok(done)),
            Err(error) => ("failed", Err(unanswered(&error))),
        };
        self.metrics.proposed(name, result);
        answer
    }

    /// Makes the published view current.
    async fn read_barrier(&self) -> Result<(), Status> {
        self.proposer.read_barrier().await.map(|_| ()).map_err(|e| unanswered(&e))
    }
}

fn unanswered(error: &ProposeError) -> Status {
    // Which of the Servers leads is nothing a client can act on.
    let code = match error.code() {
        ErrorCode::NotLeader => ErrorCode::Unavailable,
        code => code,
    };
    refuse(code, error.to_string())
}
