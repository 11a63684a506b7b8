//! TLS between nodes, and towards clients that are none: who is on the other side, before a byte is believed.
//!
//! One TCP port has several faces; the client names the one it wants by ALPN, the ClientHello is read before
//! a configuration is chosen:
//!
//! | ALPN | face | client certificate | versions | offered by |
//! |---|---|---|---|---|
//! | `p2p-node/1` | RPCs between nodes | required | 1.3 | the Server's API port |
//! | `h2` | enrolment, operators, readers | none | 1.2, 1.3 | the Server's API port |
//! | `p2p-tunnel/1` | tunnels between Peers | required | 1.3 | the Peer's port |
//! | `p2p-link/1` | mesh links between Peers | required | 1.3 | the Peer's port |
//!
//! Nodes are verified by the key their Id is pinned to, which [`Credentials`] are told, else by chain to the trust bundle
//! and by dates, and always by the Id in the certificate, never by host name.
//! rustls may skip a verifier when it resumes a session, so sessions are not resumed, and [`PeerIdentity`] is
//! read and checked here after every handshake. Established connections keep what they were opened with when
//! [`Credentials`] are replaced.
//!
//! It does not decide who may do what, and does not know revocations. SPEC I4, I7; `docs/decisions/0002`.
//!
//! [`PeerIdentity`]: crate::identity::PeerIdentity

mod accept;
mod connect;
mod credentials;
mod prefixed;
mod tunnel;
mod verify;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use p2p_common::grants::Grants;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

use crate::identity::{PeerIdentity, grants_of_certificate};

pub use accept::{AcceptError, Accepted, AcceptedTunnel, ServerTls};
pub use connect::{ConnectError, Connector, Dialed, DialedTunnel, Expect};
pub use credentials::{Credentials, ShownCertificate};
pub use prefixed::Prefixed;
pub use tokio_rustls::{client::TlsStream as ClientTlsStream, server::TlsStream as ServerTlsStream};
pub use tunnel::TunnelStream;
#[cfg(any(fuzzing, test))]
pub use tunnel::fuzzing;
pub use verify::Pins;

/// ALPN of the node faces.
pub const ALPN_NODE: &[u8] = b"p2p-node/1";
/// ALPN of the public faces: what every gRPC client says.
pub const ALPN_PUBLIC: &[u8] = b"h2";
/// ALPN of tunnels between Peers.
pub const ALPN_TUNNEL: &[u8] = b"p2p-tunnel/1";
/// ALPN of mesh links between Peers.
pub const ALPN_LINK: &[u8] = b"p2p-link/1";

/// A handshake takes three round trips and a few milliseconds of work; 10 s leave room for retransmissions
/// on a bad path and bound what a silent client can hold.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The first byte comes with the connection, in the same round trip from who has something to say.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(3);
/// A ClientHello is one or two packets.
pub const CLIENT_HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection was opened for, and who is on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// RPCs between nodes.
    Node(PeerIdentity),
    /// Enrolment, operators and readers: nobody is known yet.
    Public,
    /// A tunnel of a Peer.
    Tunnel(PeerIdentity),
    /// A mesh link of a Peer.
    Link(PeerIdentity),
}

impl Face {
    /// The node on the other side; `None` on the public face.
    pub fn identity(&self) -> Option<PeerIdentity> {
        match self {
            Face::Node(identity) | Face::Tunnel(identity) | Face::Link(identity) => Some(*identity),
            Face::Public => None,
        }
    }
}

/// What the certificate of the other side of an established connection says that its node may do.
pub fn shown_grants(connection: &rustls::CommonState) -> Grants {
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    certificate.map_or(Grants::none(), |certificate| grants_of_certificate(certificate))
}

/// The cryptography in use. AES-128-GCM stands first: as safe here and cheaper per byte (clients' order decides).
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}
