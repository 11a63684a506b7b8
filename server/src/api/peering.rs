//! What Servers ask of each other besides raft: to join, for the CA key, to run a proposal at the leader.

use p2p_common::ErrorCode;
use p2p_common::addr::HostPort;
use p2p_common::command::{Command, CommandBody, Outcome};
use p2p_common::member::Member;
use p2p_proto::status::{malformed, refuse};
use p2p_proto::{convert, v1};
use p2p_runtime::grpc::CallerInfo;
use p2p_runtime::identity::CaFingerprint;
use slog::{Logger, info, warn};
use tonic::{Request, Response, Status};

use crate::ca::CaStore;
use crate::group::Group;
use crate::raft::{ProposeError, Proposer};
use crate::revocation::{Revoker, emergencies_from};
use crate::transport::Myself;
use crate::transport::handshake::{check_hello, identity_of};

/// The service. Cheap to copy.
#[derive(Debug, Clone)]
pub struct PeeringApi {
    myself: Myself,
    proposer: Proposer,
    group: Group,
    revoker: Revoker,
    cas: CaStore,
    log: Logger,
}

impl PeeringApi {
    /// Serves what `proposer` and `cas` can give.
    pub fn new(
        myself: Myself,
        proposer: Proposer,
        group: Group,
        revoker: Revoker,
        cas: CaStore,
        log: Logger,
    ) -> Self {
        PeeringApi { myself, proposer, group, revoker, cas, log }
    }
}

/// Who makes a request; the acceptor puts it into every one.
pub(super) fn caller_of<T>(request: &Request<T>) -> Result<CallerInfo, Status> {
    let caller = request.extensions().get::<CallerInfo>().cloned();
    caller.ok_or_else(|| refuse(ErrorCode::Internal, "the connection of this request is not known"))
}

fn refused(error: &ProposeError) -> Status {
    refuse(error.code(), error.to_string())
}

pub(crate) fn addresses(texts: &[String]) -> Result<Vec<HostPort>, Status> {
    if texts.is_empty() || texts.len() > Member::ADDRESSES_MAX {
        let message = format!("a server has 1 to {} addresses", Member::ADDRESSES_MAX);
        return Err(refuse(ErrorCode::BadRequest, message));
    }
    let parsed = texts.iter().map(|text| convert::parse(text, "addresses"));
    parsed.collect::<Result<_, _>>().map_err(|e| malformed(&e))
}

impl PeeringApi {
    /// Only members are served.
    fn check_member(&self, hello: Option<v1::Hello>, caller: &CallerInfo) -> Result<(), Status> {
        check_hello(&self.myself, hello, caller)?;
        let identity = identity_of(caller)?;
        if !self.proposer.view().has_member(identity.node_id, identity.key_hash) {
            let message = format!("{} is not a member: only members may ask this", identity.node_id);
            return Err(refuse(ErrorCode::Forbidden, message));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl v1::peering_server::Peering for PeeringApi {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let caller = caller_of(&request)?;
        let identity = identity_of(&caller)?;
        let mut request = request.into_inner();
        // A joiner says 0, "none yet": it takes over the epoch it is told.
        if let Some(hello) = request.hello.as_mut().filter(|hello| hello.epoch == 0) {
            hello.epoch = self.myself.epoch.0;
        }
        check_hello(&self.myself, request.hello, &caller)?;
        let name = convert::name(&request.name, "name").map_err(|e| malformed(&e))?;
        let command = Command {
            request_id: convert::request_id(&request.request_id).map_err(|e| malformed(&e))?,
            body: CommandBody::UpsertMember {
                id: identity.node_id,
                name: name.clone(),
                addresses: addresses(&request.addresses)?,
                zone: convert::name(&request.zone, "zone").map_err(|e| malformed(&e))?,
                key_hash: identity.key_hash,
                // Who joins has begun no log: whatever it had before, it gets a raft id that nobody had.
                new_log: true,
            },
        };
        let (_, outcome) = self.proposer.propose(command).await.map_err(|e| refused(&e))?;
        let raft_id = match outcome {
            Outcome::MemberAdded { raft_id } => raft_id,
            Outcome::Refused { code, message } => return Err(refuse(code, message)),
            Outcome::Done | Outcome::SettingChanged { .. } => {
                return Err(refuse(ErrorCode::Internal, "the join came out as something else"));
            }
        };
        info!(self.log, "server joined"; "name" => name, "id" => identity.node_id, "raft_id" => raft_id);
        let view = self.proposer.view();
        Ok(Response::new(v1::JoinReply {
            raft_id,
            members: Some(convert::member_table_to(view.state.members_version, view.state.members.values())),
            cluster_id: view.state.cluster_id.to_string(),
            epoch: view.state.epoch.0,
            recovery_id: view.state.recovery_id.map(|id| id.to_string()).unwrap_or_default(),
            trust_bundle: view.state.trust_bundle.iter().map(|der| der.clone().into()).collect(),
        }))
    }

    async fn fetch_ca_key(
        &self,
        request: Request<v1::FetchCaKeyRequest>,
    ) -> Result<Response<v1::FetchCaKeyReply>, Status> {
        let caller = caller_of(&request)?;
        let identity = identity_of(&caller)?;
        let request = request.into_inner();
        let fingerprint =
            convert::sha256(&request.ca_fingerprint, "ca_fingerprint").map_err(|e| malformed(&e))?;
        check_hello(&self.myself, request.hello, &caller)?;
        // The greatest secret goes to whoever is a member now, as the whole cluster sees it (SPEC I6).
        self.proposer.read_barrier().await.map_err(|e| refused(&e))?;
        if !self.proposer.view().has_member(identity.node_id, identity.key_hash) {
            let message = format!("{} is not a member: join first", identity.node_id);
            return Err(refuse(ErrorCode::Forbidden, message));
        }
        let keys = self.cas.keys();
        let ca = keys.get(CaFingerprint(fingerprint)).ok_or_else(|| {
            refuse(ErrorCode::Unavailable, "this server has no key of this CA yet: ask another")
        })?;
        info!(self.log, "CA key handed over"; "to" => identity.node_id, "ca" => %ca.fingerprint());
        Ok(Response::new(v1::FetchCaKeyReply { ca_key_pem: ca.key_pem().as_bytes().to_vec().into() }))
    }

    async fn propose(
        &self,
        request: Request<v1::ProposeRequest>,
    ) -> Result<Response<v1::ProposeReply>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        self.check_member(request.hello, &caller)?;
        // What is in the log must be readable by everyone.
        convert::decode_command(&request.command).map_err(|e| malformed(&e))?;
        let proposed = self.proposer.propose_here(request.command).await;
        let (index, outcome) = proposed.map_err(|e| refused(&e))?;
        Ok(Response::new(v1::ProposeReply { index, outcome: convert::encode_outcome(&outcome).into() }))
    }

    async fn transfer(
        &self,
        request: Request<v1::TransferRequest>,
    ) -> Result<Response<v1::TransferReply>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        self.check_member(request.hello, &caller)?;
        let to = Some(request.to).filter(|to| *to != 0);
        let leader = self.group.transfer_here(to).await.map_err(|e| refused(&e))?;
        Ok(Response::new(v1::TransferReply { leader }))
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Result<Response<v1::RemoveReply>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let request_id = convert::request_id(&request.request_id).map_err(|e| malformed(&e))?;
        let id = convert::parse(&request.id, "id").map_err(|e| malformed(&e))?;
        self.check_member(request.hello, &caller)?;
        self.group.remove_here(request_id, id).await.map_err(|e| refused(&e))?;
        Ok(Response::new(v1::RemoveReply {}))
    }

    async fn emergency(
        &self,
        request: Request<v1::EmergencyRequest>,
    ) -> Result<Response<v1::EmergencyReply>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        self.check_member(request.hello, &caller)?;
        let emergencies = emergencies_from(request.revocations).map_err(|e| malformed(&e))?;
        let ids: Vec<_> = emergencies.iter().map(|emergency| emergency.revocation.id.to_string()).collect();
        self.revoker.keep(emergencies).await.map_err(|e| refuse(ErrorCode::Exhausted, e.to_string()))?;
        let by = identity_of(&caller)?.node_id;
        warn!(self.log, "emergency revocation heard from another server"; "from" => by, "ids" => ids.join(","));
        Ok(Response::new(v1::EmergencyReply {}))
    }

    async fn progress(
        &self,
        request: Request<v1::ProgressRequest>,
    ) -> Result<Response<v1::ProgressReply>, Status> {
        let caller = caller_of(&request)?;
        self.check_member(request.into_inner().hello, &caller)?;
        let behind = self.group.behind_here().await.map_err(|e| refused(&e))?;
        Ok(Response::new(v1::ProgressReply { behind: behind.into_iter().collect() }))
    }
}
