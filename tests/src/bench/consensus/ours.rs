//! Three of our Servers, written to and read from as an operator does.

use std::time::Duration;

use anyhow::{Context, ensure};
use p2p_common::addr::HostPort;
use p2p_proto::v1;
use p2p_proto::v1::cluster_client::ClusterClient;
use p2p_proto::v1::operator_client::OperatorClient;
use p2p_runtime::grpc::{ChannelParams, connect};
use p2p_runtime::identity::TrustBundle;
use p2p_runtime::tls::Connector;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::{Access, Client, Group};
use crate::cluster::{Cluster, PATIENCE, Process, Start};

/// What everything is written under.
const SETTING: &str = "description";

/// Three Servers.
#[derive(Debug)]
pub struct OurServers {
    cluster: Cluster,
    bearer: MetadataValue<Ascii>,
}

impl OurServers {
    /// Starts three Servers; returns when they agree.
    ///
    /// # Errors
    /// When they do not.
    pub fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start(3)?;
        let token = cluster.servers[0].token("operator", 1, "24h")?;
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {token}").parse()?;
        bearer.set_sensitive(true);
        Ok(OurServers { cluster, bearer })
    }

    /// The processes, in the order of the Servers.
    pub fn pids(&mut self) -> Vec<u32> {
        let servers = self.cluster.servers.iter_mut();
        servers.filter_map(|server| Some(server.process_if_started()?.pid())).collect()
    }

    /// Adds the last lines of every Server's log to an error.
    ///
    /// # Errors
    /// The one that was given.
    pub fn explain<T>(&mut self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        self.cluster.explain(result)
    }
}

impl Group for OurServers {
    type Access = ServerAccess;

    fn leader(&mut self) -> anyhow::Result<usize> {
        self.cluster.master()
    }

    fn access(&self, place: usize) -> anyhow::Result<ServerAccess> {
        let server = &self.cluster.servers[place];
        let ca = std::fs::read(server.data().join("ca.pem")).context("reading ca.pem")?;
        Ok(ServerAccess {
            address: HostPort::from(server.listen()),
            connector: Connector::public(&TrustBundle::from_pem(&ca)?)?,
            bearer: self.bearer.clone(),
        })
    }

    fn process(&mut self, place: usize) -> anyhow::Result<&mut Process> {
        self.cluster.servers[place].process_mut()
    }

    fn restart(&mut self, place: usize) -> anyhow::Result<()> {
        self.cluster.servers[place].start(Start::Again)
    }

    fn wait_healthy(&mut self) -> anyhow::Result<()> {
        self.cluster.wait_agreed(PATIENCE)
    }
}

/// A way to one Server.
#[derive(Debug, Clone)]
pub struct ServerAccess {
    address: HostPort,
    connector: Connector,
    bearer: MetadataValue<Ascii>,
}

impl Access for ServerAccess {
    type Client = ServerClient;

    async fn connect(&self) -> anyhow::Result<ServerClient> {
        let connection = connect(&self.connector, &self.address, &ChannelParams::default()).await?;
        Ok(ServerClient { channel: connection.channel, bearer: self.bearer.clone() })
    }
}

/// A connection to one Server.
#[derive(Debug, Clone)]
pub struct ServerClient {
    channel: Channel,
    bearer: MetadataValue<Ascii>,
}

impl ServerClient {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request.set_timeout(Duration::from_secs(10));
        request
    }
}

impl Client for ServerClient {
    async fn write(&mut self, value: &str) -> anyhow::Result<()> {
        let request = v1::ChangeSettingRequest {
            request_id: uuid::Uuid::new_v4().to_string(),
            name: SETTING.to_owned(),
            value: Some(value.to_owned()),
            expected: None,
        };
        OperatorClient::new(self.channel.clone()).change_setting(self.request(request)).await?;
        Ok(())
    }

    async fn read(&mut self) -> anyhow::Result<usize> {
        let request = self.request(v1::ListSettingsRequest { stale: false });
        let answer = ClusterClient::new(self.channel.clone()).list_settings(request).await?.into_inner();
        let setting = answer.settings.iter().find(|setting| setting.name == SETTING);
        ensure!(!answer.stale, "a stale answer was not asked for");
        Ok(setting.context("the setting is not there")?.value.len())
    }
}
