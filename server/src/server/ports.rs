//! The ports of a Server: how many connections they hold, binding them, and where others reach them.

use std::net::SocketAddr;

use p2p_common::addr::HostPort;
use p2p_common::member::Member;
use p2p_runtime::admin;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::grpc::ListenLimits;
use p2p_runtime::interfaces::own_addresses;
use p2p_runtime::tcp;
use tokio::net::TcpListener;

use crate::config::ServerConfig;

/// Files for everything but the ports' connections: the store, logs, and some ten connections to each other Server.
const FILES_RESERVED: u64 = 512;

/// The bound ports.
pub(super) struct Ports {
    pub(super) api: TcpListener,
    pub(super) ops: TcpListener,
    pub(super) registry: TcpListener,
}

/// How many connections the ports hold, so that all of them fit into the files that may be open.
#[derive(Debug, Clone, Copy)]
pub(super) struct PortLimits {
    pub(super) api: ListenLimits,
    /// Of the operations port, and of the registry's.
    pub(super) http: usize,
}

impl PortLimits {
    pub(super) fn within(files: u64) -> Self {
        let http = admin::connections_within(files);
        let api = ListenLimits::within(files.saturating_sub(FILES_RESERVED + 2 * http as u64));
        PortLimits { api, http }
    }
}

/// Binds all ports.
///
/// # Errors
/// When one cannot be had.
pub(super) fn bind(config: &ServerConfig) -> Result<Ports, Exit> {
    let listen = |addr, setting| tcp::listen(addr, setting).map_err(|e| Exit::failed(chain(&e)));
    Ok(Ports {
        api: listen(config.listen, "--listen")?,
        ops: listen(config.ops, "--ops")?,
        registry: listen(config.registry, "--registry")?,
    })
}

/// Where others reach the API port: as configured, else as bound, else at every interface.
pub(super) fn advertised(config: &ServerConfig, listen: SocketAddr) -> Result<Vec<HostPort>, Exit> {
    if !config.advertise.is_empty() {
        return Ok(config.advertise.clone());
    }
    if !listen.ip().is_unspecified() {
        return Ok(vec![HostPort::from(listen)]);
    }
    let own =
        own_addresses().map_err(|e| Exit::failed(format!("cannot list the network interfaces: {e}")))?;
    let fits = |ip: std::net::IpAddr| listen.is_ipv6() || ip.is_ipv4();
    let usable = own.into_iter().filter(|address| fits(address.ip));
    let addresses: Vec<_> =
        usable.map(|address| HostPort::from(SocketAddr::new(address.ip, listen.port()))).collect();
    if addresses.is_empty() {
        return Err(Exit::usage(
            "no interface has an address others could reach: give --advertise HOST:PORT",
        ));
    }
    Ok(addresses.into_iter().take(Member::ADDRESSES_MAX).collect())
}

/// The listening address as this host dials it.
pub(super) fn local(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_all_ports_fit_into_the_files() {
        for files in [1_024, 4_096, 20_000, 1 << 20, u64::MAX] {
            let limits = PortLimits::within(files);
            let all = limits.api.files() + 2 * limits.http as u64 + FILES_RESERVED;
            assert!(all <= files && limits.http > 0 && limits.api.nodes_max >= 256, "{files}: {limits:?}");
        }
        // The usual limit of a service under systemd, and what tests have.
        assert!(PortLimits::within(20_000).api.nodes_max > 16_000);
    }
}
