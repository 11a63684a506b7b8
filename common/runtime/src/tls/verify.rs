//! Verifiers of what a node shows: a pinned key, else a chain to what we trust, without a host name.
//!
//! | the shown (Id, key) is | chain | dates |
//! |---|---|---|
//! | pinned here | not looked at | not looked at |
//! | not pinned, to a Server's node face | must verify | not looked at: who may do what is decided behind |
//! | not pinned, to a Peer or by the side that dialled | must verify | must hold |
//! | shown to one who enrols: all it has is a CA's fingerprint | must verify | not looked at: its clock may be anything |
//! | shown to the command line on the Server's own host | must verify, and the host name | not looked at: it says what is wrong |
//!
//! That the other side holds the key it shows is proved in every case. What a pinned node showed in spite of its dates or
//! chain is looked at after the handshake, see [`Credentials`](super::Credentials). Source: SPEC I5.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use p2p_common::{KeyHash, NodeId};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::provider;
use crate::identity::{CaFingerprint, CertificateDates, PeerIdentity};

/// Which nodes are known by their keys.
pub trait Pins: Send + Sync + 'static {
    /// Whether `key_hash` is the key `id` is bound to, as far as this node was told.
    fn is_pinned(&self, id: NodeId, key_hash: KeyHash) -> bool;
}

impl<F: Fn(NodeId, KeyHash) -> bool + Send + Sync + 'static> Pins for F {
    fn is_pinned(&self, id: NodeId, key_hash: KeyHash) -> bool {
        self(id, key_hash)
    }
}

/// The pins in use, replaceable.
pub(super) struct PinsInUse(ArcSwap<Box<dyn Pins>>);

impl PinsInUse {
    pub(super) fn none() -> Self {
        PinsInUse(ArcSwap::from_pointee(Box::new(|_, _| false)))
    }

    pub(super) fn set(&self, pins: impl Pins) {
        self.0.store(Arc::new(Box::new(pins)));
    }

    pub(super) fn has(&self, identity: &PeerIdentity) -> bool {
        self.0.load().is_pinned(identity.node_id, identity.key_hash)
    }
}

impl fmt::Debug for PinsInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PinsInUse")
    }
}

/// The server sent no CA certificate that the token names.
#[derive(Debug, thiserror::Error)]
#[error("the server's CA is not the one the token was made for")]
pub(super) struct OtherCa;

/// What a certificate is shown as.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    /// The one that was dialled.
    Server,
    /// The one that dialled.
    Client,
}

/// Whether a certificate is signed by one of some CAs.
#[derive(Debug)]
pub(super) struct Chains {
    roots: RootCertStore,
    clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Chains {
    pub(super) fn new(roots: RootCertStore) -> Result<Arc<Self>, Error> {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        let algorithms = provider().signature_verification_algorithms;
        Ok(Arc::new(Chains { roots, clients, algorithms }))
    }

    /// Verifies chain and dates.
    fn verify(&self, side: Side, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        // Nodes are signed by the CA itself: no certificate in between has a say.
        match side {
            Side::Client => self.clients.verify_client_cert(certificate, &[], now).map(|_| ()),
            Side::Server => {
                let certificate = ParsedCertificate::try_from(certificate)?;
                let (roots, algorithms) = (&self.roots, self.algorithms.all);
                verify_server_cert_signed_by_trust_anchor(&certificate, roots, &[], now, algorithms)
            }
        }
    }

    /// Verifies a chain alone that may lead over `intermediates`.
    fn verify_server_whenever(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let dates = CertificateDates::of(certificate).map_err(bad)?;
        let then = UnixTime::since_unix_epoch(Duration::from_secs(dates.not_before.secs()));
        let certificate = ParsedCertificate::try_from(certificate)?;
        let (roots, algorithms) = (&self.roots, self.algorithms.all);
        verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, then, algorithms)
    }

    /// Verifies the chain alone.
    pub(super) fn verify_whenever(&self, side: Side, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        self.verify(side, certificate, beginning(certificate)?)
    }
}

/// When a certificate begins to hold.
fn beginning(certificate: &CertificateDer<'_>) -> Result<UnixTime, Error> {
    let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
    let dates = CertificateDates::of(certificate).map_err(bad)?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(dates.not_before.secs())))
}

/// What counts of a certificate whose key is not pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unpinned {
    /// Chain and dates.
    Strict,
    /// The chain.
    Whenever,
}

/// Verifies nodes of the cluster; who the node is, is read from its certificate again afterwards.
#[derive(Debug)]
pub(super) struct NodeVerifier {
    pub(super) chains: Arc<Chains>,
    pub(super) pins: Arc<PinsInUse>,
    pub(super) unpinned: Unpinned,
}

impl NodeVerifier {
    fn verify(&self, side: Side, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        if PeerIdentity::of_certificate(certificate).is_ok_and(|identity| self.pins.has(&identity)) {
            return Ok(());
        }
        match self.unpinned {
            Unpinned::Strict => self.chains.verify(side, certificate, now),
            Unpinned::Whenever => self.chains.verify_whenever(side, certificate),
        }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(Side::Server, end_entity, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.chains.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.chains.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A node has one certificate and shows it in any case.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(Side::Client, end_entity, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.chains.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.chains.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.algorithms.supported_schemes()
    }
}

/// Verifies a Server by the CA it sends along, recognised by its fingerprint: all that a token knows.
#[derive(Debug)]
pub(super) struct FingerprintVerifier {
    fingerprint: CaFingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl FingerprintVerifier {
    pub(super) fn new(fingerprint: CaFingerprint) -> Arc<Self> {
        let algorithms = provider().signature_verification_algorithms;
        Arc::new(FingerprintVerifier { fingerprint, algorithms })
    }
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates.iter().find(|ca| CaFingerprint::of(ca) == self.fingerprint);
        let other = || CertificateError::Other(OtherError(Arc::new(OtherCa)));
        let mut roots = RootCertStore::empty();
        roots.add(ca.ok_or_else(other)?.clone().into_owned())?;
        // The CA may have changed since the token was made: then the one before has signed a certificate for the one now,
        // which is sent along.
        Chains::new(roots)?.verify_server_whenever(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies a Server by chain and host name, whatever the dates say.
#[derive(Debug)]
pub(super) struct DatelessVerifier(Arc<WebPkiServerVerifier>);

impl DatelessVerifier {
    pub(super) fn new(roots: RootCertStore) -> Result<Arc<Self>, Error> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        Ok(Arc::new(DatelessVerifier(verifier.map_err(|e| Error::General(e.to_string()))?)))
    }
}

impl ServerCertVerifier for DatelessVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let then = beginning(end_entity)?;
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, then)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
