//! What a Server is told: the raw layers (flag over environment over file over default, SPEC O3) and the
//! checked [`ServerConfig`] made of them.
//!
//! Environment variables are `P2P_SERVER_` and the key in upper case; the file is TOML with the same keys.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use p2p_common::addr::HostPort;
use p2p_common::member::Member;
use p2p_common::{NodeId, NodeKind};
use p2p_runtime::ca::CaSecret;
use p2p_runtime::config::VariableNames;
use p2p_runtime::identity::Token;
use p2p_runtime::logger::{LogFormat, parse_level};
use p2p_runtime::settings::{BadSetting, bad, host_ports, join_token, name, own_id, secret, socket};
use serde::{Deserialize, Serialize};

/// The environment variables that are read.
pub const VARIABLES: VariableNames = VariableNames {
    prefix: "P2P_SERVER_",
    others: &[("P2P_CA_SECRET", "ca_secret"), ("P2P_CA_SECRET_FILE", "ca_secret_file")],
};

/// One layer of settings; every key is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Directory of this Server's identity, keys and raft state; made if missing
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,

    /// What people call this Server [default: the host's name]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,

    /// Its Id, S and a UUID [default: drawn at the first start and kept in the data directory]
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,

    /// Room or region of this Server [default: none]
    #[arg(long, value_name = "ZONE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,

    /// API port: gRPC for nodes, operators and readers [default: 0.0.0.0:7400]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,

    /// Address others reach the API port at, also a DNS name; repeatable [default: the listening address,
    /// or the interfaces' when it is unspecified]
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advertise: Vec<String>,

    /// Health and metrics over HTTP [default: 127.0.0.1:7480]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<String>,

    /// Registry over HTTP [default: 127.0.0.1:7171]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,

    /// Begin a new cluster with this Server, if the data directory is empty
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<bool>,

    /// Join the cluster of this Server, if the data directory is empty; repeatable, any one that answers does
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub join: Vec<String>,

    /// Join token of role server; better in the environment (P2P_SERVER_TOKEN) or in token_file
    #[arg(long, value_name = "TOKEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,

    /// File with the join token
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,

    /// File with the secret this Server's CA keys are encrypted under; keys in the clear are encrypted when it is
    /// given for the first time. The secret itself may be in the environment, P2P_CA_SECRET
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_file: Option<PathBuf>,

    /// The secret itself: for the environment alone, a command line is seen by everybody
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret: Option<String>,

    /// Certificate of a CA of your own (PEM, ECDSA P-256, CA:TRUE), for the cluster that --bootstrap begins
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<PathBuf>,

    /// Its key (PEM); read once, and kept in the data directory from then on
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_key: Option<PathBuf>,

    /// error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,

    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<String>,
}

/// What a Server runs with. Immutable.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Its data directory.
    pub data: PathBuf,
    /// What people call it; `None`: as stored, else the host's name.
    pub name: Option<String>,
    /// Its Id; `None`: as stored, else drawn.
    pub id: Option<NodeId>,
    /// Its room or region; empty when not set.
    pub zone: String,
    /// Where the API port is bound.
    pub listen: SocketAddr,
    /// Where others reach the API port; empty: derived from `listen`.
    pub advertise: Vec<HostPort>,
    /// Where health and metrics are served.
    pub ops: SocketAddr,
    /// Where the registry is served over HTTP.
    pub registry: SocketAddr,
    /// Begin a new cluster when the data directory is empty and no introducer takes this Server.
    pub bootstrap: bool,
    /// Introducers, tried in this order.
    pub join: Vec<HostPort>,
    /// The token to join with.
    pub token: Option<Token>,
    /// What the CA keys are encrypted under; `None`: in the clear.
    pub ca_secret: Option<CaSecret>,
    /// Certificate and key of the CA to found a cluster with; `None`: a new one is made.
    pub own_ca: Option<(PathBuf, PathBuf)>,
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
    pub fn validate(self) -> Result<ServerConfig, BadSetting> {
        let data = self.data.ok_or_else(|| {
            bad("data", "no data directory is given: add --data DIR, for example --data /var/lib/p2p-server")
        })?;
        let token = join_token(NodeKind::Server, self.token.as_deref(), self.token_file.as_deref())?;
        if !self.join.is_empty() && token.is_none() {
            return Err(bad(
                "join",
                "joining needs a token: `p2p-server token create --role server` prints one",
            ));
        }
        let own_ca = match (self.ca_cert, self.ca_key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (Some(_), None) => return Err(bad("ca_key", "--ca-cert needs the CA's key: --ca-key FILE")),
            (None, Some(_)) => {
                return Err(bad("ca_cert", "--ca-key needs the CA's certificate: --ca-cert FILE"));
            }
        };
        let ca_secret = secret(
            ("ca_secret", "ca_secret_file"),
            self.ca_secret.as_deref(),
            self.ca_secret_file.as_deref(),
        )?;
        name("name", self.name.as_deref())?;
        name("zone", self.zone.as_deref())?;
        if self.advertise.len() > Member::ADDRESSES_MAX {
            return Err(bad("advertise", format!("at most {} addresses", Member::ADDRESSES_MAX)));
        }
        Ok(ServerConfig {
            data,
            name: self.name,
            id: self.id.as_deref().map(|text| own_id(NodeKind::Server, text)).transpose()?,
            zone: self.zone.unwrap_or_default(),
            // Servers are the public hosts of a cluster: every interface.
            listen: socket("listen", self.listen.as_deref(), (Ipv4Addr::UNSPECIFIED, 7400))?,
            advertise: host_ports("advertise", &self.advertise)?,
            // Health, metrics and the registry say much and ask for no credentials: loopback only.
            ops: socket("ops", self.ops.as_deref(), (Ipv4Addr::LOCALHOST, 7480))?,
            registry: socket("registry", self.registry.as_deref(), (Ipv4Addr::LOCALHOST, 7171))?,
            bootstrap: self.bootstrap.unwrap_or(false),
            join: host_ports("join", &self.join)?,
            token,
            ca_secret,
            own_ca,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> RawConfig {
        RawConfig { data: Some("/data".into()), ..RawConfig::default() }
    }

    #[test]
    fn defaults_are_closed_where_no_credentials_are_asked() {
        let config = minimal().validate().unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:7400");
        assert!(config.ops.ip().is_loopback());
        assert!(config.registry.ip().is_loopback());
        assert!(!config.bootstrap);
    }

    #[test]
    fn each_wrong_setting_is_named() {
        for (raw, setting) in [
            (RawConfig::default(), "data"),
            (RawConfig { id: Some("S1".into()), ..minimal() }, "id"),
            (RawConfig { id: Some("C6ba7b810-9dad-11d1-80b4-00c04fd430c8".into()), ..minimal() }, "id"),
            (RawConfig { listen: Some("localhost".into()), ..minimal() }, "listen"),
            (RawConfig { join: vec!["h:1".into()], ..minimal() }, "join"),
            (RawConfig { token: Some("x".into()), ..minimal() }, "token"),
            (RawConfig { name: Some("x".repeat(200)), ..minimal() }, "name"),
            (RawConfig { log_level: Some("loud".into()), ..minimal() }, "log_level"),
            (RawConfig { advertise: vec!["::1".into()], ..minimal() }, "advertise"),
            (RawConfig { ca_secret: Some("short".into()), ..minimal() }, "ca_secret"),
            (RawConfig { ca_secret_file: Some("/no/such/file".into()), ..minimal() }, "ca_secret_file"),
            (RawConfig { ca_cert: Some("f".into()), ..minimal() }, "ca_key"),
            (RawConfig { ca_key: Some("f".into()), ..minimal() }, "ca_cert"),
        ] {
            assert_eq!(raw.validate().unwrap_err().setting, setting);
        }
    }
}
