//! etcd of the distribution: three members on loopback with TLS, mutual between members, and the four calls of its
//! API that a load needs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::{Access, Client, Group};
use crate::bench::rivals::write_certificates;
use crate::cluster::{Lifetime, PATIENCE, PortLease, Process, wait_for};

/// What everything is written under.
const KEY: &[u8] = b"p2pcore/description";
/// As our Servers have them, in ms.
const HEARTBEAT: &str = "50";
const ELECTION: &str = "500";

/// Three members.
#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
    members: Vec<Member>,
    certificates: (PathBuf, PathBuf),
    tls: Arc<ClientConfig>,
    runtime: Runtime,
}

#[derive(Debug)]
struct Member {
    dir: PathBuf,
    client: PortLease,
    peer: PortLease,
    process: Option<Process>,
    id: u64,
}

impl Etcd {
    /// Starts three members with their data below `dir`; returns when they have a leader.
    ///
    /// # Errors
    /// When they do not start.
    pub fn start(program: &Path, dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let certificates = write_certificates(dir)?;
        let mut members = Vec::new();
        for nth in 1..=3 {
            let dir = dir.join(format!("e{nth}"));
            let (client, peer) = (PortLease::take()?, PortLease::take()?);
            members.push(Member { dir, client, peer, process: None, id: 0 });
        }
        let tls = Arc::new(tls(&certificates.0)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut etcd = Etcd { program: program.to_owned(), members, certificates, tls, runtime };
        for place in 0..etcd.members.len() {
            etcd.spawn(place)?;
        }
        etcd.wait_healthy()?;
        Ok(etcd)
    }

    /// The processes, in the order of the members.
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().filter_map(|member| Some(member.process.as_ref()?.pid())).collect()
    }

    fn spawn(&mut self, place: usize) -> anyhow::Result<()> {
        let initial: Vec<_> = (1..)
            .zip(&self.members)
            .map(|(nth, member)| format!("e{nth}=https://{}", member.peer.addr()))
            .collect();
        let (ca, certificate) = &self.certificates;
        let member = &mut self.members[place];
        let (client, peer) = (member.client.addr(), member.peer.addr());
        let name = format!("e{}", place + 1);
        let mut command = Command::new(&self.program);
        command
            .args(["--name", &name, "--data-dir"])
            .arg(&member.dir)
            .args(["--listen-client-urls", &format!("https://{client}")])
            .args(["--advertise-client-urls", &format!("https://{client}")])
            .args(["--listen-peer-urls", &format!("https://{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("https://{peer}")])
            .args(["--initial-cluster", &initial.join(","), "--initial-cluster-token", "bench"])
            .args(["--heartbeat-interval", HEARTBEAT, "--election-timeout", ELECTION])
            .args(["--logger", "zap", "--log-level", "error", "--enable-v2=false"]);
        // One file holds certificate and key; etcd takes from it what it looks for.
        for flag in ["--cert-file", "--key-file", "--peer-cert-file", "--peer-key-file"] {
            command.arg(flag).arg(certificate);
        }
        command.arg("--peer-client-cert-auth").arg("--peer-trusted-ca-file").arg(ca);
        let log = member.dir.with_extension("log");
        member.process = Some(Process::spawn(&name, command, &log, Lifetime::Bound)?);
        Ok(())
    }

    fn status(&self, place: usize) -> anyhow::Result<StatusResponse> {
        let access = self.access(place)?;
        let asked = async {
            let mut client = access.connect().await?;
            client.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await
        };
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), asked).await? })
    }
}

impl Group for Etcd {
    type Access = EtcdAccess;

    fn leader(&mut self) -> anyhow::Result<usize> {
        let running = (0..self.members.len()).find_map(|place| self.status(place).ok());
        let leader = running.context("no member answers")?.leader;
        self.members.iter().position(|member| member.id == leader).context("there is no leader")
    }

    fn access(&self, place: usize) -> anyhow::Result<EtcdAccess> {
        Ok(EtcdAccess { addr: self.members[place].client.addr(), tls: Arc::clone(&self.tls) })
    }

    fn process(&mut self, place: usize) -> anyhow::Result<&mut Process> {
        self.members[place].process.as_mut().context("this member does not run")
    }

    fn restart(&mut self, place: usize) -> anyhow::Result<()> {
        self.members[place].process = None;
        self.spawn(place)
    }

    fn wait_healthy(&mut self) -> anyhow::Result<()> {
        let statuses = wait_for("agreement of etcd's members", PATIENCE, || {
            let statuses: Vec<_> =
                (0..self.members.len()).map(|place| self.status(place)).collect::<anyhow::Result<_>>()?;
            let leader = statuses[0].leader;
            ensure!(leader != 0, "there is no leader");
            for status in &statuses {
                ensure!(status.leader == leader, "they name different leaders");
                ensure!(status.raft_applied_index + 50 >= statuses[0].raft_applied_index, "one is behind");
            }
            Ok(statuses)
        })?;
        for (member, status) in self.members.iter_mut().zip(statuses) {
            member.id = status.header.map_or(0, |header| header.member_id);
        }
        Ok(())
    }
}

/// A way to one member.
#[derive(Debug, Clone)]
pub struct EtcdAccess {
    addr: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Access for EtcdAccess {
    type Client = EtcdClient;

    async fn connect(&self) -> anyhow::Result<EtcdClient> {
        let (addr, tls) = (self.addr, Arc::clone(&self.tls));
        let connector = service_fn(move |_: Uri| {
            let tls = Arc::clone(&tls);
            async move {
                let stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::from(addr.ip());
                TlsConnector::from(tls).connect(name, stream).await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_shared(format!("https://{addr}"))?;
        Ok(EtcdClient { channel: endpoint.connect_with_connector(connector).await? })
    }
}

/// A connection to one member.
#[derive(Debug, Clone)]
pub struct EtcdClient {
    channel: Channel,
}

impl EtcdClient {
    async fn call<Q, A>(&mut self, path: &'static str, request: Q) -> anyhow::Result<A>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        Ok(grpc.unary(tonic::Request::new(request), path, codec).await?.into_inner())
    }
}

impl Client for EtcdClient {
    async fn write(&mut self, value: &str) -> anyhow::Result<()> {
        let request = PutRequest { key: KEY.to_vec(), value: value.as_bytes().to_vec() };
        let _: PutResponse = self.call("/etcdserverpb.KV/Put", request).await?;
        Ok(())
    }

    async fn read(&mut self) -> anyhow::Result<usize> {
        let answer: RangeResponse =
            self.call("/etcdserverpb.KV/Range", RangeRequest { key: KEY.to_vec() }).await?;
        match &answer.kvs[..] {
            [one] => Ok(one.value.len()),
            other => bail!("{} values were found", other.len()),
        }
    }
}

fn tls(ca: &Path) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

// The parts of etcd's API (rpc.proto of release 3.4) that are used here; what is left out is zero or ignored.

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
    #[prost(uint64, tag = "7")]
    raft_applied_index: u64,
}
