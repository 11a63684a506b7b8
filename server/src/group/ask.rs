//! What operators ask of the group at any Server, carried to whoever leads.

use std::collections::BTreeMap;
use std::time::Duration;

use p2p_common::member::RaftId;
use p2p_common::{ErrorCode, NodeId, RequestId};
use p2p_proto::status::code_of;
use p2p_proto::v1::peering_client::PeeringClient;
use p2p_proto::{convert, v1};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::Group;
use crate::raft::ProposeError;

/// For all tries together: losing a vote, an election, another one.
const TIMEOUT: Duration = Duration::from_secs(9);
/// For a look that is an extra.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two tries.
const REST: Duration = Duration::from_millis(50);

impl Group {
    /// Takes a member out, whoever leads. Repeated until the answer is known. A Server that takes itself out stops
    /// afterwards: see [`Group::left`].
    ///
    /// # Errors
    /// When it is refused, or nobody leads for too long.
    pub async fn remove(&self, request_id: RequestId, id: NodeId) -> Result<(), ProposeError> {
        let until = Instant::now() + TIMEOUT;
        loop {
            let answer = match self.leader()? {
                None => Err(ProposeError::NoLeader),
                Some(Leader::Me) => self.remove_here(request_id, id).await,
                Some(Leader::Other(leader)) => {
                    let message = |hello| v1::RemoveRequest {
                        hello: Some(hello),
                        request_id: request_id.to_string(),
                        id: id.to_string(),
                    };
                    let call =
                        async |mut client: PeeringClient<Channel>, request| client.remove(request).await;
                    self.ask(leader, TIMEOUT, message, call).await.map(|_: v1::RemoveReply| ())
                }
            };
            match answer {
                Err(error) if error.is_retriable() && Instant::now() < until => {
                    tokio::time::sleep(REST).await
                }
                Ok(()) if id == self.shared.remotes.myself().id => {
                    self.shared.left.cancel();
                    return Ok(());
                }
                answer => return answer,
            }
        }
    }

    /// Hands the leadership over, whoever has it, to `to` or the best voter. Returns who leads then.
    ///
    /// # Errors
    /// When nobody leads, or it is refused.
    pub async fn transfer(&self, to: Option<RaftId>) -> Result<RaftId, ProposeError> {
        let until = Instant::now() + TIMEOUT;
        loop {
            let answer = match self.leader()? {
                None => Err(ProposeError::NoLeader),
                Some(Leader::Me) => self.transfer_here(to).await,
                Some(Leader::Other(leader)) => {
                    let message =
                        |hello| v1::TransferRequest { hello: Some(hello), to: to.unwrap_or_default() };
                    let call =
                        async |mut client: PeeringClient<Channel>, request| client.transfer(request).await;
                    let reply: Result<v1::TransferReply, _> = self.ask(leader, TIMEOUT, message, call).await;
                    reply.map(|reply| reply.leader)
                }
            };
            match answer {
                // Once begun it may have happened: a second one would move it on.
                Err(error @ (ProposeError::NoLeader | ProposeError::NotLeader)) if Instant::now() < until => {
                    drop(error);
                    tokio::time::sleep(REST).await;
                }
                answer => return answer,
            }
        }
    }

    /// How many entries each member lacks, as the leader sees it; empty when it cannot be asked.
    pub async fn behind(&self) -> BTreeMap<RaftId, u64> {
        let behind = match self.leader() {
            Ok(Some(Leader::Me)) => self.behind_here().await,
            Ok(Some(Leader::Other(leader))) => {
                let message = |hello| v1::ProgressRequest { hello: Some(hello) };
                let call = async |mut client: PeeringClient<Channel>, request| client.progress(request).await;
                let reply: Result<v1::ProgressReply, _> = self.ask(leader, LOOK_TIMEOUT, message, call).await;
                reply.map(|reply| reply.behind.into_iter().collect())
            }
            Ok(None) | Err(_) => Ok(BTreeMap::new()),
        };
        behind.unwrap_or_default()
    }

    fn leader(&self) -> Result<Option<Leader>, ProposeError> {
        let view = self.shared.proposer.view();
        Ok(match view.status.leader {
            Some(leader) if leader == view.raft_id => Some(Leader::Me),
            Some(leader) => Some(Leader::Other(leader)),
            None => None,
        })
    }

    /// One call at another Server.
    async fn ask<Q, A>(
        &self,
        leader: RaftId,
        timeout: Duration,
        message: impl FnOnce(v1::Hello) -> Q,
        call: impl AsyncFnOnce(PeeringClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, ProposeError> {
        let remotes = &self.shared.remotes;
        let (id, channel) = remotes.channel(leader).ok_or(ProposeError::NoLeader)?;
        let hello = convert::hello_to(&remotes.myself().hello(Some(id)));
        let mut request = Request::new(message(hello));
        request.set_timeout(timeout);
        let reply =
            call(PeeringClient::new(channel), request).await.map_err(|refused| match code_of(&refused) {
                Some(ErrorCode::NotLeader) => ProposeError::NotLeader,
                Some(code) => ProposeError::Leader { code, message: refused.message().to_owned() },
                None => ProposeError::OutcomeUnknown,
            })?;
        Ok(reply.into_inner())
    }
}

enum Leader {
    Me,
    Other(RaftId),
}
