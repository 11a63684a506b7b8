//! A connection of the command line to a Server.

use std::path::Path;
use std::time::{Duration, Instant};

use p2p_common::addr::HostPort;
use p2p_proto::v1::cluster_client::ClusterClient;
use p2p_proto::v1::operator_client::OperatorClient;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::grpc::{ChannelParams, connect};
use p2p_runtime::identity::TrustBundle;
use p2p_runtime::tls::Connector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::ClientArgs;

/// Where a Server leaves its API address for the command line.
pub(crate) const ADDRESS_FILE: &str = "api.addr";
/// Where a Server leaves an operator token that is good for its own run only.
pub(crate) const OPERATOR_TOKEN_FILE: &str = "operator.token";
/// A Server started just before, in the background of the same shell, gets this long to come up.
const COMING_UP_TIMEOUT: Duration = Duration::from_secs(3);
const COMING_UP_POLL: Duration = Duration::from_millis(50);
/// The trust bundle in a data directory.
const CA_FILE: &str = "ca.pem";

/// Adds the bearer token and the deadline to each call.
#[derive(Clone)]
pub(super) struct Bearer {
    value: MetadataValue<Ascii>,
    timeout: Option<Duration>,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.value.clone());
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        Ok(request)
    }
}

pub(super) type Authorised = InterceptedService<Channel, Bearer>;

/// One Server, reached and checked.
pub(super) struct Client {
    channel: Channel,
    bearer: Bearer,
    /// Where it is.
    pub(super) address: HostPort,
}

impl Client {
    /// Reaches the Server that `args` names; one of this host that is still coming up is waited for.
    pub(super) async fn reach(args: &ClientArgs) -> Result<Client, Exit> {
        let until = Instant::now() + COMING_UP_TIMEOUT.min(args.timeout);
        let mut told = false;
        loop {
            match (Client::reach_once(args).await, &args.data) {
                (Err(exit), Some(data)) if exit.is_unavailable() && Instant::now() < until => {
                    if !std::mem::replace(&mut told, true) {
                        eprintln!("p2p-server: waiting for the Server of {} to come up", data.display());
                    }
                    tokio::time::sleep(COMING_UP_POLL).await;
                }
                (reached, _) => return reached,
            }
        }
    }

    /// Reaches the Server that `args` names, or says at once why not.
    pub(super) async fn reach_once(args: &ClientArgs) -> Result<Client, Exit> {
        let Access { address, ca, token } = access(args)?;
        let trust = TrustBundle::from_pem(&ca).map_err(|e| Exit::usage(chain(&e)))?;
        // The `ca.pem` of its own directory leads to no other Server, and its clock may be why somebody asks.
        let connector =
            if args.server.is_none() { Connector::local(&trust) } else { Connector::public(&trust) };
        let connector = connector.map_err(|e| Exit::failed(chain(&e)))?;
        let params = ChannelParams { dial_timeout: args.timeout, ..ChannelParams::default() };
        let connection = connect(&connector, &address, &params).await.map_err(|e| {
            Exit::unavailable(format!("no answer from the Server at {address}: {}", chain(&e)))
        })?;
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| Exit::usage("the token has characters no token has"))?;
        value.set_sensitive(true);
        let bearer = Bearer { value, timeout: Some(args.timeout) };
        Ok(Client { channel: connection.channel, bearer, address })
    }

    /// Look-ups.
    pub(super) fn cluster(&self) -> ClusterClient<Authorised> {
        ClusterClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    /// Look-ups that go on without end.
    pub(super) fn watching(&self) -> ClusterClient<Authorised> {
        let bearer = Bearer { timeout: None, ..self.bearer.clone() };
        ClusterClient::with_interceptor(self.channel.clone(), bearer)
    }

    /// Changes.
    pub(super) fn operator(&self) -> OperatorClient<Authorised> {
        OperatorClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }
}

struct Access {
    address: HostPort,
    ca: Vec<u8>,
    token: String,
}

fn access(args: &ClientArgs) -> Result<Access, Exit> {
    if let Some(server) = &args.server {
        let address = server.parse().map_err(|e| Exit::usage(format!("--server: {e}")))?;
        // clap asks for both beside --server.
        let (Some(ca), Some(token)) = (&args.ca, &args.token) else {
            return Err(Exit::usage("--server needs --ca and --token"));
        };
        let ca = std::fs::read(ca)
            .map_err(|e| Exit::usage(format!("cannot read the CA file {}: {e}", ca.display())))?;
        return Ok(Access { address, ca, token: token.clone() });
    }
    let Some(data) = &args.data else { return Err(Exit::usage("give --data DIR or --server HOST:PORT")) };
    // A token in the environment is for other Servers: it may be a reader's, or another cluster's.
    let token = text(data, OPERATOR_TOKEN_FILE)?;
    let address = text(data, ADDRESS_FILE)?;
    let address = address
        .trim()
        .parse()
        .map_err(|e| Exit::failed(format!("{}: {e}", data.join(ADDRESS_FILE).display())))?;
    Ok(Access { address, ca: bytes(data, CA_FILE)?, token })
}

fn text(data: &Path, file: &str) -> Result<String, Exit> {
    String::from_utf8(bytes(data, file)?)
        .map_err(|_| Exit::failed(format!("{} is not text", data.join(file).display())))
}

fn bytes(data: &Path, file: &str) -> Result<Vec<u8>, Exit> {
    let path = data.join(file);
    std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Exit::unavailable(format!(
            "{} is not there: no Server has come up with this data directory yet; start one with `p2p-server run --data {} ...`",
            path.display(),
            data.display()
        )),
        std::io::ErrorKind::PermissionDenied => Exit::failed(format!(
            "{} may not be read: this command needs the rights of the Server's user, or --server, --ca and --token",
            path.display()
        )),
        _ => Exit::failed(format!("cannot read {}: {e}", path.display())),
    })
}

/// What a refused call means for the command.
pub(super) fn refused(status: Status) -> Exit {
    let message = match status.message() {
        "" => format!("the Server answered {}", status.code()),
        text => text.to_owned(),
    };
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Exit::unavailable(message),
        _ => Exit::failed(message),
    }
}

/// Asks until the answer is known. The call must carry a request id, which makes a repeat harmless.
pub(super) async fn until_known<T>(call: impl AsyncFn() -> Result<Response<T>, Status>) -> Result<T, Exit> {
    const TRIES: u32 = 20;
    const AGAIN: Duration = Duration::from_millis(250);
    let mut tried = 0;
    loop {
        match call().await {
            Ok(reply) => return Ok(reply.into_inner()),
            // An election takes a moment.
            Err(status) if status.code() == Code::Unavailable && tried < TRIES => {
                tried += 1;
                tokio::time::sleep(AGAIN).await;
            }
            Err(status) => return Err(refused(status)),
        }
    }
}

/// Names a request.
pub(super) fn random_uuid() -> Result<Uuid, Exit> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(Exit::failed)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}
