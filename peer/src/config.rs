//! What a Peer is told: the raw layers (flag over environment over file over default, SPEC O3) and the checked
//! [`PeerConfig`] made of them.
//!
//! Environment variables are `P2P_PEER_` and the key in upper case; those of the seed's own project (`REMOTE_PEER_ADDR`
//! and others, see [`VARIABLES`]) are read too and count less. The file is TOML with the same keys.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use p2p_common::addr::{HostPort, NetInfo};
use p2p_common::service::{LocalService, Visibility};
use p2p_common::{NodeId, NodeKind};
use p2p_peer_core::{Heartbeat, Mesh, OnServersLost, OwnServices, PEER_PORT, PrintTables};
use p2p_runtime::config::VariableNames;
use p2p_runtime::identity::Token;
use p2p_runtime::logger::{LogFormat, parse_level};
use p2p_runtime::mesh_key::MeshKey;
use p2p_runtime::settings::{BadSetting, bad, host_ports, join_token, name, own_id, secret, socket};
use serde::{Deserialize, Serialize};

use crate::forward::AccessLog;
use crate::ingress::{BINDS_MAX, Bind, SourceRanges};

/// The environment variables that are read. Those without the prefix are what a deployment of the seed's own project
/// has set already.
pub const VARIABLES: VariableNames = VariableNames {
    prefix: "P2P_PEER_",
    others: &[
        ("REMOTE_PEER_ADDR", "remote_peers"),
        ("SERVICE_ADDR", "services"),
        ("PEER_NAME", "name"),
        ("PEER_ID", "id"),
        ("PEER_MESH_KEY", "mesh_key"),
        ("PEER_BIND_ADDR", "listen"),
        ("PEER_LISTEN_ADDRESS", "metrics"),
        ("PEER_TELEMETRY_PATH", "telemetry_path"),
        ("PEER_RECONNECT_INTERVAL_SECONDS", "reconnect_interval_seconds"),
        ("PEER_MAX_RECONNECT", "max_reconnect"),
        ("PEER_HEARTBEAT_INTERVAL_SECONDS", "heartbeat_interval_seconds"),
        ("PEER_CONNECTION_TIMEOUT_SECONDS", "connection_timeout_seconds"),
        ("LOG_LEVEL", "log_level"),
        ("LOG_FORMAT", "log_format"),
    ],
};

/// More addresses than this are another kind of configuration: a list of what is there, which Servers keep.
const REMOTE_PEERS_MAX: usize = 64;
/// Longer waits or silences are a mistake of units.
const SECONDS_MAX: u64 = 3_600;
/// Servers, and Peers with other settings, call 30 s of silence offline: three heartbeats must fit.
const HEARTBEAT_SECONDS_MAX: u64 = 10;

/// One layer of settings; every key is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Directory of this Peer's identity, key and agent socket; made if missing
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,

    /// What people call this Peer [default: the host's name]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,

    /// Its Id, C and a UUID [default: drawn at the first start and kept in the data directory]
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,

    /// Peers to link with, without any Server or beside them; each may be a load balancer in front of one
    #[arg(long = "remote-peer", value_name = "HOST:PORT,...", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remote_peers: Vec<String>,

    /// Show linked Peers each other's services, and carry requests between them [default: no]
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transit: Option<bool>,

    /// Key of a mesh without Servers, as `p2p-peer mesh-key` prints it; better in the environment (PEER_MESH_KEY)
    #[arg(long, value_name = "KEY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_key: Option<String>,

    /// File with the mesh key
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_key_file: Option<PathBuf>,

    /// Room or region of this Peer; own zone first where several Peers have a service [default: none]
    #[arg(long, value_name = "ZONE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,

    /// Servers to begin with; any one that answers does, the others are learned from it
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,

    /// Join token of role peer, for the first start; better in the environment (P2P_PEER_TOKEN) or in token_file
    #[arg(long, value_name = "TOKEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,

    /// File with the join token
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,

    /// The one port for other Peers and for clients [default: 0.0.0.0:6443]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,

    /// Address other Peers are told to dial, also a DNS name; repeatable [default: those of the interfaces]
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advertise: Vec<String>,

    /// Health and metrics over HTTP [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,

    /// A service of this host for others to reach by name; repeatable. Behind it, separated by a space, may stand
    /// check=tcp or check=http:/PATH, and visibility=linked, cluster, private or ids:C..,C..
    #[arg(long = "service", value_name = "NAME=HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,

    /// Path of the metrics there [default: /metrics]
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telemetry_path: Option<String>,

    /// Sources whose clients are served, addresses or ranges; repeatable [default: this host]
    #[arg(long, value_name = "RANGE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clients_allow: Vec<String>,

    /// A port of this host for one service, for protocols that name none; a bare port is one of 127.0.0.1; repeatable
    #[arg(long, value_name = "ADDR=NAME")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bind: Vec<String>,

    /// Load balancers that say in a PROXY header whose connection they pass on, addresses or ranges; repeatable
    /// [default: none]
    #[arg(long, value_name = "RANGE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol_from: Vec<String>,

    /// Link to other Peers ahead of need: full (all), lazy (none), auto (all while they are at most 32)
    /// [default: auto]
    #[arg(long, value_name = "MESH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,

    /// Without any Server for 30 s: stop (new work to other Peers), keep-direct (go on) [default: stop]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_servers_lost: Option<String>,

    /// Tunnels in use to one other Peer at a time; further forwards wait for one [default: 1024]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels_per_remote: Option<usize>,

    /// Seconds between two attempts at a remote peer [default: 5]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect_interval_seconds: Option<u64>,

    /// Attempts in a row at a remote peer before it is given up; 0 is for ever [default: 0]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_reconnect: Option<u32>,

    /// Seconds without data after which a connection to a Server or a linked Peer gets a heartbeat [default: 3]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval_seconds: Option<u64>,

    /// Seconds of silence after which a Server or a linked Peer counts as offline [default: 30]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_timeout_seconds: Option<u64>,

    /// Log the tables at each change: full, change (changed rows), off [default: full]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub print_tables: Option<String>,

    /// Log forwards at their end: all, failed (those that did not end in order), off [default: failed]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<String>,

    /// error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,

    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<String>,
}

/// What a Peer runs with. Immutable.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Its data directory.
    pub data: PathBuf,
    /// What people call it; `None`: as stored, else the host's name.
    pub name: Option<String>,
    /// Its Id; `None`: as stored, else drawn.
    pub id: Option<NodeId>,
    /// Its room or region; empty when not set.
    pub zone: String,
    /// Servers to begin with, tried in this order.
    pub servers: Vec<HostPort>,
    /// The token to enrol with; not needed once enrolled.
    pub token: Option<Token>,
    /// Where Peers are dialled for mesh links.
    pub remote_peers: Vec<HostPort>,
    /// Whether linked Peers reach each other through this one.
    pub transit: bool,
    /// By what Peers without Servers know each other.
    pub mesh_key: Option<MeshKey>,
    /// Where other Peers and clients are served.
    pub listen: SocketAddr,
    /// Addresses others are told, ahead of those of the interfaces.
    pub advertise: Vec<HostPort>,
    /// Where health and metrics are served.
    pub metrics: SocketAddr,
    /// Under which path the metrics are.
    pub telemetry_path: String,
    /// The services of this Peer.
    pub services: OwnServices,
    /// Who sees those that say nothing of it.
    pub visibility: Visibility,
    /// Whose clients are served.
    pub clients_allow: SourceRanges,
    /// Ports bound to one service each, at most 256.
    pub binds: Vec<Bind>,
    /// Who must say, in a PROXY header, whose connection it passes on.
    pub proxy_protocol_from: SourceRanges,
    /// Which Peers are linked ahead of need.
    pub mesh: Mesh,
    /// What happens without Servers.
    pub on_servers_lost: OnServersLost,
    /// Tunnels in use to one other Peer at a time; it may have twice as many to here, the idle ones included.
    pub tunnels_per_remote: usize,
    /// When connections without data speak, and when they count as lost.
    pub heartbeat: Heartbeat,
    /// The wait between two attempts at a remote peer.
    pub reconnect_interval: Duration,
    /// After so many in a row it is given up; `None` is never.
    pub max_reconnect: Option<u32>,
    /// What a change of the tables logs.
    pub print_tables: PrintTables,
    /// Which forwards are logged.
    pub access_log: AccessLog,
    /// From which level on records are logged.
    pub log_level: slog::Level,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl RawConfig {
    /// Fills in the defaults and checks every setting.
    ///
    /// # Errors
    /// The first setting that is missing or makes no sense.
    pub fn validate(self) -> Result<PeerConfig, BadSetting> {
        let data = self.data.ok_or_else(|| {
            bad("data", "no data directory is given: add --data DIR, for example --data /var/lib/p2p-peer")
        })?;
        let token = join_token(NodeKind::Peer, self.token.as_deref(), self.token_file.as_deref())?;
        let mesh_key =
            secret(("mesh_key", "mesh_key_file"), self.mesh_key.as_deref(), self.mesh_key_file.as_deref())?;
        name("name", self.name.as_deref())?;
        name("zone", self.zone.as_deref())?;
        if self.advertise.len() > NetInfo::CANDIDATES_MAX {
            return Err(bad("advertise", format!("at most {} addresses", NetInfo::CANDIDATES_MAX)));
        }
        let remote_peers = host_ports("remote_peers", &self.remote_peers)?;
        if remote_peers.len() > REMOTE_PEERS_MAX {
            let reason =
                format!("at most {REMOTE_PEERS_MAX} addresses; Servers introduce any number of Peers");
            return Err(bad("remote_peers", reason));
        }
        let visibility = default_visibility(&remote_peers);
        // The seed's figures.
        let every = seconds(
            "heartbeat_interval_seconds",
            self.heartbeat_interval_seconds,
            3,
            1..=HEARTBEAT_SECONDS_MAX,
        )?;
        let silence =
            seconds("connection_timeout_seconds", self.connection_timeout_seconds, 30, 2..=SECONDS_MAX)?;
        // One lost heartbeat is no lost Peer.
        if silence < every * 2 {
            let reason =
                format!("{} s is less than two heartbeats of {} s", silence.as_secs(), every.as_secs());
            return Err(bad("connection_timeout_seconds", reason));
        }
        Ok(PeerConfig {
            data,
            name: self.name,
            id: self.id.as_deref().map(|text| own_id(NodeKind::Peer, text)).transpose()?,
            zone: self.zone.unwrap_or_default(),
            servers: host_ports("servers", &self.servers)?,
            token,
            remote_peers,
            // Who carries for others is their operator's decision.
            transit: self.transit.unwrap_or(false),
            mesh_key,
            // Other Peers must reach it; what clients may do is a matter of clients_allow.
            listen: socket("listen", self.listen.as_deref(), (Ipv4Addr::UNSPECIFIED, PEER_PORT))?,
            advertise: host_ports("advertise", &self.advertise)?,
            // Health and metrics say much and ask for no credentials: loopback only.
            metrics: socket("metrics", self.metrics.as_deref(), (Ipv4Addr::LOCALHOST, 9090))?,
            telemetry_path: telemetry_path(self.telemetry_path.as_deref())?,
            services: own_services(&self.services, &visibility)?,
            visibility,
            // Who is on this host could reach what it reaches anyway.
            clients_allow: match &self.clients_allow[..] {
                [] => SourceRanges::loopback(),
                texts => ranges("clients_allow", texts)?,
            },
            binds: binds(&self.bind)?,
            // Whoever is believed here says from where every client comes.
            proxy_protocol_from: ranges("proxy_protocol_from", &self.proxy_protocol_from)?,
            mesh: match self.mesh.as_deref().unwrap_or("auto") {
                "full" => Mesh::Full,
                "lazy" => Mesh::Lazy,
                // Links to some tens of Peers cost little, links to thousands do not.
                "auto" => Mesh::Auto,
                other => return Err(bad("mesh", format!("'{other}' is none of full, lazy and auto"))),
            },
            on_servers_lost: match self.on_servers_lost.as_deref().unwrap_or("stop") {
                // Without Servers nobody says who was revoked.
                "stop" => OnServersLost::Stop,
                "keep-direct" => OnServersLost::KeepDirect,
                other => {
                    return Err(bad("on_servers_lost", format!("'{other}' is neither stop nor keep-direct")));
                }
            },
            // One busy Peer must not take all connections of another.
            tunnels_per_remote: match self.tunnels_per_remote.unwrap_or(1_024) {
                count @ 1..=65_536 => count,
                other => return Err(bad("tunnels_per_remote", format!("{other} is not from 1 to 65536"))),
            },
            heartbeat: Heartbeat { every, silence },
            reconnect_interval: seconds(
                "reconnect_interval_seconds",
                self.reconnect_interval_seconds,
                5,
                1..=SECONDS_MAX,
            )?,
            // A Peer that is away for a day shall be linked when it is back.
            max_reconnect: self.max_reconnect.filter(|max| *max > 0),
            print_tables: match self.print_tables.as_deref().unwrap_or("full") {
                // A table of a few rows says more than its change.
                "full" => PrintTables::Full,
                "change" => PrintTables::Change,
                "off" => PrintTables::Off,
                other => {
                    return Err(bad("print_tables", format!("'{other}' is none of full, change and off")));
                }
            },
            // One line for each of thousands a second is for those who ask; what failed, somebody will ask about.
            access_log: self
                .access_log
                .as_deref()
                .unwrap_or("failed")
                .parse()
                .map_err(|e| bad("access_log", e))?,
            // What a user feels is logged at info; debug shows every decision.
            log_level: parse_level(self.log_level.as_deref().unwrap_or("info"))
                .map_err(|e| bad("log_level", e))?,
            log_format: self
                .log_format
                .as_deref()
                .unwrap_or("text")
                .parse()
                .map_err(|e: String| bad("log_format", e))?,
        })
    }
}

fn seconds(
    setting: &'static str,
    given: Option<u64>,
    default: u64,
    range: RangeInclusive<u64>,
) -> Result<Duration, BadSetting> {
    let seconds = given.unwrap_or(default);
    if !range.contains(&seconds) {
        let reason = format!("{seconds} is not from {} to {} seconds", range.start(), range.end());
        return Err(bad(setting, reason));
    }
    Ok(Duration::from_secs(seconds))
}

/// Where Prometheus looks by itself, unless it is told otherwise.
fn telemetry_path(text: Option<&str>) -> Result<String, BadSetting> {
    let path = text.unwrap_or("/metrics");
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.');
    let fits = path.starts_with('/') && (2..=128).contains(&path.len()) && path.bytes().all(plain);
    match path {
        "/healthz" | "/readyz" => Err(bad("telemetry_path", format!("{path} is taken by another page"))),
        path if fits => Ok(path.to_owned()),
        path => {
            let text: String = path.chars().take(64).collect();
            Err(bad("telemetry_path", format!("'{text}' is no path: expected one like /metrics")))
        }
    }
}

fn ranges(setting: &'static str, texts: &[String]) -> Result<SourceRanges, BadSetting> {
    SourceRanges::parse(texts.iter().flat_map(|text| text.split(','))).map_err(|e| bad(setting, e))
}

fn binds(texts: &[String]) -> Result<Vec<Bind>, BadSetting> {
    let binds = texts.iter().map(|text| text.parse::<Bind>().map_err(|e| bad("bind", e)));
    let binds = binds.collect::<Result<Vec<_>, _>>()?;
    if binds.len() > BINDS_MAX {
        return Err(bad("bind", format!("at most {BINDS_MAX} ports")));
    }
    for (at, bind) in binds.iter().enumerate() {
        if bind.addr.port() != 0 && binds[..at].iter().any(|other| other.addr == bind.addr) {
            return Err(bad("bind", format!("{} is bound twice", bind.addr)));
        }
    }
    Ok(binds)
}

/// Who sees what says nothing of it: linked Peers on a Peer that was given some to link with, else all of the cluster.
fn default_visibility(remote_peers: &[HostPort]) -> Visibility {
    if remote_peers.is_empty() { Visibility::Cluster } else { Visibility::Linked }
}

/// Services in either way of writing: NAME=HOST:PORT with words behind it, or HOST:PORT and NAME:HOST:PORT, separated by
/// commas, as SERVICE_ADDR has them.
fn own_services(texts: &[String], visibility: &Visibility) -> Result<OwnServices, BadSetting> {
    let mut services = Vec::new();
    for text in texts {
        if text.contains('=') {
            services.push(text.parse::<LocalService>().map_err(|e| bad("services", e))?);
        } else {
            services.extend(LocalService::parse_list(text).map_err(|e| bad("services", e))?);
        }
    }
    OwnServices::new(services, visibility).map_err(|e| bad("services", e))
}

#[cfg(test)]
mod tests;
