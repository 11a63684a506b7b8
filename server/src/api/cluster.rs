//! Look-ups: the Master, the Servers, the answering Server itself, the Peers and services here.
//!
//! Everything is read from what others publish. Only [`list_members`](Cluster::list_members) and
//! [`list_settings`](Cluster::list_settings) ask the leader first, unless a stale answer is asked for (SPEC C7).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use p2p_common::ErrorCode;
use p2p_common::setting::SettingName;
use p2p_proto::status::refuse;
use p2p_proto::v1::cluster_server::Cluster;
use p2p_proto::{convert, v1};
use p2p_server_core::{CallerKind, PeerListing, Viewer};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::ApiContext;
use super::gate::Caller;
use crate::hub_task::HubError;

/// The service.
#[derive(Debug)]
pub(super) struct ClusterApi {
    context: Arc<ApiContext>,
}

impl ClusterApi {
    pub(super) fn new(context: Arc<ApiContext>) -> Self {
        ClusterApi { context }
    }

    async fn peers_for<T>(&self, request: &Request<T>) -> Result<Vec<PeerListing>, Status> {
        let viewer = match Caller::of(request)? {
            Caller { kind: CallerKind::Peer, node: Some(peer), .. } => Viewer::Peer(peer.node_id),
            _ => Viewer::Operator,
        };
        self.context.hub.peers(viewer).await.map_err(|e: HubError| refuse(e.code(), e.to_string()))
    }
}

/// The end of a stream when this Server stops.
pub(super) fn draining() -> Status {
    refuse(ErrorCode::Draining, "this server is stopping: use another one")
}

#[tonic::async_trait]
impl Cluster for ClusterApi {
    async fn get_master(
        &self,
        _: Request<v1::GetMasterRequest>,
    ) -> Result<Response<v1::GetMasterReply>, Status> {
        let master = self.context.proposer.master().ok_or_else(|| {
            refuse(
                ErrorCode::Unavailable,
                "there is no Master as far as this server knows: is a quorum of servers running and connected?",
            )
        })?;
        Ok(Response::new(v1::GetMasterReply { master: Some(convert::master_to(&master)) }))
    }

    type WatchMasterStream = Pin<Box<dyn Stream<Item = Result<v1::WatchMasterReply, Status>> + Send>>;

    async fn watch_master(
        &self,
        _: Request<v1::WatchMasterRequest>,
    ) -> Result<Response<Self::WatchMasterStream>, Status> {
        let titles = WatchStream::new(self.context.proposer.watch_master());
        let replies =
            titles.map(|title| Ok(v1::WatchMasterReply { master: title.as_ref().map(convert::master_to) }));
        let until_stop = replies.take_until(self.context.stop.clone().cancelled_owned());
        Ok(Response::new(Box::pin(until_stop.chain(stream::iter([Err(draining())])))))
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersReply>, Status> {
        let stale = request.into_inner().stale;
        if !stale {
            self.context.read_barrier().await?;
        }
        // Its answer is part of what only the leader knows.
        let behind = if stale { BTreeMap::new() } else { self.context.group.behind().await };
        let view = self.context.proposer.view();
        let reach = Arc::clone(&self.context.reach.borrow());
        let now = self.context.clock.now();
        let status = |member: &p2p_common::member::Member| {
            let me = member.raft_id == view.raft_id;
            let reached = reach.of.get(&member.raft_id).map(|reached| reached.started);
            let started = if me { Some(self.context.clock.started()) } else { reached };
            let leads = view.status.leader == Some(member.raft_id);
            v1::MemberStatus {
                member: Some(convert::member_to(member)),
                role: convert::member_role_to(view.role_of(member.raft_id)).into(),
                connected: started.is_some(),
                uptime_ms: started
                    .map(|started| u64::try_from(now.since(started).as_millis()).unwrap_or(u64::MAX)),
                behind: if leads { Some(0) } else { behind.get(&member.raft_id).copied() },
            }
        };
        Ok(Response::new(v1::ListMembersReply {
            version: view.state.members_version,
            stale,
            members: view.state.members.values().map(status).collect(),
            master: self.context.proposer.master().as_ref().map(convert::master_to),
        }))
    }

    async fn list_settings(
        &self,
        request: Request<v1::ListSettingsRequest>,
    ) -> Result<Response<v1::ListSettingsReply>, Status> {
        let stale = request.into_inner().stale;
        if !stale {
            self.context.read_barrier().await?;
        }
        let state = &self.context.proposer.view().state;
        let settings = SettingName::ALL.into_iter().map(|name| v1::SettingStatus {
            name: name.to_string(),
            value: state.setting(name).to_owned(),
            revision: state.settings.get(&name).map_or(0, |setting| setting.revision),
            default_value: name.default_value().to_owned(),
            help: name.help().to_owned(),
        });
        Ok(Response::new(v1::ListSettingsReply {
            revision: state.settings_revision,
            stale,
            settings: settings.collect(),
        }))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusReply>, Status> {
        let view = self.context.proposer.view();
        let uptime = self.context.clock.uptime().as_millis();
        Ok(Response::new(v1::GetStatusReply {
            id: self.context.myself.id.to_string(),
            name: self.context.name.clone(),
            cluster_id: view.state.cluster_id.to_string(),
            epoch: view.state.epoch.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            raft_role: view.role_name().to_owned(),
            term: view.status.term,
            commit_index: view.committed,
            applied_index: view.applied,
            leader_id: view.leader().map(|leader| leader.id.to_string()).unwrap_or_default(),
            sessions: self.context.hub.sessions(),
            // A Server that needs its operator ends and says why; one that answers does not.
            needs_operator: String::new(),
            description: view.state.setting(SettingName::Description).to_owned(),
            clock_behind_ms: self.context.cluster_clock().ahead_ms(),
            certificate_expires_unix_ms: self.context.myself.credentials.dates().not_after.0,
        }))
    }

    async fn list_peers(
        &self,
        request: Request<v1::ListPeersRequest>,
    ) -> Result<Response<v1::ListPeersReply>, Status> {
        let status = |listing: &PeerListing| {
            let report = &listing.peer.entry.report;
            v1::PeerStatus {
                id: listing.peer.entry.id.to_string(),
                name: report.name.clone(),
                zone: report.zone.clone(),
                net: Some(convert::net_info_to(&report.net)),
                services: report.services.iter().map(convert::offer_to).collect(),
                since_unix_ms: listing.peer.since.0,
                seen_from: listing.peer.seen_from.to_string(),
                links: listing.links.iter().map(convert::link_to).collect(),
            }
        };
        let peers = self.peers_for(&request).await?;
        Ok(Response::new(v1::ListPeersReply { peers: peers.iter().map(status).collect() }))
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesReply>, Status> {
        let peers = self.peers_for(&request).await?;
        let services = peers.iter().flat_map(|listing| {
            let entry = &listing.peer.entry;
            entry.report.services.iter().map(|service| v1::ServiceStatus {
                name: service.name.to_string(),
                peer_id: entry.id.to_string(),
                peer_name: entry.report.name.clone(),
                zone: entry.report.zone.clone(),
                backend: service.backend.to_string(),
            })
        });
        let mut services: Vec<_> = services.collect();
        services.sort_by(|a, b| (&a.name, &a.peer_id).cmp(&(&b.name, &b.peer_id)));
        Ok(Response::new(v1::ListServicesReply { services }))
    }
}
