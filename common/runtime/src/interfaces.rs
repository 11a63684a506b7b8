//! The addresses of this host, from its real interfaces (SPEC C1, P2).

use std::io;
use std::net::IpAddr;

/// How far an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressScope {
    /// Anywhere, as far as its form says.
    Global,
    /// Inside a site: RFC 1918, shared (RFC 6598) and unique local (RFC 4193) addresses.
    Private,
    /// On one wire.
    LinkLocal,
    /// This host alone.
    Loopback,
}

impl AddressScope {
    /// The scope an address has by its form.
    pub fn of(ip: IpAddr) -> Self {
        let (loopback, link_local, private) = match ip {
            IpAddr::V4(v4) => {
                let [a, b, ..] = v4.octets();
                let shared = a == 100 && (64..128).contains(&b);
                (v4.is_loopback(), v4.is_link_local(), v4.is_private() || shared)
            }
            IpAddr::V6(v6) => (v6.is_loopback(), v6.is_unicast_link_local(), v6.is_unique_local()),
        };
        match (loopback, link_local, private) {
            (true, _, _) => AddressScope::Loopback,
            (_, true, _) => AddressScope::LinkLocal,
            (_, _, true) => AddressScope::Private,
            _ => AddressScope::Global,
        }
    }
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress {
    /// How far it reaches.
    pub scope: AddressScope,
    /// The address.
    pub ip: IpAddr,
    /// The interface it is on.
    pub interface: String,
}

/// The addresses of the interfaces that are up, widest scope first, in a fixed order. Loopback and link-local
/// ones only when there is nothing else.
///
/// # Errors
/// When the system does not tell.
pub fn own_addresses() -> io::Result<Vec<InterfaceAddress>> {
    let interfaces = if_addrs::get_if_addrs()?;
    let up = interfaces.into_iter().filter(|interface| interface.is_oper_up() || interface.is_loopback());
    Ok(select(up.map(|interface| (interface.ip(), interface.name)).collect()))
}

fn select(found: Vec<(IpAddr, String)>) -> Vec<InterfaceAddress> {
    let mut addresses: Vec<_> = found
        .into_iter()
        .filter(|(ip, _)| !ip.is_unspecified() && !ip.is_multicast())
        .map(|(ip, interface)| InterfaceAddress { scope: AddressScope::of(ip), ip, interface })
        .collect();
    addresses.sort();
    addresses.dedup_by(|a, b| a.ip == b.ip);
    let reaches = |address: &InterfaceAddress| address.scope <= AddressScope::Private;
    if addresses.iter().any(reaches) {
        addresses.retain(reaches);
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(addresses: &[&str]) -> Vec<String> {
        let found = addresses.iter().map(|ip| (ip.parse().unwrap(), "eth0".to_owned())).collect();
        select(found).into_iter().map(|address| address.ip.to_string()).collect()
    }

    #[test]
    fn scopes_by_form() {
        for (ip, scope) in [
            ("127.0.0.1", AddressScope::Loopback),
            ("::1", AddressScope::Loopback),
            ("169.254.1.1", AddressScope::LinkLocal),
            ("fe80::1", AddressScope::LinkLocal),
            ("10.1.2.3", AddressScope::Private),
            ("172.31.0.1", AddressScope::Private),
            ("172.32.0.1", AddressScope::Global),
            ("100.64.0.1", AddressScope::Private),
            ("100.128.0.1", AddressScope::Global),
            ("fd00::1", AddressScope::Private),
            ("2001:db8::1", AddressScope::Global),
        ] {
            assert_eq!(AddressScope::of(ip.parse().unwrap()), scope, "{ip}");
        }
    }

    #[test]
    fn widest_first_and_local_ones_only_alone() {
        let all = ["127.0.0.1", "fe80::1", "10.0.0.2", "192.0.2.9", "10.0.0.2", "2001:db8::1"];
        assert_eq!(chosen(&all), ["192.0.2.9", "2001:db8::1", "10.0.0.2"]);
        assert_eq!(chosen(&["::1", "127.0.0.1", "169.254.0.1"]), ["169.254.0.1", "127.0.0.1", "::1"]);
        assert!(chosen(&["0.0.0.0", "ff02::1"]).is_empty());
    }

    #[test]
    fn this_host_has_an_address() {
        assert!(!own_addresses().unwrap().is_empty());
    }
}
