//! Verifiers of what a server shows: a chain to what we trust, without a host name.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::provider;
use crate::identity::CaFingerprint;

/// What a chain must end at.
#[derive(Debug)]
enum Anchor {
    /// One of these CAs.
    Trusted(RootCertStore),
    /// A CA the server sends along, recognised by its fingerprint: all that a token knows.
    Fingerprint(CaFingerprint),
}

/// The server sent no CA certificate that the token names.
#[derive(Debug, thiserror::Error)]
#[error("the server's CA is not the one the token was made for")]
pub(super) struct OtherCa;

/// Verifies the chain of a node; who the node is, is read from its certificate afterwards.
#[derive(Debug)]
pub(super) struct ChainVerifier {
    anchor: Anchor,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ChainVerifier {
    pub(super) fn trusting(roots: RootCertStore) -> Arc<Self> {
        Self::new(Anchor::Trusted(roots))
    }

    pub(super) fn by_fingerprint(fingerprint: CaFingerprint) -> Arc<Self> {
        Self::new(Anchor::Fingerprint(fingerprint))
    }

    fn new(anchor: Anchor) -> Arc<Self> {
        let algorithms = provider().signature_verification_algorithms;
        Arc::new(ChainVerifier { anchor, algorithms })
    }
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let of_server;
        let roots = match &self.anchor {
            Anchor::Trusted(roots) => roots,
            Anchor::Fingerprint(fingerprint) => {
                let ca = intermediates.iter().find(|ca| CaFingerprint::of(ca) == *fingerprint);
                let other = || CertificateError::Other(OtherError(Arc::new(OtherCa)));
                let mut roots = RootCertStore::empty();
                roots.add(ca.ok_or_else(other)?.clone().into_owned())?;
                of_server = roots;
                &of_server
            }
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        // Nodes are signed by the CA itself: no certificate in between has a say.
        verify_server_cert_signed_by_trust_anchor(&certificate, roots, &[], now, self.algorithms.all)?;
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
