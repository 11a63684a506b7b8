//! What a Peer is told: the raw layers (flag over environment over file over default, SPEC O3) and the checked
//! [`PeerConfig`] made of them.
//!
//! Environment variables are `P2P_PEER_` and the key in upper case; the file is TOML with the same keys.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use p2p_common::addr::{HostPort, NetInfo};
use p2p_common::service::{LocalService, Visibility};
use p2p_common::{NodeId, NodeKind};
use p2p_peer_core::{Mesh, OnServersLost, OwnServices, PEER_PORT, PrintTables};
use p2p_runtime::identity::Token;
use p2p_runtime::logger::{LogFormat, parse_level};
use p2p_runtime::settings::{BadSetting, bad, host_ports, join_token, name, own_id, socket};
use serde::{Deserialize, Serialize};

use crate::ingress::SourceRanges;

/// What the prefix of the environment variables is.
pub const ENVIRONMENT_PREFIX: &str = "P2P_PEER_";

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

    /// A service of this host for others to reach by name; repeatable
    #[arg(long = "service", value_name = "NAME=HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,

    /// Sources whose clients are served, addresses or ranges; repeatable [default: this host]
    #[arg(long, value_name = "RANGE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clients_allow: Vec<String>,

    /// Link to other Peers ahead of need: full (all), lazy (none), auto (all while they are at most 32)
    /// [default: auto]
    #[arg(long, value_name = "MESH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,

    /// Without any Server for 30 s: stop (new work to other Peers), keep-direct (go on) [default: stop]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_servers_lost: Option<String>,

    /// Log the tables at each change: full, change (changed rows), off [default: full]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub print_tables: Option<String>,

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
    /// Where other Peers and clients are served.
    pub listen: SocketAddr,
    /// Addresses others are told, ahead of those of the interfaces.
    pub advertise: Vec<HostPort>,
    /// Where health and metrics are served.
    pub metrics: SocketAddr,
    /// The services of this Peer.
    pub services: OwnServices,
    /// Whose clients are served.
    pub clients_allow: SourceRanges,
    /// Which Peers are linked ahead of need.
    pub mesh: Mesh,
    /// What happens without Servers.
    pub on_servers_lost: OnServersLost,
    /// What a change of the tables logs.
    pub print_tables: PrintTables,
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
        name("name", self.name.as_deref())?;
        name("zone", self.zone.as_deref())?;
        if self.advertise.len() > NetInfo::CANDIDATES_MAX {
            return Err(bad("advertise", format!("at most {} addresses", NetInfo::CANDIDATES_MAX)));
        }
        Ok(PeerConfig {
            data,
            name: self.name,
            id: self.id.as_deref().map(|text| own_id(NodeKind::Peer, text)).transpose()?,
            zone: self.zone.unwrap_or_default(),
            servers: host_ports("servers", &self.servers)?,
            token,
            // Other Peers must reach it; what clients may do is a matter of clients_allow.
            listen: socket("listen", self.listen.as_deref(), (Ipv4Addr::UNSPECIFIED, PEER_PORT))?,
            advertise: host_ports("advertise", &self.advertise)?,
            // Health and metrics say much and ask for no credentials: loopback only.
            metrics: socket("metrics", self.metrics.as_deref(), (Ipv4Addr::LOCALHOST, 9090))?,
            services: own_services(&self.services)?,
            // Who is on this host could reach what it reaches anyway.
            clients_allow: match &self.clients_allow[..] {
                [] => SourceRanges::loopback(),
                texts => {
                    let words = texts.iter().flat_map(|text| text.split(','));
                    SourceRanges::parse(words).map_err(|e| bad("clients_allow", e))?
                }
            },
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
            print_tables: match self.print_tables.as_deref().unwrap_or("full") {
                // A table of a few rows says more than its change.
                "full" => PrintTables::Full,
                "change" => PrintTables::Change,
                "off" => PrintTables::Off,
                other => {
                    return Err(bad("print_tables", format!("'{other}' is none of full, change and off")));
                }
            },
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

fn own_services(texts: &[String]) -> Result<OwnServices, BadSetting> {
    let services = texts.iter().map(|text| text.parse::<LocalService>().map_err(|e| bad("service", e)));
    let services = services.collect::<Result<Vec<_>, _>>()?;
    OwnServices::new(services.into_iter().map(|service| (service, Visibility::Cluster)))
        .map_err(|e| bad("service", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> RawConfig {
        RawConfig { data: Some("/data".into()), ..RawConfig::default() }
    }

    #[test]
    fn defaults_are_closed_where_no_credentials_are_asked() {
        let config = minimal().validate().unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:6443");
        assert!(config.metrics.ip().is_loopback());
        assert!(!config.clients_allow.contains("10.0.0.1".parse().unwrap()));
        assert!(config.clients_allow.contains("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn each_wrong_setting_is_named() {
        for (raw, setting) in [
            (RawConfig::default(), "data"),
            (RawConfig { id: Some("C1".into()), ..minimal() }, "id"),
            (RawConfig { id: Some("S6ba7b810-9dad-11d1-80b4-00c04fd430c8".into()), ..minimal() }, "id"),
            (RawConfig { listen: Some("localhost".into()), ..minimal() }, "listen"),
            (RawConfig { servers: vec!["h".into()], ..minimal() }, "servers"),
            (RawConfig { token: Some("x".into()), ..minimal() }, "token"),
            (RawConfig { zone: Some("a\nb".into()), ..minimal() }, "zone"),
            (RawConfig { services: vec!["web".into()], ..minimal() }, "service"),
            (RawConfig { services: vec!["a=h:1".into(), "A=h:2".into()], ..minimal() }, "service"),
            (RawConfig { clients_allow: vec!["lan".into()], ..minimal() }, "clients_allow"),
            (RawConfig { mesh: Some("star".into()), ..minimal() }, "mesh"),
            (RawConfig { on_servers_lost: Some("panic".into()), ..minimal() }, "on_servers_lost"),
            (RawConfig { print_tables: Some("no".into()), ..minimal() }, "print_tables"),
            (RawConfig { log_level: Some("loud".into()), ..minimal() }, "log_level"),
        ] {
            assert_eq!(raw.validate().unwrap_err().setting, setting);
        }
    }
}
