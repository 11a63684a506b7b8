//! How a test's own clients reach the gRPC face of a Server.

use std::time::Duration;

use anyhow::Context;
use p2p_common::addr::HostPort;
use p2p_proto::v1;
use p2p_proto::v1::cluster_client::ClusterClient;
use p2p_runtime::grpc::{ChannelParams, connect};
use p2p_runtime::identity::TrustBundle;
use p2p_runtime::tls::Connector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::ServerProcess;

/// Puts the token and the time-out into each request.
#[derive(Debug, Clone)]
pub struct Bearer {
    authorization: MetadataValue<Ascii>,
    call_timeout: Duration,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request.set_timeout(self.call_timeout);
        Ok(request)
    }
}

/// A connection to one Server, with a token. Cheap to clone.
pub type BearerChannel = InterceptedService<Channel, Bearer>;

/// How to reach one Server.
#[derive(Debug, Clone)]
pub struct Access {
    name: String,
    address: HostPort,
    connector: Connector,
    bearer: MetadataValue<Ascii>,
}

impl Access {
    /// With an operator token, over the certificate authority that the Server's data directory shows.
    ///
    /// # Errors
    /// When there is none yet.
    pub fn of(server: &ServerProcess, token: &str) -> anyhow::Result<Self> {
        let ca = std::fs::read(server.data().join("ca.pem")).context("reading ca.pem")?;
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {token}").parse()?;
        bearer.set_sensitive(true);
        Ok(Access {
            name: server.name().into(),
            address: HostPort::from(server.listen()),
            connector: Connector::public(&TrustBundle::from_pem(&ca)?)?,
            bearer,
        })
    }

    /// The Server's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A connection of its own, on which each call ends after `call_timeout` at the latest.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn channel(&self, call_timeout: Duration) -> anyhow::Result<BearerChannel> {
        let connection = connect(&self.connector, &self.address, &ChannelParams::default()).await?;
        let authorization = self.bearer.clone();
        Ok(InterceptedService::new(connection.channel, Bearer { authorization, call_timeout }))
    }

    /// The name of the Master that this Server names.
    ///
    /// # Errors
    /// When it does not answer, or names none.
    pub async fn master(&self, within: Duration) -> anyhow::Result<String> {
        let mut client = ClusterClient::new(self.channel(within).await?);
        let reply = client.get_master(v1::GetMasterRequest {}).await?.into_inner();
        Ok(reply.master.context("there is no Master")?.name)
    }
}
